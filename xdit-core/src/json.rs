//! Reads JSON as written by Python, with bare `Infinity`, `-Infinity` and `NaN`.
//!
//! Published `scheduler_config.json` files contain `"lambda_min_clipped": -Infinity`, which is not valid JSON. The
//! three tokens are read as strings, and [`number`] converts these strings back to numbers.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, files};

/// The most bytes of a JSON file; the largest published ones, indices of shards, have less than one MiB.
const MAX_BYTES: u64 = 64 << 20;

/// The tokens of Python's `json` module that are not valid JSON; a token precedes any other that is its suffix.
const NON_FINITE: [(&str, f64); 3] =
    [("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY), ("NaN", f64::NAN)];

/// Reads a JSON file.
///
/// # Errors
/// If the file cannot be [read](files::read) or is not JSON. The message names the file.
pub fn read_json(path: impl AsRef<Path>) -> Result<Value> {
    let path = path.as_ref();
    let invalid = |error: String| {
        Error::failure(format!("`{}` is not valid JSON: {error}", path.display()))
            .hint("the file may be incomplete: download it again")
    };
    let text =
        String::from_utf8(files::read(path, MAX_BYTES)?).map_err(|error| invalid(error.to_string()))?;
    // Editors on Windows mark UTF-8 with a character that is no part of JSON.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    parse_json(text).map_err(|error| invalid(error.to_string()))
}

/// Parses JSON with bare `Infinity`, `-Infinity` and `NaN` allowed.
///
/// # Errors
/// Returns the error of `serde_json`; its columns count the three tokens as if they were quoted.
pub fn parse_json(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(&quote_non_finite(text))
}

/// The number in `value`; the strings `"Infinity"`, `"-Infinity"` and `"NaN"` count as numbers.
///
/// ```
/// use xdit_core::json::{number, parse_json};
///
/// let config = parse_json(r#"{"lambda_min_clipped": -Infinity}"#).unwrap();
/// assert_eq!(number(&config["lambda_min_clipped"]), Some(f64::NEG_INFINITY));
/// ```
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(name) => NON_FINITE.iter().find(|(token, _)| token == name).map(|(_, number)| *number),
        _ => value.as_f64(),
    }
}

/// Puts quotes around the bare tokens that are outside strings.
fn quote_non_finite(text: &str) -> Cow<'_, str> {
    if !NON_FINITE.iter().any(|(token, _)| text.contains(token)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let token = NON_FINITE.iter().map(|(token, _)| *token).find(|token| rest.starts_with(token));
        let taken = match (next, token) {
            ('"', _) => string_len(rest),
            (_, Some(token)) => token.len(),
            _ => next.len_utf8(),
        };
        let (piece, after) = rest.split_at(taken);
        match token {
            Some(token) => quoted.extend(["\"", token, "\""]),
            None => quoted.push_str(piece),
        }
        rest = after;
    }
    Cow::Owned(quoted)
}

/// The length of the string literal at the start of `text`, including its quotes; all of `text` if it is
/// unterminated.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    let inside = text.bytes().skip(1).position(|byte| match byte {
        _ if std::mem::take(&mut escaped) => false,
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    });
    inside.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_tokens_become_numbers() {
        let value = parse_json(r#"{"a": -Infinity, "b": [Infinity,NaN, 1.5], "c": -2}"#).unwrap();
        assert_eq!(number(&value["a"]), Some(f64::NEG_INFINITY));
        assert_eq!(number(&value["b"][0]), Some(f64::INFINITY));
        assert!(number(&value["b"][1]).is_some_and(f64::is_nan));
        assert_eq!(number(&value["b"][2]), Some(1.5));
        assert_eq!(number(&value["c"]), Some(-2.0));
    }

    #[test]
    fn tokens_inside_strings_stay() {
        let text = r#"{"NaN": "to Infinity", "quo\"te NaN": "\\", "é": "-Infinity and beyond", "x": NaN}"#;
        let value = parse_json(text).unwrap();
        assert_eq!(value["NaN"], "to Infinity");
        assert_eq!(value["quo\"te NaN"], "\\");
        assert_eq!(value["é"], "-Infinity and beyond");
        assert!(number(&value["x"]).is_some_and(f64::is_nan));
    }

    #[test]
    fn invalid_json_stays_an_error() {
        for text in ["", "{", r#"{"a": +Infinity}"#, r#"{"a": Infinityy}"#, r#"{"a": "NaN}"#, r#"{"a": nan}"#]
        {
            assert!(parse_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_not_numbers() {
        assert_eq!(number(&Value::from("inf")), None);
        assert_eq!(number(&Value::Bool(true)), None);
        assert_eq!(number(&Value::Null), None);
    }

    #[test]
    fn errors_name_the_file() {
        let missing = read_json("no/such/file.json").unwrap_err();
        assert!(missing.message().contains("`no/such/file.json`"), "{missing}");
    }
}
