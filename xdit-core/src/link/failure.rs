//! A failure inside a model: of a transfer, or of reading what is read at each use.
//!
//! The maths around them returns no `Result`: a model file would be full of question marks for something it cannot do
//! anything about. What fails unwinds this rank to [`catch`], which makes an error of it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xdit_comm::{Cause, RunError};

use crate::error::{Error, Result};

struct Failed(Error);

/// What a transfer gives. Unwinds to [`catch`] if it failed, with an error that names operation, group and rank.
pub fn must<T>(result: Result<T, xdit_comm::Error>) -> T {
    result.unwrap_or_else(|error| fail(Error::failure(error.to_string())))
}

thread_local! {
    /// How many calls of [`catch`] this thread is in.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Unwinds to [`catch`].
///
/// # Panics
/// Outside of `catch`: in a model that is used without the engine. The panic has the error as its message.
pub fn fail(error: Error) -> ! {
    assert!(CATCHING.get() > 0, "{error}");
    // Not a panic: nothing is printed, the launcher tells the first cause.
    resume_unwind(Box::new(Failed(error)))
}

/// Runs `work`; what failed in it, deep inside a model, becomes its error.
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

/// What made a run of ranks fail.
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
        // An earlier failure that was caught changes nothing.
        drop(catch(|| -> Result<()> { fail(Error::failure("caught")) }));
        let payload = catch_unwind(|| fail(Error::failure("out of paper"))).unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().map(String::as_str), Some("out of paper"));
    }
}
