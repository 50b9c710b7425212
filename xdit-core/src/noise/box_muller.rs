//! Sixteen normal values from sixteen uniform ones, with the rounding of PyTorch's AVX2 kernel.
//!
//! The kernel evaluates the polynomials of Cephes in f32. Its source multiplies and adds separately, but the
//! compiler fuses most pairs, and the choice of pairs affects the result. Each `mul_add` below therefore stands for
//! a fused pair in the published binaries, and each plain product for a separately rounded one. `tests/noise.rs`
//! compares the values with PyTorch.

use std::f32::consts::{FRAC_1_SQRT_2, TAU};

/// The number of values transformed together: the first half gives radii, the second half angles.
pub(super) const BLOCK: usize = 16;

/// Applies the Box-Muller transform in place: uniform values in [0, 1) become standard normal.
///
/// # Source
/// PyTorch 2.15, `aten/src/ATen/native/cpu/DistributionTemplates.h` (`NormalFill16<float>`).
pub(super) fn normal_block(block: &mut [f32; BLOCK]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (u1, u2) in radii.iter_mut().zip(angles) {
        // 1 - u1 is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * ln(1.0 - *u1)).sqrt();
        let (sin, cos) = sin_cos(TAU * *u2);
        // Adding the mean, which is zero, turns -0 into +0.
        (*u1, *u2) = (radius * cos + 0.0, radius * sin + 0.0);
    }
}

/// The natural logarithm of a normal, positive number.
///
/// # Source
/// Cephes `logf`, as in PyTorch's `aten/src/ATen/native/cpu/avx_mathfun.h` (`log256_ps`).
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    /// ln 2 in two parts, the first short enough that its multiples are exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

    // x = m · 2^e with m in [√½, √2); the polynomial is in m - 1.
    let bits = x.to_bits();
    let half_to_one = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let exponent = (bits >> 23) as i32 - 126;
    let (m, e) = if half_to_one < FRAC_1_SQRT_2 {
        (half_to_one - 1.0 + half_to_one, (exponent - 1) as f32)
    } else {
        (half_to_one - 1.0, exponent as f32)
    };

    let z = m * m;
    let y = P[1..].iter().fold(P[0], |y, p| y.mul_add(m, *p)) * m;
    let y = y.mul_add(z, e * LN_2.1);
    let y = (-z).mul_add(0.5, y);
    e.mul_add(LN_2.0, m + y)
}

/// Sine and cosine of a non-negative angle of at most a few turns.
///
/// # Source
/// Cephes `sinf` and `cosf`, as in PyTorch's `aten/src/ATen/native/cpu/avx_mathfun.h` (`sincos256_ps`).
fn sin_cos(x: f32) -> (f32, f32) {
    /// -π/4 in three parts, so that whole multiples can be subtracted exactly.
    const MINUS_FRAC_PI_4: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
    const FRAC_4_PI: f32 = 1.273_239_5;
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];

    // The octant rounded to an even number, so that its multiple of π/4 is the nearest multiple of π/2.
    let octant = ((x * FRAC_4_PI) as i32 + 1) & !1;
    let x = MINUS_FRAC_PI_4.iter().fold(x, |x, part| (octant as f32).mul_add(*part, x));

    let z = x * x;
    let cos = COS[0].mul_add(z, COS[1]).mul_add(z, COS[2]) * z;
    let cos = cos.mul_add(z, -(z * 0.5)) + 1.0;
    let sin = SIN[0].mul_add(z, SIN[1]).mul_add(z, SIN[2]) * z;
    let sin = sin.mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let flip_sin = octant & 4 != 0;
    let flip_cos = (octant - 2) & 4 == 0;
    (if flip_sin { -sin } else { sin }, if flip_cos { -cos } else { cos })
}
