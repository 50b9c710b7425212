//! Counts the comparisons that verify each method for each model: the data of the README's table of models and
//! methods.
//!
//! The tests of each family count their comparisons by model and method, and check `tests/verified.json` against the
//! counts. A model without comparisons for a method has no entry for it, and therefore no ✔. With `XDIT_UPDATE=1` the
//! tests write the file instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use xdit_models::MODELS;
use xdit_models::component::ModelIndex;

use crate::goldens;

/// The method of runs on a single rank that are compared with diffusers.
pub const SERIAL: &str = "serial";

/// The numbers of comparisons, by model (as named in [`MODELS`]) and by method.
pub type Counts = BTreeMap<String, BTreeMap<String, usize>>;

/// Prevents two tests of one process from writing the file at the same time.
static WRITING: Mutex<()> = Mutex::new(());

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("verified.json")
}

/// The counts in the file.
pub fn read() -> Counts {
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    if text.is_empty() { Counts::new() } else { serde_json::from_str(&text).expect("verified.json is JSON") }
}

/// The name in [`MODELS`] of the golden checkpoint `name`.
pub fn model_of(name: &str) -> &'static str {
    let class = ModelIndex::read(&goldens().join(name)).unwrap().class_name;
    MODELS.iter().find(|model| model.class_name == class).expect("goldens are of known models").name
}

/// Adds `count` runs of `method` by `model`.
pub fn add(counts: &mut Counts, model: &str, method: &str, count: usize) {
    *counts.entry(model.to_owned()).or_default().entry(method.to_owned()).or_default() += count;
}

/// Compares the counts of a test with those in the file, for each model and method that the test ran.
///
/// # Panics
/// If they differ.
pub fn check(counts: &Counts) {
    assert!(!counts.is_empty(), "the test counted no runs");
    let mut on_file = read();
    if std::env::var_os("XDIT_UPDATE").is_some() {
        let _writing = WRITING.lock().unwrap();
        on_file = read();
        for (model, methods) in counts {
            on_file.entry(model.clone()).or_default().extend(methods.clone());
        }
        let text = serde_json::to_string_pretty(&on_file).unwrap();
        std::fs::write(path(), text + "\n").unwrap();
    }
    for (model, methods) in counts {
        for (method, count) in methods {
            let known = on_file.get(model).and_then(|methods| methods.get(method));
            assert_eq!(
                known,
                Some(count),
                "tests/verified.json has another count of {method} runs by {model}; XDIT_UPDATE=1 writes it"
            );
        }
    }
}
