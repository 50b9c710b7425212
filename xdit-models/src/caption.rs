//! Prepares prompts for PixArt: removes the parts of a web caption that are not words.

mod badness;
mod codepages;
mod entities;
mod html;
mod mojibake;
mod python;

use std::sync::LazyLock;

use fancy_regex::Regex;

/// The prompt as [`clean_caption`], or as [`plain_caption`] if `clean` is off. It is on by default, as in diffusers where
/// the Python packages for it are installed.
pub fn caption(text: &str, clean: Option<bool>) -> String {
    if clean.unwrap_or(true) { clean_caption(text) } else { plain_caption(text) }
}

/// The prompt in lower case, with white space trimmed: PixArt's preparation with `clean_caption=False`.
///
/// # Source
/// `_text_preprocessing` in `diffusers/pipelines/pixart_alpha/pipeline_pixart_alpha.py`.
pub fn plain_caption(text: &str) -> String {
    python::strip(&text.to_lowercase()).to_owned()
}

/// The prompt without web addresses, markup, file names, ids and similar content: PixArt's preparation with
/// `clean_caption=True`.
///
/// The text is cleaned twice, as in the reference, because the second pass may remove text that the first one
/// decoded.
///
/// Known limits:
/// - Markup that Python's parser rejects (`<![` without a known section name) raises an exception in the reference;
///   here that pass leaves all markup unchanged.
/// - Time grows with the length of the text: a rule that would take the square of it (a thousand dots in one word) leaves
///   the text unchanged.
/// - Letters and numbers follow the Unicode tables of this build, whereas CPython 3.11 has Unicode 14. Newer
///   characters may differ in lower-casing, normalization and word boundaries.
/// - The repair of wrongly decoded text has no limit of a million characters a line, unlike the reference.
///
/// # Source
/// `_clean_caption` and `_text_preprocessing` in `diffusers/pipelines/pixart_alpha/pipeline_pixart_alpha.py`, with
/// Beautiful Soup 4.15, ftfy 6.3 and CPython 3.11.
pub fn clean_caption(text: &str) -> String {
    clean_once(&clean_once(text))
}

fn clean_once(text: &str) -> String {
    let caption = python::unquote_plus(text);
    let caption = python::strip(&caption).to_lowercase().replace("<person>", "person");
    let caption = apply(&ADDRESSES, caption);
    let caption = html::text(&caption).unwrap_or(caption);
    let mut caption = apply(&SYMBOLS, caption);
    if caption.matches(['-', '_']).count() > 3 {
        caption = caption.replace(['-', '_'], " ");
    }
    let caption = mojibake::fix_text(&caption);
    let caption = entities::unescape(&entities::unescape(&caption));
    python::strip(&apply(&WORDS, caption)).to_owned()
}

/// Patterns of Python's `re` and their replacements, in order of application.
type Rules = LazyLock<Vec<(Regex, &'static str)>>;

fn compile(rules: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    rules.iter().map(|(pattern, with)| (python::regex(pattern), *with)).collect()
}

fn apply(rules: &Rules, text: String) -> String {
    rules.iter().fold(text, |text, (regex, with)| python::replace(regex, &text, with))
}

static ADDRESSES: Rules = LazyLock::new(|| {
    compile(&[
        (
            r"\b((?:https?:(?:/{1,3}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)))",
            "",
        ),
        (
            r"\b((?:www:(?:/{1,3}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)))",
            "",
        ),
    ])
});

/// Applied after the removal of markup: names, scripts, dashes and quotes, numbers and files, punctuation.
static SYMBOLS: Rules = LazyLock::new(|| {
    compile(&[
        (r"@[\w\d]+\b", ""),
        // CJK strokes, phonetic extensions, enclosed letters, compatibility, extension A, hexagrams, ideographs.
        (r"[\u31c0-\u31ef]+", ""),
        (r"[\u31f0-\u31ff]+", ""),
        (r"[\u3200-\u32ff]+", ""),
        (r"[\u3300-\u33ff]+", ""),
        (r"[\u3400-\u4dbf]+", ""),
        (r"[\u4dc0-\u4dff]+", ""),
        (r"[\u4e00-\u9fff]+", ""),
        (
            r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0\uFE31\uFE32\uFE58\uFE63\uFF0D]+",
            "-",
        ),
        (r"[`´«»“”¨]", "\""),
        (r"[‘’]", "'"),
        (r"&quot;?", ""),
        (r"&amp", ""),
        // IP addresses, article ids, a written-out line break, several kinds of numbers.
        (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
        (r"\d:\d\d\s+$", ""),
        (r"\\n", " "),
        (r"#\d{1,3}\b", ""),
        (r"#\d{5,}\b", ""),
        (r"\b\d{6,}\b", ""),
        (r"[\S]+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
        (r#"["']{2,}"#, "\""),
        (r"[.]{2,}", " "),
        (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
        (r"\s+\.\s+", " "),
    ])
});

/// Applied after repair: ids of letters and digits, shop vocabulary, sizes, and left-over punctuation at the ends.
static WORDS: Rules = LazyLock::new(|| {
    compile(&[
        (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
        (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
        (r"\b\d+[a-zA-Z]+\d+\b", ""),
        (r"(worldwide\s+)?(free\s+)?shipping", ""),
        (r"(free\s)?download(\sfree)?", ""),
        (r"\bclick\b\s(?:for|on)\s\w+", ""),
        (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(\simage[s]?)?", ""),
        (r"\bpage\s+\d+\b", ""),
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
        (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
        (r"\b\s+:\s+", ": "),
        (r"(\D[,./])\b", "${1} "),
        (r"\s+", " "),
        (r#"^["']([\w\W]+)["']$"#, "${1}"),
        (r"^['_,\-:;]", ""),
        (r"['_,\-:+]$", ""),
        (r"^\.\S+$", ""),
    ])
});
