//! Parts of a sequence or of an image as one tensor, and parts of heads as tensors of their own.

#[cfg(feature = "cube")]
mod cube;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
#[cfg(feature = "cube")]
use burn::tensor::Device;
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

/// All parts of a grid as one tensor: each list has the heads of some tokens, one part after another, and the lists
/// follow each other by token.
///
/// On CubeCL's backends, parts that follow each other in one tensor are joined without copying, and others are written
/// to their places by one kernel each. (Burn's dispatch to backends takes no lists of tensors, so this is no method of
/// [`JoinOps`].)
///
/// # Shapes
/// A part is `[b, n, h, d]`, with equal `n` in a list and `Σ h` equal in all; result `[b, Σ n, Σ h, d]`.
///
/// # Panics
/// If there is no part.
pub fn join_grid(lists: Vec<Vec<Tensor<4>>>) -> Tensor<4> {
    let _call = profile::light("join", &lists[0][0]);
    #[cfg(feature = "cube")]
    let lists = match cube::join_grid(lists) {
        Ok(joined) => return joined,
        Err(lists) => lists,
    };
    concatenated(lists.into_iter().map(|list| concatenated(list, 2)).collect(), 1)
}

/// The parts of `x` that have so many `heads` each, one behind the other.
///
/// On CUDA, nothing is copied, as in [`narrow`].
///
/// # Shapes
/// `x`: `[b, n, Σ heads, d]`; result `[b, n, heads[i], d]`.
pub fn split_heads<const N: usize>(x: Tensor<4>, heads: [usize; N]) -> [Tensor<4>; N] {
    assert_eq!(x.dims()[2], heads.iter().sum::<usize>(), "heads of all parts");
    let mut first = 0;
    heads.map(|heads| {
        first += heads;
        narrow(&x, 2, first - heads, heads)
    })
}

/// As [`Tensor::narrow`]. On CUDA it is a view even where Burn's would be a copy, since those begin at multiples of 512
/// bytes only.
pub fn narrow<const D: usize>(x: &Tensor<D>, dim: usize, first: usize, len: usize) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if let Some(view) = view(x, dim, first, len) {
        return view;
    }
    x.clone().narrow(dim, first, len)
}

/// The same on CUDA; none on other devices, or if the view is not aligned.
#[cfg(feature = "cuda")]
pub(crate) fn view<const D: usize>(x: &Tensor<D>, dim: usize, first: usize, len: usize) -> Option<Tensor<D>> {
    cube::narrow(x, dim, first, len)
}

/// The heads of each token as its features. On CUDA, tokens may lie apart without being copied.
///
/// # Shapes
/// `[b, n, h, d]` to `[b, n, h · d]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, n, h, d] = x.dims();
    #[cfg(feature = "cuda")]
    if let Some(merged) = cube::merge_heads(&x) {
        return merged;
    }
    x.reshape([b, n, h * d])
}

/// The channels of `x` and, behind them, those of `y`.
///
/// On CubeCL's backends, the channels of the result lie together if those of both do.
///
/// # Shapes
/// `x`: `[b, c, y, x]`; `y`: `[b, d, y, x]`; result `[b, c + d, y, x]`.
pub fn join_channels(x: Tensor<4>, y: Tensor<4>) -> Tensor<4> {
    let _call = profile::light("join", &x);
    Tensor::from_dispatch(Dispatch::join_channels(x.into_dispatch(), y.into_dispatch()))
}

/// `parts` along `dim`; a single part is not copied.
fn concatenated(mut parts: Vec<Tensor<4>>, dim: usize) -> Tensor<4> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, dim) }
}

/// `whole` with the tokens from `first` on replaced by those of `part`. Writes in place unless `whole` is shared.
///
/// # Shapes
/// `whole`: `[b, n, h · d]`; `part`: `[b, m, h, d]`.
pub fn write_tokens(whole: Tensor<3>, first: usize, part: Tensor<4>) -> Tensor<3> {
    #[cfg(feature = "cube")]
    if whole.device() != Device::flex() {
        return cube::write_tokens(whole, first, part);
    }
    assign(whole, first, part)
}

/// [`write_tokens`] by Burn's own assignment.
fn assign(whole: Tensor<3>, first: usize, part: Tensor<4>) -> Tensor<3> {
    let [b, n, h, d] = part.dims();
    whole.slice_assign([0..b, first..first + n, 0..h * d], part.reshape([b, n, h * d]))
}

/// `x` without gaps between its elements.
pub fn contiguous<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if x.device() != Device::flex() {
        return cube::contiguous(x);
    }
    x
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

    /// See [`join_channels`].
    fn join_channels(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cat(vec![x, y], 1)
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
