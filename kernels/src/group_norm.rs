//! Group norm in two halves: moments of an image, and their use as a scale and shift a channel.
//!
//! The halves are apart because the moments may come from several ranks that each hold some rows of the image, and
//! because the second half is cheap to fold into whatever reads the result.

use burn::tensor::{Tensor, activation::silu};

use crate::cpu::lanes::Level;

mod cpu;
#[cfg(test)]
mod tests;

/// Mean and squared deviations from it of each group of channels of each image.
///
/// These, not Σx and Σx², because the difference of the latter loses digits as the mean grows beside the deviation.
/// Parts of an image combine exactly: ranks [`merge`](Self::merge) what they gather from each other.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Elements in each group.
    pub count: usize,
    /// `[b, g]`
    pub mean: Tensor<2>,
    /// Σ (x − mean)², `[b, g]`
    pub deviation: Tensor<2>,
}

impl Moments {
    /// The moments of `self`'s and `other`'s elements together.
    ///
    /// # Source
    /// Chan, Golub and LeVeque, *Algorithms for Computing the Sample Variance* (1983), equation 2.1.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let share = other.count as f64 / count as f64;
        let apart = other.mean - self.mean.clone();
        Self {
            count,
            mean: self.mean + apart.clone().mul_scalar(share),
            deviation: self.deviation
                + other.deviation
                + apart.square().mul_scalar(self.count as f64 * share),
        }
    }
}

/// `x · scale + shift`, a scale and shift for each channel of each image.
#[derive(Clone, Debug)]
pub struct Affine {
    /// `[b, c]`
    pub scale: Tensor<2>,
    /// `[b, c]`
    pub shift: Tensor<2>,
}

/// The moments of each group of `c / groups` channels.
///
/// # Shapes
/// `x`: `[b, c, y, x]` with `c` a multiple of `groups`.
pub fn group_norm_moments(x: Tensor<4>, groups: usize) -> Moments {
    if crate::cpu::is_f32(&x) {
        return cpu::moments(Level::detect(), x, groups);
    }
    reference_group_norm_moments(x, groups)
}

/// The scale and shift a channel that group norm with `moments` amounts to.
///
/// # Shapes
/// `weight`, `bias`: `[c]`.
pub fn group_norm_affine(moments: Moments, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Affine {
    let Moments { count, mean, deviation } = moments;
    let [b, groups] = mean.dims();
    let [c] = weight.dims();
    let inverse = deviation.div_scalar(count as f64).add_scalar(eps).sqrt().recip();
    let per_channel = |t: Tensor<2>| t.reshape([b, groups, 1]).repeat_dim(2, c / groups).reshape([b, c]);
    let scale = per_channel(inverse) * weight.unsqueeze();
    let shift = bias.unsqueeze() - per_channel(mean) * scale.clone();
    Affine { scale, shift }
}

/// `affine(x)`, then SiLU if `act`. Reuses `x`'s memory where nobody else holds it.
///
/// # Shapes
/// `x`: `[b, c, y, x]`.
pub fn norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    if [&affine.scale, &affine.shift].into_iter().all(crate::cpu::is_f32) && crate::cpu::is_f32(&x) {
        return cpu::norm_act(Level::detect(), x, affine, act);
    }
    reference_norm_act(x, affine, act)
}

/// [`group_norm_moments`] in plain tensor operations.
pub fn reference_group_norm_moments(x: Tensor<4>, groups: usize) -> Moments {
    let [b, c, rows, cols] = x.dims();
    let count = c / groups * rows * cols;
    let x = x.reshape([b, groups, count]);
    let mean = x.clone().mean_dim(2);
    let deviation = (x - mean.clone()).square().sum_dim(2);
    Moments { count, mean: mean.squeeze_dim(2), deviation: deviation.squeeze_dim(2) }
}

/// [`norm_act`] in plain tensor operations.
pub fn reference_norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    let [b, c] = affine.scale.dims();
    let y = x * affine.scale.clone().reshape([b, c, 1, 1]) + affine.shift.clone().reshape([b, c, 1, 1]);
    if act { silu(y) } else { y }
}
