//! Pictures as a video stream of H.264, without compression: each macroblock is raw samples (`I_PCM`).
//!
//! Samples are Y'CbCr of BT.709 in the range of video, with half of the colours' resolution, which every decoder takes. Raw
//! macroblocks need neither prediction nor transforms nor entropy coding. The price is the size: 1.5 bytes a pixel.
//!
//! # Source
//! ITU-T H.264 (08/2021): 7.3 for the syntax, 7.4.1 for units, E.2.1 for colours, A.3 for the profile and levels.

use rayon::prelude::*;
use xdit_core::pipeline::Picture;

/// The side of a macroblock in pixels.
const BLOCK: usize = 16;
/// The profile of all decoders: baseline, with the constraints that make it a part of the main profile.
pub const PROFILE: [u8; 2] = [66, 0b1100_0000];
/// The primaries of BT.709, the transfer function of sRGB, and the matrix of BT.709, as H.264 and MP4 number them.
pub const COLOURS: [u8; 3] = [1, 13, 1];
/// The luminance of red, green and blue in BT.709.
const LUMINANCE: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// For each level its number, and the most macroblocks a second, macroblocks a picture, and thousands of bits a second.
const LEVELS: [(u8, [f64; 3]); 12] = [
    (20, [11_880.0, 396.0, 2_000.0]),
    (30, [40_500.0, 1_620.0, 10_000.0]),
    (31, [108_000.0, 3_600.0, 14_000.0]),
    (32, [216_000.0, 5_120.0, 20_000.0]),
    (41, [245_760.0, 8_192.0, 50_000.0]),
    (42, [522_240.0, 8_704.0, 50_000.0]),
    (50, [589_824.0, 22_080.0, 135_000.0]),
    (51, [983_040.0, 36_864.0, 240_000.0]),
    (52, [2_073_600.0, 36_864.0, 240_000.0]),
    (60, [4_177_920.0, 139_264.0, 240_000.0]),
    (61, [8_355_840.0, 139_264.0, 480_000.0]),
    (62, [16_711_680.0, 139_264.0, 800_000.0]),
];

/// The units of a stream, without the bytes that tell where each begins.
pub struct Stream {
    /// The level that decoders must support.
    pub level: u8,
    /// The parameters of the sequence.
    pub sequence: Vec<u8>,
    /// The parameters of its pictures.
    pub picture: Vec<u8>,
    /// Each picture.
    pub frames: Vec<Vec<u8>>,
}

/// Encodes `frames`, `fps` a second.
///
/// # Panics
/// If there is no frame, or a side is odd.
pub fn encode(frames: &[Picture], fps: f32) -> Stream {
    let [width, height] = [frames[0].width, frames[0].height];
    assert!(width.is_multiple_of(2) && height.is_multiple_of(2), "colours belong to two by two pixels");
    let level = level(width, height, fps);
    Stream {
        level,
        sequence: sequence(width, height, level),
        picture: picture_parameters(),
        frames: frames.par_iter().enumerate().map(|(index, frame)| encode_frame(frame, index)).collect(),
    }
}

/// The first level that suffices, or the highest one.
fn level(width: usize, height: usize, fps: f32) -> u8 {
    let blocks = (width.div_ceil(BLOCK) * height.div_ceil(BLOCK)) as f64;
    let rate = blocks * f64::from(fps);
    let needs = [rate, blocks, rate * (BLOCK * BLOCK * 12) as f64 / 1000.0];
    let suffices =
        |(_, limits): &&(u8, [f64; 3])| needs.iter().zip(limits).all(|(need, limit)| need <= limit);
    LEVELS.iter().find(suffices).unwrap_or(&LEVELS[LEVELS.len() - 1]).0
}

/// The sequence's parameters: its size, and the meaning of its colours.
fn sequence(width: usize, height: usize, level: u8) -> Vec<u8> {
    let mut bits = Bits::unit(0x67);
    bits.bytes(&[PROFILE[0], PROFILE[1], level]);
    bits.golomb(0); // seq_parameter_set_id
    bits.golomb(0); // log2_max_frame_num_minus4
    bits.golomb(2); // pic_order_cnt_type: pictures are shown in the order of the stream
    bits.golomb(0); // max_num_ref_frames
    bits.bits(0, 1); // gaps_in_frame_num_value_allowed_flag
    let blocks = [width, height].map(|side| side.div_ceil(BLOCK));
    bits.golomb(blocks[0] - 1);
    bits.golomb(blocks[1] - 1);
    bits.bits(1, 1); // frame_mbs_only_flag
    bits.bits(1, 1); // direct_8x8_inference_flag
    // What is cut off on the left, right, top and bottom, in units of two pixels.
    let cut = [blocks[0] * BLOCK - width, blocks[1] * BLOCK - height].map(|pixels| pixels / 2);
    bits.bits(u32::from(cut != [0, 0]), 1);
    if cut != [0, 0] {
        [0, cut[0], 0, cut[1]].into_iter().for_each(|cut| bits.golomb(cut));
    }
    bits.bits(1, 1); // vui_parameters_present_flag
    bits.bits(0b00, 2); // neither aspect_ratio_info nor overscan_info: pixels are square
    bits.bits(1, 1); // video_signal_type_present_flag
    bits.bits(5, 3); // video_format: unspecified
    bits.bits(0, 1); // video_full_range_flag
    bits.bits(1, 1); // colour_description_present_flag
    bits.bytes(&COLOURS);
    bits.bits(1, 1); // chroma_loc_info_present_flag
    bits.golomb(1); // Colours are those of the centres of two by two pixels,
    bits.golomb(1); // in both fields.
    bits.bits(0b0000, 4); // no timing, no two kinds of hrd parameters, no pic_struct
    bits.bits(1, 1); // bitstream_restriction_flag
    bits.bits(1, 1); // motion_vectors_over_pic_boundaries_flag
    (0..4).for_each(|_| bits.golomb(0)); // no limits on sizes and motion vectors
    bits.golomb(0); // max_num_reorder_frames
    bits.golomb(0); // max_dec_frame_buffering
    bits.finish()
}

fn picture_parameters() -> Vec<u8> {
    let mut bits = Bits::unit(0x68);
    bits.golomb(0); // pic_parameter_set_id
    bits.golomb(0); // seq_parameter_set_id
    bits.bits(0b00, 2); // entropy_coding_mode_flag, bottom_field_pic_order_in_frame_present_flag
    bits.golomb(0); // num_slice_groups_minus1
    bits.golomb(0); // num_ref_idx_l0_default_active_minus1
    bits.golomb(0); // num_ref_idx_l1_default_active_minus1
    bits.bits(0b000, 3); // weighted_pred_flag, weighted_bipred_idc
    (0..3).for_each(|_| bits.golomb(0)); // initial quantisers, and that of colours
    bits.bits(0b100, 3); // deblocking_filter_control_present_flag
    bits.finish()
}

/// The picture `index` as one slice.
fn encode_frame(frame: &Picture, index: usize) -> Vec<u8> {
    let Picture { width, height, rgb } = frame;
    let blocks = [width.div_ceil(BLOCK), height.div_ceil(BLOCK)];
    let mut bits = Bits::unit(0x65);
    bits.bytes.reserve(blocks[0] * blocks[1] * (BLOCK * BLOCK * 3 / 2 + 2));
    bits.golomb(0); // first_mb_in_slice
    bits.golomb(7); // slice_type: all blocks of the picture are intra
    bits.golomb(0); // pic_parameter_set_id
    bits.bits(0, 4); // frame_num
    bits.golomb(index % 2); // idr_pic_id, which differs between neighbours
    bits.bits(0b00, 2); // no_output_of_prior_pics_flag, long_term_reference_flag
    bits.golomb(0); // slice_qp_delta
    bits.golomb(1); // disable_deblocking_filter_idc: samples stay as they are
    // Beyond the borders, the last pixel is repeated.
    let pixel = |row: usize, column: usize| {
        let at = 3 * (row.min(height - 1) * width + column.min(width - 1));
        [0, 1, 2].map(|channel| f32::from(rgb[at + channel]))
    };
    let luma = |[r, g, b]: [f32; 3]| LUMINANCE[0] * r + LUMINANCE[1] * g + LUMINANCE[2] * b;
    let sample = |value: f32, range: f32, zero: f32| (zero + value * range / 255.0).round() as u8;
    for block in 0..blocks[0] * blocks[1] {
        let [top, left] = [block / blocks[0] * BLOCK, block % blocks[0] * BLOCK];
        bits.golomb(25); // mb_type: I_PCM
        bits.align();
        for place in 0..BLOCK * BLOCK {
            let pixel = pixel(top + place / BLOCK, left + place % BLOCK);
            bits.bytes.push(sample(luma(pixel), 219.0, 16.0));
        }
        // Blue, then red.
        for channel in [2, 0] {
            for place in 0..BLOCK * BLOCK / 4 {
                let [row, column] = [top + place / (BLOCK / 2) * 2, left + place % (BLOCK / 2) * 2];
                let four = [[0, 0], [0, 1], [1, 0], [1, 1]].map(|[y, x]| pixel(row + y, column + x));
                let mean =
                    [0, 1, 2].map(|channel| four.iter().map(|pixel| pixel[channel]).sum::<f32>() / 4.0);
                let difference = (mean[channel] - luma(mean)) / (2.0 - 2.0 * LUMINANCE[channel]);
                bits.bytes.push(sample(difference, 224.0, 128.0));
            }
        }
    }
    bits.finish()
}

/// A unit that is written bit by bit.
struct Bits {
    bytes: Vec<u8>,
    /// The number of bits that are missing from the last byte.
    free: u32,
}

impl Bits {
    /// A unit of the type that its first byte gives.
    fn unit(header: u8) -> Self {
        Self { bytes: vec![header], free: 0 }
    }

    /// The last `count` bits of `value`, the highest one first.
    fn bits(&mut self, value: u32, count: u32) {
        for index in (0..count).rev() {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            self.free -= 1;
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> index & 1) as u8) << self.free;
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.bits(byte.into(), 8));
    }

    /// `value` in the code of Golomb: as many zeros as the bits of `value + 1` but one, and these bits.
    fn golomb(&mut self, value: usize) {
        let value = value as u32 + 1;
        self.bits(value, 2 * value.ilog2() + 1);
    }

    /// Zeros up to the next byte.
    fn align(&mut self) {
        self.free = 0;
    }

    /// The complete unit: a one and zeros at the end, and a three wherever two zeros would look like the begin of a unit.
    fn finish(mut self) -> Vec<u8> {
        self.bits(1, 1);
        let mut escaped = Vec::with_capacity(self.bytes.len());
        let mut zeros = 0;
        for byte in self.bytes {
            if zeros == 2 && byte <= 3 {
                escaped.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            escaped.push(byte);
        }
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_packed_and_escaped() {
        let mut bits = Bits::unit(0x65);
        [0, 1, 2, 3, 7].into_iter().for_each(|value| bits.golomb(value));
        // 1, 010, 011, 00100, 0001000, and the one at the end.
        assert_eq!(bits.finish(), [0x65, 0b1010_0110, 0b0100_0001, 0b0001_0000]);
        let mut bits = Bits::unit(0);
        bits.bytes(&[0, 0, 0, 1, 4, 0, 0, 4]);
        assert_eq!(bits.finish(), [0, 0, 3, 0, 0, 3, 1, 4, 0, 0, 4, 0x80]);
    }

    /// Black, white and the primary colours are those of BT.709 in the range of video, as tables of it give them.
    #[test]
    fn colours_are_those_of_video() {
        for (rgb, expected) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let frame = Picture { width: 2, height: 2, rgb: rgb.repeat(4) };
            let unit = encode_frame(&frame, 0);
            // Behind the headers, 256 samples of luma and 64 of each colour; then the end.
            let samples = &unit[unit.len() - 385..unit.len() - 1];
            assert_eq!([samples[0], samples[256], samples[320]], expected, "{rgb:?}");
            assert!(samples[..256].iter().all(|sample| *sample == samples[0]));
        }
    }

    /// FFmpeg reads these parameters as: constrained baseline, yuv420p (tv, bt709, iec61966-2-1), progressive, 32x24.
    #[test]
    fn parameters_are_those_that_decoders_read() {
        let sequence = sequence(32, 24, level(32, 24, 12.5));
        assert_eq!(sequence, [103, 66, 192, 20, 220, 151, 229, 154, 128, 134, 128, 210, 15, 248]);
        assert_eq!(picture_parameters(), [104, 206, 60, 128]);
    }

    #[test]
    fn levels_follow_size_and_rate() {
        assert_eq!(level(256, 256, 8.0), 30);
        assert_eq!(level(512, 512, 8.0), 41);
        assert_eq!(level(512, 512, 24.0), 50);
        assert_eq!(level(16_384, 16_384, 1000.0), 62);
    }
}
