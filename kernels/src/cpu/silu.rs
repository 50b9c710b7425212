//! SiLU over vectors.

use super::lanes::Lanes;

/// `x σ(x)`, within 4e-7 of it relatively (and within 1e-36 where it vanishes).
#[inline(always)]
pub(crate) fn silu<V: Lanes>(x: V) -> V {
    let one = V::splat(1.0);
    x.div(one + exp(V::splat(0.0) - x))
}

/// `eˣ` of `x` clamped to where both the result and its exponent are normal numbers.
///
/// Reduces `x = n ln 2 + r` with ln 2 in two parts, and takes a polynomial of `eʳ` for |r| ≤ ln 2 / 2.
///
/// # Source
/// Cephes, `expf.c` (its minimax coefficients).
#[inline(always)]
fn exp<V: Lanes>(x: V) -> V {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(V::splat(-0.693_359_4), x);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let mut p = V::splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1] {
        p = p.mul_add(r, V::splat(coefficient));
    }
    let p = p.mul_add(r * r, r + V::splat(1.0));
    p * n.exp2_integer()
}

/// `silu(x · scale + shift)` of `from` into `to`.
///
/// # Safety
/// `from` must be valid for reading and `to` for writing `len` elements; they may be the same, but not overlap
/// otherwise.
#[inline(always)]
pub(crate) unsafe fn norm_act<V: Lanes>(
    from: *const f32,
    to: *mut f32,
    len: usize,
    scale: f32,
    shift: f32,
    act: bool,
) {
    let (scale, shift) = (V::splat(scale), V::splat(shift));
    let apply = |x: V| {
        let y = x.mul_add(scale, shift);
        if act { silu(y) } else { y }
    };
    let whole = len / V::N * V::N;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + N ≤ len`.
        unsafe { apply(V::load(from.add(i))).store(to.add(i)) };
        i += V::N;
    }
    if whole < len {
        let mut rest = [0.0f32; 16];
        // SAFETY: the rest is shorter than `N ≤ 16`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.add(whole), rest.as_mut_ptr(), len - whole);
            apply(V::load(rest.as_ptr())).store(rest.as_mut_ptr());
            std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(whole), len - whole);
        }
    }
}
