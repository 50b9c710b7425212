//! Checkpoints that come with the program: the built-in model, and one with random weights.

pub mod built_in;
mod random;

use std::fs;
use std::path::{Path, PathBuf};

use xdit_core::{Error, Result};

use crate::args::{DemoArgs, RandomArgs};
use crate::output::write_files;
use crate::print;
use crate::progress::say;

/// Runs `xdit demo-checkpoint`.
///
/// # Errors
/// If the program has no built-in model, the folder is not empty and `--force` is absent, or it cannot be written.
pub fn demo(args: &DemoArgs) -> Result<()> {
    let shown = args.dir.display();
    write(&args.dir, args.force, built_in::files()?)?;
    if !args.quiet {
        say(&format!("`{shown}` holds the built-in model in the diffusers layout."));
        say(&format!("Try it: xdit generate --model {shown} --prompt \"a small cactus\""));
    }
    print(&format!("{shown}\n"))
}

/// Runs `xdit random-checkpoint`.
///
/// # Errors
/// If the folder is not empty and `--force` is absent, or if it cannot be written.
pub fn random(args: &RandomArgs) -> Result<()> {
    let shown = args.dir.display();
    let files = random::files(args.seed);
    let files: Vec<_> = files.iter().map(|(path, bytes)| (*path, bytes.as_slice())).collect();
    write(&args.dir, args.force, &files)?;
    if !args.quiet {
        say(&format!("The model in `{shown}` is untrained: it generates coloured noise."));
        say(&format!("Try it: xdit generate --model {shown} --prompt \"a small cactus\""));
    }
    print(&format!("{shown}\n"))
}

/// Writes the files of a checkpoint, by their paths in the folder.
fn write(dir: &Path, force: bool, files: &[(&str, &[u8])]) -> Result<()> {
    let shown = dir.display();
    if dir.exists() && !dir.is_dir() {
        return Err(Error::usage(format!("`{shown}` is not a folder")));
    }
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty && !force {
        return Err(Error::usage(format!("the folder `{shown}` is not empty"))
            .hint("choose another folder, or add `--force` to replace the checkpoint in this one"));
    }
    put(dir, files)
}

/// Writes files and the folders that they are in. A file appears only when it is complete.
///
/// # Errors
/// If a folder or a file cannot be written.
pub fn put(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let files: Vec<(PathBuf, &[u8])> = files.iter().map(|(path, bytes)| (dir.join(path), *bytes)).collect();
    for folder in files.iter().filter_map(|(path, _)| path.parent()) {
        fs::create_dir_all(folder).map_err(|error| {
            Error::failure(format!("cannot create the folder `{}`: {error}", folder.display()))
        })?;
    }
    write_files(files.iter().map(|(path, bytes)| (path.as_path(), *bytes)))
}
