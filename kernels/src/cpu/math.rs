//! Exponentials and activations on vectors.
//!
//! The coefficients are minimax fits (Remez) of the relative error over the reduced interval; coefficients that must
//! be exact were fixed. The tests bound the errors against f64.

#[cfg(test)]
mod tests;

use super::lanes::Lanes;

/// 2 √(2/π), and 0.044715 times that: see [`gelu_tanh`].
pub(crate) const GELU_TANH: [f32; 2] = [1.595_769, 0.071_354_814];

/// The `p` of [`gelu`].
pub(crate) const GELU_TAIL_SLOPE: f32 = 0.3;

/// The polynomial of [`gelu`].
pub(crate) const GELU_TAIL: [f32; 11] = [
    0.5,
    -1.329_807_2,
    1.447_952_4,
    -0.699_165_5,
    -0.058_708_12,
    0.163_076_33,
    -0.013_194_664,
    0.060_969_93,
    -0.144_262_83,
    0.093_752_51,
    -0.020_612_828,
];

/// `c[0] + c[1] x + c[2] x² + …`
#[inline(always)]
fn polynomial<V: Lanes, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut sum = V::splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, V::splat(coefficients[i]));
    }
    sum
}

/// `2ˣ`, accurate to 1.5 ulp if the result is normal. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<V: Lanes>(x: V) -> V {
    const FIT: [f32; 7] = [
        1.0,
        std::f32::consts::LN_2,
        0.240_226_5,
        0.055_502_997,
        0.009_618_294,
        0.001_340_923_1,
        1.539_410_4e-4,
    ];
    // Beyond these bounds the result is 0 or infinity anyway.
    let x = x.clamp(-160.0, 160.0);
    let whole = x.round();
    polynomial(x - whole, FIT).scale(whole)
}

/// `eˣ`, accurate to 1.25 ulp if the result is normal. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    const FIT: [f32; 7] = [1.0, 1.0, 0.499_999_94, 0.166_665_21, 0.041_668_34, 0.008_368_64, 0.001_381_687_3];
    // ln 2 in two parts; the first has few enough digits that its product with a small integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-110.0, 110.0);
    let whole = (x * V::splat(std::f32::consts::LOG2_E)).round();
    let rest = whole.mul_add(V::splat(-LN_2[0]), x);
    let rest = whole.mul_add(V::splat(-LN_2[1]), rest);
    polynomial(rest, FIT).scale(whole)
}

/// `x σ(slope · x)`.
#[inline(always)]
pub(crate) fn swish<V: Lanes>(x: V, slope: V) -> V {
    x.div(V::splat(1.0) + exp(V::splat(0.0) - slope * x))
}

/// `x σ(x)`.
#[inline(always)]
pub(crate) fn silu<V: Lanes>(x: V) -> V {
    swish(x, V::splat(1.0))
}

/// [`silu`] without a division. Below -80, where it is within 1e-32 of zero, it stays as it is there.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[inline(always)]
pub(crate) fn silu_by_reciprocal<V: Lanes>(x: V) -> V {
    let x = V::splat(-80.0).max(x);
    x * (V::splat(1.0) + exp(V::splat(0.0) - x)).reciprocal()
}

/// `x σ(1.702 x)`.
#[inline(always)]
pub(crate) fn quick_gelu<V: Lanes>(x: V) -> V {
    swish(x, V::splat(1.702))
}

/// `½ x (1 + tanh u)` with `u = √(2/π) (x + 0.044715 x³)`, computed as `x σ(2u)`, which avoids cancellation where the
/// hyperbolic tangent is near -1.
#[inline(always)]
pub(crate) fn gelu_tanh<V: Lanes>(x: V) -> V {
    swish(x, (x * x).mul_add(V::splat(GELU_TANH[1]), V::splat(GELU_TANH[0])))
}

/// `x Φ(x)`, computed as `max(x, 0) - |x| Φ(-|x|)`, which avoids cancellation for negative `x`.
///
/// # Source
/// The tail as `exp(-a²/2)` times a polynomial in `1 / (1 + p a)` is Abramowitz and Stegun 26.2.17. This version has
/// more terms and uses `1 - 1 / (1 + p a)`, which is exact near 0; it fits to 4e-9.
#[inline(always)]
pub(crate) fn gelu<V: Lanes>(x: V) -> V {
    let zero = V::splat(0.0);
    // Beyond 16 the tail is 0, which must not be multiplied by infinity.
    let a = x.max(zero - x).clamp(0.0, 16.0);
    let scaled = a * V::splat(GELU_TAIL_SLOPE);
    let tail = polynomial(scaled.div(scaled + V::splat(1.0)), GELU_TAIL) * exp(a * a * V::splat(-0.5));
    (zero - a).mul_add(tail, zero.max(x))
}
