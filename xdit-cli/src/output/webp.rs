//! Pictures as WebP files, without loss, that contain their parameters.

use std::io::Cursor;

use image_webp::{ColorType, WebPDecoder, WebPEncoder};
use xdit_core::pipeline::Picture;

use super::exif;
use crate::parameters::Parameters;

/// The longest side of a picture in this format.
pub const MAX_SIDE: usize = 16_383;
/// The most bytes of EXIF data that are read; a prompt has fewer.
const MAX_EXIF_BYTES: usize = 1 << 20;

/// Whether a file with these first bytes is of this format.
pub fn is_webp(bytes: &[u8]) -> bool {
    bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP")
}

/// The contents of a file with `picture` and, if given, its parameters.
pub fn encode(picture: &Picture, parameters: Option<&Parameters>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new(&mut bytes);
    if let Some(exif) = parameters.and_then(|all| exif::encode(all, MAX_EXIF_BYTES)) {
        encoder.set_exif_metadata(exif);
    }
    let [width, height] = [picture.width, picture.height].map(|side| side as u32);
    encoder
        .encode(&picture.rgb, width, height, ColorType::Rgb8)
        .expect("a picture of valid size can be written to memory");
    bytes
}

/// The EXIF data in the file `bytes`.
pub fn exif(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).ok()?;
    decoder.set_memory_limit(MAX_EXIF_BYTES);
    decoder.exif_metadata().ok()?
}
