//! Image tokens and their positions in the image.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

/// The positions of tokens in their image. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Rows and columns of the whole image, in tokens.
    grid: [usize; 2],
    /// `[row, column]` of each token.
    ids: Arc<[[u32; 2]]>,
}

impl Positions {
    /// All tokens of an image of `rows` × `columns` tokens, row by row.
    pub fn grid(rows: usize, columns: usize) -> Self {
        let ids =
            (0..rows as u32).flat_map(|row| (0..columns as u32).map(move |column| [row, column])).collect();
        Self { grid: [rows, columns], ids }
    }

    /// Rows and columns of the whole image, in tokens.
    pub fn extent(&self) -> [usize; 2] {
        self.grid
    }

    /// `[row, column]` of each token.
    pub fn ids(&self) -> &[[u32; 2]] {
        &self.ids
    }

    /// The tokens in `ranges`, one range after the other.
    pub fn select(&self, ranges: &[Range<usize>]) -> Self {
        let ids = ranges.iter().flat_map(|range| &self.ids[range.clone()]).copied().collect();
        Self { grid: self.grid, ids }
    }
}

/// Image tokens and their positions. Splitting splits both.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `[b, n, c]`
    pub x: Tensor<3>,
    /// Of the `n` tokens.
    pub positions: Positions,
}

impl Tokens {
    /// The same tokens with other features.
    pub fn with(&self, x: Tensor<3>) -> Self {
        Self { x, positions: self.positions.clone() }
    }
}

/// Packs a latent into tokens: each `patch` × `patch` square becomes one token.
///
/// # Shapes
/// `[b, c, y, x]` to `[b, y/patch · x/patch, c · patch · patch]`; a token's features are ordered channel, row,
/// column, as a convolution's weight is, so that patch embedding is a linear layer.
pub fn pack(latents: Tensor<4>, patch: usize) -> Tokens {
    let [b, c, height, width] = latents.dims();
    let (rows, columns) = (height / patch, width / patch);
    let x = latents.reshape([b, c, rows, patch, columns, patch]).permute([0, 2, 4, 1, 3, 5]).reshape([
        b,
        rows * columns,
        c * patch * patch,
    ]);
    Tokens { x, positions: Positions::grid(rows, columns) }
}

/// Undoes [`pack`], for all tokens of an image.
///
/// # Shapes
/// `[b, n, c · patch · patch]` to `[b, c, y, x]`.
pub fn unpack(tokens: Tokens, patch: usize) -> Tensor<4> {
    let [b, n, features] = tokens.x.dims();
    let [rows, columns] = tokens.positions.extent();
    assert_eq!(n, rows * columns, "unpacking needs all tokens of the image");
    let c = features / (patch * patch);
    tokens.x.reshape([b, rows, columns, c, patch, patch]).permute([0, 3, 1, 4, 2, 5]).reshape([
        b,
        c,
        rows * patch,
        columns * patch,
    ])
}
