//! `xdit demo-checkpoint`: a small PixArt-α with random weights, in the layout of a published checkpoint.

mod configs;
mod tensors;
mod text_encoder;
mod tokenizer;
mod transformer;
mod vae;

use std::fs;
use std::path::{Path, PathBuf};

use xdit_core::{Error, Result};

use crate::args::DemoArgs;
use crate::output::write_files;
use crate::print;
use crate::progress::say;

use tensors::Tensors;

/// Runs `xdit demo-checkpoint`.
///
/// # Errors
/// If the folder is not empty and `--force` is absent, or if it cannot be written.
pub fn run(args: &DemoArgs) -> Result<()> {
    let dir = &args.dir;
    let shown = dir.display();
    if dir.exists() && !dir.is_dir() {
        return Err(Error::usage(format!("`{shown}` is not a folder")));
    }
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty && !args.force {
        return Err(Error::usage(format!("the folder `{shown}` is not empty"))
            .hint("choose another folder, or add `--force` to replace the checkpoint in this one"));
    }
    let files = files(dir, args.seed);
    for folder in files.iter().filter_map(|(path, _)| path.parent()) {
        fs::create_dir_all(folder).map_err(|error| {
            Error::failure(format!("cannot create the folder `{}`: {error}", folder.display()))
        })?;
    }
    write_files(files.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice())))?;
    if !args.quiet {
        say(&format!("The model in `{shown}` is untrained: it generates coloured noise."));
        say(&format!("Try it: xdit generate --model {shown} --prompt \"a small cactus\""));
    }
    print(&format!("{shown}\n"))
}

/// The paths and contents of the checkpoint's files. Equal seeds give equal files.
fn files(dir: &Path, seed: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let vocabulary = tokenizer::vocabulary();
    let vocab_size = vocabulary.len() + tokenizer::EXTRA_IDS;
    let json = |value: serde_json::Value| format!("{value:#}\n").into_bytes();
    // Each component has its own seed, so that a change to one leaves the others unchanged.
    let tensors = |component: u64, fill: &dyn Fn(&mut Tensors)| {
        let mut tensors = Tensors::new(seed.wrapping_mul(3).wrapping_add(component));
        fill(&mut tensors);
        tensors.serialize()
    };
    vec![
        (dir.join("model_index.json"), json(configs::model_index())),
        (dir.join("scheduler/scheduler_config.json"), json(configs::scheduler())),
        (dir.join("tokenizer/spiece.model"), tokenizer::sentencepiece(&vocabulary)),
        (dir.join("tokenizer/tokenizer_config.json"), json(tokenizer::config())),
        (dir.join("text_encoder/config.json"), json(text_encoder::config(vocab_size))),
        (dir.join("text_encoder/model.safetensors"), tensors(0, &|t| text_encoder::fill(t, vocab_size))),
        (dir.join("transformer/config.json"), json(transformer::config())),
        (dir.join("transformer/diffusion_pytorch_model.safetensors"), tensors(1, &transformer::fill)),
        (dir.join("vae/config.json"), json(vae::config())),
        (dir.join("vae/diffusion_pytorch_model.safetensors"), tensors(2, &vae::fill)),
    ]
}
