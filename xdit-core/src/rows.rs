//! The seam of an autoencoder: the three places where a row of an image sees other rows.
//!
//! An autoencoder computes pixel by pixel but for its convolutions, which see the rows next to them, and for group
//! norms and attention, which see all. For these it asks the [`Rows`] it was given. Where the image is here as a
//! whole, that is the kernels themselves, [`Whole`].

use burn::tensor::Tensor;
use xdit_kernels::{Affine, Conv2d, Moments, attention, conv2d, group_norm_moments};

use crate::attention::{Qkv, scale};

/// The operations that mix rows, as a model sees them.
///
/// An image may be some rows of a larger image, the rest of which lives on other ranks.
pub trait Rows {
    /// [`conv2d`] of the whole image, of which the result's rows are those that `x`'s rows become.
    ///
    /// # Shapes
    /// `x`: `[b, c_in, y, x]`; result and `residual`: `[b, c_out, y', x']`.
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4>;

    /// [`group_norm_moments`] of the whole image.
    ///
    /// # Shapes
    /// `x`: `[b, c, y, x]` with `c` a multiple of `groups`.
    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments;

    /// Attention of the pixels that are here to those of the whole image. Softmax is over `q kᵀ / √d`.
    ///
    /// # Shapes
    /// `[b, n, h, d]`, where `n` are the pixels row by row; the result, too.
    fn attend(&self, pixels: Qkv) -> Tensor<4>;
}

/// The operations on a single rank, which has the whole image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whole;

impl Rows for Whole {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        conv2d(conv, x, norm, residual)
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        group_norm_moments(x, groups)
    }

    fn attend(&self, pixels: Qkv) -> Tensor<4> {
        let scale = scale(&pixels.q);
        attention(pixels.q, pixels.k, pixels.v, None, scale)
    }
}
