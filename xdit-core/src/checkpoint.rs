//! The weight files of one component: found, memory-mapped and checked, but not yet read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;
use crate::json::read_json;

/// One tensor of a checkpoint: its location, type and shape.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The index of its file in [`Checkpoint::files`].
    pub file: usize,
    /// The element type in the file.
    pub dtype: Dtype,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// The tensor's bytes in the mapped file.
    pub bytes: Bytes,
    /// The file, and the offset of the tensor's bytes in it.
    place: (Arc<File>, u64),
}

impl Entry {
    /// Reads the bytes from `start` on into `buffer`, bypassing the mapping: touched pages of a mapping count
    /// towards the memory of the process, but bytes read here do not.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, start: usize, buffer: &mut [u8]) -> std::io::Result<()> {
        let (file, place) = &self.place;
        read_exact_at(file, buffer, place + start as u64)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (buffer, offset) = (&mut buffer[n..], offset + n as u64),
        }
    }
    Ok(())
}

/// All tensors of one component (`transformer`, `vae`, …), in a single file or in shards.
///
/// Opening a checkpoint maps its files and checks their headers; no tensor is read until it is requested.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens the component in `dir`. `stem` is the base name of its files: `diffusion_pytorch_model` in diffusers
    /// and `model` in transformers.
    ///
    /// With a `variant` such as `fp16`, the files of that variant are used if they exist, and the default files
    /// otherwise.
    ///
    /// # Errors
    /// If there is no weight file, or one is truncated, malformed or inconsistent with its index.
    pub fn open(dir: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        let variants = variant.map(Some).into_iter().chain([None]);
        for variant in variants {
            let infix = variant.map(|v| format!(".{v}")).unwrap_or_default();
            let indexes = [
                dir.join(format!("{stem}.safetensors.index{infix}.json")),
                dir.join(format!("{stem}{infix}.safetensors.index.json")),
            ];
            // As in diffusers, an index comes before a whole file beside it. A link that leads nowhere is found, too: it is
            // an error.
            let exists = |path: &PathBuf| path.symlink_metadata().is_ok();
            if let Some(index) = indexes.into_iter().find(exists) {
                return Self::from_index(&index);
            }
            if let Some(single) = Some(dir.join(format!("{stem}{infix}.safetensors"))).filter(exists) {
                return Self::from_files(vec![single]);
            }
        }
        Err(missing(dir, stem))
    }

    /// Opens exactly these files as one checkpoint.
    pub fn from_files(files: Vec<PathBuf>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            for (name, entry) in map_file(file, path)? {
                if let Some(first) = entries.insert(name.clone(), entry) {
                    return Err(Error::failure(format!(
                        "tensor `{name}` is in both `{}` and `{}`",
                        files[first.file].display(),
                        path.display()
                    )));
                }
            }
        }
        Ok(Self { files, entries })
    }

    /// Opens the shards listed in a `*.safetensors.index.json`, and checks their contents against it.
    fn from_index(index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            return Err(Error::failure(format!("`{}` has no `weight_map`", index.display()))
                .hint("download the file again: it is not an index of safetensors shards"));
        };
        let dir = index.parent().unwrap_or(Path::new("."));
        let mut names = Vec::new();
        for (key, shard) in map {
            let shard = shard.as_str().filter(|name| {
                // A shard must be in the same folder as its index: any other path is a mistake or an attack.
                Path::new(name).components().count() == 1 && name.ends_with(".safetensors")
            });
            let Some(shard) = shard else {
                return Err(Error::failure(format!(
                    "`{}` places `{key}` in `{}`, which is not a safetensors file in the same folder",
                    index.display(),
                    map[key]
                )));
            };
            if !names.contains(&shard) {
                names.push(shard);
            }
        }
        if names.is_empty() {
            return Err(Error::failure(format!("the `weight_map` of `{}` is empty", index.display()))
                .hint("download the file again: it is not an index of safetensors shards"));
        }
        names.sort_unstable();
        if let Some(missing) = names.iter().find(|name| dir.join(name).symlink_metadata().is_err()) {
            let (count, shown) = (names.len(), index.display());
            return Err(Error::failure(format!(
                "shard `{missing}` is missing, one of {count} that `{shown}` names"
            ))
            .hint("the download is incomplete: fetch the shard, or download the model again"));
        }
        let checkpoint = Self::from_files(names.iter().map(|name| dir.join(name)).collect())?;
        for (key, shard) in map {
            let found = checkpoint.entries.get(key).map(|entry| &checkpoint.files[entry.file]);
            let expected = dir.join(shard.as_str().unwrap_or_default());
            if found != Some(&expected) {
                return Err(Error::failure(format!(
                    "`{}` places `{key}` in `{}`, which does not contain it",
                    index.display(),
                    expected.display()
                ))
                .hint("download the shards and their index again, from the same revision"));
            }
        }
        Ok(checkpoint)
    }

    /// The open files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensor with this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All tensors, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The number of parameters in all tensors.
    pub fn parameters(&self) -> usize {
        self.entries.values().map(|entry| entry.shape.iter().product::<usize>()).sum()
    }

    /// The size of all tensors in the files.
    pub fn bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.bytes.len()).sum()
    }
}

/// The error for a folder without the expected weights; its hint names the closest match.
fn missing(dir: &Path, stem: &str) -> Error {
    let error = Error::failure(format!("no weights `{stem}.safetensors` in `{}`", dir.display()));
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let variant = names.iter().find_map(|name| {
        let infix = name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".safetensors")?;
        // In the name of a shard, a number follows the variant.
        let variant = infix.split_once('-').map_or(infix, |(variant, _)| variant);
        (!variant.contains('.')).then_some(variant)
    });
    match variant {
        Some(variant) => error.hint(format!("add `--variant {variant}` to use the weights of that variant")),
        None if names.iter().any(|name| name.ends_with(".bin")) => {
            error.hint("convert the pickled `.bin` weights to safetensors: only safetensors are read")
        }
        None => error.hint("check that the download is complete and laid out as `save_pretrained` writes it"),
    }
}

/// Maps one safetensors file and lists its tensors.
fn map_file(file: usize, path: &Path) -> Result<Vec<(String, Entry)>> {
    let open = |error: std::io::Error| Error::failure(format!("cannot read `{}`: {error}", path.display()));
    let (handle, len) = files::open(path)?;
    if len == 0 {
        return Err(Error::failure(format!("`{}` is empty", path.display())).hint("download the file again"));
    }
    #[expect(
        unsafe_code,
        reason = "a file cannot be mapped in safe code; mapping makes it cheap to load slices"
    )]
    // SAFETY: the mapping is private and read-only. If another process truncates the file while it is mapped, a
    // read faults and ends this process, with a sentence if it asks for that ([`crate::fatal`]).
    let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(open)?;
    let bytes = Bytes::from_owner(map);
    if files::is_lfs_pointer(&bytes) {
        return Err(files::lfs_pointer(path));
    }
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| {
        Error::failure(format!("`{}` is not a valid safetensors file: {error}", path.display()))
            .hint("download the file again: it is truncated or corrupt")
    })?;
    let data = bytes.slice(8 + header..);
    let handle = Arc::new(handle);
    let entries = metadata.tensors();
    Ok(entries
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let place = (handle.clone(), (8 + header + start) as u64);
            let bytes = data.slice(start..end);
            (name, Entry { file, dtype: info.dtype, shape: info.shape.clone(), bytes, place })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_available_variant_is_named() {
        for (file, variant) in [
            ("model.fp16.safetensors", "fp16"),
            ("model.fp16-00001-of-00002.safetensors", "fp16"),
            ("model.bf16-00002-of-00003.safetensors", "bf16"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(file), "").unwrap();
            let error = Checkpoint::open(dir.path(), "model", None).unwrap_err().to_string();
            let hint = format!("hint: add `--variant {variant}` to use the weights of that variant");
            assert_eq!(error.lines().last(), Some(hint.as_str()), "{file}");
        }
    }
}
