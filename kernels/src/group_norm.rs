//! Group norm in two halves: the moments of an image, and their application as a scale and shift of each channel.
//!
//! The halves are separate because the moments may come from several ranks that each hold some rows of the image, and
//! because the second half is cheap to fuse into the operation that reads the result.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::activation::{Activation, apply};
use crate::plain::Plain;
use crate::profile;

/// The mean of each group of channels of each image, and the sum of squared deviations from it.
///
/// These are used instead of Σx and Σx², whose difference loses digits if the mean is large beside the deviation. The
/// moments of parts of an image [`merge`](Self::merge) exactly, which ranks use. For images of 16-bit numbers, moments
/// are f32.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The number of elements in each group.
    pub count: usize,
    /// `[b, g]`
    pub mean: Tensor<2>,
    /// Σ (x − mean)², `[b, g]`
    pub deviation: Tensor<2>,
}

impl Moments {
    /// The moments of the elements of `self` and `other` together. Either may have no elements.
    ///
    /// # Source
    /// Chan, Golub and LeVeque, *Algorithms for Computing the Sample Variance* (1983), equation 2.1.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let share = if count == 0 { 0.0 } else { other.count as f64 / count as f64 };
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

/// `x · scale + shift`, with a scale and a shift for each channel of each image. For images of 16-bit numbers, both
/// are f32.
#[derive(Clone, Debug)]
pub struct Affine {
    /// `[b, c]`
    pub scale: Tensor<2>,
    /// `[b, c]`
    pub shift: Tensor<2>,
}

/// The moments of each group of `c / groups` channels. For an image without elements they are zeros.
///
/// # Shapes
/// `x`: `[b, c, y, x]` with `c` a multiple of `groups`.
pub fn group_norm_moments(x: Tensor<4>, groups: usize) -> Moments {
    let [_, c, rows, cols] = x.dims();
    let _call = profile::light("moments", &x);
    let (mean, deviation) = Dispatch::group_norm_moments(x.into_dispatch(), groups);
    Moments {
        count: c / groups * rows * cols,
        mean: Tensor::from_dispatch(mean),
        deviation: Tensor::from_dispatch(deviation),
    }
}

/// The scale and shift of each channel that are equivalent to group norm with `moments`, in the type of the moments.
///
/// # Shapes
/// `weight`, `bias`: `[c]`.
pub fn group_norm_affine(moments: Moments, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Affine {
    let Moments { count, mean, deviation } = moments;
    let [b, groups] = mean.dims();
    let [c] = weight.dims();
    let [weight, bias] = [weight, bias].map(|parameter| match parameter.dtype() {
        DType::F16 | DType::BF16 => parameter.cast(mean.dtype()),
        _ => parameter,
    });
    let inverse = deviation.div_scalar(count.max(1) as f64).add_scalar(eps).sqrt().recip();
    let per_channel = |t: Tensor<2>| t.reshape([b, groups, 1]).repeat_dim(2, c / groups).reshape([b, c]);
    let scale = per_channel(inverse) * weight.unsqueeze();
    let shift = bias.unsqueeze() - per_channel(mean) * scale.clone();
    Affine { scale, shift }
}

/// `affine(x)`, then SiLU if `act`. Reuses `x`'s memory if it is not shared.
///
/// 16-bit numbers are computed in f32 and rounded once.
///
/// # Shapes
/// `x`: `[b, c, y, x]`.
pub fn norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    let _call = profile::light("group norm", &x);
    let [scale, shift] = [&affine.scale, &affine.shift].map(|tensor| tensor.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::norm_act(x.into_dispatch(), scale, shift, act))
}

/// The two halves of group norm on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait GroupNormOps: Backend {
    /// The mean and the sum of squared deviations, each `[b, groups]`: see [`group_norm_moments`].
    fn group_norm_moments(x: FloatTensor<Self>, groups: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference_group_norm_moments::<Self>(x, groups)
    }

    /// See [`norm_act`].
    fn norm_act(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        act: bool,
    ) -> FloatTensor<Self> {
        reference_norm_act::<Self>(x, scale, shift, act)
    }
}

/// [`group_norm_moments`] on any backend.
pub(crate) fn reference_group_norm_moments<B: Backend>(
    x: FloatTensor<B>,
    groups: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let x = Plain::<B>::wide(x);
    let [b, c, rows, cols] = x.dims();
    assert_eq!(c % groups, 0, "{groups} groups of {c} channels");
    if x.is_empty() {
        let zeros = x.full_like([b, groups], 0.0);
        return (zeros.clone().into_inner(), zeros.into_inner());
    }
    let x = x.reshape([b * groups, c / groups, rows, cols]);
    // Sums of sums: a single sum over all elements would lose digits on a backend that adds them one by one.
    let sum = |x: Plain<B>| x.sum_dim(3).sum_dim(2).sum_dim(1);
    let mean = |x| sum(x) / (c / groups * rows * cols) as f64;
    let first = mean(x.clone());
    let centred = x - first.clone();
    // The rounding error of the mean is the mean of the deviations.
    let rest = mean(centred.clone());
    let deviation = sum((centred - rest.clone()).square());
    let [mean, deviation] = [first + rest, deviation].map(|x| x.reshape([b, groups]).into_inner());
    (mean, deviation)
}

/// [`norm_act`] on any backend.
pub(crate) fn reference_norm_act<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    act: bool,
) -> FloatTensor<B> {
    let (dtype, x) = (x.dtype(), Plain::<B>::wide(x));
    let [b, c, ..] = x.dims::<4>();
    let [scale, shift] = [scale, shift].map(|factor| {
        let factor = Plain::<B>::wide(factor);
        assert_eq!(factor.dims(), [b, c], "a scale and a shift for each channel of each image");
        factor.reshape([b, c, 1, 1])
    });
    if x.is_empty() {
        return x.round_to(dtype);
    }
    let y = x * scale + shift;
    let y = if act { apply(Activation::Silu, y) } else { y };
    y.round_to(dtype)
}
