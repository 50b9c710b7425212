//! `x Wᵀ + b` with the weight as PyTorch stores it.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(target_arch = "x86_64")]
mod half;
#[cfg(test)]
mod tests;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::activation::{Activation, reference_activate};
use crate::optional::Optional;
use crate::plain::{Plain, dims};
use crate::profile;

/// `x · weightᵀ + bias`.
///
/// # Shapes
/// `x`: `[…, c_in]`; `weight`: `[c_out, c_in]`, in checkpoint order; `bias`: `[c_out]`; result `[…, c_out]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let _call = multiply("linear", &x, &weight);
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch(), bias.into()))
}

/// `activation(x · weightᵀ + bias)`. Where both are one operation, 16-bit numbers are rounded once.
///
/// # Shapes
/// As [`linear`].
pub fn linear_activate<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
) -> Tensor<D> {
    let _call = multiply("linear + activation", &x, &weight);
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::linear_activate(x, weight, bias.into(), activation))
}

/// `base + x · weightᵀ + bias`. Where all is one operation, 16-bit numbers are rounded once.
///
/// # Shapes
/// As [`linear`]; `base` has the shape of the result.
pub fn linear_add<const D: usize>(
    base: Tensor<D>,
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let _call = multiply("linear + residual", &x, &weight);
    let [base, x] = [base, x].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::linear_add(base, x, weight.into_dispatch(), bias.into()))
}

/// [`linear`] of the tokens of two streams, each with a layer of its own. Where that costs nothing, the results are parts
/// of one tensor, the first stream's in front, so that they are [joined](crate::join) without copying.
///
/// # Shapes
/// As [`linear`], for each stream: `[b, n, c_in]` to `[b, n, c_out]`, with as many outputs in both.
pub fn linear_pair(
    [first, second]: [Tensor<3>; 2],
    weights: [Tensor<2>; 2],
    biases: [Option<Tensor<1>>; 2],
) -> [Tensor<3>; 2] {
    #[cfg(feature = "cuda")]
    if let Some(results) = cube::linear_pair([&first, &second], &weights, &biases) {
        return results;
    }
    let ([of_first, of_second], [bias, other]) = (weights, biases);
    [linear(first, of_first, bias), linear(second, of_second, other)]
}

/// [`linear`] of the features of `x` and, behind them, those of `y`. Where that saves joining them, the sum over the
/// features of `x` is rounded on the way.
///
/// # Shapes
/// `x`: `[…, c_x]`; `y`: `[…, c_y]`; `weight`: `[c_out, c_x + c_y]`; `bias`: `[c_out]`; result `[…, c_out]`.
pub fn linear_of_two<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let _call = multiply("linear of two", &x, &weight);
    let [x, y] = [x, y].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::linear_of_two(x, y, weight.into_dispatch(), bias.into()))
}

/// The sizes of a product are its rows, and the features that go in and out.
fn multiply<const D: usize>(name: &'static str, x: &Tensor<D>, weight: &Tensor<2>) -> Option<profile::Call> {
    profile::operation(name, x, || {
        let [c_out, c_in] = weight.dims();
        let rows = x.dims()[..D - 1].iter().product::<usize>();
        (vec![rows, c_in, c_out], 2.0 * rows as f64 * c_in as f64 * c_out as f64)
    })
}

/// Linear layers on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait LinearOps: Backend {
    /// See [`linear`].
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
    ) -> FloatTensor<Self> {
        reference_linear::<Self>(x, weight, bias)
    }

    /// See [`linear_activate`].
    fn linear_activate(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// See [`linear_add`].
    fn linear_add(
        base: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(base, <Self as LinearOps>::linear(x, weight, bias))
    }

    /// See [`linear_of_two`].
    fn linear_of_two(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
    ) -> FloatTensor<Self> {
        <Self as LinearOps>::linear(joined::<Self>(x, y), weight, bias)
    }
}

/// [`linear_activate`] on any backend.
pub(crate) fn reference_linear_activate<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
    activation: Activation,
) -> FloatTensor<B> {
    reference_activate::<B>(activation, reference_linear::<B>(x, weight, bias))
}

/// [`linear_add`] on any backend.
pub(crate) fn reference_linear_add<B: Backend>(
    base: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
) -> FloatTensor<B> {
    B::float_add(base, reference_linear::<B>(x, weight, bias))
}

/// [`linear_of_two`] on any backend.
pub(crate) fn reference_linear_of_two<B: Backend>(
    x: FloatTensor<B>,
    y: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
) -> FloatTensor<B> {
    reference_linear::<B>(joined::<B>(x, y), weight, bias)
}

/// The features of `x`, and behind them those of `y`.
fn joined<B: Backend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    let last = x.rank() - 1;
    Plain::<B>::cat(vec![Plain::new(x), Plain::new(y)], last).into_inner()
}

/// [`linear`] on any backend.
///
/// 16-bit tensors are multiplied without widening, by the backend's own product: matrix units sum in f32.
pub(crate) fn reference_linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [c_out, c_in] = dims(&weight.shape());
    let mut shape = x.shape().to_vec();
    let features = shape.pop().expect("a dimension of features");
    assert_eq!(features, c_in, "features of the input that the weight takes");
    let rows = shape.iter().product::<usize>();
    shape.push(c_out);
    let (x, weight) = (Plain::<B>::new(x), Plain::<B>::new(weight));
    let mut y = if rows * c_in * c_out == 0 {
        x.full_like([rows, c_out], 0.0).into_inner()
    } else {
        x.reshape([rows, c_in]).matmul(weight.transpose()).into_inner()
    };
    if let Some(bias) = bias.into_option().filter(|_| rows * c_out > 0) {
        y = (Plain::<B>::wide(y) + Plain::wide(bias).unsqueeze(2)).round_to(dtype);
    }
    Plain::<B>::new(y).reshape(shape).into_inner()
}
