//! The decoder of an autoencoder that computes the frames of a clip together.
//!
//! Each residual block is one of the plain decoder, within each frame, followed by another within each place, over the frames. For
//! the latter, a clip is an image with a row for each frame and a column for each place: a convolution over frames is one of that
//! image's columns, and a group norm over all frames is one of that image. The ranks of a parallel VAE divide the places.
//!
//! Source: Stable Video Diffusion (Blattmann et al. 2023); diffusers' `TemporalDecoder`, `SpatioTemporalResBlock` and
//! `AlphaBlender`.

use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};
use xdit_core::Result;
use xdit_core::attention::Qkv;
use xdit_core::rows::{Rows, Whole};
use xdit_core::weights::Weights;
use xdit_kernels::{Affine, Conv2d, Moments};

use crate::autoencoder_kl::{AutoencoderKlConfig, Block, Decoder, EPS};
use crate::convolution::{Convolution, Resnet, temporal_conv};

/// The ε of the group norms over all frames.
const TEMPORAL_EPS: f64 = 1e-5;

/// The decoder: that of pictures with other residual blocks, and a last convolution over frames.
#[derive(Clone, Debug)]
pub(crate) struct TemporalDecoder {
    decoder: Decoder<SpatioTemporalResnet>,
    time_conv_out: Convolution,
}

impl TemporalDecoder {
    pub(crate) fn load(config: &AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let c = config.image_channels;
        Ok(Self {
            decoder: Decoder::load(config, weights)?,
            time_conv_out: temporal_conv(&weights.at("time_conv_out"), c, c, 3)?,
        })
    }

    /// Decodes the frames of a clip, or the rows of them that a rank has.
    pub(crate) fn forward(&self, z: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let frames = self.decoder.forward(z, rows);
        by_place(frames, |clip| Places(rows).conv(&self.time_conv_out, clip, None, None))
    }
}

/// A residual block within frames and one over frames.
#[derive(Clone, Debug)]
pub struct SpatioTemporalResnet {
    spatial_res_block: Resnet,
    temporal_res_block: Resnet,
}

impl Block for SpatioTemporalResnet {
    fn load(groups: usize, weights: &Weights, c_in: usize, c_out: usize) -> Result<Self> {
        let temporal = weights.at("temporal_res_block");
        let temporal = Resnet::load_temporal((groups, TEMPORAL_EPS), &temporal, c_out)?;
        // The result is `(1 - share) · x + share · (x + y)`, where the second block turns `x` into `x + y`.
        let share = sigmoid(weights.at("time_mixer").with_dtype(DType::F32).tensor::<1>("mix_factor", [1])?);
        Ok(Self {
            spatial_res_block: Resnet::load((groups, EPS), &weights.at("spatial_res_block"), c_in, c_out)?,
            temporal_res_block: temporal.of_share(&share),
        })
    }

    /// The batch is consecutive frames of one clip.
    fn forward(&self, x: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        let frames = self.spatial_res_block.forward(x, None, rows);
        by_place(frames, |clip| self.temporal_res_block.forward(clip, None, &Places(rows)))
    }
}

/// Applies `work` to a clip as an image with a row for each frame and a column for each place.
///
/// # Shapes
/// `frames`: `[frames, c, y, x]`; `work` gets `[1, c, frames, y · x]` and keeps that shape.
fn by_place(frames: Tensor<4>, work: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    let [count, c, y, x] = frames.dims();
    let clip = work(frames.swap_dims(0, 1).reshape([1, c, count, y * x]));
    clip.reshape([c, count, y, x]).swap_dims(0, 1)
}

/// The image with a row for each frame and a column for each place. A rank has all rows of it, and some columns: those of its
/// rows in the frames.
struct Places<'a>(&'a dyn Rows);

impl Rows for Places<'_> {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        debug_assert_eq!(conv.weight.dims()[3], 1, "a kernel that keeps to its column");
        Whole.conv(conv, x, norm, residual)
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        self.0.moments(x, groups)
    }

    fn attend(&self, _: Qkv) -> Tensor<4> {
        unreachable!("no attention over frames")
    }
}
