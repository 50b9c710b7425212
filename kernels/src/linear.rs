//! `x Wᵀ + b` with the weight as PyTorch stores it.

mod cpu;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;

use crate::cpu::{is_f32, lanes::Level};

/// `x · weightᵀ + bias`.
///
/// # Shapes
/// `x`: `[…, c_in]`; `weight`: `[c_out, c_in]`, in checkpoint order; `bias`: `[c_out]`; result `[…, c_out]`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    if is_f32(&x) && is_f32(&weight) && bias.as_ref().is_none_or(is_f32) {
        return cpu::linear(Level::detect(), x, weight, bias);
    }
    reference_linear(x, weight, bias)
}

/// [`linear`] in plain tensor operations.
pub fn reference_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [c_out, c_in] = weight.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = c_out;
    let y = x.reshape([rows, c_in]).matmul(weight.transpose());
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape(shape)
}
