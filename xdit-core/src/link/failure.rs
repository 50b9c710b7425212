//! Failures inside a model: of a transfer, or of a file that is read at each use.
//!
//! Model code returns no `Result`: it would be full of question marks for failures that it cannot handle. Instead, a
//! failure unwinds the rank to [`catch`], which turns it into an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xdit_comm::{Cause, RunError};

use crate::error::{Error, Result};

struct Failed(Error);

/// The value of `result`. If it is an error, unwinds to [`catch`] with its text, which names operation, group and rank.
pub fn must<T>(result: Result<T, xdit_comm::Error>) -> T {
    result.unwrap_or_else(|error| fail(Error::failure(error.to_string())))
}

thread_local! {
    /// The number of calls of [`catch`] that this thread is inside of.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Unwinds to [`catch`] with `error`.
///
/// # Panics
/// With the error as the message if the call is outside `catch`, as in a model that is used without the engine.
pub fn fail(error: Error) -> ! {
    assert!(CATCHING.get() > 0, "{error}");
    // Unlike a panic, this prints nothing: the launcher reports the first cause.
    resume_unwind(Box::new(Failed(error)))
}

/// Runs `work`, and returns a failure deep inside it as an error.
///
/// # Errors
/// Those of `work`, and failures that unwind from it.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    CATCHING.set(CATCHING.get() + 1);
    let end = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    match end {
        Ok(result) => result,
        Err(payload) => match payload.downcast::<Failed>() {
            Ok(failed) => Err(failed.0),
            Err(payload) => resume_unwind(payload),
        },
    }
}

/// The first cause of a failed run.
pub fn first_cause(error: RunError<Error>) -> Error {
    match &error.cause {
        Cause::Failed(cause) => cause.clone(),
        _ => Error::failure(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_becomes_the_error_of_the_nearest_catch() {
        let inner = || catch(|| -> Result<()> { fail(Error::failure("inner")) });
        let outer = catch(|| -> Result<()> {
            assert_eq!(inner().unwrap_err().message(), "inner");
            fail(Error::failure("outer"))
        });
        assert_eq!(outer.unwrap_err().message(), "outer");
    }

    #[test]
    fn a_failure_outside_is_a_panic_with_its_message() {
        // A failure that was caught earlier makes no difference.
        drop(catch(|| -> Result<()> { fail(Error::failure("caught")) }));
        let payload = catch_unwind(|| fail(Error::failure("out of paper"))).unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().map(String::as_str), Some("out of paper"));
    }
}
