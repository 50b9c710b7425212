//! Building blocks shared by the convolutional models.

use std::ops::Deref;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use xdit_core::Result;
use xdit_core::linear::Parameters;
use xdit_core::rows::Rows;
use xdit_core::weights::Weights;
use xdit_kernels::{Affine, Conv2d, group_norm_affine};

/// The parameters of a group norm.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    eps: f64,
    weight: Tensor<1>,
    bias: Tensor<1>,
}

impl GroupNorm {
    /// Loads the norm of `c` channels from `weights`.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load((groups, eps): (usize, f64), weights: &Weights, c: usize) -> Result<Self> {
        Ok(Self { groups, eps, weight: weights.tensor("weight", [c])?, bias: weights.tensor("bias", [c])? })
    }

    /// The scale and shift that the norm applies to each channel of `x`.
    ///
    /// # Shapes
    /// `x`: `[b, c, y, x]`.
    pub fn affine(&self, x: &Tensor<4>, rows: &dyn Rows) -> Affine {
        let moments = rows.moments(x.clone(), self.groups);
        group_norm_affine(moments, self.weight.clone(), self.bias.clone(), self.eps)
    }
}

/// A convolution whose parameters ranks of a process may share.
#[derive(Clone, Debug)]
pub struct Convolution {
    conv: Conv2d,
    /// The parameters in `conv`: other ranks find them as long as one has this.
    _shared: Arc<Parameters<4>>,
}

impl Convolution {
    fn of(shared: Arc<Parameters<4>>, padding: [usize; 4]) -> Self {
        let conv = Conv2d {
            weight: shared.weight.clone(),
            bias: shared.bias.clone(),
            stride: 1,
            padding,
            upsample: false,
        };
        Self { conv, _shared: shared }
    }

    /// The convolution of the same parameters with the geometry that `change` sets.
    #[must_use]
    pub fn with(self, change: impl FnOnce(Conv2d) -> Conv2d) -> Self {
        Self { conv: change(self.conv), ..self }
    }
}

impl Deref for Convolution {
    type Target = Conv2d;

    fn deref(&self) -> &Conv2d {
        &self.conv
    }
}

/// Loads a convolution with a square kernel that preserves the number of rows and columns.
///
/// # Errors
/// If a parameter is missing from `weights` or has the wrong shape.
pub fn conv(weights: &Weights, c_in: usize, c_out: usize, kernel: usize) -> Result<Convolution> {
    Ok(Convolution::of(weights.convolution(c_in, c_out, kernel)?, [kernel / 2; 4]))
}

/// Loads a convolution over `frames` frames of a clip, which keeps to a place. It takes an image with a row for each frame and a
/// column for each place.
///
/// # Errors
/// If a parameter is missing from `weights` or has the wrong shape.
pub fn temporal_conv(weights: &Weights, c_in: usize, c_out: usize, frames: usize) -> Result<Convolution> {
    let half = frames / 2;
    Ok(Convolution::of(weights.temporal_convolution(c_in, c_out, frames)?, [half, half, 0, 0]))
}

/// A residual block: twice group norm, SiLU and convolution, with a shortcut around them.
///
/// # Source
/// diffusers' `ResnetBlock2D` and, with convolutions over frames, `TemporalResnetBlock`.
#[derive(Clone, Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    conv_shortcut: Option<Convolution>,
}

impl Resnet {
    /// Loads the block from `weights`; `norm` has the groups and ε of its norms.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load(norm: (usize, f64), weights: &Weights, c_in: usize, c_out: usize) -> Result<Self> {
        Self::load_with(conv, norm, weights, c_in, c_out)
    }

    /// Loads a block with convolutions over three frames. It takes an image with a row for each frame and a column for each
    /// place.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape.
    pub fn load_temporal(norm: (usize, f64), weights: &Weights, c: usize) -> Result<Self> {
        Self::load_with(temporal_conv, norm, weights, c, c)
    }

    fn load_with(
        conv: impl Fn(&Weights, usize, usize, usize) -> Result<Convolution>,
        norm: (usize, f64),
        weights: &Weights,
        c_in: usize,
        c_out: usize,
    ) -> Result<Self> {
        let shortcut = || conv(&weights.at("conv_shortcut"), c_in, c_out, 1);
        Ok(Self {
            norm1: GroupNorm::load(norm, &weights.at("norm1"), c_in)?,
            conv1: conv(&weights.at("conv1"), c_in, c_out, 3)?,
            norm2: GroupNorm::load(norm, &weights.at("norm2"), c_out)?,
            conv2: conv(&weights.at("conv2"), c_out, c_out, 3)?,
            conv_shortcut: (c_in != c_out).then(shortcut).transpose()?,
        })
    }

    /// The same block with `share` of its result added to its input, instead of all. There must be no shortcut.
    ///
    /// # Shapes
    /// `share`: `[1]`.
    #[must_use]
    pub fn of_share(self, share: &Tensor<1>) -> Self {
        assert!(self.conv_shortcut.is_none(), "a shortcut would be a share, too");
        let Self { norm1, conv1, norm2, conv2, conv_shortcut } = self;
        let conv2 = conv2.with(|conv| Conv2d {
            weight: scaled(&conv.weight, share),
            bias: conv.bias.map(|bias| scaled(&bias, share)),
            ..conv
        });
        Self { norm1, conv1, norm2, conv2, conv_shortcut }
    }

    /// `time` is added between the convolutions, to each pixel.
    ///
    /// # Shapes
    /// `x`: `[b, c_in, y, x]`; `time`: `[b, c_out]`; result `[b, c_out, y, x]`.
    pub fn forward(&self, x: Tensor<4>, time: Option<Tensor<2>>, rows: &dyn Rows) -> Tensor<4> {
        let norm = self.norm1.affine(&x, rows);
        let y = rows.conv(&self.conv1, x.clone(), Some(&norm), None);
        let y = match time {
            Some(time) => y + time.unsqueeze_dim::<3>(2).unsqueeze_dim::<4>(3),
            None => y,
        };
        let x = match &self.conv_shortcut {
            Some(shortcut) => rows.conv(shortcut, x, None, None),
            None => x,
        };
        let norm = self.norm2.affine(&y, rows);
        rows.conv(&self.conv2, y, Some(&norm), Some(x))
    }
}

/// `tensor` times `factor`, rounded once.
fn scaled<const D: usize>(tensor: &Tensor<D>, factor: &Tensor<1>) -> Tensor<D> {
    let product = tensor.clone().cast(DType::F32) * factor.clone().cast(DType::F32).reshape([1; D]);
    product.cast(tensor.dtype())
}
