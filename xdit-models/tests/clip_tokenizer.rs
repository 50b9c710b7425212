//! Compares `ClipTokenizer` with transformers, on small vocabularies and, if available, on the published ones.

mod tokens;

use std::path::{Path, PathBuf};

use tokens::{Goldens, copy, published};
use xdit_models::tokenizer::{ClipTokenizer, Encoding, Tokenizer};

/// The files of a published tokenizer.
const FILES: [&str; 4] = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

fn data() -> PathBuf {
    tokens::data("clip")
}

fn goldens() -> Goldens {
    Goldens::load("clip")
}

/// Compares every text and every cut; `defaults` names the answers that supply omitted ids.
fn check(dir: &Path, name: &str, defaults: &str) {
    let tokenizer = tokens::timed(dir, ClipTokenizer::load);
    let facts = (tokenizer.vocab_size(), tokenizer.pad_id());
    goldens().check(name, defaults, facts, |text, max_length| tokenizer.encode(text, max_length));
}

/// The vocabulary in `dir` with an old config, from before configs listed their added tokens. Its padding token is
/// `!`, which is therefore a special token.
fn with_old_config(dir: &Path) -> tempfile::TempDir {
    let folder = copy(dir, &FILES[..2]);
    for file in &FILES[2..] {
        std::fs::copy(data().join("old").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn small_files_equal_transformers() {
    check(&data().join("files"), "files", "files");
    check(with_old_config(&data().join("files")).path(), "old", "files");
    check(copy(&data().join("files"), &FILES[..2]).path(), "alone", "files");
}

#[test]
fn small_tokenizer_json_equals_transformers() {
    check(&data().join("json"), "json", "files");
}

#[test]
#[ignore = "needs a published vocabulary: set XDIT_REAL_TOKENIZERS"]
fn published_files_equal_transformers() {
    let dir = published("clip", "vocab.json");
    check(&dir, "published", "published");
    check(with_old_config(&dir).path(), "published, old", "published");
    check(copy(&dir, &FILES[..2]).path(), "published, alone", "published");
}

#[test]
fn tokenizer_json_is_preferred() {
    let dir = copy(&data().join("json"), &["tokenizer.json"]);
    std::fs::write(dir.path().join("vocab.json"), "not read").unwrap();
    check(dir.path(), "json", "files");
}

#[test]
fn the_length_comes_from_the_config() {
    let length = |config: &str| {
        let dir = copy(&data().join("files"), &FILES[..2]);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        ClipTokenizer::load(dir.path()).unwrap().max_length()
    };
    assert_eq!(length(r#"{"model_max_length": 32}"#), 32);
    assert_eq!(length("{}"), 77);
    // The value that transformers writes if there is no limit.
    assert_eq!(length(r#"{"model_max_length": 1000000000000000019884624838656}"#), 77);
}

#[test]
fn padding_extends_to_the_length() {
    let encoding = Encoding { ids: vec![5, 6], dropped: None };
    assert_eq!((encoding.padded(4, 9), encoding.padded(2, 9)), (vec![5, 6, 9, 9], vec![5, 6]));
}

#[test]
fn short_lengths_leave_no_room_for_text() {
    let tokenizer = ClipTokenizer::load(&data().join("files")).unwrap();
    let encode = |max_length| {
        let Encoding { ids, dropped } = tokenizer.encode("a cat", max_length);
        (ids, dropped.unwrap())
    };
    assert_eq!(encode(2), (vec![632, 633], "a cat".to_owned()));
    assert_eq!(encode(1), (vec![632], "a cat".to_owned()));
    assert_eq!(encode(0), (vec![], "a cat".to_owned()));
}

fn error(dir: &Path) -> String {
    ClipTokenizer::load(dir)
        .err()
        .map(|error| error.to_string().replace(&dir.display().to_string(), "DIR"))
        .unwrap()
}

#[test]
fn the_error_for_an_empty_folder_lists_the_needed_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        error(dir.path()),
        "no CLIP vocabulary in `DIR`\n\
          hint: download `tokenizer.json`, or `vocab.json` and `merges.txt`, from the `tokenizer` folder of a \
          checkpoint"
    );
    std::fs::write(dir.path().join("vocab.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("`DIR/merges.txt`: it is missing beside `vocab.json`"));
}

#[test]
fn errors_name_the_broken_file() {
    let reason = |dir: &Path, file: &str| {
        let text = error(dir);
        let reason = text.strip_prefix(&format!("cannot read the tokenizer file `DIR/{file}`: "));
        reason.unwrap_or_else(|| panic!("{text}")).split("\nhint: ").next().unwrap().to_owned()
    };
    let files = |vocab: &str, merges: &[u8], named: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vocab.json"), vocab).unwrap();
        std::fs::write(dir.path().join("merges.txt"), merges).unwrap();
        reason(dir.path(), named)
    };
    let json = |content: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), content).unwrap();
        reason(dir.path(), "tokenizer.json")
    };
    let end = r#"{"<|endoftext|>":0,"a":1,"b":2}"#;
    assert_eq!(files("version https://git-lfs", b"", "vocab.json"), "expected value at line 1 column 1");
    assert_eq!(files("{}", b"", "vocab.json"), "it lacks `<|endoftext|>`, the token for unknown text");
    assert_eq!(
        files(r#"{"a":1}"#, b"", "vocab.json"),
        "`a` has the id 1, but ids must be unique and below 1"
    );
    let twice = files(r#"{"a":0,"b":0}"#, b"", "vocab.json");
    assert!(twice.ends_with("has the id 0, but ids must be unique and below 2"), "{twice}");
    assert_eq!(files(end, b"#version: 0.2\na\n", "merges.txt"), "`a` is not two tokens to merge");
    assert_eq!(files(end, b"a b c", "merges.txt"), "`a b c` is not two tokens to merge");
    assert_eq!(files(end, b"\xff", "merges.txt"), "it is not UTF-8");
    // The library would search for the long token beyond the end of its buffer.
    assert_eq!(files(end, b"a b", "vocab.json"), "it merges `a` and `b`, but has no token `ab`");
    let long = format!("a {}", "b".repeat(99));
    assert!(files(end, long.as_bytes(), "vocab.json").contains("but has no token `bbb"));
    assert_eq!(json("{"), "EOF while parsing an object at line 1 column 1");
    assert_eq!(json(r#"{"model":{"vocab":{},"merges":["ab"]}}"#), "`ab` is not two tokens to merge");
    assert_eq!(
        json(r#"{"model":{"vocab":{"a":0},"merges":[["a","b"]]}}"#),
        "it merges `a` and `b`, but has no token `b`"
    );
}

/// A list of merges that was cut at the end of a line is valid by itself.
#[test]
fn merges_that_were_cut_are_noticed() {
    let folder = copy(&data().join("files"), &FILES);
    let path = folder.path().join("merges.txt");
    let merges = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = merges.lines().collect();
    for kept in [1, lines.len() / 2, lines.len() - 1] {
        std::fs::write(&path, lines[..kept].join("\n")).unwrap();
        let error = error(folder.path());
        assert!(error.contains("the list of merges was cut"), "{kept} lines: {error}");
    }
}

/// A byte that is missing from the vocabulary gives the unknown token, not an error.
#[test]
fn every_text_has_ids() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.json"), r#"{"<|endoftext|>":0,"a":1,"b</w>":2,"ab</w>":3}"#)
        .unwrap();
    std::fs::write(dir.path().join("merges.txt"), "a b</w>\n").unwrap();
    let tokenizer = ClipTokenizer::load(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("AB xb", 77).ids, [4, 3, 0, 2, 0]);
    for text in goldens().texts {
        assert!(tokenizer.encode(&text, 77).ids.len() >= 2, "{text:?}");
    }
}
