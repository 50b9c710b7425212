//! Parallel loops with memory of their own.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Calls `work` for each of `0..count`, on as many threads as rayon has, each with its own `scratch`.
///
/// Which thread does what is left open; `work` must not depend on it.
pub(crate) fn for_each<S>(count: usize, scratch: impl Fn() -> S + Sync, work: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < count);
    (0..rayon::current_num_threads().min(count)).into_par_iter().for_each(|_| {
        let Some(mut i) = take() else { return };
        let mut scratch = scratch();
        loop {
            work(&mut scratch, i);
            match take() {
                Some(next) => i = next,
                None => return,
            }
        }
    });
}

/// Memory that tasks write to in parts of which no two overlap.
#[derive(Clone, Copy)]
pub(crate) struct PerTask<T>(pub *mut T);

// SAFETY: the pointer may go to other threads; whoever writes through it has to say why nobody else does.
unsafe impl<T: Send> Send for PerTask<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for PerTask<T> {}

impl<T> PerTask<T> {
    /// The pointer. A method, so that closures capture the whole.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// Zeros that start on a cache line.
pub(crate) struct Scratch {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let data = vec![0.0f32; len + 15];
        // Not a multiple of four bytes only if `Vec` were misaligned.
        let start = data.as_ptr().align_offset(64).min(15);
        Self { data, start, len }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }
}
