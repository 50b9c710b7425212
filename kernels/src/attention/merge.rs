//! Merges partial results of attention on the CPU, in one pass.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::cpu::{
    TensorRows, contiguous, dims,
    lanes::{Lanes, Level, Vectorized},
    map_rows, slice, tensor,
};

/// [`merge_lse`](super::merge_lse) at `level`.
pub(super) fn merge_lse(
    level: Level,
    (out_a, lse_a): (FlexTensor, FlexTensor),
    (out_b, lse_b): (FlexTensor, FlexTensor),
) -> (FlexTensor, FlexTensor) {
    let [b, n, h, d] = dims(&out_a);
    assert_eq!(dims(&out_b), [b, n, h, d], "partial results of the same queries");
    assert_eq!((dims(&lse_a), dims(&lse_b)), ([b, n, h], [b, n, h]), "a log-sum-exp for each query and head");
    let (lse_a, lse_b, out_b) = (contiguous(lse_a), contiguous(lse_b), TensorRows::new(out_b));
    let (shares, lse): (Vec<[f32; 2]>, Vec<f32>) = slice(&lse_a)
        .par_iter()
        .with_min_len(1024)
        .zip(slice(&lse_b))
        .map(|(&lse_a, &lse_b)| shares(lse_a, lse_b))
        .unzip();
    let out = map_rows(out_a, |first, rows| {
        for (row, out) in (first..).zip(rows.chunks_exact_mut(d)) {
            level.run(Mix { out, other: out_b.row(row), shares: shares[row] });
        }
    });
    (out, tensor(lse, [b, n, h]))
}

/// The weights of two partial results, and the log-sum-exp of both. If neither part has keys, all three are neutral.
fn shares(lse_a: f32, lse_b: f32) -> ([f32; 2], f32) {
    let max = lse_a.max(lse_b);
    if max == f32::NEG_INFINITY {
        return ([0.0, 0.0], max);
    }
    let [a, b] = [lse_a, lse_b].map(|lse| if lse == max { 1.0 } else { (lse - max).exp() });
    ([a / (a + b), b / (a + b)], max + (a + b).ln())
}

/// `out · shares[0] + other · shares[1]`, in place.
struct Mix<'a> {
    out: &'a mut [f32],
    other: &'a [f32],
    shares: [f32; 2],
}

impl Vectorized for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.out.len()).step_by(V::N) {
            let (out, other) = (&mut self.out[at..], &self.other[at..]);
            let mixed = V::load_or(other, 0.0) * V::splat(self.shares[1]);
            V::load_or(out, 0.0).mul_add(V::splat(self.shares[0]), mixed).store_some(out);
        }
    }
}
