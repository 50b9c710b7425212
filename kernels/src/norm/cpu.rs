//! Norms over features on the CPU: each row is read from memory once and processed in the cache.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

use super::{NormOps, reference_layer_norm, reference_layer_norm_modulate, reference_rms_norm};
use crate::cpu::{
    PerImage, TensorRows, dims,
    lanes::{Lanes, Level, Vectorized},
    map_rows, wide,
};
use crate::optional::Optional;

impl NormOps for Flex {
    fn layer_norm(x: FlexTensor, weight: Optional<Self>, bias: Optional<Self>, eps: f64) -> FlexTensor {
        match x.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => {
                let [weight, bias] = [weight, bias].map(|parameter| parameter.into_option().map(wide));
                layer_norm(Level::detect(), x, weight, bias, eps)
            }
            _ => reference_layer_norm::<Self>(x, weight, bias, eps),
        }
    }

    fn layer_norm_modulate(x: FlexTensor, shift: FlexTensor, scale: FlexTensor, eps: f64) -> FlexTensor {
        match x.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => {
                layer_norm_modulate(Level::detect(), x, wide(shift), wide(scale), eps)
            }
            _ => reference_layer_norm_modulate::<Self>(x, shift, scale, eps),
        }
    }

    fn rms_norm(x: FlexTensor, weight: Optional<Self>, eps: f64) -> FlexTensor {
        match x.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => {
                let weight = weight.into_option().map(wide);
                rms_norm(Level::detect(), x, weight, eps)
            }
            _ => reference_rms_norm::<Self>(x, weight, eps),
        }
    }
}

/// The scale and shift after the norm, each optional.
#[derive(Clone, Copy, Default)]
struct After<'a> {
    scale: Option<&'a [f32]>,
    /// Added to `scale`: 1 for the modulation of adaptive layer norm.
    scale_offset: f32,
    shift: Option<&'a [f32]>,
}

/// [`layer_norm`](super::layer_norm) at `level`.
pub(super) fn layer_norm(
    level: Level,
    x: FlexTensor,
    weight: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    eps: f64,
) -> FlexTensor {
    norm::<true>(level, x, weight, bias, eps)
}

/// [`rms_norm`](super::rms_norm) at `level`.
pub(super) fn rms_norm(level: Level, x: FlexTensor, weight: Option<FlexTensor>, eps: f64) -> FlexTensor {
    norm::<false>(level, x, weight, None, eps)
}

fn norm<const CENTRE: bool>(
    level: Level,
    x: FlexTensor,
    weight: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    eps: f64,
) -> FlexTensor {
    let shape = x.shape();
    let len = shape[shape.rank() - 1];
    let parameter = |tensor: FlexTensor| {
        assert_eq!(dims(&tensor), [len], "a parameter for each feature");
        TensorRows::new(tensor)
    };
    let (weight, bias) = (weight.map(parameter), bias.map(parameter));
    let after = After {
        scale: weight.as_ref().map(|rows| rows.row(0)),
        scale_offset: 0.0,
        shift: bias.as_ref().map(|rows| rows.row(0)),
    };
    map_rows(x, |_, rows| level.run(Norm::<CENTRE> { rows, len, after, eps }))
}

/// [`layer_norm_modulate`](super::layer_norm_modulate) at `level`.
pub(super) fn layer_norm_modulate(
    level: Level,
    x: FlexTensor,
    shift: FlexTensor,
    scale: FlexTensor,
    eps: f64,
) -> FlexTensor {
    let sizes @ [_, n, c] = dims(&x);
    let (shift, scale) = (PerImage::new(shift, sizes), PerImage::new(scale, sizes));
    map_rows(x, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(c).enumerate() {
            let image = (first + i) / n;
            let (shift, scale) = (Some(shift.row(image)), Some(scale.row(image)));
            level.run(Norm::<true> {
                rows: row,
                len: c,
                after: After { scale, scale_offset: 1.0, shift },
                eps,
            });
        }
    })
}

/// Rows of `len` elements with the same parameters: layer norm if `CENTRE`, and otherwise root-mean-square norm.
struct Norm<'a, const CENTRE: bool> {
    rows: &'a mut [f32],
    len: usize,
    after: After<'a>,
    eps: f64,
}

impl<const CENTRE: bool> Vectorized for Norm<'_, CENTRE> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for row in self.rows.chunks_exact_mut(self.len) {
            norm_row::<V, CENTRE>(row, self.after, self.eps);
        }
    }
}

#[inline(always)]
fn norm_row<V: Lanes, const CENTRE: bool>(row: &mut [f32], after: After, eps: f64) {
    let count = row.len() as f32;
    let mean = if CENTRE { deviations::<V>(row, 0.0).0 / count } else { 0.0 };
    // The rounding error of the mean appears in the deviations, and is removed from both moments.
    let (sum, sum_sq) = deviations::<V>(row, mean);
    let rest = if CENTRE { sum / count } else { 0.0 };
    let variance = sum_sq / count - rest * rest;
    let inverse = (1.0 / (f64::from(variance) + eps).sqrt()) as f32;
    let (mean, inverse, shift) = (V::splat(mean), V::splat(inverse), V::splat(-rest * inverse));
    let offset = V::splat(after.scale_offset);
    for at in (0..row.len()).step_by(V::N) {
        let x = &mut row[at..];
        let mut y = (V::load_or(x, 0.0) - mean).mul_add(inverse, shift);
        y = match (after.scale, after.shift) {
            (Some(scale), Some(shift)) => {
                y.mul_add(V::load_or(&scale[at..], 0.0) + offset, V::load_or(&shift[at..], 0.0))
            }
            (Some(scale), None) => y * (V::load_or(&scale[at..], 0.0) + offset),
            (None, Some(shift)) => y + V::load_or(&shift[at..], 0.0),
            (None, None) => y,
        };
        y.store_some(x);
    }
}

/// Σ (x - centre) and Σ (x - centre)², as many short sums, which are more accurate and can overlap.
#[inline(always)]
fn deviations<V: Lanes>(row: &[f32], centre: f32) -> (f32, f32) {
    const SUMS: usize = 4;
    let (mut sums, mut squares) = ([V::splat(0.0); SUMS], [V::splat(0.0); SUMS]);
    for block in (0..row.len()).step_by(SUMS * V::N) {
        for i in 0..SUMS {
            let at = (block + i * V::N).min(row.len());
            let x = V::load_or(&row[at..], centre) - V::splat(centre);
            sums[i] = sums[i] + x;
            squares[i] = x.mul_add(x, squares[i]);
        }
    }
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    let square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    (sum.sum(), square.sum())
}
