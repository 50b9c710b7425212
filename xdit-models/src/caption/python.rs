//! Functions of Python's `str`, `re` and `urllib` that differ slightly from their counterparts in Rust.

use std::borrow::Cow;

use fancy_regex::{Regex, RegexBuilder};

/// The most steps back in one search. A prompt of ordinary words takes a few for each character; text made for it would take
/// their square.
const MAX_STEPS_BACK: usize = 4_000_000;

/// Compiles a pattern written in the dialect of Python's `re`.
///
/// In Python, `\w` is a letter, a number or `_` (but not a combining mark), `\s` includes the four separators from
/// U+001C on, `\b` is a boundary between `\w` and any other character, and `$` also matches before a final line
/// break.
pub(super) fn regex(pattern: &str) -> Regex {
    let pattern = pattern
        .replace(r"\b", r"(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))")
        .replace(r"\w", r"[\p{L}\p{N}_]")
        .replace(r"\W", r"[^\p{L}\p{N}_]")
        .replace(r"\s", r"[\p{White_Space}\x1c-\x1f]")
        .replace(r"\S", r"[^\p{White_Space}\x1c-\x1f]")
        .replace('$', r"(?=\n?\z)");
    let regex = RegexBuilder::new(&pattern).backtrack_limit(MAX_STEPS_BACK).build();
    regex.unwrap_or_else(|error| panic!("`{pattern}`: {error}"))
}

/// `re.sub(regex, with, text)`.
///
/// If the search needs more steps or memory than it is allowed, the text stays unchanged.
pub(super) fn replace(regex: &Regex, text: &str, with: &str) -> String {
    regex.try_replacen(text, 0, with).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `urllib.parse.unquote_plus`: `+` becomes a space, and `%41` becomes `A`.
///
/// Each run of ASCII is decoded separately, so an escaped byte never completes a character that was not escaped.
pub(super) fn unquote_plus(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut out = String::with_capacity(text.len());
    for run in text.as_bytes().chunk_by(|a, b| a.is_ascii() == b.is_ascii()) {
        out.push_str(&String::from_utf8_lossy(&unquote(run)));
    }
    out
}

fn unquote(mut bytes: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    while let Some((&first, rest)) = bytes.split_first() {
        bytes = rest;
        match *rest {
            [high, low, ref rest @ ..] if first == b'%' => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    bytes = rest;
                }
                _ => out.push(first),
            },
            _ => out.push(first),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquotes_runs_of_ascii() {
        assert_eq!(unquote_plus("a+b%20c%2B%e2%82%ac%zz%4"), "a b c+€%zz%4");
        assert_eq!(unquote_plus("%e2%82é%ac"), "\u{fffd}é\u{fffd}");
    }

    #[test]
    fn words_and_spaces_are_those_of_python() {
        // A combining mark ends a word, but a circled number does not; U+001F is white space, but U+200B is not.
        assert_eq!(replace(&regex(r"\b\w+\b"), "e\u{301}x ②a", "_"), "_\u{301}_ _");
        assert_eq!(replace(&regex(r"\s+"), "a\u{1f}\u{85} b\u{200b}c", "_"), "a_b\u{200b}c");
        assert_eq!(replace(&regex(r"b$"), "ab\n", "_"), "a_\n");
        assert_eq!(strip("\u{1c} a\u{feff} \u{3000}"), "a\u{feff}");
    }
}
