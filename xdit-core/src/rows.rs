//! The seam of autoencoders and UNets: the three operations that mix the rows of an image.
//!
//! Such a model computes pixel by pixel, except in convolutions, which use neighbouring rows, and in group norms and
//! attention, which use all rows. It calls these operations on the [`Rows`] that it gets. On a rank with the whole
//! image, they are the kernels themselves, [`Whole`].

use burn::tensor::Tensor;
use xdit_kernels::{Affine, Conv2d, Moments, attention, conv2d, group_norm_moments};

use crate::attention::{Qkv, scale};

/// The operations that mix rows, as a model calls them.
///
/// An image may be some rows of a larger image, the rest of which is on other ranks.
pub trait Rows {
    /// [`conv2d`] of the whole image. The result has the rows that correspond to those of `x`.
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

    /// Attention of the given pixels to those of the whole image. Softmax is over `q kᵀ / √d`.
    ///
    /// # Shapes
    /// `pixels` and result: `[b, n, h, d]`, where `n` are the pixels row by row.
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
