//! Activations: alone, and as the gate of a gated feed-forward.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(test)]
mod tests;

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use crate::plain::Plain;
use crate::profile;

/// The activations of the supported models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// `activation(x)`, element by element. Reuses `x`'s memory if it is not shared.
///
/// 16-bit numbers are computed in f32 and rounded once.
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    let _call = profile::light("activation", &x);
    Tensor::from_dispatch(Dispatch::activate(activation, x.into_dispatch()))
}

/// `activation(gate) · x`: the inner product of a gated feed-forward. Reuses `gate`'s memory if it is not shared.
///
/// 16-bit numbers are computed in f32 and rounded once, to the type of `gate`.
pub fn gated_activate<const D: usize>(activation: Activation, gate: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    let _call = profile::light("gated activation", &x);
    Tensor::from_dispatch(Dispatch::gated_activate(activation, gate.into_dispatch(), x.into_dispatch()))
}

/// Activations on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait ActivationOps: Backend {
    /// See [`activate`].
    fn activate(activation: Activation, x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference_activate::<Self>(activation, x)
    }

    /// See [`gated_activate`].
    fn gated_activate(
        activation: Activation,
        gate: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference_gated_activate::<Self>(activation, gate, x)
    }
}

/// [`activate`] on any backend.
pub(crate) fn reference_activate<B: Backend>(activation: Activation, x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    apply(activation, Plain::<B>::wide(x)).round_to(dtype)
}

/// [`gated_activate`] on any backend.
pub(crate) fn reference_gated_activate<B: Backend>(
    activation: Activation,
    gate: FloatTensor<B>,
    x: FloatTensor<B>,
) -> FloatTensor<B> {
    assert_eq!(gate.shape(), x.shape(), "gate and value have one shape");
    let dtype = gate.dtype();
    let [gate, x] = [gate, x].map(Plain::<B>::wide);
    if gate.is_empty() {
        return gate.round_to(dtype);
    }
    (apply(activation, gate) * x).round_to(dtype)
}

/// `activation(x)` in the type of `x`.
pub(crate) fn apply<B: Backend>(activation: Activation, x: Plain<B>) -> Plain<B> {
    if x.is_empty() {
        return x;
    }
    match activation {
        Activation::Gelu => x.gelu(),
        Activation::GeluTanh => {
            let cubic = x.clone() + x.clone().square() * x.clone() * 0.044715;
            x * ((cubic * (FRAC_2_SQRT_PI * FRAC_1_SQRT_2)).tanh() + 1.0) * 0.5
        }
        Activation::QuickGelu => x.clone() * (x * 1.702).sigmoid(),
        Activation::Silu => x.clone() * x.sigmoid(),
    }
}
