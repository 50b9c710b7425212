//! Compares prepared captions with those of diffusers' PixArt pipeline.

use std::path::Path;

use serde::Deserialize;
use xdit_models::caption::{clean_caption, plain_caption};

#[derive(Deserialize)]
struct Goldens {
    captions: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    clean: String,
    plain: String,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/caption/goldens.json");
    let goldens: Goldens = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(goldens.captions.len() >= 150);
    goldens.captions
}

/// Compares all captions before failing, so that one run shows every difference.
fn check(prepare: fn(&str) -> String, expected: fn(&Case) -> &str) {
    let cases = cases();
    let differing: Vec<_> = cases
        .iter()
        .filter(|case| prepare(&case.text) != expected(case))
        .map(|case| {
            format!("{:?}\n  became   {:?}\n  not      {:?}", case.text, prepare(&case.text), expected(case))
        })
        .collect();
    assert!(differing.is_empty(), "{} captions differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn clean_captions_equal_those_of_diffusers() {
    check(clean_caption, |case| &case.clean);
}

#[test]
fn plain_captions_equal_those_of_diffusers() {
    check(plain_caption, |case| &case.plain);
}

#[test]
fn rejected_markup_is_not_an_error() {
    // The reference raises an exception here. The first pass removes the brackets, and the second treats the rest
    // as a comment.
    assert_eq!(clean_caption("a <![nonsense]> b"), "a b");
}

/// Texts on which rules of the reference take the square of their length, or more.
#[test]
fn time_grows_with_the_length() {
    let begin = std::time::Instant::now();
    for part in [
        "<a ", "a.", ".png", "<a b=\"", "<div ", "<!--", "<![", "</", "<p><b>", "a.com", "a@", "Ã©", "&a",
        "<a b=c ", "1a",
    ] {
        let text = part.repeat(60_000 / part.len());
        assert!(clean_caption(&text).len() <= 3 * text.len(), "{part}");
    }
    // On one core it takes a few seconds; without limits, some of these take minutes.
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}
