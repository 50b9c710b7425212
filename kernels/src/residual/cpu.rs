//! The gated residual on the CPU: one pass, in place where the memory is free.

use burn::tensor::Tensor;

use crate::cpu::{
    PerImage, Rows,
    lanes::{Job, Lanes, Level},
    map_rows, strided,
};

pub(super) fn gated_residual(level: Level, x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    assert_eq!(x.dims(), y.dims(), "both terms have one shape");
    let [_, n, c] = x.dims();
    let gate = PerImage::new(gate, x.dims());
    let (x_is_free, x) = is_free(x);
    if x_is_free {
        let y = Rows::new(y);
        map_rows(x, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(c)) {
                level.run(AddGated::<true> { row, gate: gate.row(i / n), other: y.row(i) });
            }
        })
    } else {
        let x = Rows::new(x);
        map_rows(y, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(c)) {
                level.run(AddGated::<false> { row, gate: gate.row(i / n), other: x.row(i) });
            }
        })
    }
}

fn is_free(x: Tensor<3>) -> (bool, Tensor<3>) {
    let x = strided(x);
    (x.is_unique() && x.is_contiguous(), Tensor::from_primitive::<burn_flex::Flex>(x))
}

/// A row in place: `row + gate · other` if `ROW_IS_X`, else `other + gate · row`.
struct AddGated<'a, const ROW_IS_X: bool> {
    row: &'a mut [f32],
    gate: &'a [f32],
    other: &'a [f32],
}

impl<const ROW_IS_X: bool> Job for AddGated<'_, ROW_IS_X> {
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
