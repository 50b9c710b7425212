//! Clips as animated GIF files that contain their parameters as a comment.
//!
//! A frame has 256 colours of its own, chosen for it.
//!
//! # Source
//! GIF89a, section 24 for comments.

use gif::{AnyExtension, Encoder, Frame, Repeat};
use rayon::prelude::*;
use xdit_core::pipeline::Picture;

use super::exif::in_ascii;
use super::picture::durations;
use crate::parameters::Parameters;

/// The first bytes of a file, before its version.
pub const SIGNATURE: &[u8] = b"GIF8";
/// The longest side of a picture in this format.
pub const MAX_SIDE: usize = u16::MAX as usize;

/// The label of an extension with a comment.
const COMMENT: u8 = 0xfe;
/// Colours are learned from about so many pixels of a frame, but at least from one of ten.
const SAMPLES: usize = 1 << 15;
/// The durations of frames count hundredths of a second. Browsers show shorter frames for a tenth.
const UNITS_PER_SECOND: f64 = 100.0;
const SHORTEST: u32 = 2;
/// The most frames per second: those of the shortest duration.
pub const MAX_FPS: f32 = 50.0;

/// The contents of a file with an animation of `frames`, `fps` a second, and, if given, its parameters.
///
/// # Panics
/// If there is no frame, or its sides are too long.
pub fn encode(frames: &[Picture], fps: f32, parameters: Option<&Parameters>) -> Vec<u8> {
    let json = parameters
        .map(|all| serde_json::to_string(all).expect("strings and finite numbers can be serialized"));
    let mut bytes = Vec::new();
    write(frames, fps, json.as_deref(), &mut bytes).expect("a clip of valid size can be written to memory");
    bytes
}

fn write(
    frames: &[Picture],
    fps: f32,
    comment: Option<&str>,
    bytes: &mut Vec<u8>,
) -> Result<(), gif::EncodingError> {
    let side = |side: usize| u16::try_from(side).expect("the side was checked");
    let [width, height] = [side(frames[0].width), side(frames[0].height)];
    let mut encoder = Encoder::new(bytes, width, height, &[])?;
    encoder.set_repeat(Repeat::Infinite)?;
    if let Some(comment) = comment {
        encoder.write_raw_extension(AnyExtension(COMMENT), &[in_ascii(comment).as_bytes()])?;
    }
    let sampling = (frames[0].width * frames[0].height / SAMPLES).clamp(1, 10) as i32;
    let with_colours = |frame: &Picture| Frame::from_rgb_speed(width, height, &frame.rgb, sampling);
    let encoded: Vec<Frame<'_>> = frames.par_iter().map(with_colours).collect();
    for (mut frame, duration) in encoded.into_iter().zip(durations(frames.len(), fps, UNITS_PER_SECOND)) {
        frame.delay = duration.clamp(SHORTEST, u16::MAX.into()) as u16;
        encoder.write_frame(&frame)?;
    }
    Ok(())
}

/// The comment before the first frame in the file `bytes`, if there is one.
pub fn comment(bytes: &[u8]) -> Option<String> {
    let flags = *bytes.get(10)?;
    // The colours of the whole file, behind a header and a description of 13 bytes.
    let colours = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut rest = bytes.get(13 + colours..)?;
    // Extensions have a label and blocks, each with its length, of which the last one is empty.
    while let [0x21, label, blocks @ ..] = rest {
        let (mut text, mut blocks) = (Vec::new(), blocks);
        loop {
            let (&length, following) = blocks.split_first()?;
            let (block, following) = following.split_at_checked(length.into())?;
            text.extend_from_slice(block);
            blocks = following;
            if length == 0 {
                break;
            }
        }
        if *label == COMMENT {
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
        rest = blocks;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of few colours keep them, and the times at which frames begin are rounded, not their durations.
    #[test]
    fn a_clip_is_an_animation() {
        let frames = [10, 20, 30].map(|value| Picture { width: 3, height: 2, rgb: vec![value; 18] });
        let text = "é".repeat(300);
        let mut bytes = Vec::new();
        write(&frames, 8.0, Some(&text), &mut bytes).unwrap();
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(&bytes[..]).unwrap();
        assert_eq!((decoder.width(), decoder.height()), (3, 2));
        assert_eq!(decoder.repeat(), Repeat::Infinite);
        for (frame, delay) in frames.iter().zip([13, 12, 13]) {
            let read = decoder.read_next_frame().unwrap().unwrap();
            assert_eq!(read.delay, delay);
            let rgb: Vec<u8> = read.buffer.chunks_exact(4).flat_map(|rgba| rgba[..3].to_vec()).collect();
            assert_eq!(rgb, frame.rgb);
        }
        assert!(decoder.read_next_frame().unwrap().is_none());
        assert_eq!(comment(&bytes).unwrap(), "\\u00e9".repeat(300));
        // A file that ends early has no comment, as long as the comment is not complete.
        let end = bytes.windows(2).position(|pair| pair == [0x21, COMMENT]).unwrap();
        (0..end + 1800).for_each(|end| assert_eq!(comment(&bytes[..end]), None, "{end}"));
        bytes.clear();
        write(&frames, 8.0, None, &mut bytes).unwrap();
        assert_eq!(comment(&bytes), None);
    }
}
