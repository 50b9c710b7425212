//! Repairs wrongly decoded text, and characters left behind by copying.
//!
//! The result equals that of `ftfy.fix_text` with its default options. The detection of wrong decoding and its
//! character categories are taken from ftfy.
//!
//! # Source
//! ftfy 6.3.1 by Robyn Speer (Apache-2.0): `fix_and_explain` and `_fix_encoding_one_step_and_explain` in
//! `ftfy/__init__.py`, `ftfy/fixes.py`, `ftfy/badness.py`, `ftfy/chardata.py`.

use std::borrow::Cow;
use std::sync::LazyLock;

use fancy_regex::{Captures, Regex};
use unicode_normalization::UnicodeNormalization;

use super::badness::{is_bad, looks_like_utf8};
use super::codepages::{CODEPAGES, WINDOWS_1252};
use super::{entities, python};

/// `ftfy.fix_text`, line by line.
pub(super) fn fix_text(text: &str) -> String {
    // From a line with a `<` on, entities belong to markup and stay.
    let mut unescape = true;
    let mut fix = |line: &str| {
        unescape &= !line.contains('<');
        fix_line(line, unescape)
    };
    text.split_inclusive('\n').map(&mut fix).collect()
}

fn fix_line(line: &str, unescape: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let before = text.clone();
        if unescape {
            text = unescape_html(&text);
        }
        text = fix_encoding(text);
        text = text.chars().map(fix_c1).collect();
        text = fix_characters(&text);
        text = ["\r\n", "\r", "\u{2028}", "\u{2029}", "\u{85}"]
            .iter()
            .fold(text, |text, eol| text.replace(eol, "\n"));
        static ESCAPE: LazyLock<Regex> = LazyLock::new(|| python::regex(r"\x1b\[(?:\d|;)*[a-zA-Z]"));
        text = python::replace(&ESCAPE, &text, "");
        text.retain(|c| !is_control(c));
        text = text.nfc().collect();
        if text == before {
            return text;
        }
    }
}

/// Replaces entities that end in a semicolon, including names in capitals that stand for a capital letter.
fn unescape_html(text: &str) -> String {
    static ENTITY: LazyLock<Regex> = LazyLock::new(|| python::regex("&(#?[0-9A-Za-z]{1,24};)"));
    let replacement = |captures: &Captures| {
        let (whole, body) = (&captures[0], &captures[1]);
        if body.starts_with('#') {
            let text = entities::unescape(whole);
            return if text.contains(';') { whole.to_owned() } else { text };
        }
        let lower = body.to_lowercase();
        match entities::named(body) {
            Some(text) => text.to_owned(),
            None if body == body.to_uppercase() && entities::unescape(whole) == whole => {
                entities::named(&lower).map_or_else(|| whole.to_owned(), str::to_uppercase)
            }
            None => whole.to_owned(),
        }
    };
    ENTITY.replace_all(text, replacement).into_owned()
}

/// Replaces ligatures, full-width and half-width characters, and curly quotes.
fn fix_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'Ĳ' => out.push_str("IJ"),
            'ĳ' => out.push_str("ij"),
            'ŉ' => out.push_str("'n"),
            'Ǳ' | 'ǲ' | 'ǳ' | 'Ǆ' | 'ǅ' | 'ǆ' | 'Ǉ' | 'ǈ' | 'ǉ' | 'Ǌ' | 'ǋ' | 'ǌ' => {
                out.extend([c].into_iter().nfkc())
            }
            'ﬅ' => out.push_str("ſt"),
            'ﬀ'..='ﬆ' => out.extend([c].into_iter().nfkc()),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend([c].into_iter().nfkc()),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            _ => out.push(c),
        }
    }
    out
}

fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// Converts a C1 control to the character of the same byte in Windows-1252.
fn fix_c1(c: char) -> char {
    entities::c1(c as u32).unwrap_or(c)
}

fn fix_encoding(mut text: String) -> String {
    while let Some(fixed) = fix_encoding_once(&text)
        && fixed != text
    {
        text = fixed;
    }
    text
}

/// Reverses one layer of wrong decoding, if the text appears to have one.
fn fix_encoding_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    for codepage in CODEPAGES.iter() {
        let Some(mut bytes) = codepage.encode(text) else { continue };
        if codepage.loses_a0 {
            bytes = restore_a0(bytes);
        }
        if codepage.marks_loss {
            static LOSS: LazyLock<regex::bytes::Regex> = LazyLock::new(|| byte_regex(LOSSY_UTF8));
            bytes = LOSS.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if let Some(fixed) = decode(&bytes) {
            return Some(fixed);
        }
    }
    let fixed = fix_inconsistent(text);
    if fixed != text {
        return Some(fixed);
    }
    // Latin-1 that was meant to be Windows-1252, unless it contains a byte that Windows-1252 leaves unassigned.
    let is_latin_1 = text.chars().all(|c| c <= '\u{ff}');
    let is_unassigned = |c| WINDOWS_1252.contains(c) && ('\u{80}'..'\u{a0}').contains(&c);
    if is_latin_1 && !text.chars().any(is_unassigned) {
        let fixed: String = text.chars().map(fix_c1).collect();
        if fixed != text {
            return Some(fixed);
        }
    }
    Some(text.chars().map(fix_c1).collect())
}

/// Repairs separate runs that look like UTF-8, in a text that mixes encodings.
fn fix_inconsistent(text: &str) -> String {
    let replacement = |captures: &Captures| {
        let run = &captures[0];
        // Only a part of the text, so that the recursion ends.
        match run.len() < text.len() && is_bad(run) {
            true => fix_encoding(run.to_owned()),
            false => run.to_owned(),
        }
    };
    looks_like_utf8().try_replacen(text, 0, replacement).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// Sequences that would be valid UTF-8 if a space were byte A0.
const ALTERED_UTF8: &str = r"[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ";

/// UTF-8 sequences in which bytes were replaced by a mark.
const LOSSY_UTF8: &str = r"[\xc2-\xdf]\x1a|[\xc2-\xc3]\?|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";

fn byte_regex(pattern: &str) -> regex::bytes::Regex {
    regex::bytes::RegexBuilder::new(pattern).unicode(false).build().expect("a valid pattern")
}

/// Restores byte A0 where it became a space in the middle of a character.
fn restore_a0(bytes: Vec<u8>) -> Vec<u8> {
    static ALTERED: LazyLock<regex::bytes::Regex> = LazyLock::new(|| byte_regex(ALTERED_UTF8));
    if !ALTERED.is_match(&bytes) {
        return bytes;
    }
    // The word `à` keeps the space after it, except in Portuguese contractions.
    let mut spaced = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        spaced.push(byte);
        if bytes[i..].starts_with(b"\xc3 ") {
            let next = &bytes[i + 2..];
            if ![&b" "[..], b"quele", b"quela", b"quilo", b"s "].iter().any(|word| next.starts_with(word)) {
                spaced.push(0xa0);
            }
        }
    }
    let restore = |captures: &regex::bytes::Captures| {
        captures[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect::<Vec<u8>>()
    };
    ALTERED.replace_all(&spaced, restore).into_owned()
}

/// Decodes UTF-8, including the variants that encode surrogates separately and U+0000 as two bytes.
fn decode(mut bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    while !bytes.is_empty() {
        let special = bytes.iter().enumerate().position(|(i, &byte)| {
            byte == 0xc0 || (byte == 0xed && bytes.get(i + 1).is_some_and(|next| *next >= 0xa0))
        });
        let (plain, rest) = bytes.split_at(special.unwrap_or(bytes.len()));
        text.push_str(std::str::from_utf8(plain).ok()?);
        bytes = match *rest {
            [] => rest,
            [0xc0, 0x80, ref rest @ ..] => {
                text.push('\0');
                rest
            }
            [
                0xed,
                a @ 0xa0..=0xaf,
                b @ 0x80..=0xbf,
                0xed,
                c @ 0xb0..=0xbf,
                d @ 0x80..=0xbf,
                ref rest @ ..,
            ] => {
                let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
                let code =
                    bits(a, 0xf, 16) + bits(b, 0x3f, 10) + bits(c, 0xf, 6) + bits(d, 0x3f, 0) + 0x10000;
                text.push(char::from_u32(code)?);
                rest
            }
            _ => return None,
        };
    }
    Some(text)
}
