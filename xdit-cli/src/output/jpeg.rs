//! Pictures as JPEG files that contain their parameters.

use jpeg_encoder::{ColorType, Encoder};
use xdit_core::pipeline::Picture;

use super::exif;
use crate::parameters::Parameters;

/// The quality, of 100. Colours have the full resolution.
const QUALITY: u8 = 95;
/// The first bytes of a file.
pub const SIGNATURE: &[u8] = b"\xff\xd8\xff";
/// The first bytes of the segment with EXIF data.
const EXIF: &[u8] = b"Exif\0\0";
/// The most bytes of EXIF data: those of a segment, without its length and its first bytes.
pub const MAX_EXIF_BYTES: usize = 65_533 - EXIF.len();

/// The contents of a file with `picture` and, if given and not too long for the format, its parameters.
pub fn encode(picture: &Picture, parameters: Option<&Parameters>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, QUALITY);
    if let Some(exif) = parameters.and_then(|all| exif::encode(all, MAX_EXIF_BYTES)) {
        encoder.add_app_segment(1, [EXIF, &exif].concat()).expect("the segment is not too long");
    }
    let [width, height] = [picture.width, picture.height].map(|side| side as u16);
    encoder
        .encode(&picture.rgb, width, height, ColorType::Rgb)
        .expect("a picture of valid size can be written to memory");
    bytes
}

/// The EXIF data in the file `bytes`.
pub fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    // Segments with a marker, a length that counts itself, and data, up to the picture.
    loop {
        let [0xff, marker, high, low, ..] = *rest else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let data = rest.get(4..2 + length)?;
        match marker {
            0xe1 if data.starts_with(EXIF) => return data.get(EXIF.len()..),
            // The picture begins.
            0xda => return None,
            _ => rest = rest.get(2 + length..)?,
        }
    }
}
