//! Transfers in flight.

use std::fmt;

use crate::Result;

/// A transfer in flight; it keeps what it sends alive and what it received until it is waited for.
///
/// Pendings may be waited for in any order, or on another thread.
#[must_use = "a transfer is done, and its failure seen, only once it has been waited for"]
pub struct Pending<T> {
    finish: Box<dyn FnOnce() -> Result<T> + Send>,
}

impl<T: Send + 'static> Pending<T> {
    /// A transfer that `finish` completes: it may block, but never longer than the limit on waits.
    pub fn new(finish: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self { finish: Box::new(finish) }
    }

    /// A transfer that is over already, well or not.
    pub fn ready(result: Result<T>) -> Self {
        Self::new(move || result)
    }

    /// Blocks until the transfer is complete.
    ///
    /// # Errors
    /// What went wrong since the operation was issued, its arguments included, as an [`Error`](crate::Error) that
    /// names operation, group and rank.
    pub fn wait(self) -> Result<T> {
        (self.finish)()
    }

    /// The same transfer with `f` applied to what arrives, on the waiting thread.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        Pending::new(move || self.wait().map(f))
    }
}

/// Waits for `pendings`, in order, up to the first that fails: each of the others may take the limit on waits again.
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
