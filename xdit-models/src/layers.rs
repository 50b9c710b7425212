//! Building blocks shared by the transformers of several models.

use burn::tensor::Tensor;
use xdit_core::Result;
use xdit_core::linear::Linear;
use xdit_core::weights::Weights;
use xdit_kernels::{Activation, activate};

/// Splits features into heads and joins them again. The number of heads follows from the tensor.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// The number of features of a head.
    pub head_dim: usize,
}

impl Heads {
    /// # Shapes
    /// `[b, n, h · d]` to `[b, n, h, d]`.
    pub fn split(self, x: Tensor<3>) -> Tensor<4> {
        let [b, n, c] = x.dims();
        x.reshape([b, n, c / self.head_dim, self.head_dim])
    }

    /// # Shapes
    /// `[b, n, h, d]` to `[b, n, h · d]`.
    pub fn join(self, x: Tensor<4>) -> Tensor<3> {
        let [b, n, h, d] = x.dims();
        x.reshape([b, n, h * d])
    }
}

/// Selects rows of a modulation, from `first` on.
///
/// # Shapes
/// `[b, rows, c]` to `R` tensors of `[b, 1, c]`.
pub fn modulation_rows<const R: usize>(modulation: &Tensor<3>, first: usize) -> [Tensor<3>; R] {
    std::array::from_fn(|row| modulation.clone().narrow(1, first + row, 1))
}

/// Two linear layers with an approximate GELU between them; the inner width is four times the outer one.
///
/// # Source
/// diffusers' `FeedForward` with `gelu-approximate`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Loads the layers from `weights`.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, dim: usize) -> Result<Self> {
        let net = weights.at("net");
        Ok(Self { proj: net.linear("0.proj", dim, 4 * dim)?, out: net.linear("2", 4 * dim, dim)? })
    }

    /// # Shapes
    /// `x` and the result: `[b, n, dim]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(activate(Activation::GeluTanh, self.proj.forward(x)))
    }
}

/// The embedding of packed latents: a convolution whose kernel equals its stride, as a linear layer.
///
/// # Errors
/// If a parameter is missing from `weights` or has the wrong shape.
pub fn patch_embedding(weights: &Weights, channels: usize, patch: usize, dim: usize) -> Result<Linear> {
    let kernel = weights.tensor("weight", [dim, channels, patch, patch])?;
    let kernel = kernel.reshape([dim, channels * patch * patch]);
    Ok(Linear::new(kernel, Some(weights.tensor("bias", [dim])?)))
}

/// The indices of a packed latent's features among the outputs of the last layer. The layer orders a token's
/// features by row, column and channel. A learned variance, which no sampler here uses, follows the first
/// `channels` channels.
pub fn packed_outputs(channels: usize, patch: usize, out_channels: usize) -> Vec<i32> {
    let place = |channel, pixel| (pixel * out_channels + channel) as i32;
    (0..channels).flat_map(|channel| (0..patch * patch).map(move |pixel| place(channel, pixel))).collect()
}
