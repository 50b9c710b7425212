//! Pictures and clips as WebP files, without loss, that contain their parameters.
//!
//! # Source
//! The WebP container specification, "Extended File Format" and "Animation".

use std::io::Cursor;

use image_webp::{ColorType, WebPDecoder, WebPEncoder};
use rayon::prelude::*;
use xdit_core::pipeline::Picture;

use super::exif;
use super::picture::durations;
use crate::parameters::Parameters;

/// The longest side of a picture in this format.
pub const MAX_SIDE: usize = 16_383;
/// The most pixels of all frames: without loss, one takes up to four bytes, and lengths are numbers of 32 bits.
pub const MAX_PIXELS: usize = (u32::MAX >> 2) as usize - (1 << 20);
/// The most bytes of EXIF data that are read; a prompt has fewer.
pub const MAX_EXIF_BYTES: usize = 1 << 20;

/// Whether a file with these first bytes is of this format.
pub fn is_webp(bytes: &[u8]) -> bool {
    bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP")
}

/// The contents of a file with a picture, or an animation of several `frames`, `fps` a second, and, if given, its parameters.
///
/// # Panics
/// If there is no frame.
pub fn encode(frames: &[Picture], fps: f32, parameters: Option<&Parameters>) -> Vec<u8> {
    let exif = parameters.and_then(|all| exif::encode(all, MAX_EXIF_BYTES));
    match frames {
        [picture] => still(picture, exif),
        _ => animation(frames, fps, exif),
    }
}

fn still(picture: &Picture, exif: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new(&mut bytes);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif);
    }
    let [width, height] = [picture.width, picture.height].map(|side| side as u32);
    encoder
        .encode(&picture.rgb, width, height, ColorType::Rgb8)
        .expect("a picture of valid size can be written to memory");
    bytes
}

/// A file of several frames: the encoder's files of single pictures, without their headers, in the frames of an animation.
fn animation(frames: &[Picture], fps: f32, exif: Option<Vec<u8>>) -> Vec<u8> {
    const HAS_EXIF: u8 = 1 << 3;
    const IS_ANIMATED: u8 = 1 << 1;
    /// The frame replaces what was there, and stays until the next one.
    const REPLACES: u8 = 1 << 1;
    let low_bytes = |number: usize| [0, 8, 16].map(|shift| (number >> shift) as u8);
    let size = [low_bytes(frames[0].width - 1), low_bytes(frames[0].height - 1)].concat();
    let flags = IS_ANIMATED | if exif.is_some() { HAS_EXIF } else { 0 };
    let mut file = b"WEBP".to_vec();
    push_chunk(&mut file, b"VP8X", &[&[flags, 0, 0, 0][..], &size].concat());
    // Four bytes of the background's colour and two of the number of repetitions, where zero means without end.
    push_chunk(&mut file, b"ANIM", &[0; 6]);
    let pictures: Vec<Vec<u8>> = frames.par_iter().map(|frame| still(frame, None)).collect();
    for (picture, duration) in pictures.iter().zip(durations(frames.len(), fps, 1000.0)) {
        let duration = low_bytes(duration.min((1 << 24) - 1) as usize);
        let header = [&[0; 6][..], &size, &duration, &[REPLACES]].concat();
        push_chunk(&mut file, b"ANMF", &[&header, &picture[HEADER..]].concat());
    }
    if let Some(exif) = exif {
        push_chunk(&mut file, b"EXIF", &exif);
    }
    let mut bytes = Vec::new();
    push_chunk(&mut bytes, b"RIFF", &file);
    bytes
}

/// The bytes before the first chunk in a file.
const HEADER: usize = 12;

/// Appends a chunk, which has its name, its length, and a byte of padding if the length is odd.
fn push_chunk(bytes: &mut Vec<u8>, name: &[u8; 4], contents: &[u8]) {
    let length = u32::try_from(contents.len()).expect("the size was checked");
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
}

/// The EXIF data in the file `bytes`.
pub fn exif(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).ok()?;
    decoder.set_memory_limit(MAX_EXIF_BYTES);
    decoder.exif_metadata().ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder finds all frames as they were, and the EXIF data behind them.
    #[test]
    fn a_clip_is_an_animation() {
        let frame = |seed: u8| Picture {
            width: 5,
            height: 3,
            rgb: (0..45).map(|index: u8| index.wrapping_mul(seed)).collect(),
        };
        let frames = [frame(1), frame(77), frame(201)];
        let data = vec![1, 2, 3];
        let bytes = animation(&frames, 8.0, Some(data.clone()));
        assert_eq!(bytes.len(), 8 + u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize);
        let mut decoder = WebPDecoder::new(Cursor::new(&bytes)).unwrap();
        assert_eq!((decoder.dimensions(), decoder.num_frames()), ((5, 3), 3));
        assert!(decoder.is_animated() && !decoder.has_alpha() && !decoder.is_lossy());
        for frame in &frames {
            let mut rgb = vec![0; 45];
            assert_eq!(decoder.read_frame(&mut rgb).unwrap(), 125);
            assert_eq!(rgb, frame.rgb);
        }
        assert_eq!(exif(&bytes), Some(data));
        assert_eq!(exif(&animation(&frames, 8.0, None)), None);
    }
}
