//! Normalisation over the features of a token.
//!
//! 16-bit numbers are normalised in f32 and rounded once, as in PyTorch: the square of a number above 256 is beyond
//! the range of f16.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::optional::Optional;
use crate::plain::Plain;
use crate::profile;

/// Layer norm over the last dimension, with an optional scale and shift.
///
/// # Shapes
/// `x`: `[b, n, c]`; `weight`, `bias`: `[c]`.
pub fn layer_norm(x: Tensor<3>, weight: Option<Tensor<1>>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<3> {
    let _call = profile::light("layer norm", &x);
    Tensor::from_dispatch(Dispatch::layer_norm(x.into_dispatch(), weight.into(), bias.into(), eps))
}

/// Layer norm without parameters, then `· (1 + scale) + shift`: the adaptive layer norm of DiT.
///
/// # Shapes
/// `x`: `[b, n, c]`; `shift`, `scale`: `[b, 1, c]`, or `[1, 1, c]` for all images.
///
/// # Source
/// DiT (Peebles & Xie 2022) §3.2; diffusers' `AdaLayerNorm*`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<3>, scale: Tensor<3>, eps: f64) -> Tensor<3> {
    let _call = profile::light("layer norm + modulation", &x);
    let [x, shift, scale] = [x, shift, scale].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::layer_norm_modulate(x, shift, scale, eps))
}

/// Root-mean-square norm over the last dimension.
///
/// # Shapes
/// `x`: `[…, c]`; `weight`: `[c]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Option<Tensor<1>>, eps: f64) -> Tensor<D> {
    let _call = profile::light("RMS norm", &x);
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.into(), eps))
}

/// Norms over features on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait NormOps: Backend {
    /// See [`layer_norm`].
    fn layer_norm(
        x: FloatTensor<Self>,
        #[extension_type] weight: Optional<Self>,
        #[extension_type] bias: Optional<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        reference_layer_norm::<Self>(x, weight, bias, eps)
    }

    /// See [`layer_norm_modulate`].
    fn layer_norm_modulate(
        x: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        reference_layer_norm_modulate::<Self>(x, shift, scale, eps)
    }

    /// See [`rms_norm`].
    fn rms_norm(
        x: FloatTensor<Self>,
        #[extension_type] weight: Optional<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        reference_rms_norm::<Self>(x, weight, eps)
    }
}

/// [`layer_norm`] on any backend.
pub(crate) fn reference_layer_norm<B: Backend>(
    x: FloatTensor<B>,
    weight: Optional<B>,
    bias: Optional<B>,
    eps: f64,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let y = affine(normalise(Plain::<B>::wide(x), eps), weight, bias);
    y.round_to(dtype)
}

/// [`layer_norm_modulate`] on any backend.
pub(crate) fn reference_layer_norm_modulate<B: Backend>(
    x: FloatTensor<B>,
    shift: FloatTensor<B>,
    scale: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (dtype, x) = (x.dtype(), Plain::<B>::wide(x));
    let [b, _, c] = x.dims();
    let [shift, scale] = [shift, scale].map(Plain::<B>::wide);
    for parameter in [&shift, &scale] {
        let dims = parameter.dims();
        assert!(dims == [b, 1, c] || dims == [1, 1, c], "{dims:?} instead of [{b}, 1, {c}]");
    }
    if x.is_empty() {
        return x.round_to(dtype);
    }
    (normalise(x, eps) * (scale + 1.0) + shift).round_to(dtype)
}

/// [`rms_norm`] on any backend.
pub(crate) fn reference_rms_norm<B: Backend>(
    x: FloatTensor<B>,
    weight: Optional<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (dtype, x) = (x.dtype(), Plain::<B>::wide(x));
    let y = if x.is_empty() { x } else { over_deviation(x, eps) };
    affine(y, weight, Optional::Absent).round_to(dtype)
}

/// `x` minus its mean, divided by its deviation.
fn normalise<B: Backend>(x: Plain<B>, eps: f64) -> Plain<B> {
    if x.is_empty() {
        return x;
    }
    let centred = x.clone() - mean(x);
    // The rounding error of the mean is the mean of the deviations.
    over_deviation(centred.clone() - mean(centred), eps)
}

/// The mean of each row.
fn mean<B: Backend>(x: Plain<B>) -> Plain<B> {
    let last = x.shape().rank() - 1;
    x.mean_dim(last)
}

/// Each row divided by the root of its mean square.
fn over_deviation<B: Backend>(x: Plain<B>, eps: f64) -> Plain<B> {
    x.clone() / (mean(x.square()) + eps).sqrt()
}

/// `x · weight + bias`, with one weight and one bias for each feature.
fn affine<B: Backend>(mut x: Plain<B>, weight: Optional<B>, bias: Optional<B>) -> Plain<B> {
    let shape = x.shape();
    let row = |parameter| {
        let parameter = Plain::<B>::wide(parameter);
        assert_eq!(parameter.dims(), [shape[shape.rank() - 1]], "a parameter for each feature");
        parameter.unsqueeze(shape.rank())
    };
    let (weight, bias) = (weight.into_option().map(row), bias.into_option().map(row));
    if x.is_empty() {
        return x;
    }
    if let Some(weight) = weight {
        x = x * weight;
    }
    if let Some(bias) = bias {
        x = x + bias;
    }
    x
}
