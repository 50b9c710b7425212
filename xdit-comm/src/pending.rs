//! Transfers in flight.

use std::fmt;

use crate::Result;

/// A transfer in flight, which owns the buffers it sends and receives until it is waited for.
///
/// Pendings may be waited for in any order, or on another thread.
#[must_use = "a transfer is done, and its failure seen, only once it has been waited for"]
pub struct Pending<T> {
    finish: Box<dyn FnOnce() -> Result<T> + Send>,
}

impl<T: Send + 'static> Pending<T> {
    /// A transfer that `finish` completes. `finish` may block, but not longer than the limit on waits.
    pub fn new(finish: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self { finish: Box::new(finish) }
    }

    /// A transfer that has already succeeded or failed.
    pub fn ready(result: Result<T>) -> Self {
        Self::new(move || result)
    }

    /// Blocks until the transfer is complete.
    ///
    /// # Errors
    /// Any failure since the operation was issued, wrong arguments included. The [`Error`](crate::Error) names the
    /// operation, the group and the rank.
    pub fn wait(self) -> Result<T> {
        (self.finish)()
    }

    /// The same transfer with `f` applied to its result, on the waiting thread.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        Pending::new(move || self.wait().map(f))
    }
}

/// Waits for `pendings` in order and stops at the first failure: each further one could take the limit on waits again.
///
/// # Errors
/// The first error, in order.
pub fn wait_all<T: Send + 'static>(pendings: impl IntoIterator<Item = Pending<T>>) -> Result<Vec<T>> {
    pendings.into_iter().map(Pending::wait).collect()
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}
