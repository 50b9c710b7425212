//! The text of an HTML fragment, as Beautiful Soup extracts it with Python's own parser.
//!
//! Python's parser does not follow HTML5: it handles an unfinished tag, a stray `&#` or a `<` before a space
//! differently from a parser that follows the standard. Its scanner is therefore reproduced here step by step.
//! Attributes and the tree are omitted, because only the text is needed.
//!
//! # Source
//! `HTMLParser.goahead` in `html/parser.py` and `_markupbase.py` of CPython 3.11, `BeautifulSoupHTMLParser` in
//! `bs4/builder/_htmlparser.py` and `BeautifulSoup` in `bs4/__init__.py` of Beautiful Soup 4.15.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::{entities, python};

/// Tags that never have content.
const VOID: &[&str] = &[
    "area", "base", "br", "col", "embed", "hr", "img", "input", "keygen", "link", "menuitem", "meta",
    "param", "source", "track", "wbr", "basefont", "bgsound", "command", "frame", "image", "isindex",
    "nextid", "spacer",
];
/// Tags whose contents do not count as text.
const NOT_TEXT: &[&str] = &["rt", "rp", "style", "script", "template"];
const KEEPS_SPACES: &[&str] = &["pre", "textarea"];

/// The most bytes that are scanned for ends of constructs. Markup made for it would be scanned from each `<` to the end.
const MAX_SCANNED: usize = 1 << 22;

/// `BeautifulSoup(markup, features="html.parser").text`; `None` if that raises `ParserRejectedMarkup`, or if the markup
/// takes far more work than its length.
pub(super) fn text(markup: &str) -> Option<String> {
    let mut parser = Parser { raw: markup, at: 0, scanned: 0, cdata: None, soup: Soup::default() };
    parser.go_ahead(false)?;
    parser.go_ahead(true)?;
    parser.soup.end_data(Kind::Text);
    Some(parser.soup.text)
}

struct Parser<'a> {
    raw: &'a str,
    /// The position of the scanner; everything before it has been processed.
    at: usize,
    /// The number of bytes scanned for ends of constructs.
    scanned: usize,
    /// The open `script` or `style` element, if any: inside it, only its end tag is markup.
    cdata: Option<&'static str>,
    soup: Soup,
}

/// The end of a construct, or its absence.
enum End {
    At(usize),
    Missing,
}

macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| python::regex($pattern));
    };
}

pattern!(ENTITY, r"\G&([a-zA-Z][-.a-zA-Z0-9]*)[^a-zA-Z0-9]");
pattern!(NUMBER, r"\G&#([0-9]+|[xX][0-9a-fA-F]+)[^0-9a-fA-F]");
pattern!(TAG_NAME, r"\G([a-zA-Z][^\t\n\r\f />\x00]*)(?:\s|/(?!>))*");
pattern!(
    ATTRIBUTE,
    r#"\G((?<=['"\s/])[^\s/>][^\s/=>]*)(\s*=+\s*('[^']*'|"[^"]*"|(?!['"])[^>\s]*))?(?:\s|/(?!>))*"#
);
pattern!(
    START_TAG,
    r#"\G<[a-zA-Z][^\t\n\r\f />\x00]*(?:[\s/]*(?:(?<=['"\s/])[^\s/>][^\s/=>]*(?:\s*=+\s*(?:'[^']*'|"[^"]*"|(?!['"])[^>\s]*)\s*)?(?:\s|/(?!>))*)*)?\s*"#
);
pattern!(END_TAG, r"\G</\s*([a-zA-Z][-.a-zA-Z0-9:_]*)\s*>");
pattern!(COMMENT_END, r"--\s*>");
pattern!(SECTION_NAME, r"\G[a-zA-Z][-_.a-zA-Z0-9]*\s*");
pattern!(SECTION_END, r"]\s*]\s*>");
pattern!(OFFICE_SECTION_END, r"]\s*>");
pattern!(SCRIPT_END, r"(?i)</\s*script\s*>");
pattern!(STYLE_END, r"(?i)</\s*style\s*>");

/// The first match at or after `from`, as a range.
fn find(regex: &Regex, text: &str, from: usize) -> Option<(usize, usize)> {
    regex.find_from_pos(text, from).ok().flatten().map(|found| (found.start(), found.end()))
}

impl<'a> Parser<'a> {
    /// Scans as far as possible; `end` means that no more input will follow.
    fn go_ahead(&mut self, end: bool) -> Option<()> {
        let raw = self.raw;
        while self.at < raw.len() {
            let next = match self.cdata {
                None => raw[self.at..].find(['&', '<']).map_or(raw.len(), |offset| self.at + offset),
                Some(tag) => match find(if tag == "script" { &SCRIPT_END } else { &STYLE_END }, raw, self.at)
                {
                    Some((start, _)) => start,
                    None => break,
                },
            };
            if self.at < next {
                self.soup.data(&raw[self.at..next]);
            }
            self.at = next;
            let rest = &raw[next..];
            let goes_on = match rest.as_bytes() {
                [] => false,
                [b'<', ..] => self.markup(end)?,
                [b'&', b'#', ..] => self.numeric_reference(),
                _ => self.named_reference(end),
            };
            if !goes_on {
                break;
            }
        }
        if end && self.at < raw.len() && self.cdata.is_none() {
            self.soup.data(&raw[self.at..]);
            self.at = raw.len();
        }
        Some(())
    }

    /// Handles a `<`. Returns whether to continue, or `None` if the parser rejects the document.
    fn markup(&mut self, end: bool) -> Option<bool> {
        let (raw, at) = (self.raw, self.at);
        let rest = &raw[at..];
        let construct = match rest.as_bytes() {
            [_, letter, ..] if letter.is_ascii_alphabetic() => self.start_tag(),
            [_, b'/', ..] => self.end_tag(),
            _ if rest.starts_with("<!--") => self.hidden(find(&COMMENT_END, raw, at + 4)),
            [_, b'?', ..] => self.hidden(raw[at + 2..].find('>').map(|i| (at + 2 + i, at + 3 + i))),
            [_, b'!', b'[', ..] => self.marked_section()?,
            [_, b'!', ..] => self.hidden(raw[at + 2..].find('>').map(|i| (at + 2 + i, at + 3 + i))),
            [_, _, ..] => {
                self.soup.data("<");
                End::At(at + 1)
            }
            _ => return Some(false),
        };
        self.scanned += match construct {
            End::At(end) => end - at,
            End::Missing => raw.len() - at,
        };
        if self.scanned > MAX_SCANNED {
            return None;
        }
        self.at = match construct {
            End::At(end) => end,
            End::Missing if !end => return Some(false),
            End::Missing => {
                let from = at + 1;
                let close = raw[from..].find('>').map(|i| from + i + 1);
                let stop = close.or_else(|| raw[from..].find('<').map(|i| from + i)).unwrap_or(from);
                self.soup.data(&raw[at..stop]);
                stop
            }
        };
        Some(true)
    }

    /// Handles a comment, a declaration or a processing instruction: it is not text, but it separates the strings
    /// around it.
    fn hidden(&mut self, close: Option<(usize, usize)>) -> End {
        match close {
            Some((_, end)) => {
                self.soup.end_data(Kind::Text);
                End::At(end)
            }
            None => End::Missing,
        }
    }

    fn start_tag(&mut self) -> End {
        let (raw, at) = (self.raw, self.at);
        let Some((_, stop)) = find(&START_TAG, raw, at) else { return End::Missing };
        let end = match raw.as_bytes().get(stop) {
            Some(b'>') => stop + 1,
            Some(b'/') if raw[stop..].starts_with("/>") => stop + 2,
            None | Some(b'/' | b'=' | b'a'..=b'z' | b'A'..=b'Z') => return End::Missing,
            Some(_) => stop,
        };
        let Ok(Some(name)) = TAG_NAME.captures_from_pos(raw, at + 1) else { return End::Missing };
        let tag = name[1].to_lowercase();
        let mut k = at + 1 + name[0].len();
        while k < end {
            // An attribute's name has at least one character, so a match is never empty and the loop ends.
            let Some((_, next)) = find(&ATTRIBUTE, raw, k) else { break };
            k = next;
        }
        match raw.get(k..end).map(python::strip) {
            Some(">") => {
                self.soup.start(&tag);
                if VOID.contains(&tag.as_str()) {
                    self.soup.end(&tag);
                    self.soup.closed.push(tag);
                } else {
                    self.cdata = ["script", "style"].into_iter().find(|name| *name == tag);
                }
            }
            Some("/>") => {
                self.soup.start(&tag);
                self.soup.end(&tag);
            }
            _ => self.soup.data(&raw[at..end]),
        }
        End::At(end)
    }

    fn end_tag(&mut self) -> End {
        let (raw, at) = (self.raw, self.at);
        let Some(close) = raw[at + 1..].find('>').map(|i| at + 1 + i + 1) else { return End::Missing };
        let Ok(Some(tag)) = END_TAG.captures_from_pos(raw, at) else {
            if self.cdata.is_some() {
                self.soup.data(&raw[at..close]);
                return End::At(close);
            }
            return match TAG_NAME.captures_from_pos(raw, at + 2) {
                Ok(Some(name)) => {
                    self.close(&name[1].to_lowercase());
                    // The search for `>` starts after the name and the characters matched with it.
                    let from = at + 2 + name[0].len();
                    End::At(raw[from..].find('>').map_or(close, |i| from + i + 1))
                }
                _ if raw[at..].starts_with("</>") => End::At(at + 3),
                _ => self.hidden(Some((close - 1, close))),
            };
        };
        let name = tag[1].to_lowercase();
        if self.cdata.is_some_and(|open| open != name) {
            self.soup.data(&raw[at..close]);
            return End::At(close);
        }
        self.close(&name);
        self.cdata = None;
        End::At(close)
    }

    /// Closes a tag, unless it is an empty element that has already closed itself.
    fn close(&mut self, tag: &str) {
        match self.soup.closed.iter().position(|closed| closed == tag) {
            Some(i) => drop(self.soup.closed.remove(i)),
            None => self.soup.end(tag),
        }
    }

    /// Handles `<![CDATA[…]]>` and Office's `<![if …]>`; any other section rejects the document.
    fn marked_section(&mut self) -> Option<End> {
        let (raw, from) = (self.raw, self.at + 3);
        if from == raw.len() {
            return Some(End::Missing);
        }
        let (_, stop) = find(&SECTION_NAME, raw, from)?;
        if stop == raw.len() {
            return Some(End::Missing);
        }
        let close = match python::strip(&raw[from..stop]).to_lowercase().as_str() {
            "temp" | "cdata" | "ignore" | "include" | "rcdata" => find(&SECTION_END, raw, from),
            "if" | "else" | "endif" => find(&OFFICE_SECTION_END, raw, from),
            _ => return None,
        };
        Some(match close {
            Some((start, end)) => {
                let content = &raw[from..start];
                self.soup.end_data(Kind::Text);
                if content.get(..6).is_some_and(|name| name.eq_ignore_ascii_case("CDATA[")) {
                    self.soup.data(&content[6..]);
                    self.soup.end_data(Kind::CData);
                }
                End::At(end)
            }
            None => End::Missing,
        })
    }

    /// Handles `&#`. Returns whether to continue.
    fn numeric_reference(&mut self) -> bool {
        let (raw, at) = (self.raw, self.at);
        let Ok(Some(reference)) = NUMBER.captures_from_pos(raw, at) else {
            if raw[at..].contains(';') {
                self.soup.data("&#");
                self.at += 2;
            }
            return false;
        };
        let number = entities::number(&reference[1]);
        let c = if number == 0 { None } else { entities::c1(number).or(char::from_u32(number)) };
        self.soup.data(c.unwrap_or('\u{fffd}').encode_utf8(&mut [0; 4]));
        self.at = after_reference(raw, at + 2 + reference[1].len());
        true
    }

    /// Handles any other `&`. Returns whether to continue.
    fn named_reference(&mut self, end: bool) -> bool {
        let (raw, at) = (self.raw, self.at);
        if let Ok(Some(reference)) = ENTITY.captures_from_pos(raw, at) {
            let name = &reference[1];
            match entities::named(&format!("{name};")) {
                Some(text) => self.soup.data(text),
                None => self.soup.data(&raw[at..at + 1 + name.len()]),
            }
            self.at = after_reference(raw, at + 1 + name.len());
            return true;
        }
        match raw.as_bytes().get(at + 1) {
            Some(letter) if letter.is_ascii_alphabetic() => {
                // A single letter at the end of the text: the ampersand is dropped.
                if end && at + 2 == raw.len() {
                    self.at += 1;
                }
                false
            }
            Some(_) => {
                self.soup.data("&");
                self.at += 1;
                true
            }
            None => false,
        }
    }
}

/// The position after the semicolon, if there is one.
fn after_reference(raw: &str, at: usize) -> usize {
    at + usize::from(raw[at..].starts_with(';'))
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    CData,
}

/// Collects the strings between tags. The tree is kept only as far as it determines which strings are text.
#[derive(Default)]
struct Soup {
    text: String,
    /// The string under construction; `None` before its first part.
    current: Option<String>,
    open: Vec<String>,
    /// Empty elements that closed themselves; a later closing tag for one of them is ignored.
    closed: Vec<String>,
}

impl Soup {
    fn data(&mut self, data: &str) {
        self.current.get_or_insert_default().push_str(data);
    }

    fn start(&mut self, tag: &str) {
        self.end_data(Kind::Text);
        self.open.push(tag.to_owned());
    }

    /// Closes `tag`, if it is open, and everything inside it.
    fn end(&mut self, tag: &str) {
        self.end_data(Kind::Text);
        if let Some(i) = self.open.iter().rposition(|open| open == tag) {
            self.open.truncate(i);
        }
    }

    fn end_data(&mut self, kind: Kind) {
        let Some(data) = self.current.take() else { return };
        let within = |tags: &[&str]| self.open.iter().any(|open| tags.contains(&open.as_str()));
        if kind == Kind::Text && within(NOT_TEXT) {
            return;
        }
        let is_blank = data.chars().all(|c| matches!(c, ' ' | '\n' | '\t' | '\x0c' | '\r'));
        match is_blank && !within(KEEPS_SPACES) {
            true => self.text.push(if data.contains('\n') { '\n' } else { ' ' }),
            false => self.text.push_str(&data),
        }
    }
}
