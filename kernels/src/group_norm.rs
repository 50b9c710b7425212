//! Group norm in two halves: sums over an image, and their use as a scale and shift a channel.
//!
//! The halves are apart because the sums may come from several ranks that each hold some rows of the image, and
//! because the second half is cheap to fold into whatever reads the result.

use burn::tensor::{Tensor, activation::silu};

/// `x · scale + shift`, a scale and shift for each channel of each image.
#[derive(Clone, Debug)]
pub struct Affine {
    /// `[b, c]`
    pub scale: Tensor<2>,
    /// `[b, c]`
    pub shift: Tensor<2>,
}

/// Σx and Σx² of each group.
///
/// # Shapes
/// `x`: `[b, c, y, x]` with `c` a multiple of `groups`; both results `[b, groups]`, f32.
pub fn group_norm_sums(x: Tensor<4>, groups: usize) -> (Tensor<2>, Tensor<2>) {
    reference_group_norm_sums(x, groups)
}

/// The scale and shift a channel that group norm amounts to, from the sums over `count` elements of each group.
///
/// # Shapes
/// `sum`, `sum_sq`: `[b, g]`; `weight`, `bias`: `[c]`.
pub fn group_norm_affine(
    sum: Tensor<2>,
    sum_sq: Tensor<2>,
    count: usize,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Affine {
    reference_group_norm_affine(sum, sum_sq, count, weight, bias, eps)
}

/// `affine(x)`, then SiLU if `act`. Reuses `x`'s memory where nobody else holds it.
///
/// # Shapes
/// `x`: `[b, c, y, x]`.
pub fn norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    reference_norm_act(x, affine, act)
}

/// [`group_norm_sums`] in plain tensor operations.
pub fn reference_group_norm_sums(x: Tensor<4>, groups: usize) -> (Tensor<2>, Tensor<2>) {
    let [b, c, rows, cols] = x.dims();
    let x = x.reshape([b, groups, c / groups * rows * cols]);
    (x.clone().sum_dim(2).squeeze_dim(2), x.square().sum_dim(2).squeeze_dim(2))
}

/// [`group_norm_affine`] in plain tensor operations.
pub fn reference_group_norm_affine(
    sum: Tensor<2>,
    sum_sq: Tensor<2>,
    count: usize,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Affine {
    let [b, groups] = sum.dims();
    let [c] = weight.dims();
    let mean = sum.div_scalar(count as f64);
    let variance = (sum_sq.div_scalar(count as f64) - mean.clone().square()).clamp_min(0.0);
    let inverse = variance.add_scalar(eps).sqrt().recip();
    let per_channel = |t: Tensor<2>| t.reshape([b, groups, 1]).repeat_dim(2, c / groups).reshape([b, c]);
    let scale = per_channel(inverse) * weight.unsqueeze();
    let shift = bias.unsqueeze() - per_channel(mean) * scale.clone();
    Affine { scale, shift }
}

/// [`norm_act`] in plain tensor operations.
pub fn reference_norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    let [b, c] = affine.scale.dims();
    let y = x * affine.scale.clone().reshape([b, c, 1, 1]) + affine.shift.clone().reshape([b, c, 1, 1]);
    if act { silu(y) } else { y }
}
