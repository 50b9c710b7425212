//! A scale, a shift and SiLU over whole arrays.

use super::{lanes::Lanes, math::silu};

/// `x · scale + shift`, then SiLU if `act`.
///
/// A closure could not be `#[inline(always)]`, and if it is not inlined, neither is any instruction in it.
#[inline(always)]
fn apply<V: Lanes>(x: V, scale: V, shift: V, act: bool) -> V {
    let y = x.mul_add(scale, shift);
    if act { silu(y) } else { y }
}

/// Applies [`apply`] to `from` and writes the results to `to`.
///
/// # Safety
/// `from` must be valid for reading and `to` for writing `len` elements. They may be equal, but must not overlap
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
    let whole = len / V::N * V::N;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + N ≤ len`.
        unsafe { apply(V::load(from.add(i)), scale, shift, act).store(to.add(i)) };
        i += V::N;
    }
    if whole < len {
        let mut rest = [0.0f32; 16];
        // SAFETY: the rest is shorter than `N ≤ 16`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.add(whole), rest.as_mut_ptr(), len - whole);
            apply(V::load(rest.as_ptr()), scale, shift, act).store(rest.as_mut_ptr());
            std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(whole), len - whole);
        }
    }
}
