//! Two parts of a sequence as one tensor, without copying them if they lie in memory as they would in the result.

#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use burn_flex::Flex;

use crate::plain::Plain;

/// The tokens of `first`, and behind them those of `second`.
///
/// On CubeCL's backends, the parts of a joined tensor are joined again without copying.
///
/// # Shapes
/// `first`: `[b, n, …]`; `second`: `[b, m, …]`; result `[b, n + m, …]`.
pub fn join<const D: usize>(first: Tensor<D>, second: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::join(first.into_dispatch(), second.into_dispatch()))
}

/// Joining the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait JoinOps: Backend {
    /// See [`join`].
    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        reference_join::<Self>(first, second)
    }
}

/// [`join`] on any backend.
pub(crate) fn reference_join<B: Backend>(first: FloatTensor<B>, second: FloatTensor<B>) -> FloatTensor<B> {
    Plain::<B>::cat(vec![Plain::new(first), Plain::new(second)], 1).into_inner()
}

impl JoinOps for Flex {}
