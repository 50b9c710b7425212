//! Activations: alone, and as the gate of a gated feed-forward.

use burn::tensor::{Tensor, activation as burn_activation};

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
    reference_activate(activation, x)
}

/// `activation(gate) · x`: the inner product of a gated feed-forward.
pub fn gated_activate<const D: usize>(activation: Activation, gate: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
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
