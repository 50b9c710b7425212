//! Group norm on the CPU: each operation makes one pass over the image.

use burn::tensor::{DType, bf16, f16};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::{GroupNormOps, reference_group_norm_moments, reference_norm_act};
use crate::cpu::element::Element;
use crate::cpu::lanes::{Lanes, Level, Vectorized};
use crate::cpu::memory::zeros;
use crate::cpu::{contiguous, dims, round_to, silu, slice, tensor, wide};

impl GroupNormOps for Flex {
    fn group_norm_moments(x: FlexTensor, groups: usize) -> (FlexTensor, FlexTensor) {
        match x.dtype() {
            DType::F32 => moments::<f32>(Level::detect(), x, groups),
            DType::F16 => moments::<f16>(Level::detect(), x, groups),
            DType::BF16 => moments::<bf16>(Level::detect(), x, groups),
            _ => reference_group_norm_moments::<Self>(x, groups),
        }
    }

    fn norm_act(x: FlexTensor, scale: FlexTensor, shift: FlexTensor, act: bool) -> FlexTensor {
        match x.dtype() {
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                round_to(norm_act(Level::detect(), wide(x), wide(scale), wide(shift), act), dtype)
            }
            _ => reference_norm_act::<Self>(x, scale, shift, act),
        }
    }
}

/// [`group_norm_moments`](super::group_norm_moments) at `level`.
///
/// Sums are f64, in which the difference of Σx² and (Σx)²/n keeps enough digits even if the mean is 10⁴ times the
/// deviation; two passes over the image would take twice as long. The order of summation is that of memory, so the
/// result is bitwise the same at every level and for any number of threads.
pub(super) fn moments<E: Element>(level: Level, x: FlexTensor, groups: usize) -> (FlexTensor, FlexTensor) {
    let [b, c, rows, cols] = dims(&x);
    assert_eq!(c % groups, 0, "{groups} groups of {c} channels");
    let count = c / groups * rows * cols;
    if b * count == 0 {
        return (tensor(vec![0.0; b * groups], [b, groups]), tensor(vec![0.0; b * groups], [b, groups]));
    }
    let x = contiguous(x);
    let elements = x.as_slice::<E>().expect("made contiguous");
    let of_planes = elements
        .par_chunks_exact(rows * cols)
        .map(|plane| level.run(PlaneSums { plane }))
        .collect::<Vec<_>>();
    let (mean, deviation) = of_planes
        .chunks_exact(c / groups)
        .map(|planes| {
            let (sum, sum_sq) = planes.iter().fold((0.0, 0.0), |(s, q), plane| (s + plane.0, q + plane.1));
            let mean = sum / count as f64;
            (mean as f32, (sum_sq - sum * mean).max(0.0) as f32)
        })
        .unzip();
    (tensor(mean, [b, groups]), tensor(deviation, [b, groups]))
}

/// [`norm_act`](super::norm_act) at `level`.
pub(super) fn norm_act(
    level: Level,
    x: FlexTensor,
    scale: FlexTensor,
    shift: FlexTensor,
    act: bool,
) -> FlexTensor {
    let shape @ [b, c, rows, cols] = dims(&x);
    assert_eq!(dims(&scale), [b, c], "a scale for each channel of each image");
    assert_eq!(dims(&shift), [b, c], "a shift for each channel of each image");
    let (scale, shift) = (contiguous(scale), contiguous(shift));
    let (scale, shift) = (slice(&scale), slice(&shift));
    let plane_len = (rows * cols).max(1);
    let mut x = contiguous(x);
    if let Some(data) = x.try_storage_mut::<f32>() {
        data.par_chunks_exact_mut(plane_len).enumerate().for_each(|(plane, to)| {
            let (to, len) = (to.as_mut_ptr(), to.len());
            level.run(NormPlane { from: to, to, len, scale: scale[plane], shift: shift[plane], act });
        });
        return x;
    }
    let mut y = zeros(b * c * rows * cols);
    let from = slice(&x).par_chunks_exact(plane_len);
    y.par_chunks_exact_mut(plane_len).zip(from).enumerate().for_each(|(plane, (to, from))| {
        let (from, to, len) = (from.as_ptr(), to.as_mut_ptr(), to.len());
        level.run(NormPlane { from, to, len, scale: scale[plane], shift: shift[plane], act });
    });
    tensor(y, shape)
}

/// Computes Σx and Σx² of a plane.
struct PlaneSums<'a, E> {
    plane: &'a [E],
}

impl<E: Element> Vectorized for PlaneSums<'_, E> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<V: Lanes>(self) -> (f64, f64) {
        const N: usize = 16;
        let (mut sums, mut squares) = ([0.0f64; N], [0.0f64; N]);
        let (whole, rest) = self.plane.as_chunks::<N>();
        let mut wide = [0.0f32; N];
        for chunk in whole {
            for at in (0..N).step_by(V::N) {
                E::load_or::<V>(&chunk[at..], 0.0).store_some(&mut wide[at..]);
            }
            for i in 0..N {
                let x = f64::from(wide[i]);
                sums[i] += x;
                squares[i] += x * x;
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            let x = x.elem::<f64>();
            sums[i] += x;
            squares[i] += x * x;
        }
        (sums.iter().sum(), squares.iter().sum())
    }
}

/// `norm_act` of `len` elements; `from` and `to` may be the same.
struct NormPlane {
    from: *const f32,
    to: *mut f32,
    len: usize,
    scale: f32,
    shift: f32,
    act: bool,
}

impl Vectorized for NormPlane {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { from, to, len, scale, shift, act } = self;
        // SAFETY: both callers, in this file, take the pointers from slices of `len` elements.
        unsafe { silu::norm_act::<V>(from, to, len, scale, shift, act) }
    }
}
