//! The gated residual on the CPU: one pass, in place if the memory is not shared.

use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

use super::{ResidualOps, reference_gated_residual};
use crate::cpu::{
    PerImage, TensorRows, dims,
    lanes::{Lanes, Level, Vectorized},
    map_rows, round_to, wide,
};

impl ResidualOps for Flex {
    fn gated_residual(x: FlexTensor, gate: FlexTensor, y: FlexTensor) -> FlexTensor {
        match x.dtype() {
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                round_to(gated_residual(Level::detect(), x, wide(gate), wide(y)), dtype)
            }
            _ => reference_gated_residual::<Self>(x, gate, y),
        }
    }
}

/// [`gated_residual`](super::gated_residual) at `level`. `gate` and `y` are f32; `x` may have 16 bits. The result has the
/// type of the tensor whose memory it reuses, `x` or `y`.
pub(super) fn gated_residual(level: Level, x: FlexTensor, gate: FlexTensor, y: FlexTensor) -> FlexTensor {
    let sizes @ [_, n, c] = dims(&x);
    assert_eq!(dims(&y), sizes, "both terms have one shape");
    let gate = PerImage::new(gate, sizes);
    if x.is_unique() && x.is_contiguous() {
        let y = TensorRows::new(y);
        map_rows(x, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(c)) {
                level.run(AddGated::<true> { row, gate: gate.row(i / n), other: y.row(i) });
            }
        })
    } else {
        let x = TensorRows::new(wide(x));
        map_rows(y, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(c)) {
                level.run(AddGated::<false> { row, gate: gate.row(i / n), other: x.row(i) });
            }
        })
    }
}

/// Updates a row in place: `row + gate · other` if `ROW_IS_X`, and otherwise `other + gate · row`.
struct AddGated<'a, const ROW_IS_X: bool> {
    row: &'a mut [f32],
    gate: &'a [f32],
    other: &'a [f32],
}

impl<const ROW_IS_X: bool> Vectorized for AddGated<'_, ROW_IS_X> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.row.len()).step_by(V::N) {
            let row = &mut self.row[at..];
            let (this, other) = (V::load_or(row, 0.0), V::load_or(&self.other[at..], 0.0));
            let (x, y) = if ROW_IS_X { (this, other) } else { (other, this) };
            y.mul_add(V::load_or(&self.gate[at..], 0.0), x).store_some(row);
        }
    }
}
