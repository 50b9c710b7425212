//! Latents as a safetensors file with the key `latents`, `[n, c, h, w]` in f32, or `[n, c, frames, h, w]` for clips.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::TensorData;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tempfile::NamedTempFile;
use xdit_core::{Error, Result, files};

use super::{temporary, unwritable};
use crate::interrupt;

const KEY: &str = "latents";
/// The most bytes of a file that is read: the latents of ten thousand pictures.
const MAX_BYTES: u64 = 1 << 34;

/// The file of the run, from the first picture with latents on. It is global so that a signal handler can complete it.
static UNFINISHED: Mutex<Option<LatentsFile>> = Mutex::new(None);

/// A safetensors file that is written picture by picture, and gets its final name at the end.
struct LatentsFile {
    path: PathBuf,
    file: NamedTempFile,
    /// The shape of the latents of all pictures.
    shape: Vec<usize>,
    /// For each picture, whether the file contains its latents.
    done: Vec<bool>,
}

impl LatentsFile {
    /// Creates the file for `images` pictures with latents of the shape of `latents`.
    fn create(path: &Path, latents: &TensorData, images: usize) -> Result<Self> {
        let mut shape = latents.shape().to_vec();
        shape[0] = images;
        Ok(Self { path: path.to_owned(), file: temporary(path)?, shape, done: vec![false; images] })
    }

    /// The header for the first `images` pictures. Its length is the same for any number of pictures.
    fn header(&self, images: usize) -> Vec<u8> {
        let header = |images| {
            let shape = [&[images], &self.shape[1..]].concat();
            let bytes = 4 * shape.iter().product::<usize>();
            json!({ KEY: { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] } }).to_string()
        };
        let all = self.shape[0];
        // Values begin at a multiple of 8 bytes.
        let len = header(all).len().next_multiple_of(8);
        let text = format!("{:len$}", header(images.min(all)));
        [&(len as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn put(&mut self, image: usize, latents: &TensorData) -> std::io::Result<()> {
        let values = latents.as_slice::<f32>().expect("latents are f32");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let offset = self.header(image).len() + image * bytes.len();
        self.file.seek(SeekFrom::Start(offset as u64))?;
        self.file.write_all(&bytes)?;
        self.done[image] = true;
        Ok(())
    }

    /// Gives the file its final name, with all pictures before the first missing one. Returns their number.
    fn finish(mut self) -> Result<usize> {
        let images = self.done.iter().take_while(|done| **done).count();
        let mut complete = || {
            let header = self.header(images);
            let bytes: usize = 4 * images * self.shape[1..].iter().product::<usize>();
            self.file.as_file().set_len((header.len() + bytes) as u64)?;
            self.file.rewind()?;
            self.file.write_all(&header)
        };
        if images > 0 {
            complete().map_err(|error| unwritable(&self.path, &error))?;
            self.file.persist(&self.path).map_err(|error| unwritable(&self.path, &error.error))?;
        }
        Ok(images)
    }
}

fn unfinished() -> MutexGuard<'static, Option<LatentsFile>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the `latents` of picture `image` of `images` to the file that will be named `path`.
///
/// # Shapes
/// `latents`: `[1, c, h, w]` or `[1, c, frames, h, w]`, the same for all pictures.
///
/// # Errors
/// If the file cannot be written.
pub fn put_latents(path: &Path, latents: &TensorData, image: usize, images: usize) -> Result<()> {
    let _writing = interrupt::writing();
    let mut unfinished = unfinished();
    let file = match &mut *unfinished {
        Some(file) => file,
        none => none.insert(LatentsFile::create(path, latents, images)?),
    };
    file.put(image, latents).map_err(|error| unwritable(path, &error))
}

/// Gives the file of latents, if there is one, its final name, with all pictures before the first missing one. Returns
/// their number.
///
/// # Errors
/// If the file cannot be written.
pub fn finish_latents() -> Result<usize> {
    unfinished().take().map_or(Ok(0), LatentsFile::finish)
}

/// Reads the latents from the file `path`.
///
/// # Errors
/// If the file cannot be read or does not contain latents in this format.
pub fn decode_latents(path: &Path) -> Result<TensorData> {
    let shown = path.display();
    let expected =
        "give a safetensors file with the key `latents`, [n, c, h, w] or [n, c, frames, h, w] in f32";
    let bytes = files::read(path, MAX_BYTES).map_err(|error| error.hint(expected))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::failure(format!("`{shown}` is not a valid safetensors file: {error}")).hint(expected)
    })?;
    let latents = file.tensor(KEY).map_err(|_| {
        let keys: Vec<_> = file.names().into_iter().map(|name| format!("`{name}`")).collect();
        let only = if keys.is_empty() { String::new() } else { format!(", only {}", keys.join(", ")) };
        Error::usage(format!("`{shown}` has no tensor `{KEY}`{only}")).hint(expected)
    })?;
    if !matches!(latents.shape().len(), 4 | 5) {
        let message =
            format!("`{KEY}` in `{shown}` has shape `{:?}`, not four or five dimensions", latents.shape());
        return Err(Error::usage(message).hint(expected));
    }
    if latents.shape().contains(&0) {
        let message =
            format!("`{KEY}` in `{shown}` has shape `{:?}`, which holds no picture", latents.shape());
        return Err(Error::usage(message).hint(expected));
    }
    if latents.dtype() != Dtype::F32 {
        let message = format!("`{KEY}` in `{shown}` has type `{:?}`, not `F32`", latents.dtype());
        return Err(Error::usage(message).hint(expected));
    }
    let values: Vec<f32> =
        latents.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::usage(format!("`{KEY}` in `{shown}` contains values that are not finite"))
            .hint("make them again: the run that made them went wrong, or the file is damaged"));
    }
    Ok(TensorData::new(values, latents.shape().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latents(value: f32) -> TensorData {
        TensorData::new(vec![value; 6], [1, 1, 2, 3])
    }

    /// The first value of each picture in the finished file.
    fn values(put: &[usize], images: usize) -> Vec<f32> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("latents.safetensors");
        let mut file = LatentsFile::create(&path, &latents(0.0), images).unwrap();
        for &image in put {
            file.put(image, &latents(image as f32 + 0.5)).unwrap();
        }
        let count = file.finish().unwrap();
        if count == 0 {
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            return Vec::new();
        }
        let bytes = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(header.is_multiple_of(8), "values are aligned");
        let stored = decode_latents(&path).unwrap();
        assert_eq!(stored.shape()[..], [count, 1, 2, 3]);
        let stored: Vec<f32> = stored.try_to_vec().unwrap();
        stored.chunks_exact(6).map(|picture| picture[0]).collect()
    }

    #[test]
    fn pictures_that_are_done_are_in_the_file() {
        assert_eq!(values(&[0, 1, 2], 3), [0.5, 1.5, 2.5]);
        assert_eq!(values(&[2, 0, 1], 3), [0.5, 1.5, 2.5]);
        assert_eq!(values(&[1, 0, 3], 10), [0.5, 1.5], "picture 3 must not take the place of picture 2");
        assert_eq!(values(&[1], 1000), [0.0; 0]);
        assert_eq!(values(&[0], 1000), [0.5]);
    }
}
