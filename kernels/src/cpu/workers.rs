//! Parallel loops with scratch memory for each thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// The number of products up to which a task is finished before another thread wakes up.
pub(crate) const TOO_FEW_TO_SHARE: usize = 1 << 18;

/// Calls `work` for each of `0..count` on all threads of rayon, each with its own `scratch`. Runs on this thread alone
/// if `products`, the total of all calls, is [too small](TOO_FEW_TO_SHARE).
///
/// The assignment of calls to threads is unspecified; `work` must not depend on it.
pub(crate) fn for_each<S>(
    count: usize,
    products: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) + Sync,
) {
    if products < TOO_FEW_TO_SHARE {
        let mut scratch = scratch();
        return (0..count).for_each(|i| work(&mut scratch, i));
    }
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

/// Memory that tasks write to in disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct PerTask<T>(pub *mut T);

// SAFETY: the pointer may be sent to other threads; each write through it must justify that it is exclusive.
unsafe impl<T: Send> Send for PerTask<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for PerTask<T> {}

impl<T> PerTask<T> {
    /// The pointer. It is a method so that closures capture the whole struct.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}
