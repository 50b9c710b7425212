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
