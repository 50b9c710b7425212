//! The reference results for many texts, and the location of the published vocabularies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use xdit_models::tokenizer::Encoding;

/// The contents of a `goldens.json`.
#[derive(Deserialize)]
pub struct Goldens {
    pub texts: Vec<String>,
    cuts: Vec<Cut>,
    answers: BTreeMap<String, Answers>,
}

#[derive(Deserialize)]
struct Cut {
    text: TextOrIndex,
    max_length: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrIndex {
    Index(usize),
    Text(String),
}

#[derive(Deserialize)]
struct Answers {
    vocab_size: usize,
    pad_id: u32,
    ids: Vec<Option<Vec<u32>>>,
    cuts: Vec<CutAnswer>,
}

#[derive(Deserialize)]
struct CutAnswer {
    ids: Vec<u32>,
    dropped: Option<String>,
}

/// The folder with the small vocabularies of the tokenizer `name`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The folder with the published files of the tokenizer `name`. They are not part of the project, so tests that need
/// them are ignored by default.
///
/// # Panics
/// If the folder does not contain `file`.
pub fn published(name: &str, file: &str) -> PathBuf {
    let root = std::env::var_os("XDIT_REAL_TOKENIZERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tokenizers"), PathBuf::from);
    let dir = root.join(name);
    let there = dir.join(file).exists();
    assert!(there, "no `{}`; set XDIT_REAL_TOKENIZERS to a folder with `{name}/{file}`", dir.display());
    dir
}

/// Loads a tokenizer and prints the time taken.
pub fn timed<T>(dir: &Path, load: impl Fn(&Path) -> xdit_core::Result<T>) -> T {
    let start = Instant::now();
    let tokenizer = load(dir).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("loaded {} in {:.1} ms", dir.display(), start.elapsed().as_secs_f64() * 1e3);
    tokenizer
}

/// Copies the named files to a folder that contains nothing else.
pub fn copy(from: &Path, files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    dir
}

impl Goldens {
    /// Loads the goldens of the tokenizer `name`.
    pub fn load(name: &str) -> Self {
        serde_json::from_slice(&std::fs::read(data(name).join("goldens.json")).unwrap()).unwrap()
    }

    /// Compares every text and every cut with the vocabulary `name`; `defaults` names the answers that supply
    /// omitted ids. `facts` is the size of the vocabulary and the id of the padding token.
    pub fn check(
        &self,
        name: &str,
        defaults: &str,
        facts: (usize, u32),
        encode: impl Fn(&str, usize) -> Encoding,
    ) {
        let expected = &self.answers[name];
        assert_eq!(facts, (expected.vocab_size, expected.pad_id), "{name}");
        assert!(self.texts.len() >= 300 && expected.ids.len() == self.texts.len());
        for (i, text) in self.texts.iter().enumerate() {
            let ids = expected.ids[i].as_ref().or(self.answers[defaults].ids[i].as_ref()).unwrap();
            let encoding = encode(text, usize::MAX);
            assert_eq!((&encoding.ids, &encoding.dropped), (ids, &None), "{name}: {text:?}");
        }
        assert_eq!(expected.cuts.len(), self.cuts.len());
        for (cut, answer) in self.cuts.iter().zip(&expected.cuts) {
            let text = match &cut.text {
                TextOrIndex::Index(i) => &self.texts[*i],
                TextOrIndex::Text(text) => text,
            };
            let encoding = encode(text, cut.max_length);
            let context = format!("{name}: {text:?} cut to {}", cut.max_length);
            assert_eq!(
                (encoding.ids, encoding.dropped),
                (answer.ids.clone(), answer.dropped.clone()),
                "{context}"
            );
        }
    }
}
