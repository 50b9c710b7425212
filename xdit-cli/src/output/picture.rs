//! Pictures and clips as files of the format that the options choose, and the parameters in them.

use std::path::Path;

use xdit_core::pipeline::Picture;
use xdit_core::{Error, Result, files};

use super::{exif, gif, jpeg, mp4, png, webp};
use crate::args::OutputType;
use crate::parameters::Parameters;

/// The most bytes of a file from which parameters are read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// The frames of a clip that are shown in a second, unless the options choose another number.
pub const FRAMES_PER_SECOND: f32 = 8.0;

/// Checks that files of `frames`, one for a picture, and `fps` a second can be written as `output_type`.
///
/// # Errors
/// If they cannot.
pub fn check_frames(output_type: OutputType, frames: usize, fps: f32) -> Result<()> {
    match output_type {
        OutputType::Jpeg if frames > 1 => {
            Err(Error::usage(format!("a JPEG file holds one picture, not a clip of `{frames}` frames"))
                .hint("name a file for each frame with `{frame}` in the path, or write a clip as `.png`, `.webp`, `.gif` or `.mp4`"))
        }
        OutputType::Gif | OutputType::Mp4 if frames == 1 => {
            let name = if output_type == OutputType::Gif { "a GIF" } else { "an MP4" };
            Err(Error::usage(format!("{name} file holds a clip, and this is one picture"))
                .hint("write pictures, and the frames of a clip, as PNG, JPEG or WebP"))
        }
        OutputType::Gif if fps > gif::MAX_FPS => {
            let max = gif::MAX_FPS;
            Err(Error::usage(format!("a GIF file shows at most {max} frames per second, not `{fps}`"))
                .hint("lower `--fps`, or write the clip as `.png`, `.webp` or `.mp4`"))
        }
        _ => Ok(()),
    }
}

/// Checks that files of `frames` of `size`, height and width, and `fps` a second can be written as `output_type`.
///
/// # Errors
/// If they cannot.
pub fn check_format(output_type: OutputType, size: [usize; 2], frames: usize, fps: f32) -> Result<()> {
    check_frames(output_type, frames, fps)?;
    let [height, width] = size;
    let longer = |max| size.iter().any(|side| *side > max);
    let png = "write it as PNG: `--output-type png`, and a path that ends in `.png`";
    match output_type {
        OutputType::Webp if longer(webp::MAX_SIDE) => {
            let max = webp::MAX_SIDE;
            Err(Error::usage(format!("a WebP picture of {width}x{height} would exceed {max} pixels a side"))
                .hint(png))
        }
        OutputType::Webp if frames.saturating_mul(height).saturating_mul(width) > webp::MAX_PIXELS => {
            Err(Error::usage(format!(
                "a clip of `{frames}` frames of {width}x{height} is too large for a WebP file"
            ))
            .hint(png))
        }
        OutputType::Gif if longer(gif::MAX_SIDE) => {
            let max = gif::MAX_SIDE;
            Err(Error::usage(format!("a GIF of {width}x{height} would exceed {max} pixels a side")).hint(png))
        }
        OutputType::Mp4 => match mp4::obstacle(size, frames) {
            Some(obstacle) => {
                Err(Error::usage(format!("a clip of `{frames}` frames of {width}x{height} {obstacle}"))
                    .hint(png))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The contents of a file with a picture, or a clip of several `frames`, `fps` a second, and, if given, its parameters.
///
/// # Panics
/// If [`check_format`] would refuse it, or there is no frame.
pub fn encode(
    output_type: OutputType,
    frames: &[Picture],
    fps: f32,
    parameters: Option<&Parameters>,
) -> Vec<u8> {
    match output_type {
        OutputType::Jpeg => jpeg::encode(&frames[0], parameters),
        OutputType::Webp => webp::encode(frames, fps, parameters),
        OutputType::Gif => gif::encode(frames, fps, parameters),
        OutputType::Mp4 => mp4::encode(frames, fps, parameters),
        OutputType::Png | OutputType::Latent => png::encode(frames, fps, parameters),
    }
}

/// Whether files of `output_type` have room for `parameters`.
pub fn holds_parameters(output_type: OutputType, parameters: &Parameters) -> bool {
    let limit = match output_type {
        OutputType::Jpeg => jpeg::MAX_EXIF_BYTES,
        OutputType::Webp => webp::MAX_EXIF_BYTES,
        _ => return true,
    };
    exif::encode(parameters, limit).is_some()
}

/// The durations of `count` frames, `fps` a second, in units of which a second has so many. Frames begin at the units nearest to
/// their times, so that errors do not add up.
pub(super) fn durations(count: usize, fps: f32, units_per_second: f64) -> impl Iterator<Item = u32> {
    let begin = move |frame: usize| (frame as f64 * units_per_second / f64::from(fps)).round();
    (0..count).map(move |frame| (begin(frame + 1) - begin(frame)) as u32)
}

/// Whether the file `path` begins like a picture or a clip.
pub fn is_picture(path: &Path) -> bool {
    let Ok((mut file, _)) = files::open(path) else { return false };
    let mut start = Vec::new();
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, 16), &mut start);
    let signatures = [png::SIGNATURE, jpeg::SIGNATURE, gif::SIGNATURE];
    read.is_ok()
        && (signatures.iter().any(|signature| start.starts_with(signature))
            || webp::is_webp(&start)
            || mp4::is_mp4(&start))
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
    } else if bytes.starts_with(gif::SIGNATURE) {
        gif::comment(&bytes)
    } else if mp4::is_mp4(&bytes) {
        mp4::comment(&bytes)
    } else if bytes.starts_with(png::SIGNATURE) {
        png::json(&bytes)
            .map_err(|reason| Error::failure(format!("`{shown}` is not a valid PNG file: {reason}")))?
    } else {
        return Err(Error::failure(format!(
            "`{shown}` does not begin like a PNG, JPEG, WebP, GIF or MP4 file"
        ))
        .hint("give a picture written by `xdit generate`"));
    };
    let Some(json) = json.filter(|json| json.starts_with('{')) else {
        return Err(Error::usage(format!("`{shown}` contains no parameters of this program"))
            .hint("give a picture written by `xdit generate` that no other program has saved since"));
    };
    serde_json::from_str(&json)
        .map_err(|error| Error::failure(format!("the parameters in `{shown}` are corrupt: {error}")))
}
