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

    /// Replaces the message by one that is made from it.
    #[must_use]
    pub fn reworded_with(self, reword: impl FnOnce(&str) -> String) -> Self {
        Self { message: reword(&self.message), ..self }
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
    /// Both parts are [`printable`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

/// The most characters of a message.
const MAX_SHOWN: usize = 2_000;

/// `text` on one line and of limited length, for people: values from files and from the network may contain anything.
/// Control characters, and others that move or hide text, are escaped; a long text loses its middle.
pub fn printable(text: &str) -> String {
    let hides = |char| matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut shown = String::with_capacity(text.len().min(4 * MAX_SHOWN));
    let count = text.chars().count();
    let left_out = match count > MAX_SHOWN {
        // The end of a message often has the reason.
        true => MAX_SHOWN * 3 / 4..count - MAX_SHOWN / 4,
        false => count..count,
    };
    for (index, char) in text.chars().enumerate() {
        if index == left_out.start {
            shown += &format!("… ({} more characters) …", left_out.len());
        }
        if left_out.contains(&index) {
            continue;
        }
        match char.is_control() || hides(char) {
            true => shown.extend(char.escape_default()),
            false => shown.push(char),
        }
    }
    shown
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_on_one_line() {
        let error = Error::usage("`a\nhint: lie\u{1b}[2J\u{202e}` is not valid").hint("b\tc");
        assert_eq!(error.to_string(), "`a\\nhint: lie\\u{1b}[2J\\u{202e}` is not valid\nhint: b\\tc");
        assert_eq!(printable("größer als 日本"), "größer als 日本");
        let long = printable(&format!("begin {} end", "x".repeat(1 << 20)));
        assert!(long.starts_with("begin xx") && long.ends_with("xx end"), "{long}");
        assert!(long.contains("xx… (1046586 more characters) …xx") && long.chars().count() < 2 * MAX_SHOWN);
    }
}
