//! Types of elements in memory. All arithmetic is in f32; 16-bit numbers are widened as they are read and rounded once
//! as they are written.

#[cfg(test)]
mod tests;

use burn::tensor::{bf16, f16};

use super::lanes::{Lanes, Vectorized};

/// f32, bf16 or f16.
pub(crate) trait Element: burn::tensor::Element + bytemuck::Pod {
    /// A vector of the first elements.
    ///
    /// # Safety
    /// `from` must be valid for reading `V::N` elements.
    unsafe fn load<V: Lanes>(from: *const Self) -> V;

    /// Writes a vector, rounded to the nearest, ties to even.
    ///
    /// # Safety
    /// `to` must be valid for writing `V::N` elements.
    unsafe fn store<V: Lanes>(vector: V, to: *mut Self);

    /// The first elements of `from`, and `fill` for those that it lacks.
    #[inline(always)]
    fn load_or<V: Lanes>(from: &[Self], fill: f32) -> V {
        if from.len() >= V::N {
            // SAFETY: just checked.
            return unsafe { Self::load(from.as_ptr()) };
        }
        let mut narrow = [Self::zeroed(); 16];
        narrow[..from.len()].copy_from_slice(from);
        let mut wide = [0.0f32; 16];
        // SAFETY: `N ≤ 16`.
        unsafe { Self::load::<V>(narrow.as_ptr()).store(wide.as_mut_ptr()) };
        V::load_or(&wide[..from.len()], fill)
    }

    /// Writes as many elements as `to` has room for.
    #[inline(always)]
    fn store_some<V: Lanes>(vector: V, to: &mut [Self]) {
        if to.len() >= V::N {
            // SAFETY: just checked.
            return unsafe { Self::store(vector, to.as_mut_ptr()) };
        }
        let mut whole = [Self::zeroed(); 16];
        // SAFETY: `N ≤ 16`.
        unsafe { Self::store(vector, whole.as_mut_ptr()) };
        // In parts, for the reason that `Lanes::store_some` has.
        let mut at = 0;
        for len in [8, 4, 2, 1] {
            if to.len() & len != 0 {
                to[at..at + len].copy_from_slice(&whole[at..at + len]);
                at += len;
            }
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(vector: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { vector.store(to) }
    }
    #[inline(always)]
    fn load_or<V: Lanes>(from: &[Self], fill: f32) -> V {
        V::load_or(from, fill)
    }
    #[inline(always)]
    fn store_some<V: Lanes>(vector: V, to: &mut [Self]) {
        vector.store_some(to);
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(vector: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { vector.store_bf16(to) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<V: Lanes>(vector: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { vector.store_f16(to) }
    }
}

/// Widens all elements of `from` into `to`.
pub(crate) struct Widen<'a, E> {
    pub from: &'a [E],
    pub to: &'a mut [f32],
}

impl<E: Element> Vectorized for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.from.len()).step_by(V::N) {
            E::load_or::<V>(&self.from[at..], 0.0).store_some(&mut self.to[at..]);
        }
    }
}

/// Rounds all elements of `from` into `to`.
pub(crate) struct Narrow<'a, E> {
    pub from: &'a [f32],
    pub to: &'a mut [E],
}

impl<E: Element> Vectorized for Narrow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.from.len()).step_by(V::N) {
            E::store_some(V::load_or(&self.from[at..], 0.0), &mut self.to[at..]);
        }
    }
}
