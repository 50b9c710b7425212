//! Pictures and clips as PNG files, still or animated, that contain their parameters.

use std::io::Cursor;

use xdit_core::pipeline::Picture;

use crate::parameters::Parameters;

/// The first bytes of a file.
pub const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The text chunk with all parameters, as JSON.
const JSON: &str = "xdit";
/// The text chunk that other programs read.
const INFOTEXT: &str = "parameters";

/// The contents of a PNG file with a picture, or an animation of several frames, `fps` a second, and, if given, its parameters.
///
/// # Panics
/// If there is no frame.
pub fn encode(frames: &[Picture], fps: f32, parameters: Option<&Parameters>) -> Vec<u8> {
    let texts = parameters.map(|parameters| {
        let json = serde_json::to_string(parameters).expect("strings and finite numbers can be serialized");
        [(INFOTEXT, parameters.infotext()), (JSON, json)]
    });
    let mut bytes = Vec::new();
    write(frames, fps, texts.into_iter().flatten(), &mut bytes)
        .expect("a picture of valid size can be written to memory");
    bytes
}

/// The numerator and denominator of a frame's duration in seconds, if a second has `fps`.
fn duration(fps: f32) -> (u16, u16) {
    let fits = |unit: &u16| fps * f32::from(*unit) <= u16::MAX.into();
    // A whole number stays one; otherwise the finest unit is taken.
    let unit = match fps.fract() == 0.0 {
        true => 1,
        false => [1000, 100, 10].into_iter().find(fits).unwrap_or(1),
    };
    let rate = fps * f32::from(unit);
    (unit, rate.round().max(1.0) as u16)
}

fn write(
    frames: &[Picture],
    fps: f32,
    texts: impl IntoIterator<Item = (&'static str, String)>,
    bytes: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, frames[0].width as u32, frames[0].height as u32);
    if frames.len() > 1 {
        // Zero repetitions mean that it repeats without end.
        encoder.set_animated(frames.len() as u32, 0)?;
        let (numerator, denominator) = duration(fps);
        encoder.set_frame_delay(numerator, denominator)?;
    }
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    for (keyword, text) in texts {
        // More programs read the older chunk, but it is limited to Latin-1.
        if text.chars().all(|char| u32::from(char) < 0x100) {
            encoder.add_text_chunk(keyword.to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(&frame.rgb)?;
    }
    writer.finish()
}

/// The text with the parameters in the file `bytes`, if there is one.
///
/// # Errors
/// The reason why the file cannot be read.
pub fn json(bytes: &[u8]) -> Result<Option<String>, String> {
    let reason = |error: png::DecodingError| match error.to_string() {
        // The crate shows its own types.
        text if text.contains("ChunkType {") => "one of its chunks is damaged".to_owned(),
        text => text,
    };
    let reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(reason)?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == JSON);
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == JSON);
    match (latin1, utf8) {
        (Some(chunk), _) => Ok(Some(chunk.text.clone())),
        // A compressed text has a limit of 2 MiB.
        (None, Some(chunk)) => chunk.get_text().map(Some).map_err(|error| error.to_string()),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reason why a file cannot be read is a text for people.
    #[test]
    fn damaged_chunks() {
        let frame = Picture { width: 2, height: 1, rgb: vec![7; 6] };
        let mut bytes = Vec::new();
        write(&[frame], 8.0, [(JSON, "b".into())], &mut bytes).unwrap();
        assert_eq!(json(&bytes).unwrap().as_deref(), Some("b"));
        for place in [20, 30] {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert_eq!(json(&damaged).unwrap_err(), "one of its chunks is damaged");
        }
    }

    /// A file of three frames holds all of them, in order, for an eighth of a second each.
    #[test]
    fn a_clip_is_an_animation() {
        let frames = [10, 20, 30].map(|value| Picture { width: 2, height: 1, rgb: vec![value; 6] });
        let mut bytes = Vec::new();
        write(&frames, 8.0, [(INFOTEXT, "a".into()), (JSON, "b".into())], &mut bytes).unwrap();
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
        assert_eq!(reader.info().animation_control.unwrap().num_frames, 3);
        for frame in &frames {
            let mut rgb = vec![0; 6];
            reader.next_frame(&mut rgb).unwrap();
            assert_eq!(rgb, frame.rgb);
            let control = reader.info().frame_control.unwrap();
            assert_eq!((control.delay_num, control.delay_den), (1, 8));
        }
    }

    #[test]
    fn durations_are_fractions() {
        assert_eq!([8.0, 24.0, 1000.0].map(duration), [(1, 8), (1, 24), (1, 1000)]);
        assert_eq!([12.5, 23.976, 66.6].map(duration), [(1000, 12_500), (1000, 23_976), (100, 6660)]);
        assert_eq!([0.5, 0.0001, 999.75].map(duration), [(1000, 500), (1000, 1), (10, 9998)]);
    }
}
