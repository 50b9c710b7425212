//! Activations on the CPU: one vectorised pass, in place if the memory is not shared.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

use super::{Activation, ActivationOps, reference_activate, reference_gated_activate};
use crate::cpu::{
    TensorRows,
    lanes::{Lanes, Level, Vectorized},
    map_rows, math, wide,
};

impl ActivationOps for Flex {
    fn activate(activation: Activation, x: FlexTensor) -> FlexTensor {
        match x.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => activate(Level::detect(), activation, x),
            _ => reference_activate::<Self>(activation, x),
        }
    }

    fn gated_activate(activation: Activation, gate: FlexTensor, x: FlexTensor) -> FlexTensor {
        match gate.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => {
                gated_activate(Level::detect(), activation, gate, wide(x))
            }
            _ => reference_gated_activate::<Self>(activation, gate, x),
        }
    }
}

/// [`activate`](super::activate) at `level`.
pub(super) fn activate(level: Level, activation: Activation, x: FlexTensor) -> FlexTensor {
    map_rows(x, |_, x| level.run(Activate { activation, x }))
}

/// [`gated_activate`](super::gated_activate) at `level`.
pub(super) fn gated_activate(
    level: Level,
    activation: Activation,
    gate: FlexTensor,
    x: FlexTensor,
) -> FlexTensor {
    assert_eq!(gate.shape(), x.shape(), "gate and value have one shape");
    let factor = TensorRows::new(x);
    map_rows(gate, |first, gate| {
        for (i, gate) in gate.chunks_exact_mut(factor.len()).enumerate() {
            level.run(Gate { activation, gate, factor: factor.row(first + i) });
        }
    })
}

struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Vectorized for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.x.len()).step_by(V::N) {
            let x = &mut self.x[at..];
            apply(self.activation, V::load_or(x, 0.0)).store_some(x);
        }
    }
}

struct Gate<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    factor: &'a [f32],
}

impl Vectorized for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.gate.len()).step_by(V::N) {
            let gate = &mut self.gate[at..];
            let y = apply(self.activation, V::load_or(gate, 0.0)) * V::load_or(&self.factor[at..], 0.0);
            y.store_some(gate);
        }
    }
}

/// The activation of a vector. The match is loop-invariant, and the compiler hoists it.
#[inline(always)]
fn apply<V: Lanes>(activation: Activation, x: V) -> V {
    match activation {
        Activation::Gelu => math::gelu(x),
        Activation::GeluTanh => math::gelu_tanh(x),
        Activation::QuickGelu => math::quick_gelu(x),
        Activation::Silu => math::silu(x),
    }
}
