//! A model without its weights: configs and tokenizers whole, and of weight files the headers, which list all tensors.
//!
//! # Source
//! The format of safetensors: a length of eight bytes, and as many bytes of JSON. `parse_safetensors_file_metadata` of
//! `huggingface_hub` asks for headers by ranges, too.

use super::{Download, Found, HubOptions, Needed, Repo, State, patiently};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The bytes that are asked for first; most headers have fewer.
const FIRST_BYTES: u64 = 256 << 10;
/// The most bytes of a header, as in the format's own reader.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A model of which everything but the values of its weights is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// A folder in the diffusers layout. If weights are missing, their files have the right headers and lengths, but no
    /// values.
    pub folder: PathBuf,
    /// The number of files that a run would download first, and their size in bytes.
    pub missing: (usize, u64),
}

/// As [`resolve`](super::resolve), without downloading weights: if they are not there, an outline of the model is written to
/// the empty folder `scratch`. Its weight files are sparse where the file system allows it, so that they take little space.
///
/// # Errors
/// As [`resolve`](super::resolve), and if the header of a weight file has no usable length, or `scratch` cannot be written.
pub fn outline(
    model: &str,
    options: &HubOptions,
    scratch: &Path,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<Outline> {
    match Found::new(model, options)? {
        Found::Folder(folder) => Ok(Outline { folder, missing: (0, 0) }),
        Found::Repo(repo) => repo.outline(scratch, progress).map_err(|error| repo.or_no_folder(error)),
    }
}

impl Repo<'_> {
    fn outline(&self, scratch: &Path, progress: &mut dyn FnMut(Download<'_>)) -> Result<Outline> {
        let needed = match self.look(progress)? {
            State::Cached(folder) => return Ok(Outline { folder, missing: (0, 0) }),
            State::Needed(needed) => needed,
        };
        let missing = needed.missing();
        let mut outline =
            Outline { folder: needed.folder.clone(), missing: (missing.len(), needed.bytes(&missing)) };
        if missing.is_empty() {
            return Ok(outline);
        }
        let (weights, small): (Vec<_>, Vec<_>) = missing.into_iter().partition(|file| is_weights(file));
        self.download(&needed, &small, progress)?;
        if !weights.is_empty() {
            for file in &needed.files {
                self.put(&needed, file, &scratch.join(file), progress)?;
            }
            outline.folder = scratch.to_owned();
        }
        Ok(outline)
    }

    /// Writes `file` of the repository to `path`, or its outline if it has weights.
    fn put(
        &self,
        needed: &Needed,
        file: &str,
        path: &Path,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        let disk = |error: io::Error| {
            Error::failure(format!("cannot write `{}`: {error}", path.display()))
                .hint("set `TMPDIR` to a writable folder")
        };
        super::create_parent(path).map_err(disk)?;
        let cached = needed.folder.join(file);
        if !is_weights(file) {
            return fs::copy(cached, path).map(drop).map_err(disk);
        }
        let (header, length) = if cached.exists() {
            let read = || -> io::Result<_> {
                let file = File::open(&cached)?;
                let length = file.metadata()?.len();
                header_of(|count| {
                    let mut bytes = Vec::new();
                    (&file).take(count).read_to_end(&mut bytes)?;
                    io::Seek::rewind(&mut &file)?;
                    Ok::<_, io::Error>((bytes, length))
                })
            };
            read().map_err(|error| Error::failure(format!("cannot read `{}`: {error}", cached.display())))?
        } else {
            let url = needed.client.file_url(self.model, &needed.commit, file);
            let header = header_of(|count| {
                patiently(&needed.client, file, progress, |_| true, || needed.client.head(&url, count))
            });
            header.map_err(|fault| fault.into_error(self.subject(Some(file))))?
        };
        let write = || {
            let mut outline = File::create(path)?;
            outline.write_all(&header)?;
            outline.set_len(length)
        };
        write().map_err(disk)
    }
}

fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// The header of a weight file with its length before it, and the length of the file. `head` returns a number of bytes at
/// the beginning of the file, or all if it has fewer, and its length. A file that has no such header is returned as it
/// begins: opening it says what is wrong.
fn header_of<E>(mut head: impl FnMut(u64) -> Result<(Vec<u8>, u64), E>) -> Result<(Vec<u8>, u64), E> {
    let (mut bytes, length) = head(FIRST_BYTES)?;
    let Some(json_bytes) = bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Ok((bytes, length));
    };
    let end = json_bytes.saturating_add(8);
    if json_bytes > MAX_HEADER_BYTES || end > length {
        return Ok((bytes, length));
    }
    if end > bytes.len() as u64 {
        bytes = head(end)?.0;
    }
    bytes.truncate(end as usize);
    Ok((bytes, length))
}
