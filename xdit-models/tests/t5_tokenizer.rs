//! Compares `T5Tokenizer` with transformers, on small vocabularies and, if available, on the published ones.

mod tokens;

use std::path::{Path, PathBuf};

use tokens::{Goldens, copy, published};
use xdit_models::tokenizer::{T5Tokenizer, Tokenizer};

fn data() -> PathBuf {
    tokens::data("t5")
}

fn goldens() -> Goldens {
    Goldens::load("t5")
}

fn load(dir: &Path) -> T5Tokenizer {
    tokens::timed(dir, T5Tokenizer::load)
}

/// Compares every text and every cut; `defaults` names the answers that supply omitted ids.
fn check(dir: &Path, goldens: &Goldens, name: &str, defaults: &str) {
    let tokenizer = load(dir);
    let facts = (tokenizer.vocab_size(), tokenizer.pad_id());
    goldens.check(name, defaults, facts, |text, max_length| tokenizer.encode(text, max_length));
}

#[test]
fn small_spiece_model_equals_transformers() {
    check(&data().join("spiece"), &goldens(), "spiece", "spiece");
}

#[test]
fn small_tokenizer_json_equals_transformers() {
    check(&data().join("json"), &goldens(), "json", "json");
}

#[test]
#[ignore = "needs a published vocabulary: set XDIT_REAL_TOKENIZERS"]
fn published_files_equal_transformers() {
    let dir = published("t5", "spiece.model");
    let goldens = goldens();
    check(&dir, &goldens, "published", "published");
    // As PixArt publishes them, without `tokenizer.json`.
    let spiece = copy(&dir, &["spiece.model", "tokenizer_config.json"]);
    check(spiece.path(), &goldens, "published", "published");
    let spiece = copy(&dir, &["spiece.model"]);
    check(spiece.path(), &goldens, "published spiece.model alone", "published");
}

#[test]
fn tokenizer_json_is_preferred() {
    let dir = copy(&data().join("json"), &["tokenizer.json", "tokenizer_config.json"]);
    std::fs::copy(data().join("spiece/spiece.model"), dir.path().join("spiece.model")).unwrap();
    check(dir.path(), &goldens(), "json", "json");
}

#[test]
fn length_zero_leaves_no_room_for_ids() {
    let tokenizer = load(&data().join("spiece"));
    let encoding = tokenizer.encode("a cat", 0);
    assert_eq!((encoding.ids.len(), encoding.dropped.as_deref()), (0, Some("a cat")));
}

fn error(dir: &Path) -> String {
    T5Tokenizer::load(dir)
        .err()
        .map(|error| error.to_string().replace(&dir.display().to_string(), "DIR"))
        .unwrap()
}

#[test]
fn the_error_for_an_empty_folder_lists_the_needed_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        error(dir.path()),
        "no T5 vocabulary in `DIR`\n\
          hint: download `tokenizer.json` or `spiece.model` from the `tokenizer` folder of a checkpoint"
    );
}

#[test]
fn errors_name_the_broken_file() {
    let broken = |file: &str, content: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), content).unwrap();
        let text = error(dir.path());
        let reason = text.strip_prefix(&format!("cannot read the tokenizer file `DIR/{file}`: ")).unwrap();
        reason
            .strip_suffix(
                "\nhint: download the checkpoint's `tokenizer` folder again; the file may be truncated",
            )
            .unwrap()
            .to_owned()
    };
    let json = |vocab: &str| broken("tokenizer.json", &format!(r#"{{"model":{{"vocab":{vocab}}}}}"#));
    assert_eq!(
        broken("spiece.model", "version https://git-lfs"),
        "it is not a sentencepiece model (wire type 6)"
    );
    assert_eq!(broken("spiece.model", ""), "it contains no sentencepiece vocabulary");
    assert_eq!(broken("tokenizer.json", "{"), "EOF while parsing an object at line 1 column 1");
    assert_eq!(json("[]"), "it has 0 pieces, too few for `<pad>`, `</s>` and `<unk>`");
    assert_eq!(
        json(&format!(r#"[["a",0],["b",0],["{}",0]]"#, "c".repeat(2000))),
        "it has a piece of 2000 bytes, and the limit is 1024"
    );
    assert_eq!(json(r#"{"a":0}"#), "invalid type: map, expected a sequence at line 1 column 18");
    let hostile = r#"{"model":{"vocab":[["<pad>",0],["</s>",0],["<unk>",0]]},"normalizer":{"type":"Precompiled","precompiled_charsmap":"/////w=="}}"#;
    assert_eq!(broken("tokenizer.json", hostile), "its normalizer is truncated");
    assert_eq!(broken("tokenizer.json", &hostile.replace("/////w==", "?")), "its normalizer is not base64");
    assert_eq!(
        broken("tokenizer_config.json", r#"{"added_tokens_decoder":{"x":"y"}}"#),
        "invalid value: expected key to be a number in quotes at line 1 column 26"
    );
}

#[test]
fn a_truncated_model_is_refused() {
    let bytes = std::fs::read(data().join("spiece/spiece.model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for end in (0..bytes.len()).step_by(bytes.len() / 97) {
        std::fs::write(dir.path().join("spiece.model"), &bytes[..end]).unwrap();
        assert!(T5Tokenizer::load(dir.path()).is_err(), "{end} bytes");
    }
    // The normalizer takes up most of the file; a cut inside it is always detected.
    std::fs::write(dir.path().join("spiece.model"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(error(dir.path()).contains("`DIR/spiece.model`: it ends in the middle of a field"));
}

#[test]
fn a_damaged_model_is_refused_or_harmless() {
    let bytes = std::fs::read(data().join("spiece/spiece.model")).unwrap();
    let texts = goldens().texts;
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for _ in 0..40 {
        let mut damaged = bytes.clone();
        for _ in 0..20 {
            let at = random(damaged.len());
            damaged[at] ^= 1 << random(8);
        }
        std::fs::write(dir.path().join("spiece.model"), &damaged).unwrap();
        match T5Tokenizer::load(dir.path()) {
            Ok(tokenizer) => texts.iter().for_each(|text| drop(tokenizer.encode(text, 120))),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
}
