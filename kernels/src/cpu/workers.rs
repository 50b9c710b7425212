//! Parallel loops with memory of their own.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Products of numbers that are computed sooner than another thread wakes up.
pub(crate) const TOO_FEW_TO_SHARE: usize = 1 << 18;

/// Calls `work` for each of `0..count`, on as many threads as rayon has, each with its own `scratch`; on this thread if
/// `products`, those of all calls together, are [too few](TOO_FEW_TO_SHARE).
///
/// Which thread does what is left open; `work` must not depend on it.
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
