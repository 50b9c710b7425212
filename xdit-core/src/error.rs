//! The one error type of the workspace: a message and a remedy.

use std::fmt;

/// The kind of an error: an impossible request, a failure while carrying it out, or the caller's wish to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is invalid (a bad option, size or value). The CLI exits with code 2.
    Usage,
    /// A valid request failed (a missing file, a corrupt checkpoint). The CLI exits with code 1.
    Failure,
    /// The caller [cancelled](crate::run::cancel::Cancel) the request. The CLI exits with code 130.
    Cancelled,
}

/// A one-sentence message that names the values, and a hint with a remedy.
///
/// Printed as `message` followed by `hint: …` on a line of its own. Messages start in lower case, put values in
/// backticks and have no final full stop.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error about an invalid request.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, message: message.into(), hint: None }
    }

    /// Creates an error about a failure while carrying out a valid request.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failure, message: message.into(), hint: None }
    }

    /// Creates the error of a request that its caller cancelled.
    pub fn cancelled() -> Self {
        Self { kind: ErrorKind::Cancelled, message: "cancelled".to_owned(), hint: None }
    }

    /// Replaces the message.
    #[must_use]
    pub fn reworded(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Converts the error to a failure, for an error found while carrying out a request that was itself valid.
    #[must_use]
    pub fn into_failure(self) -> Self {
        Self { kind: ErrorKind::Failure, ..self }
    }

    /// Adds a remedy.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
