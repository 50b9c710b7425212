//! The gated residual connection of adaptive layer norm blocks.

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

/// `x + gate · y`. Reuses the memory of `x` or `y` if it is not shared.
///
/// 16-bit numbers are computed in f32 and rounded once, to the type of `x`.
///
/// # Shapes
/// `x`, `y`: `[b, n, c]`; `gate`: `[b, 1, c]`, or `[1, 1, c]` for all images.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    let _call = profile::light("gated residual", &x);
    let [x, gate, y] = [x, gate, y].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::gated_residual(x, gate, y))
}

/// The gated residual on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait ResidualOps: Backend {
    /// See [`gated_residual`].
    fn gated_residual(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference_gated_residual::<Self>(x, gate, y)
    }
}

/// [`gated_residual`] on any backend.
pub(crate) fn reference_gated_residual<B: Backend>(
    x: FloatTensor<B>,
    gate: FloatTensor<B>,
    y: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [x, gate, y] = [x, gate, y].map(Plain::<B>::wide);
    let ([b, _, c], dims) = (x.dims::<3>(), gate.dims());
    assert_eq!(x.dims::<3>(), y.dims(), "both terms have one shape");
    assert!(dims == [b, 1, c] || dims == [1, 1, c], "{dims:?} instead of [{b}, 1, {c}]");
    if x.is_empty() {
        return x.round_to(dtype);
    }
    (x + gate * y).round_to(dtype)
}
