//! HTML character references, with the rules of Python's `html` module.

use std::sync::LazyLock;

use fancy_regex::{Captures, Regex};

use super::codepages::WINDOWS_1252;

/// The characters of a named entity, written as `amp;` or, where HTML allows it, as `amp`.
pub(super) fn named(name: &str) -> Option<&'static str> {
    htmlize::ENTITIES.get(format!("&{name}").as_bytes()).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

/// The value of a decimal (`65`) or hexadecimal (`x41`) reference; numbers that are too large give the largest
/// value.
pub(super) fn number(digits: &str) -> u32 {
    let (digits, radix) = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    u32::from_str_radix(digits, radix).unwrap_or(u32::MAX)
}

/// The intended character of a number in U+0080..U+009F: its character in Windows-1252.
pub(super) fn c1(number: u32) -> Option<char> {
    (0x80..0xa0).contains(&number).then(|| WINDOWS_1252.chars().nth(number as usize - 0x80)).flatten()
}

/// `html.unescape`.
///
/// # Source
/// `html/__init__.py` of CPython 3.11.
pub(super) fn unescape(text: &str) -> String {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| super::python::regex(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)"));
    REFERENCE.replace_all(text, |captures: &Captures| reference(&captures[1])).into_owned()
}

fn reference(body: &str) -> String {
    if let Some(digits) = body.strip_prefix('#') {
        let number = number(digits.trim_end_matches(';'));
        return match number {
            0 => "\u{fffd}".into(),
            _ => match c1(number).or(char::from_u32(number)) {
                Some(c) if is_dropped(c) => String::new(),
                c => c.unwrap_or('\u{fffd}').into(),
            },
        };
    }
    if let Some(text) = named(body) {
        return text.into();
    }
    // The longest name that needs no semicolon and has at least two characters is used.
    let prefixes = body.char_indices().map(|(end, _)| end).skip(2).collect::<Vec<_>>();
    let found = prefixes.into_iter().rev().find_map(|end| Some((named(&body[..end])?, &body[end..])));
    found.map_or_else(|| format!("&{body}"), |(text, rest)| format!("{text}{rest}"))
}

/// Control characters and noncharacters, which references must not produce.
fn is_dropped(c: char) -> bool {
    matches!(c, '\x01'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{fdd0}'..='\u{fdef}')
        || c as u32 & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes_like_python() {
        let cases = [
            ("&amp;&lt&notit;&notin;", "&<¬it;∉"),
            ("&#65;&#x42&#0;&#150;&#xd800;&#x110000;&#1;&#129;&#13;", "AB\u{fffd}–\u{fffd}\u{fffd}\u{81}\r"),
            ("&#99999999999999;&nosuch; & &&#;", "\u{fffd}&nosuch; & &&#;"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text), expected);
        }
    }
}
