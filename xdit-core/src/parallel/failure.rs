//! A failed transfer inside a model.
//!
//! The maths between two transfers returns no `Result`: a model file would be full of question marks for something
//! it cannot do anything about. A transfer that fails unwinds this rank to [`catch`], which makes an error of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use xdit_comm::{Cause, Pending, RunError};

use crate::error::{Error, Result};

struct Failed(xdit_comm::Error);

/// What arrives. Unwinds to [`catch`] if nothing does.
pub fn wait<T: Send + 'static>(pending: Pending<T>) -> T {
    // Not a panic: nothing is printed, the launcher tells the first cause.
    pending.wait().unwrap_or_else(|error| resume_unwind(Box::new(Failed(error))))
}

/// Runs `work`; a transfer that failed in it becomes an error that names operation, group and rank.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => match payload.downcast::<Failed>() {
            Ok(failed) => Err(Error::failure(failed.0.to_string())),
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
