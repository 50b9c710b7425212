//! The gated residual on CubeCL's backends: one pass, in place where the memory is free.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{ResidualOps, reference_gated_residual};
use crate::cube::rows::{PerImage, Rows};
use crate::cube::{InPlace, addresses, buffer, cubes, dims, elem, takes, width};

impl ResidualOps for CubeBackend {
    fn gated_residual(x: CubeTensor, gate: CubeTensor, y: CubeTensor) -> CubeTensor {
        if takes([&x, &gate, &y]) {
            gated_residual(x, gate, y)
        } else {
            reference_gated_residual::<Self>(x, gate, y)
        }
    }
}

fn gated_residual(x: CubeTensor, gate: CubeTensor, y: CubeTensor) -> CubeTensor {
    let sizes @ [_, n, c] = dims(&x);
    assert_eq!(dims(&y), sizes, "both terms have one shape");
    let gate = PerImage::new(gate, sizes);
    if x.meta.num_elements() == 0 {
        return x;
    }
    let in_place = InPlace::new(&x);
    let (x, y) = (Rows::new(x), Rows::new(y));
    let divisors = x.divisors().chain(y.divisors()).chain([gate.of_image]);
    let width = width([&x.tensor, &y.tensor, &gate.tensor], divisors);
    let vectors = x.tensor.meta.num_elements() / width;
    let (count, dim) = cubes(&x.tensor.client, vectors);
    // SAFETY: units below the number of vectors read one vector of each term and of the gate, at the tensors' strides,
    // and write that of the result, which is new or lies where `x` does.
    unsafe {
        kernel::gated_residual::launch_unchecked(
            &x.tensor.client,
            count,
            dim,
            addresses([&x.tensor, &y.tensor, &gate.tensor]),
            width,
            buffer(&x.tensor),
            buffer(&y.tensor),
            buffer(&gate.tensor),
            in_place.buffer(),
            x.layout(width),
            y.layout(width),
            vectors,
            c / width,
            n,
            gate.of_image / width,
            [elem(x.tensor.dtype), elem(y.tensor.dtype), elem(gate.tensor.dtype)],
        );
    }
    in_place.out
}

mod kernel {
    //! CubeCL's prelude has names that Burn has, too.

    use cubecl::prelude::*;

    use crate::cube::rows::Layout;

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn gated_residual<F: Float, G: Float, P: Float, N: Size>(
        x: &[Vector<F, N>],
        y: &[Vector<G, N>],
        gate: &[Vector<P, N>],
        out: &mut [Vector<F, N>],
        layout_of_x: Layout,
        layout_of_y: Layout,
        vectors: usize,
        vectors_of_row: usize,
        rows_of_image: usize,
        stride_of_gate: usize,
        #[define(F, G, P)] _types: [ElemType; 3],
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let row = ABSOLUTE_POS / vectors_of_row;
        let at = ABSOLUTE_POS % vectors_of_row;
        let gate = Vector::<f32, N>::cast_from(gate[row / rows_of_image * stride_of_gate + at]);
        let x = Vector::<f32, N>::cast_from(x[layout_of_x.start(row) + at]);
        let y = Vector::<f32, N>::cast_from(y[layout_of_y.start(row) + at]);
        out[ABSOLUTE_POS] = Vector::cast_from(fma(y, gate, x));
    }
}
