//! The parameters of a picture as EXIF data, which JPEG and WebP files can hold: a TIFF file without a picture.
//!
//! | tag | name | contents |
//! |---|---|---|
//! | 0x010E | ImageDescription | all parameters, as JSON in ASCII |
//! | 0x8769 | ExifIFD | the place of the second table |
//! | 0x9286 | UserComment | the text that other programs read |
//!
//! # Source
//! Exif 2.32, sections 4.6.2 to 4.6.5; for the comment, `save_image_with_geninfo` of AUTOMATIC1111's stable-diffusion-webui.

use crate::parameters::Parameters;

const IMAGE_DESCRIPTION: u16 = 0x010e;
const EXIF_TABLE: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
/// The places of the two tables and of the data behind them: a table has its length, 12 bytes for each entry, and the
/// place of another.
const FIRST_TABLE: u32 = 8;
const SECOND_TABLE: u32 = FIRST_TABLE + 2 + 2 * 12 + 4;
const DATA: u32 = SECOND_TABLE + 2 + 12 + 4;

/// EXIF data with `parameters`, of at most `limit` bytes. If need be, the text for other programs is left out; `None` if
/// even that does not suffice.
pub fn encode(parameters: &Parameters, limit: usize) -> Option<Vec<u8>> {
    let json = serde_json::to_string(parameters).expect("strings and finite numbers can be serialized");
    let mut json = in_ascii(&json).into_bytes();
    json.push(0);
    // Data begins at even places.
    json.resize(json.len().next_multiple_of(2), 0);
    let text = parameters.infotext().encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
    let comment = [b"UNICODE\0", &text[..]].concat();
    [comment, b"UNICODE\0".to_vec()]
        .iter()
        .map(|comment| tables(&json, comment))
        .find(|exif| exif.len() <= limit)
}

fn tables(json: &[u8], comment: &[u8]) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: usize, value: u32| {
        [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &(count as u32).to_be_bytes(), &value.to_be_bytes()]
            .concat()
    };
    [
        b"MM\0*",
        &FIRST_TABLE.to_be_bytes()[..],
        &2u16.to_be_bytes(),
        &entry(IMAGE_DESCRIPTION, ASCII, json.len(), DATA),
        &entry(EXIF_TABLE, LONG, 1, SECOND_TABLE),
        &[0; 4],
        &1u16.to_be_bytes(),
        &entry(USER_COMMENT, UNDEFINED, comment.len(), DATA + json.len() as u32),
        &[0; 4],
        json,
        comment,
    ]
    .concat()
}

/// The description of the picture in EXIF data that [`encode`] wrote; other programs may have changed the byte order.
pub fn description(exif: &[u8]) -> Option<String> {
    let big = exif.starts_with(b"MM\0*");
    if !big && !exif.starts_with(b"II*\0") {
        return None;
    }
    let short = |at: usize| {
        let bytes = exif.get(at..)?.first_chunk()?;
        Some(if big { u16::from_be_bytes(*bytes) } else { u16::from_le_bytes(*bytes) })
    };
    let long = |at: usize| {
        let bytes = exif.get(at..)?.first_chunk()?;
        Some(if big { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) } as usize)
    };
    let table = long(4)?;
    let entries = (0..usize::from(short(table)?)).map(|index| table + 2 + 12 * index);
    let entry =
        { entries }.find(|&at| short(at) == Some(IMAGE_DESCRIPTION) && short(at + 2) == Some(ASCII))?;
    let text = exif.get(long(entry + 8)?..)?.get(..long(entry + 4)?)?;
    let text = text.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// JSON without other characters than ASCII.
pub fn in_ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for char in json.chars() {
        match char.is_ascii() {
            true => ascii.push(char),
            false => ascii.extend(char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_either_byte_order_are_found_and_damaged_ones_are_not() {
        let exif = tables(b"{\"a\":1}\0", b"UNICODE\0");
        assert_eq!(description(&exif).as_deref(), Some("{\"a\":1}"));
        for end in 0..DATA as usize {
            assert_eq!(description(&exif[..end]), None, "{end}");
        }
        let little = [
            &b"II*\0"[..],
            &8u32.to_le_bytes(),
            &1u16.to_le_bytes(),
            &IMAGE_DESCRIPTION.to_le_bytes(),
            &ASCII.to_le_bytes(),
            &8u32.to_le_bytes(),
            &26u32.to_le_bytes(),
            &[0; 4],
            b"{\"b\":2}\0",
        ]
        .concat();
        assert_eq!(description(&little).as_deref(), Some("{\"b\":2}"));
        assert_eq!(in_ascii("\"é😀\""), r#""\u00e9\ud83d\ude00""#);
    }
}
