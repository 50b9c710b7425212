//! Checkpoints of published size with the small tokenizers of the golden checkpoints.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../xdit-cli/src/bench/published.rs"]
#[expect(dead_code, reason = "the command line uses the rest")]
mod published;

/// Writes the checkpoint `name` to `dir`. All weights are zeros that take no space on disk. The tokenizers are the small
/// ones of the golden checkpoint of the same name.
pub fn write(name: &str, dir: &Path) {
    published::write(name, dir).unwrap();
    let components = published::described(name)["model_index"].as_object().unwrap().clone();
    for tokenizer in components.keys().filter(|name| name.starts_with("tokenizer")) {
        copy_folder(&goldens().join(name).join(tokenizer), &dir.join(tokenizer));
    }
}

/// Writes the tensors of one component whose names satisfy `keep` to the file `path`.
pub fn write_component(name: &str, component: &str, path: &Path, keep: impl Fn(&str) -> bool) {
    let json = published::described(name);
    let tensors = published::expand(json["components"][component]["tensors"].as_object().unwrap());
    let kept: Vec<_> = tensors.iter().filter(|(name, _)| keep(name)).collect();
    published::write_shard(path, &kept).unwrap();
}

/// The folder of the golden data. It is repeated here because the tests of the command line include this file, too.
fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
