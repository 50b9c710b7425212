//! Linear layers on the CPU.
//!
//! Many rows of bf16 are multiplied in the processor's own bf16 products where it has fast ones; other rows go to the
//! `gemm` crate in f32, on the weight as it is stored. Few rows (a timestep, a pooled prompt) would
//! leave it packing a weight that is used once or twice; they stream it through dot products instead.

use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, Shape, bf16, f16};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::half;
use super::{LinearOps, reference_linear};
use crate::activation::{Activation, ActivationOps};
use crate::cpu::{
    TensorRows, contiguous, dims,
    element::Element,
    lanes::{Lanes, Level, Vectorized},
    round_to, slice, tensor, wide,
};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{amx::Dots, blocks::Matrix};
use crate::optional::Optional;

/// The most rows for which streaming the weight wins.
const FEW: usize = 8;

/// How many numbers a task copies: fewer are copied sooner than another thread wakes up.
const COPIED: usize = 1 << 16;

/// Outputs of a task of the streaming path.
const OUTPUTS: usize = 32;

impl LinearOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor, bias: Optional<Self>) -> FlexTensor {
        match x.dtype() {
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                let bias = bias.into_option().map(wide);
                #[cfg(target_arch = "x86_64")]
                if let dots = Dots::detect()
                    && dots != Dots::Widen
                    && [dtype, weight.dtype()] == [DType::BF16; 2]
                    && x.shape().num_elements() > FEW * dims::<2>(&weight)[1]
                {
                    return linear_bf16(dots, x, weight, bias);
                }
                round_to(linear(Level::detect(), wide(x), weight, bias), dtype)
            }
            _ => reference_linear::<Self>(x, weight, bias),
        }
    }

    fn linear_activate(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Optional<Self>,
        activation: Activation,
    ) -> FlexTensor {
        <Self as ActivationOps>::activate(activation, <Self as LinearOps>::linear(x, weight, bias))
    }
}

/// The shape of the outputs, and the contiguous bias.
///
/// # Panics
/// If the inputs or the bias do not fit the weight.
fn outputs(x: &FlexTensor, weight: &FlexTensor, bias: Option<FlexTensor>) -> (Shape, Option<FlexTensor>) {
    let mut shape = x.shape();
    let [c_out, c_in] = dims(weight);
    let last = shape.rank() - 1;
    assert_eq!(shape[last], c_in, "features of the input that the weight takes");
    shape[last] = c_out;
    let bias = bias.map(|bias| {
        assert_eq!(dims(&bias), [c_out], "a bias for each output");
        contiguous(bias)
    });
    (shape, bias)
}

/// [`linear`](super::linear) of bf16 with `dots`.
#[cfg(target_arch = "x86_64")]
pub(super) fn linear_bf16(
    dots: Dots,
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
) -> FlexTensor {
    let (shape, bias) = outputs(&x, &weight, bias);
    let [mut x, mut weight] = [x, weight].map(TensorRows::<bf16>::new);
    for rows in [&mut x, &mut weight] {
        if matrix(rows).is_none() {
            rows.make_contiguous();
        }
    }
    let [x, weight] = [&x, &weight].map(|rows| matrix(rows).expect("contiguous rows"));
    let y = half::multiply(dots, x, weight, bias.as_ref().map(slice));
    FlexTensor::new(Bytes::from_elems(y), Layout::contiguous(shape), DType::BF16)
}

/// `rows` as a matrix, if they lie evenly.
#[cfg(target_arch = "x86_64")]
fn matrix(rows: &TensorRows<bf16>) -> Option<Matrix<'_>> {
    let stride = usize::try_from(rows.stride()?).ok()?;
    let data = if rows.count() == 0 { &[] } else { rows.memory() };
    Some(Matrix::new(data, rows.count(), rows.len(), stride))
}

/// [`linear`](super::linear) of f32 inputs and bias at `level`; the weight may have 16 bits.
pub(super) fn linear(
    level: Level,
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
) -> FlexTensor {
    let (shape, bias) = outputs(&x, &weight, bias);
    let c_in = dims::<2>(&weight)[1];
    let mut x = TensorRows::new(x);
    if x.stride().is_none() {
        x = x.into_contiguous();
    }
    let bias = bias.as_ref().map(slice);
    let few = x.count() <= FEW && weight.layout().strides()[1] == 1;
    let y = match weight.dtype() {
        _ if !few && c_in > 0 => multiply(&x, &wide(weight), bias),
        DType::BF16 => stream::<bf16>(level, &x, &weight, bias),
        DType::F16 => stream::<f16>(level, &x, &weight, bias),
        _ => stream::<f32>(level, &x, &weight, bias),
    };
    tensor(y, shape)
}

/// `x · weightᵀ + bias` by the `gemm` crate.
fn multiply(x: &TensorRows, weight: &FlexTensor, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, c_in) = (x.count(), x.len());
    let c_out = weight.layout().shape()[0];
    let mut y = Vec::with_capacity(rows * c_out);
    if rows * c_out == 0 {
        return y;
    }
    if let Some(bias) = bias {
        // The product is added to what is there.
        let y = &mut y.spare_capacity_mut()[..rows * c_out];
        y.par_chunks_exact_mut(c_out).with_min_len(COPIED.div_ceil(c_out)).for_each(|row| {
            row.write_copy_of_slice(bias);
        });
    }
    let (w, w_strides) = (weight.storage::<f32>(), weight.layout().strides());
    assert!(w_strides.iter().all(|&stride| stride >= 0), "a weight that is not flipped");
    let w_end = weight.layout().start_offset() as isize
        + (c_out as isize - 1) * w_strides[0]
        + (c_in as isize - 1) * w_strides[1];
    assert!((w_end as usize) < w.len());
    let x_stride = x.stride().expect("made uniform by the caller");
    // SAFETY: `y` has room for `rows` rows of `c_out`, and they are initialised where they are read. `as_ptr` looked
    // at the first and last row of `x`, and the last element of `w` was checked here.
    unsafe {
        gemm::gemm(
            rows,
            c_out,
            c_in,
            y.as_mut_ptr(),
            1,
            c_out as isize,
            bias.is_some(),
            x.as_ptr(),
            1,
            x_stride,
            w.as_ptr().add(weight.layout().start_offset()),
            w_strides[0],
            w_strides[1],
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
        y.set_len(rows * c_out);
    }
    y
}

/// `x · weightᵀ + bias` for a few rows: each row of the weight is read from memory once.
fn stream<E: Element>(level: Level, x: &TensorRows, weight: &FlexTensor, bias: Option<&[f32]>) -> Vec<f32> {
    let rows: Vec<&[f32]> = (0..x.count()).map(|row| x.row(row)).collect();
    let (layout, data) = (weight.layout(), weight.storage::<E>());
    let weight_row = |output: usize| {
        let start = layout.start_offset() as isize + output as isize * layout.strides()[0];
        &data[start as usize..][..x.len()]
    };
    let c_out = layout.shape()[0];
    // Transposed, so that a task's outputs lie together.
    let mut columns = vec![0.0; c_out * rows.len()];
    let task = |(index, columns): (usize, &mut [f32])| {
        let first = index * OUTPUTS;
        let weight: Vec<&[E]> = (first..c_out.min(first + OUTPUTS)).map(weight_row).collect();
        level.run(DotProducts { x: &rows, weight: &weight, columns });
    };
    let chunk = (OUTPUTS * rows.len()).max(1);
    if x.len() * c_out < 1 << 16 {
        columns.chunks_mut(chunk).enumerate().for_each(task);
    } else {
        columns.par_chunks_mut(chunk).enumerate().for_each(task);
    }
    let add =
        |row: usize, output: usize| columns[output * rows.len() + row] + bias.map_or(0.0, |b| b[output]);
    (0..rows.len())
        .flat_map(|row| (0..c_out).map(move |output| (row, output)))
        .map(|(r, o)| add(r, o))
        .collect()
}

/// The dot product of each row of the weight with each row of `x`: `columns[output, row]`.
struct DotProducts<'a, E> {
    x: &'a [&'a [f32]],
    weight: &'a [&'a [E]],
    columns: &'a mut [f32],
}

impl<E: Element> Vectorized for DotProducts<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { x, weight, columns } = self;
        let outputs = weight.chunks(4).zip(columns.chunks_mut(4 * x.len()));
        for (weight, columns) in outputs {
            let (pairs, single) = x.as_chunks::<2>();
            match weight.as_array::<4>() {
                Some(&weight) => {
                    for (i, &pair) in pairs.iter().enumerate() {
                        dots::<V, E, 2, 4>(pair, weight, columns, x.len(), 2 * i);
                    }
                    if let &[last] = single {
                        dots::<V, E, 1, 4>([last], weight, columns, x.len(), x.len() - 1);
                    }
                }
                None => {
                    for (&weight, column) in weight.iter().zip(columns.chunks_exact_mut(x.len())) {
                        for (row, &x) in x.iter().enumerate() {
                            dots::<V, E, 1, 1>([x], [weight], column, 1, row);
                        }
                    }
                }
            }
        }
    }
}

/// Writes `x[r] · weight[o]` to `columns[o, first + r]`, where `columns` has `count` of them for each `o`.
#[inline(always)]
fn dots<V: Lanes, E: Element, const R: usize, const O: usize>(
    x: [&[f32]; R],
    weight: [&[E]; O],
    columns: &mut [f32],
    count: usize,
    first: usize,
) {
    let len = x[0].len();
    assert!(x.iter().all(|row| row.len() == len) && weight.iter().all(|row| row.len() == len));
    let whole = len / V::N * V::N;
    let mut sums = [[V::splat(0.0); O]; R];
    for at in (0..whole).step_by(V::N) {
        for o in 0..O {
            // SAFETY: every row has `len` elements, and `at + N ≤ len`.
            let w = unsafe { E::load::<V>(weight[o].as_ptr().add(at)) };
            for r in 0..R {
                // SAFETY: as above.
                sums[r][o] = unsafe { V::load(x[r].as_ptr().add(at)) }.mul_add(w, sums[r][o]);
            }
        }
    }
    for o in 0..O {
        for r in 0..R {
            let (x, w) = (V::load_or(&x[r][whole..], 0.0), E::load_or(&weight[o][whole..], 0.0));
            columns[o * count + first + r] = x.mul_add(w, sums[r][o]).sum();
        }
    }
}
