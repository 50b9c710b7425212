//! A failure inside a model: of a transfer, or of reading what is read at each use.
//!
//! The maths around them returns no `Result`: a model file would be full of question marks for something it cannot do
//! anything about. What fails unwinds this rank to [`catch`], which makes an error of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xdit_comm::{Cause, Pending, RunError};

use crate::error::{Error, Result};

struct Failed(Error);

/// What arrives. Unwinds to [`catch`] if nothing does, with an error that names operation, group and rank.
pub fn wait<T: Send + 'static>(pending: Pending<T>) -> T {
    pending.wait().unwrap_or_else(|error| fail(Error::failure(error.to_string())))
}

/// Unwinds to [`catch`].
pub fn fail(error: Error) -> ! {
    // Not a panic: nothing is printed, the launcher tells the first cause.
    resume_unwind(Box::new(Failed(error)))
}

/// Runs `work`; what failed in it, deep inside a model, becomes its error.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
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
