//! Image tokens and their positions in the image, or in the frames of a clip.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

/// The positions of tokens in their picture or clip. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The frames of a clip; `None` for a picture.
    frames: Option<usize>,
    /// Rows and columns of the whole image, in tokens.
    grid: [usize; 2],
    /// `[frame, row, column]` of each token.
    ids: Arc<[[u32; 3]]>,
}

impl Positions {
    /// All tokens of a picture of `rows` × `columns` tokens, row by row.
    pub fn grid(rows: usize, columns: usize) -> Self {
        Self::new(None, rows, columns)
    }

    /// All tokens of a clip whose frames have `rows` × `columns` tokens. The tokens of a place in all frames are
    /// consecutive; places come row by row.
    pub fn clip(frames: usize, rows: usize, columns: usize) -> Self {
        Self::new(Some(frames), rows, columns)
    }

    fn new(frames: Option<usize>, rows: usize, columns: usize) -> Self {
        let in_all_frames =
            |row, column| (0..frames.unwrap_or(1) as u32).map(move |frame| [frame, row, column]);
        let places = (0..rows as u32).flat_map(|row| (0..columns as u32).map(move |column| (row, column)));
        let ids = places.flat_map(|(row, column)| in_all_frames(row, column)).collect();
        Self { frames, grid: [rows, columns], ids }
    }

    /// The number of frames of a clip, or `None` for a picture.
    pub fn frames(&self) -> Option<usize> {
        self.frames
    }

    /// Frames, rows and columns of the whole picture or clip, in tokens. A picture has one frame.
    pub fn extent(&self) -> [usize; 3] {
        [self.frames.unwrap_or(1), self.grid[0], self.grid[1]]
    }

    /// `[frame, row, column]` of each token.
    pub fn ids(&self) -> &[[u32; 3]] {
        &self.ids
    }

    /// The positions of the tokens in `ranges`, one range after another.
    pub fn select(&self, ranges: &[Range<usize>]) -> Self {
        let ids = ranges.iter().flat_map(|range| &self.ids[range.clone()]).copied().collect();
        Self { ids, ..*self }
    }
}

/// Image tokens and their positions. Splitting splits both.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `[b, n, c]`
    pub x: Tensor<3>,
    /// The positions of the `n` tokens.
    pub positions: Positions,
}

impl Tokens {
    /// The same tokens with other features.
    pub fn with(&self, x: Tensor<3>) -> Self {
        Self { x, positions: self.positions.clone() }
    }
}

/// Packs the latent of a picture or of a clip into tokens: each `patch` × `patch` square of a frame becomes one token.
///
/// # Shapes
/// `[b, c, y, x]`, or `[b, c, frames, y, x]` for a clip, to `[b, y/patch · x/patch · frames, c · patch · patch]`; a
/// token's features are ordered channel, row, column, as a convolution's weight is, so that patch embedding is a linear
/// layer.
///
/// # Panics
/// If the latent has neither four nor five dimensions.
pub fn pack<const D: usize>(latents: Tensor<D>, patch: usize) -> Tokens {
    let ([b, c, height, width], frames) = match latents.dims()[..] {
        [b, c, y, x] => ([b, c, y, x], None),
        [b, c, frames, y, x] => ([b, c, y, x], Some(frames)),
        _ => panic!("latents of {D} dimensions"),
    };
    let (rows, columns) = (height / patch, width / patch);
    let positions = Positions::new(frames, rows, columns);
    let x = latents.reshape([b, c, frames.unwrap_or(1), rows, patch, columns, patch]);
    let x = x.permute([0, 3, 5, 2, 1, 4, 6]).reshape([b, positions.ids.len(), c * patch * patch]);
    Tokens { x, positions }
}

/// Inverse of [`pack`], for all tokens of a picture or clip. A picture can also be unpacked as a clip of one frame.
///
/// # Shapes
/// `[b, n, c · patch · patch]` to `[b, c, y, x]` or `[b, c, frames, y, x]`.
///
/// # Panics
/// If tokens are missing, or the result has four dimensions and there are several frames.
pub fn unpack<const D: usize>(tokens: Tokens, patch: usize) -> Tensor<D> {
    let [b, n, features] = tokens.x.dims();
    let [frames, rows, columns] = tokens.positions.extent();
    assert_eq!(n, frames * rows * columns, "unpacking needs all tokens of the image");
    assert!(D == 5 || frames == 1, "a clip of {frames} frames as latents of {D} dimensions");
    let c = features / (patch * patch);
    let x = tokens.x.reshape([b, rows, columns, frames, c, patch, patch]).permute([0, 4, 3, 1, 5, 2, 6]);
    let (height, width) = (rows * patch, columns * patch);
    let shape = match D {
        4 => vec![b, c, height, width],
        _ => vec![b, c, frames, height, width],
    };
    x.reshape::<D, _>(<[usize; D]>::try_from(shape).expect("latents have four or five dimensions"))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    /// Latents whose values number their places in memory.
    fn numbered<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|index| index as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    #[test]
    fn the_tokens_of_a_place_in_all_frames_are_consecutive() {
        let latents = numbered([1, 2, 3, 4, 6]);
        let tokens = pack(latents.clone(), 2);
        assert_eq!(tokens.x.dims(), [1, 2 * 3 * 3, 2 * 2 * 2]);
        assert_eq!(tokens.positions.frames(), Some(3));
        assert_eq!(tokens.positions.ids()[..4], [[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 1]]);
        // The last token: the lower right corner of the last frame, channel by channel.
        let last: Vec<f32> = tokens.x.clone().narrow(1, 17, 1).into_data().try_to_vec().unwrap();
        let at = |channel: f32, row: f32, column: f32| ((channel * 3.0 + 2.0) * 4.0 + row) * 6.0 + column;
        let corner =
            |channel| [(2.0, 4.0), (2.0, 5.0), (3.0, 4.0), (3.0, 5.0)].map(|(y, x)| at(channel, y, x));
        assert_eq!(last, [corner(0.0), corner(1.0)].concat());
        assert_eq!(unpack::<5>(tokens, 2).into_data(), latents.into_data());
    }

    #[test]
    fn a_picture_is_unpacked_as_a_picture_or_as_a_clip_of_one_frame() {
        let latents = numbered([2, 3, 4, 6]);
        let tokens = pack(latents.clone(), 2);
        assert_eq!(tokens.positions.frames(), None);
        assert_eq!(unpack::<4>(tokens.clone(), 2).into_data(), latents.clone().into_data());
        assert_eq!(unpack::<5>(tokens, 2).into_data(), latents.reshape([2, 3, 1, 4, 6]).into_data());
    }
}
