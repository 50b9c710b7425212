//! The character sequences that indicate wrong decoding.
//!
//! # Source
//! `BADNESS_RE` in `ftfy/badness.py` and `UTF8_DETECTOR_RE` in `ftfy/chardata.py` of ftfy 6.3.1 (Apache-2.0).

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::python;

/// Characters that occur in misread UTF-8, by category; a name in braces in [`BAD`] stands for its list.
const CATEGORIES: [(&str, &str); 14] = [
    ("{common}", r"\xa0\xad´·–-―’…"),
    ("{c1}", r"\x80-\x9f"),
    ("{bad}", "¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}"),
    ("{law}", "§¶"),
    ("{currency}", "¢£¥₧€"),
    ("{start}", "¡©«¿΄΅‘‚“„•‹\u{f8ff}"),
    ("{end}", "®»˝”›™"),
    ("{numeric}", "±-³µ¹¼-¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"),
    ("{kaomoji}", "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ"),
    ("{upper}", "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ("{lower}", "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"),
    ("{uppercommon}", "ÞΆΈ-ΊΌΎΏΑ-ΫЁ-Я"),
    ("{lowercommon}", "ά-ωа-џ"),
    ("{box}", "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓"),
];

/// Unlikely sequences of adjacent characters, one pattern a line.
const BAD: [&str; 37] = [
    "[{c1}]",
    "[{bad}{lower}{upper}{box}{start}{end}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{lowercommon}{uppercommon}][{bad}]",
    "[{bad}][{lower}{upper}{box}{start}{end}{currency}{numeric}{law}]",
    "[{lower}{lowercommon}{box}{end}{currency}{numeric}][{upper}]",
    "[{box}{end}{currency}{numeric}][{lower}]",
    "[{lower}{box}{end}][{currency}]",
    r"\s[{upper}][{currency}]",
    "[{upper}{box}][{numeric}{law}]",
    "[{lower}{upper}{box}{currency}{end}][{start}][{numeric}]",
    "[{lower}{upper}{currency}{numeric}{box}{law}][{end}][{start}]",
    "[{currency}{numeric}{box}][{start}]",
    "[a-z][{upper}][{start}{currency}]",
    "[{box}][{kaomoji}]",
    "[{lower}{upper}{currency}{numeric}{start}{end}{law}][{box}]",
    "[{box}][{end}]",
    r"[{lower}{upper}][{start}{end}]\w",
    // The ligature œ, unless an unaccented letter follows.
    "[Œœ][^A-Za-z]",
    "[{upper}]°",
    // Windows-1252, two characters.
    r"[ÂÃÎÐ][€œŠš¢£Ÿž\xa0\xad®©°·»{start}{end}–—´]",
    "×[²³]",
    // Arabic in Windows-1252: four characters, because its parts are common.
    "[ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»][ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»]",
    // South Asian alphabets in Windows-1252.
    "à[²µ¹¼½¾]",
    // Mac Roman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Windows-1251.
    "вЂ",
    "[ВГРС][{c1}{bad}{start}{end}{currency}°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    // `à`, `á` and the no-break space in Windows-1252.
    r"Ã[\xa0¡]",
    r"[a-z]\s?[ÃÂ][ ]",
    "^[ÃÂ][ ]",
    "[a-z.,?!{end}]Â[ {start}{end}]",
    // Windows-1253.
    r"β€[™\xa0Ά\xad®°]",
    "[ΒΓΞΟ][{c1}{bad}{start}{end}{currency}°][ΒΓΞΟ]",
    // Windows-1257.
    "ā€",
];

/// Whether `text` looks wrongly decoded.
pub(super) fn is_bad(text: &str) -> bool {
    static REGEX: LazyLock<Regex> = LazyLock::new(|| {
        let pattern =
            CATEGORIES.iter().fold(BAD.join("|"), |pattern, (name, list)| pattern.replace(name, list));
        python::regex(&pattern)
    });
    REGEX.is_match(text).unwrap_or(false)
}

const FIRST_OF_2: &str = "Â-ßĀĂĆČĎĐĒĖĘĚĞĢĪİĶĹĻŁŃŅŇŌŐŘŚŞŠŢŪŮŰŲŹŻŽΒ-ΡΣ-ίВ-Я";
const FIRST_OF_3: &str = "à-ïāăąćčďēėęěģīįķĺļŕźΰ-οа-п";
const FIRST_OF_4: &str = "ðóđğšπσру";
/// Characters that stand for later bytes of a UTF-8 sequence. A space or general punctuation counts only after a
/// first byte.
const LATER: &str = r"\x80-¿ÆØæøĄąĽľŁłŒœŖŗŚśŞ-šŤťŸ-žƒˆˇ˘˛-˝΄-ΆΈ-ΊΌΎΏЁ-ЌЎЏё-ќўџҐґ†‡‰‹›€№™";
const LATER_AMBIGUOUS: &str = " –-―‘-‚“-„•…";

/// Runs of characters whose bytes in some encoding form valid UTF-8.
pub(super) fn looks_like_utf8() -> &'static Regex {
    static REGEX: LazyLock<Regex> = LazyLock::new(|| {
        let later = format!("[{LATER}{LATER_AMBIGUOUS}]");
        python::regex(&format!(
            "(?<![{LATER}])(?:[{FIRST_OF_2}]{later}|[{FIRST_OF_3}]{later}{{2}}|[{FIRST_OF_4}]{later}{{3}})+"
        ))
    });
    &REGEX
}
