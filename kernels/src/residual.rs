//! The gated residual connection of adaptive layer norm blocks.

mod cpu;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;

use crate::cpu::{is_f32, lanes::Level};

/// `x + gate · y`. Reuses memory of `x` or `y` where nobody else holds it.
///
/// # Shapes
/// `x`, `y`: `[b, n, c]`; `gate`: `[b, 1, c]`.
pub fn gated_residual(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    if [&x, &gate, &y].into_iter().all(is_f32) {
        return cpu::gated_residual(Level::detect(), x, gate, y);
    }
    reference_gated_residual(x, gate, y)
}

/// [`gated_residual`] in plain tensor operations.
pub fn reference_gated_residual(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    x + gate * y
}
