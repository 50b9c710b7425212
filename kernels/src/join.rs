//! Parts of a sequence or of an image as one tensor.

#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use burn_flex::Flex;

use crate::optional::Optional;
use crate::plain::Plain;
use crate::profile;

/// The tokens of `first`, and behind them those of `second`.
///
/// On CubeCL's backends, the parts of a joined tensor are joined again without copying.
///
/// # Shapes
/// `first`: `[b, n, …]`; `second`: `[b, m, …]`; result `[b, n + m, …]`.
pub fn join<const D: usize>(first: Tensor<D>, second: Tensor<D>) -> Tensor<D> {
    let _call = profile::light("join", &first);
    Tensor::from_dispatch(Dispatch::join(first.into_dispatch(), second.into_dispatch()))
}

/// The rows of `above`, `x` and `below`, one below the other.
///
/// The result has the memory layout of `x`: on CubeCL's backends, an image whose channels lie together stays one.
///
/// # Shapes
/// `above`: `[b, c, a, x]`; `x`: `[b, c, y, x]`; `below`: `[b, c, z, x]`; result `[b, c, a + y + z, x]`.
pub fn join_rows(above: Option<Tensor<4>>, x: Tensor<4>, below: Option<Tensor<4>>) -> Tensor<4> {
    if above.is_none() && below.is_none() {
        return x;
    }
    let _call = profile::light("join", &x);
    Tensor::from_dispatch(Dispatch::join_rows(above.into(), x.into_dispatch(), below.into()))
}

/// Joining the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait JoinOps: Backend {
    /// See [`join`].
    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>) -> FloatTensor<Self> {
        reference_join::<Self>(first, second)
    }

    /// See [`join_rows`].
    fn join_rows(
        #[extension_type] above: Optional<Self>,
        x: FloatTensor<Self>,
        #[extension_type] below: Optional<Self>,
    ) -> FloatTensor<Self> {
        Self::float_cat(parts::<Self>(above, x, below), 2)
    }
}

/// The parts that there are, from top to bottom.
fn parts<B: Backend>(above: Optional<B>, x: FloatTensor<B>, below: Optional<B>) -> Vec<FloatTensor<B>> {
    above.into_option().into_iter().chain([x]).chain(below.into_option()).collect()
}

/// [`join`] on any backend.
pub(crate) fn reference_join<B: Backend>(first: FloatTensor<B>, second: FloatTensor<B>) -> FloatTensor<B> {
    Plain::<B>::cat(vec![Plain::new(first), Plain::new(second)], 1).into_inner()
}

impl JoinOps for Flex {}
