//! Pictures as files of the format that the options choose, and the parameters in them.

use std::path::Path;

use xdit_core::pipeline::Picture;
use xdit_core::{Error, Result, files};

use super::{exif, jpeg, png, webp};
use crate::args::OutputType;
use crate::parameters::Parameters;

/// The most bytes of a file from which parameters are read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Checks that pictures of `size`, height and width, or clips of `frames`, can be written as `output_type`.
///
/// # Errors
/// If they cannot.
pub fn check_format(output_type: OutputType, size: [usize; 2], frames: Option<usize>) -> Result<()> {
    let png = "write it as PNG: `--output-type png`, and a path that ends in `.png`";
    match output_type {
        OutputType::Jpeg | OutputType::Webp if frames.is_some_and(|frames| frames > 1) => {
            Err(Error::usage("a clip of several frames can only be written as PNG").hint(png))
        }
        OutputType::Webp if size.iter().any(|side| *side > webp::MAX_SIDE) => {
            let [height, width] = size;
            let max = webp::MAX_SIDE;
            Err(Error::usage(format!("a WebP picture of {width}x{height} would exceed {max} pixels a side"))
                .hint(png))
        }
        _ => Ok(()),
    }
}

/// The contents of a file with a picture, or a clip of several `frames`, and, if given, its parameters.
///
/// # Panics
/// If [`check_format`] would refuse it, or there is no frame.
pub fn encode(output_type: OutputType, frames: &[Picture], parameters: Option<&Parameters>) -> Vec<u8> {
    match output_type {
        OutputType::Jpeg => jpeg::encode(&frames[0], parameters),
        OutputType::Webp => webp::encode(&frames[0], parameters),
        OutputType::Png | OutputType::Latent => png::encode(frames, parameters),
    }
}

/// Whether the file `path` begins like a picture.
pub fn is_picture(path: &Path) -> bool {
    let Ok((mut file, _)) = files::open(path) else { return false };
    let mut start = Vec::new();
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, 16), &mut start);
    read.is_ok()
        && (start.starts_with(png::SIGNATURE) || start.starts_with(jpeg::SIGNATURE) || webp::is_webp(&start))
}

/// Reads the parameters from the picture `path`.
///
/// # Errors
/// If the file cannot be read or contains no parameters.
pub fn read_parameters(path: &Path) -> Result<Parameters> {
    let shown = path.display();
    let bytes = files::read(path, MAX_FILE_BYTES)?;
    let json = if bytes.starts_with(jpeg::SIGNATURE) {
        jpeg::exif(&bytes).and_then(exif::description)
    } else if webp::is_webp(&bytes) {
        webp::exif(&bytes).as_deref().and_then(exif::description)
    } else {
        png::json(&bytes)
            .map_err(|reason| Error::failure(format!("`{shown}` is not a valid PNG file: {reason}")))?
    };
    let Some(json) = json.filter(|json| json.starts_with('{')) else {
        return Err(Error::usage(format!("`{shown}` contains no parameters of this program"))
            .hint("give a picture written by `xdit generate` that no other program has saved since"));
    };
    serde_json::from_str(&json)
        .map_err(|error| Error::failure(format!("the parameters in `{shown}` are corrupt: {error}")))
}
