//! Activations: alone, and as the gate of a gated feed-forward.

mod cpu;
#[cfg(test)]
mod tests;

use burn::tensor::{Tensor, activation as burn_activation};

use crate::cpu::{is_f32, lanes::Level};

/// The activations of the supported models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`, with the exact error function (`gelu`).
    Gelu,
    /// GELU with the tanh approximation (`gelu-approximate`, `gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x σ(1.702 x)` (`quick_gelu`).
    QuickGelu,
    /// `x σ(x)` (`silu`, `swish`).
    Silu,
}

/// `activation(x)`, element by element. Reuses `x`'s memory where nobody else holds it.
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    if is_f32(&x) {
        return cpu::activate(Level::detect(), activation, x);
    }
    reference_activate(activation, x)
}

/// `activation(gate) · x`: the inner product of a gated feed-forward. Reuses `gate`'s memory where nobody else
/// holds it.
pub fn gated_activate<const D: usize>(activation: Activation, gate: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    if is_f32(&gate) && is_f32(&x) {
        return cpu::gated_activate(Level::detect(), activation, gate, x);
    }
    reference_gated_activate(activation, gate, x)
}

/// [`activate`] in plain tensor operations.
pub fn reference_activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Gelu => burn_activation::gelu(x),
        Activation::GeluTanh => burn_activation::gelu_approximate(x),
        Activation::QuickGelu => x.clone() * burn_activation::sigmoid(x.mul_scalar(1.702)),
        Activation::Silu => burn_activation::silu(x),
    }
}

/// [`gated_activate`] in plain tensor operations.
pub fn reference_gated_activate<const D: usize>(
    activation: Activation,
    gate: Tensor<D>,
    x: Tensor<D>,
) -> Tensor<D> {
    reference_activate(activation, gate) * x
}
