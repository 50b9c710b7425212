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
        return Err(
            Error::usage(format!("`{shown}` is not a folder")).hint("choose the path of a new folder")
        );
    }
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty && !force {
        return Err(Error::usage(format!("the folder `{shown}` is not empty"))
            .hint("choose another folder, or add `--force` to replace the checkpoint in this one"));
    }
    // Without this file, which is in every checkpoint, the others may be anybody's.
    let index = Path::new("model_index.json");
    let unknown = (!is_empty && !dir.join(index).exists()).then(|| first(dir)).flatten();
    if let Some(other) = foreign(dir, Path::new(""), files).or(unknown) {
        return Err(Error::usage(format!(
            "the folder `{shown}` holds `{}`, which is not of this checkpoint",
            other.display()
        ))
        .hint("choose another folder: `--force` replaces only a checkpoint that the same command wrote"));
    }
    put(dir, files)
}

/// The name of something in `dir`.
fn first(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.find_map(|entry| Some(entry.ok()?.file_name().into()))
}

/// Something in `dir/inside` that is not of a checkpoint with these `files`: another file, a link, or other contents of
/// a JSON file. Weights may differ, as those of another seed do.
fn foreign(dir: &Path, inside: &Path, files: &[(&str, &[u8])]) -> Option<PathBuf> {
    let entries = fs::read_dir(dir.join(inside)).into_iter().flatten();
    entries.filter_map(|entry| Some(inside.join(entry.ok()?.file_name()))).find_map(|path| {
        let full = dir.join(&path);
        let is_of_json = |bytes: &[u8]| fs::read(&full).is_ok_and(|found| found == bytes);
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        match fs::symlink_metadata(&full) {
            Ok(found) if found.is_dir() => foreign(dir, &path, files),
            Ok(found) if found.is_file() => {
                let known = files.iter().find(|(name, _)| Path::new(name) == path);
                let known = known.is_some_and(|(_, bytes)| !is_json || is_of_json(bytes));
                (!known).then_some(path)
            }
            _ => Some(path),
        }
    })
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
