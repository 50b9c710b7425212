//! Building blocks shared by the convolutional models.

use burn::tensor::Tensor;
use xdit_core::Result;
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

/// Loads a convolution with a square kernel that preserves the number of rows and columns.
///
/// # Errors
/// If a parameter is missing from `weights` or has the wrong shape.
pub fn conv(weights: &Weights, c_in: usize, c_out: usize, kernel: usize) -> Result<Conv2d> {
    Ok(Conv2d {
        weight: weights.tensor("weight", [c_out, c_in, kernel, kernel])?,
        bias: Some(weights.tensor("bias", [c_out])?),
        stride: 1,
        padding: [kernel / 2; 4],
        upsample: false,
    })
}
