//! Activations on the CPU: one pass, vectorised, in place where the memory is free.

use burn::tensor::Tensor;

use super::Activation;
use crate::cpu::{
    Rows,
    lanes::{Job, Lanes, Level},
    map_rows, math,
};

pub(super) fn activate<const D: usize>(level: Level, activation: Activation, x: Tensor<D>) -> Tensor<D> {
    map_rows(x, |_, x| level.run(Activate { activation, x }))
}

pub(super) fn gated_activate<const D: usize>(
    level: Level,
    activation: Activation,
    gate: Tensor<D>,
    x: Tensor<D>,
) -> Tensor<D> {
    assert_eq!(gate.dims(), x.dims(), "gate and value have one shape");
    let factor = Rows::new(x);
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

impl Job for Activate<'_> {
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

impl Job for Gate<'_> {
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

/// The activation of a vector. The match does not change in a loop, and the compiler takes it out.
#[inline(always)]
fn apply<V: Lanes>(activation: Activation, x: V) -> V {
    match activation {
        Activation::Gelu => math::gelu(x),
        Activation::GeluTanh => math::gelu_tanh(x),
        Activation::QuickGelu => math::quick_gelu(x),
        Activation::Silu => math::silu(x),
    }
}
