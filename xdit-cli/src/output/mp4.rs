//! Clips as MP4 files that contain their parameters as a comment.
//!
//! The video is H.264 without compression ([`h264`]), which browsers and other programs play.
//!
//! # Source
//! ISO/IEC 14496-12 for the boxes, 14496-15 for H.264 in them; for the comment, the metadata of iTunes, as FFmpeg writes it.

use xdit_core::pipeline::Picture;

use super::h264::{self, Stream};
use crate::parameters::Parameters;

/// The bytes of a file from the fifth on.
pub const SIGNATURE: &[u8] = b"ftypisom";
/// The most bytes of the pictures, whose places are numbers of 32 bits.
const MAX_BYTES: usize = u32::MAX as usize - (1 << 26);
/// Sides are numbers of 16 bits.
pub const MAX_SIDE: usize = u16::MAX as usize;

/// The units of time in a second, for each frame in a second.
const UNITS: f32 = 1000.0;
/// The matrix that leaves a picture as it is.
const UNCHANGED: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];
/// The code of an undetermined language.
const NO_LANGUAGE: u16 = 0x55c4;

/// The reason why `frames` of `size`, height and width, do not fit into a file, if they do not.
pub fn obstacle(size: [usize; 2], frames: usize) -> Option<&'static str> {
    let bytes = size.into_iter().fold(frames.saturating_mul(2), usize::saturating_mul);
    match () {
        () if size.iter().any(|side| !side.is_multiple_of(2)) => {
            Some("has an odd side, which an MP4 file cannot have")
        }
        () if bytes > MAX_BYTES || size.iter().any(|side| *side > MAX_SIDE) => {
            Some("is too large for an MP4 file")
        }
        () => None,
    }
}

/// The contents of a file with `frames`, `fps` a second, and, if given, their parameters.
///
/// # Panics
/// If there is no frame, or [`obstacle`] names one.
pub fn encode(frames: &[Picture], fps: f32, parameters: Option<&Parameters>) -> Vec<u8> {
    let json = parameters
        .map(|all| serde_json::to_string(all).expect("strings and finite numbers can be serialized"));
    write(frames, fps, json.as_deref())
}

fn write(frames: &[Picture], fps: f32, comment: Option<&str>) -> Vec<u8> {
    let stream = h264::encode(frames, fps);
    let size = [frames[0].width, frames[0].height].map(|side| u16::try_from(side).expect("it was checked"));
    let kind = atom(b"ftyp", &[b"isom", &[0, 0, 2, 0][..], b"isom", b"iso2", b"avc1", b"mp41"]);
    // Pictures come last, so that a browser can begin to play; their place depends on the length of all before them.
    let movie = |place: usize| movie(&stream, size, fps, place, comment);
    let place = kind.len() + movie(0).len() + 8;
    let samples: Vec<u8> =
        stream.frames.iter().flat_map(|frame| [&length(frame)[..], frame].concat()).collect();
    [kind, movie(place), atom(b"mdat", &[&samples])].concat()
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("the size was checked").to_be_bytes()
}

/// A box of the `name`, with its length before it.
fn atom(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = u32::try_from(8 + contents.len()).expect("the size was checked");
    [&length.to_be_bytes()[..], name, &contents].concat()
}

/// A box with a version, which is 0, and `flags`.
fn full(name: &[u8; 4], flags: u32, parts: &[&[u8]]) -> Vec<u8> {
    atom(name, &[&flags.to_be_bytes(), &parts.concat()])
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// All about the pictures, which begin at byte `place` of the file.
fn movie(
    stream: &Stream,
    [width, height]: [u16; 2],
    fps: f32,
    place: usize,
    comment: Option<&str>,
) -> Vec<u8> {
    let count = stream.frames.len() as u32;
    let scale = (fps * UNITS).round().max(1.0) as u32;
    let duration = count * UNITS as u32;
    // The times of creation and change are left out: the same run gives the same file.
    let header = full(
        b"mvhd",
        0,
        &[
            &words(&[0, 0, scale, duration, 0x1_0000]),
            // The volume, and what is reserved.
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &words(&UNCHANGED),
            &words(&[0, 0, 0, 0, 0, 0]),
            // The number of the next track.
            &words(&[2]),
        ],
    );
    let track = full(
        b"tkhd",
        // Enabled, and part of the presentation.
        3,
        &[
            &words(&[0, 0, 1, 0, duration, 0, 0, 0, 0]),
            &words(&UNCHANGED),
            &words(&[u32::from(width) << 16, u32::from(height) << 16]),
        ],
    );
    let media_header =
        full(b"mdhd", 0, &[&words(&[0, 0, scale, duration]), &NO_LANGUAGE.to_be_bytes(), &[0, 0]]);
    let handler = full(b"hdlr", 0, &[&[0; 4], b"vide", &[0; 12], b"xdit\0"]);
    let here = full(b"dref", 0, &[&words(&[1]), &full(b"url ", 1, &[])]);
    let information = atom(
        b"minf",
        &[&full(b"vmhd", 1, &[&[0; 8]]), &atom(b"dinf", &[&here]), &samples(stream, [width, height], place)],
    );
    let media = atom(b"mdia", &[&media_header, &handler, &information]);
    let user = comment.map(|comment| atom(b"udta", &[&metadata(comment)])).unwrap_or_default();
    atom(b"moov", &[&header, &atom(b"trak", &[&track, &media]), &user])
}

/// The format, durations, sizes and places of samples, each of which is a picture.
fn samples(stream: &Stream, [width, height]: [u16; 2], place: usize) -> Vec<u8> {
    let count = stream.frames.len() as u32;
    let with_length = |unit: &[u8]| [&(unit.len() as u16).to_be_bytes()[..], unit].concat();
    let configuration = atom(
        b"avcC",
        &[
            &[1, h264::PROFILE[0], h264::PROFILE[1], stream.level],
            // Lengths of four bytes, and one set of parameters of each kind.
            &[0xff, 0xe1],
            &with_length(&stream.sequence),
            &[1],
            &with_length(&stream.picture),
        ],
    );
    let [primaries, transfer, matrix] = h264::COLOURS;
    let colours = atom(b"colr", &[b"nclx", &[0, primaries, 0, transfer, 0, matrix, 0]]);
    let format = atom(
        b"avc1",
        &[
            // What is reserved, and where the pictures are: in this file.
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0; 16],
            &width.to_be_bytes(),
            &height.to_be_bytes(),
            // 72 pixels an inch, one picture a sample, no name, and colours of 24 bits.
            &words(&[0x48_0000, 0x48_0000, 0]),
            &[0, 1],
            &[0; 32],
            &[0, 24, 0xff, 0xff],
            &configuration,
            &colours,
        ],
    );
    let sizes: Vec<u32> = stream.frames.iter().map(|frame| frame.len() as u32 + 4).collect();
    let place = u32::try_from(place).expect("it is before the pictures");
    atom(
        b"stbl",
        &[
            &full(b"stsd", 0, &[&words(&[1]), &format]),
            &full(b"stts", 0, &[&words(&[1, count, UNITS as u32])]),
            // One chunk has all samples.
            &full(b"stsc", 0, &[&words(&[1, 1, count, 1])]),
            &full(b"stsz", 0, &[&words(&[0, count]), &words(&sizes)]),
            &full(b"stco", 0, &[&words(&[1, place])]),
        ],
    )
}

/// The name of the comment, and of the data in it.
const COMMENT: [&[u8; 4]; 2] = [b"\xa9cmt", b"data"];

fn metadata(comment: &str) -> Vec<u8> {
    // UTF-8, in no particular language.
    let data = atom(COMMENT[1], &[&words(&[1, 0]), comment.as_bytes()]);
    let handler = full(b"hdlr", 0, &[&[0; 4], b"mdirappl", &[0; 9]]);
    full(b"meta", 0, &[&handler, &atom(b"ilst", &[&atom(COMMENT[0], &[&data])])])
}

/// Whether a file with these first bytes is of this format.
pub fn is_mp4(bytes: &[u8]) -> bool {
    bytes.get(4..).is_some_and(|rest| rest.starts_with(SIGNATURE))
}

/// The comment in the file `bytes`, if there is one.
pub fn comment(bytes: &[u8]) -> Option<String> {
    let user = find(find(bytes, b"moov")?, b"udta")?;
    // `meta` has a version before the boxes in it.
    let list = find(find(user, b"meta")?.get(4..)?, b"ilst")?;
    let text = find(find(list, COMMENT[0])?, COMMENT[1])?.get(8..)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The contents of the first box of the `name` among those in `bytes`.
fn find<'a>(mut bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    loop {
        let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
        let (found, rest) = bytes.split_at_checked(length).filter(|_| length >= 8)?;
        if found[4..8] == name[..] {
            return Some(&found[8..]);
        }
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use shiguredo_mp4::boxes::{Avc1Box, SampleEntry};
    use shiguredo_mp4::demux::{Input, Mp4FileDemuxer};

    use super::*;

    /// A clip of 20x6 pixels, which do not fill their macroblocks.
    fn frames() -> Vec<Picture> {
        let frame = |level: usize| Picture {
            width: 20,
            height: 6,
            rgb: (0..360).map(|index| ((index % 3 * 60 + index / 60 * level) % 256) as u8).collect(),
        };
        [3, 20, 38].map(frame).to_vec()
    }

    /// What a parser finds: each picture with its time and duration in seconds, and their format.
    fn read(bytes: &[u8]) -> (Vec<(f64, f64, Vec<u8>)>, Avc1Box) {
        let mut demuxer = Mp4FileDemuxer::new();
        demuxer.handle_input(Input { position: 0, data: bytes });
        assert_eq!(demuxer.tracks().unwrap().len(), 1);
        let (mut samples, mut format) = (Vec::new(), None);
        while let Some(sample) = demuxer.next_sample().unwrap() {
            assert!(sample.keyframe);
            let seconds = |units: u64| units as f64 / f64::from(sample.track.timescale.get());
            let contents = bytes[sample.data_offset as usize..][..sample.data_size].to_vec();
            samples.push((seconds(sample.timestamp), seconds(sample.duration.into()), contents));
            if let Some(SampleEntry::Avc1(of_sample)) = sample.sample_entry {
                format = Some(of_sample.clone());
            }
        }
        (samples, format.expect("a format"))
    }

    #[test]
    fn a_parser_finds_the_frames() {
        let bytes = write(&frames(), 12.5, Some("{}"));
        let (samples, format) = read(&bytes);
        let times: Vec<_> = samples.iter().map(|(time, duration, _)| (*time, *duration)).collect();
        assert_eq!(times, [(0.0, 0.08), (0.08, 0.08), (0.16, 0.08)]);
        assert_eq!((format.visual.width, format.visual.height), (20, 6));
        let Stream { level, sequence, picture, .. } = h264::encode(&frames(), 12.5);
        let avcc = format.avcc_box;
        assert_eq!([avcc.avc_profile_indication, avcc.profile_compatibility], h264::PROFILE);
        assert_eq!((avcc.avc_level_indication, avcc.length_size_minus_one.get()), (level, 3));
        assert_eq!((avcc.sps_list, avcc.pps_list), (vec![sequence], vec![picture]));
        let end: usize = samples.iter().map(|(_, _, sample)| sample.len()).sum();
        assert!(bytes.ends_with(&samples[2].2) && end < bytes.len());
    }

    #[test]
    fn comments_are_found() {
        let text = "{\"prompt\":\"é\"}";
        let bytes = write(&frames(), 8.0, Some(text));
        assert_eq!(comment(&bytes).unwrap(), text);
        assert_eq!(comment(&write(&frames(), 8.0, None)), None);
        let movie = bytes.windows(4).position(|name| name == b"mdat").unwrap() - 4;
        (0..movie).for_each(|end| assert_eq!(comment(&bytes[..end]), None, "{end}"));
        assert_eq!(comment(&bytes[..movie]).unwrap(), text);
    }

    /// The samples at the places that the file names are the frames, whose colours of two by two pixels are their mean.
    #[test]
    fn samples_are_the_frames() {
        let frames = frames();
        let bytes = write(&frames, 8.0, None);
        for (frame, (_, _, sample)) in frames.iter().zip(read(&bytes).0) {
            assert_eq!(u32::from_be_bytes(sample[..4].try_into().unwrap()) as usize + 4, sample.len());
            // Two macroblocks of 384 samples, the second one with its type before it; a bit ends the slice.
            let blocks = [&sample[sample.len() - 771..][..384], &sample[sample.len() - 385..][..384]];
            for (row, column) in [(0, 0), (1, 3), (5, 15), (2, 16), (4, 19)] {
                let [block, x] = [column / 16, column % 16];
                let rgb = |row: usize, column: usize| {
                    let at = 3 * (row * 20 + column);
                    [0, 1, 2].map(|channel| f32::from(frame.rgb[at + channel]))
                };
                let [y, half] = [row, row / 2 * 8 + x / 2];
                let luma = f32::from(blocks[block][y * 16 + x]);
                let [r, g, b] = rgb(row, column);
                let expected = 16.0 + 0.858_82 * (0.2126 * r + 0.7152 * g + 0.0722 * b);
                assert!((luma - expected).abs() < 0.6, "{luma} for {expected}");
                let [top, left] = [row / 2 * 2, column / 2 * 2];
                let four = [rgb(top, left), rgb(top, left + 1), rgb(top + 1, left), rgb(top + 1, left + 1)];
                let mean =
                    [0, 1, 2].map(|channel| four.iter().map(|pixel| pixel[channel]).sum::<f32>() / 4.0);
                let luma = 0.2126 * mean[0] + 0.7152 * mean[1] + 0.0722 * mean[2];
                for (plane, channel, share) in [(256, 2, 1.8556), (320, 0, 1.5748)] {
                    let found = f32::from(blocks[block][plane + half]);
                    let expected = 128.0 + 0.878_43 * (mean[channel] - luma) / share;
                    assert!((found - expected).abs() < 0.6, "{found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(obstacle([512, 512], 16), None);
        assert_eq!(obstacle([512, 511], 16), Some("has an odd side, which an MP4 file cannot have"));
        assert_eq!(obstacle([16_384, 16_384], 16), Some("is too large for an MP4 file"));
    }
}
