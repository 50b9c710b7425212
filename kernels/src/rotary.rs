//! Rotary position embedding: rotates features of queries and keys by angles that depend on the token's position.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

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

/// Rotary embedding on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait RotaryOps: Backend {
    /// See [`rotary`].
    fn rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        reference_rotary::<Self>(x, cos, sin)
    }
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
