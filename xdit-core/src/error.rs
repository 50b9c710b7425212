//! The one error type of the workspace: a sentence, and what to do about it.

use std::fmt;

/// Whether the caller asked for something impossible, something went wrong while doing it, or the caller ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong (a bad option, size or value). The CLI exits with code 2.
    Usage,
    /// The request was fine but could not be carried out (a missing file, a corrupt checkpoint). The CLI exits with code 1.
    Failure,
    /// The caller [cancelled](crate::run::cancel::Cancel) the request. The CLI exits with code 130.
    Cancelled,
}

/// What went wrong, in one sentence that carries the values, and a hint that says the way out.
///
/// Printed as `message` and, on a line of its own, `hint: …`. Messages start in lower case, put values in
/// backticks and end without a full stop.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error in what was asked for.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, message: message.into(), hint: None }
    }

    /// An error in carrying it out.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failure, message: message.into(), hint: None }
    }

    /// The end of a request that its caller cancelled.
    pub fn cancelled() -> Self {
        Self { kind: ErrorKind::Cancelled, message: "cancelled".to_owned(), hint: None }
    }

    /// The same error, met while carrying a request out: what was asked for is not to blame.
    #[must_use]
    pub fn into_failure(self) -> Self {
        Self { kind: ErrorKind::Failure, ..self }
    }

    /// Adds the way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Which of the kinds this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence without the hint.
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
