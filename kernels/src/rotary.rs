//! Rotary position embedding: rotates features of queries and keys by angles that depend on the token's position.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::norm::{reference_layer_norm, reference_rms_norm};
use crate::optional::Optional;
use crate::plain::Plain;
use crate::profile;

/// Rotates each pair of adjacent features: `(x₀, x₁)` becomes `(x₀ cos − x₁ sin, x₁ cos + x₀ sin)`, with one angle for
/// each token and pair. Reuses `x`'s memory if it is not shared.
///
/// 16-bit numbers are computed in f32 and rounded once.
///
/// # Shapes
/// `x`: `[b, n, h, d]`; `cos`, `sin`: `[n, d/2]`, f32 for every type of `x`.
///
/// # Source
/// RoFormer (Su et al. 2021) §3.2.2; diffusers' `apply_rotary_emb` with `use_real_unbind_dim = -1`.
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let _call = profile::light("rotary embedding", &x);
    let rotated = Dispatch::rotary(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(rotated)
}

/// [`rms_norm`](crate::rms_norm) of each head, then [`rotary`] of the result. 16-bit numbers are rounded once.
///
/// # Shapes
/// As [`rotary`]; `weight`: `[d]`.
pub fn rms_norm_rotary(
    x: Tensor<4>,
    weight: Option<Tensor<1>>,
    eps: f64,
    cos: Tensor<2>,
    sin: Tensor<2>,
) -> Tensor<4> {
    let _call = profile::light("RMS norm + rotary", &x);
    let [cos, sin] = [cos, sin].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::rms_norm_rotary(x.into_dispatch(), weight.into(), eps, cos, sin))
}

/// [`rms_norm`](crate::rms_norm) of the heads of two streams, each with a weight of its own; those of the second are
/// rotated by cosines and sines, if there are some. On CubeCL's backends, the results are parts of one tensor, the first
/// stream's in front, so that they are [joined](crate::join) without copying.
///
/// # Shapes
/// As [`rms_norm_rotary`], for each stream.
pub fn rms_norm_pair(
    [first, second]: [Tensor<4>; 2],
    [of_first, of_second]: [Tensor<1>; 2],
    eps: f64,
    rotary: Option<[Tensor<2>; 2]>,
) -> [Tensor<4>; 2] {
    #[cfg(feature = "cube")]
    {
        let _call = profile::light("RMS norm + rotary", &second);
        let weights = [&of_first, &of_second];
        if let Some(results) = cube::rms_norm_pair([&first, &second], weights, eps, rotary.as_ref()) {
            return results;
        }
    }
    let second = match rotary {
        Some([cos, sin]) => rms_norm_rotary(second, Some(of_second), eps, cos, sin),
        None => crate::rms_norm(second, Some(of_second), eps),
    };
    [crate::rms_norm(first, Some(of_first), eps), second]
}

/// [`layer_norm`](crate::layer_norm) of each head, then [`rotary`] of the result. 16-bit numbers are rounded once.
///
/// # Shapes
/// As [`rotary`]; `weight`, `bias`: `[d]`.
pub fn layer_norm_rotary(
    x: Tensor<4>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
    cos: Tensor<2>,
    sin: Tensor<2>,
) -> Tensor<4> {
    let _call = profile::light("layer norm + rotary", &x);
    let ([cos, sin], x) = ([cos, sin].map(Tensor::into_dispatch), x.into_dispatch());
    Tensor::from_dispatch(Dispatch::layer_norm_rotary(x, weight.into(), bias.into(), eps, cos, sin))
}

/// Rotary embedding on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait RotaryOps: Backend {
    /// See [`rotary`].
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        reference_rotary::<Self>(x, cos, sin)
    }

    /// See [`rms_norm_rotary`].
    fn rms_norm_rotary(
        x: FloatTensor<Self>,
        #[extension_type] weight: Optional<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference_rms_norm_rotary::<Self>(x, weight, eps, cos, sin)
    }

    /// See [`layer_norm_rotary`].
    fn layer_norm_rotary(
        x: FloatTensor<Self>,
        #[extension_type] weight: Optional<Self>,
        #[extension_type] bias: Optional<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference_layer_norm_rotary::<Self>(x, weight, bias, eps, cos, sin)
    }
}

/// [`rms_norm_rotary`] on any backend.
pub(crate) fn reference_rms_norm_rotary<B: Backend>(
    x: FloatTensor<B>,
    weight: Optional<B>,
    eps: f64,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let normed = reference_rms_norm::<B>(Plain::<B>::wide(x).into_inner(), weight, eps);
    Plain::<B>::new(reference_rotary::<B>(normed, cos, sin)).round_to(dtype)
}

/// [`layer_norm_rotary`] on any backend.
pub(crate) fn reference_layer_norm_rotary<B: Backend>(
    x: FloatTensor<B>,
    weight: Optional<B>,
    bias: Optional<B>,
    eps: f64,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let normed = reference_layer_norm::<B>(Plain::<B>::wide(x).into_inner(), weight, bias, eps);
    Plain::<B>::new(reference_rotary::<B>(normed, cos, sin)).round_to(dtype)
}

/// [`rotary`] on any backend.
pub(crate) fn reference_rotary<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let (dtype, x) = (x.dtype(), Plain::<B>::wide(x));
    let [b, n, h, d] = x.dims();
    let [cos, sin] = [cos, sin].map(|table| {
        let table = Plain::<B>::wide(table);
        assert_eq!(table.dims(), [n, d / 2], "an angle for each token and pair");
        table.reshape([1, n, 1, d / 2, 1])
    });
    if x.is_empty() {
        return x.round_to(dtype);
    }
    let pairs = x.reshape([b, n, h, d / 2, 2]);
    let [first, second] = [0, 1].map(|at| pairs.clone().narrow(4, at, 1));
    let turned = [
        first.clone() * cos.clone() - second.clone() * sin.clone(), //
        second * cos + first * sin,
    ];
    Plain::cat(turned.into(), 4).reshape([b, n, h, d]).round_to(dtype)
}
