//! Activations on CubeCL's backends: one pass, in place where the memory is free.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{Activation, ActivationOps, reference_activate, reference_gated_activate};
use crate::cube::rows::Rows;
use crate::cube::{InPlace, addresses, buffer, cubes, elem, takes, width};

impl ActivationOps for CubeBackend {
    fn activate(activation: Activation, x: CubeTensor) -> CubeTensor {
        if takes([&x]) { activate(activation, x) } else { reference_activate::<Self>(activation, x) }
    }

    fn gated_activate(activation: Activation, gate: CubeTensor, x: CubeTensor) -> CubeTensor {
        if takes([&gate, &x]) {
            gated_activate(activation, gate, x)
        } else {
            reference_gated_activate::<Self>(activation, gate, x)
        }
    }
}

fn activate(activation: Activation, x: CubeTensor) -> CubeTensor {
    if x.meta.num_elements() == 0 {
        return x;
    }
    let in_place = InPlace::new(&x);
    let x = Rows::flat(x);
    let width = width([&x.tensor], x.divisors());
    let vectors = x.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&x.tensor.client, vectors);
    // SAFETY: units below the number of vectors read one vector at the tensor's strides and write that of the result,
    // which is new or lies where `x` does.
    unsafe {
        kernel::activate::launch_unchecked(
            &x.tensor.client,
            count,
            dim,
            addresses([&x.tensor]),
            width,
            buffer(&x.tensor),
            in_place.buffer(),
            x.layout(width),
            vectors,
            x.len / width,
            activation,
            elem(x.tensor.dtype),
        );
    }
    in_place.out
}

fn gated_activate(activation: Activation, gate: CubeTensor, x: CubeTensor) -> CubeTensor {
    assert_eq!(gate.shape(), x.shape(), "gate and value have one shape");
    if gate.meta.num_elements() == 0 {
        return gate;
    }
    let in_place = InPlace::new(&gate);
    let (gate, x) = (Rows::new(gate), Rows::new(x));
    let width = width([&gate.tensor, &x.tensor], gate.divisors().chain(x.divisors()));
    let vectors = gate.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&gate.tensor.client, vectors);
    // SAFETY: units below the number of vectors read one vector of each tensor at its strides and write that of the
    // result, which is new or lies where `gate` does.
    unsafe {
        kernel::gated_activate::launch_unchecked(
            &gate.tensor.client,
            count,
            dim,
            addresses([&gate.tensor, &x.tensor]),
            width,
            buffer(&gate.tensor),
            buffer(&x.tensor),
            in_place.buffer(),
            gate.layout(width),
            x.layout(width),
            vectors,
            gate.len / width,
            activation,
            [elem(gate.tensor.dtype), elem(x.tensor.dtype)],
        );
    }
    in_place.out
}

/// The kernels. CubeCL's prelude has names that Burn has, too.
pub(crate) mod kernel {
    use cubecl::prelude::*;

    use crate::activation::Activation;
    use crate::cpu::math::{GELU_TAIL, GELU_TAIL_SLOPE, GELU_TANH};
    use crate::cube::rows::Layout;

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn activate<F: Float, N: Size>(
        x: &[Vector<F, N>],
        out: &mut [Vector<F, N>],
        layout: Layout,
        vectors: usize,
        vectors_of_row: usize,
        #[comptime] activation: Activation,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let start = layout.start(ABSOLUTE_POS / vectors_of_row);
        let x = Vector::<f32, N>::cast_from(x[start + ABSOLUTE_POS % vectors_of_row]);
        out[ABSOLUTE_POS] = Vector::cast_from(apply(x, activation));
    }

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn gated_activate<F: Float, G: Float, N: Size>(
        gate: &[Vector<F, N>],
        x: &[Vector<G, N>],
        out: &mut [Vector<F, N>],
        layout_of_gate: Layout,
        layout_of_x: Layout,
        vectors: usize,
        vectors_of_row: usize,
        #[comptime] activation: Activation,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let row = ABSOLUTE_POS / vectors_of_row;
        let at = ABSOLUTE_POS % vectors_of_row;
        let gate = Vector::<f32, N>::cast_from(gate[layout_of_gate.start(row) + at]);
        let x = Vector::<f32, N>::cast_from(x[layout_of_x.start(row) + at]);
        out[ABSOLUTE_POS] = Vector::cast_from(apply(gate, activation) * x);
    }

    /// The activation of each element.
    #[cube]
    pub(crate) fn apply<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
        if comptime![activation == Activation::Gelu] {
            gelu(x)
        } else if comptime![activation == Activation::GeluTanh] {
            let linear = Vector::new(f32::new(comptime![GELU_TANH[0]]));
            let cubic = Vector::new(f32::new(comptime![GELU_TANH[1]]));
            swish(x, fma(x * x, cubic, linear))
        } else if comptime![activation == Activation::QuickGelu] {
            swish(x, Vector::new(1.702f32))
        } else {
            swish(x, Vector::new(1.0f32))
        }
    }

    /// `x σ(slope · x)`.
    #[cube]
    fn swish<N: Size>(x: Vector<f32, N>, slope: Vector<f32, N>) -> Vector<f32, N> {
        // Beyond these bounds the sigmoid is 0 or 1; infinities stay out of the quotient.
        let exponent = (-slope * x).clamp(Vector::new(-88.0f32), Vector::new(88.0f32));
        x / (Vector::new(1.0f32) + exponent.exp())
    }

    /// See the CPU's version.
    #[cube]
    fn gelu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let half = Vector::<f32, N>::new(0.5f32);
        let a = x.abs().min(Vector::new(16.0f32));
        let scaled = a * Vector::new(f32::new(comptime![GELU_TAIL_SLOPE]));
        let at = scaled / (scaled + Vector::new(1.0f32));
        let last = comptime![GELU_TAIL.len() - 1];
        let mut tail = Vector::<f32, N>::new(f32::new(comptime![GELU_TAIL[last]]));
        #[unroll]
        for i in 0..last {
            tail = fma(tail, at, Vector::new(f32::new(comptime![GELU_TAIL[last - 1 - i]])));
        }
        let tail = tail * (a * a * Vector::new(-0.5f32)).exp();
        // max(x, 0), but NaN of NaN.
        x * half + x.abs() * half - a * tail
    }
}
