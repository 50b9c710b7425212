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

use crate::optional::Optional;
use crate::plain::{Plain, dims};

/// `x · weightᵀ + bias`.
///
/// # Shapes
/// `x`: `[…, c_in]`; `weight`: `[c_out, c_in]`, in checkpoint order; `bias`: `[c_out]`; result `[…, c_out]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch(), bias.into()))
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
