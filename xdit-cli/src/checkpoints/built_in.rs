//! The built-in model: a small trained PixArt-Σ, whose files are part of the program.

use std::fs;
use std::path::{Path, PathBuf};

use xdit_core::Result;

/// The name of the model on the command line and in the metadata of pictures.
pub const NAME: &str = "built-in";

/// The model's files, by their paths in its folder. One static: a constant would be copied to each use.
#[cfg(feature = "built-in-model")]
static FILES: [(&str, &[u8]); 11] = {
    macro_rules! embedded {
        ($($path:literal),*) => { [$(($path, include_bytes!(concat!("../../demo/model/", $path)).as_slice())),*] };
    }
    embedded![
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/special_tokens_map.json",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors"
    ]
};
#[cfg(not(feature = "built-in-model"))]
static FILES: [(&str, &[u8]); 0] = [];

/// The model's files, by their paths in its folder.
///
/// # Errors
/// If the program was built without them.
pub fn files() -> Result<&'static [(&'static str, &'static [u8])]> {
    if FILES.is_empty() {
        return Err(xdit_core::Error::usage("this program was built without the built-in model")
            .hint("name a model with `--model`, or build with the feature `built-in-model`"));
    }
    Ok(&FILES)
}

/// The folder of the model, in the user's cache. Files that are absent or differ from the program's are written.
///
/// # Errors
/// If the program has no built-in model, or the cache cannot be written.
pub fn folder() -> Result<PathBuf> {
    let files = files()?;
    let folder = cache(|name| std::env::var_os(name).map(PathBuf::from)).join("xdit").join(NAME);
    let is_stale = |(path, bytes): &&(&str, &[u8])| !has_contents(&folder.join(path), bytes);
    let stale: Vec<_> = files.iter().filter(is_stale).copied().collect();
    super::put(&folder, &stale).map_err(|error| {
        error.hint("set `XDG_CACHE_HOME` to a folder that can be written, or use `xdit demo-checkpoint` and `--model`")
    })?;
    Ok(folder)
}

/// Whether the file at `path` consists of `bytes`.
fn has_contents(path: &Path, bytes: &[u8]) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() == bytes.len() as u64)
        && fs::read(path).is_ok_and(|found| found == bytes)
}

/// The user's folder for files that can be written again, or that for temporary files.
fn cache(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .or_else(|| absolute("LOCALAPPDATA"))
        .unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_the_environment() {
        let cache_of = |variables: &[(&str, &str)]| {
            cache(|name| {
                variables.iter().find(|(found, _)| *found == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(cache_of(&[("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/me")]), Path::new("/cache"));
        assert_eq!(
            cache_of(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/home/me")]),
            Path::new("/home/me/.cache")
        );
        assert_eq!(cache_of(&[]), std::env::temp_dir());
    }
}
