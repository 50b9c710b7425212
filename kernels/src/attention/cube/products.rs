//! Attention of one head with too many features for the other versions, as in the middle of an autoencoder: two products
//! by cuBLASLt with a softmax between them, for so many queries at a time that their scores stay small.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;

use crate::attention::sizes;
use crate::cube::{UNITS, addresses, buffer, cubes, dims, elem, empty, reduce::Plan};
use crate::plain::Plain;
use crate::vendor::cublaslt::{self, Epilogue};

/// Heads with fewer features have faster versions.
const MANY_FEATURES: usize = 256;

/// Scores in memory at a time: 128 MiB of f32.
const SCORES: usize = 1 << 25;

/// Scores in the vectors that the kernel reads.
const WIDTH: usize = 4;

/// See [`attention_lse`](crate::attention::attention_lse). `None`, where other versions compute it.
pub(super) fn attention_lse(
    q: &CubeTensor,
    k: &CubeTensor,
    v: &CubeTensor,
    scale: f32,
) -> Option<(CubeTensor, CubeTensor)> {
    let [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let multiple = match q.dtype {
        DType::F32 => WIDTH,
        DType::F16 | DType::BF16 => 8,
        _ => return None,
    };
    let one_type = k.dtype == q.dtype && v.dtype == q.dtype;
    if h != 1 || d <= MANY_FEATURES || b * nq * nk == 0 || !nk.is_multiple_of(multiple) || !one_type {
        return None;
    }
    if b > 1 {
        let image = |x: &CubeTensor, at: usize, n: usize| {
            burn_cubecl::kernel::slice(x.clone(), &[at..at + 1, 0..n, 0..1, 0..d])
        };
        let of_each = |at| attention_lse(&image(q, at, nq), &image(k, at, nk), &image(v, at, nk), scale);
        let (out, lse): (Vec<_>, Vec<_>) =
            (0..b).map(of_each).collect::<Option<Vec<_>>>()?.into_iter().unzip();
        let [out, lse] = [out, lse].map(|parts| {
            Plain::cat(parts.into_iter().map(Plain::<CubeBackend>::new).collect(), 0).into_inner()
        });
        return Some((out, lse));
    }
    let [q, k] = [(q, nq), (k, nk)].map(|(x, n)| reshape(x.clone(), [n, d].into()));
    // Values, feature by feature, are the weight of the second product.
    let v = into_contiguous(permute(reshape(v.clone(), [nk, d].into()), &[1, 0]));
    let of_part = (SCORES / nk).clamp(1, nq);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for first in (0..nq).step_by(of_part) {
        let queries = burn_cubecl::kernel::slice(q.clone(), &[first..(first + of_part).min(nq), 0..d]);
        let scores = cublaslt::linear(&queries, &k, Epilogue { wide: true, ..Epilogue::default() })?;
        let (weights, of_queries) = softmax(&scores, scale, q.dtype);
        out.push(Plain::<CubeBackend>::new(cublaslt::linear(&weights, &v, Epilogue::default())?));
        lse.push(Plain::<CubeBackend>::new(of_queries));
    }
    let [out, lse] = [out, lse].map(|mut parts| match parts.len() {
        1 => parts.remove(0),
        _ => Plain::cat(parts, 0),
    });
    Some((out.reshape([1, nq, 1, d]).into_inner(), lse.reshape([1, nq, 1]).into_inner()))
}

/// The softmax of `scores · scale` `[n, m]` along the rows in `dtype`, and the log-sum-exps `[n]`.
fn softmax(scores: &CubeTensor, scale: f32, dtype: DType) -> (CubeTensor, CubeTensor) {
    let [rows, len] = dims(scores);
    let (weights, lse) = (empty(scores, [rows, len], dtype), empty(scores, [rows], DType::F32));
    let (count, dim) = cubes(&scores.client, rows * UNITS);
    // SAFETY: the units of a cube read and write vectors of one row.
    unsafe {
        kernel::softmax::launch_unchecked(
            &scores.client,
            count,
            dim,
            addresses([scores]),
            WIDTH,
            buffer(scores),
            buffer(&weights),
            buffer(&lse),
            rows,
            len / WIDTH,
            scale,
            Plan::whole(&scores.client),
            elem(dtype),
        );
    }
    (weights, lse)
}

/// The kernel. CubeCL's prelude has names that Burn has, too.
mod kernel {
    use cubecl::prelude::*;

    use crate::cube::UNITS;
    use crate::cube::reduce::{Plan, row_sum};

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn softmax<F: Float, N: Size>(
        scores: &[Vector<f32, N>],
        weights: &mut [Vector<F, N>],
        lse: &mut [f32],
        rows: usize,
        vectors: usize,
        scale: f32,
        #[comptime] plan: Plan,
        #[define(F)] _type: ElemType,
    ) {
        // Cubes beyond the last row repeat it.
        let row = min(CUBE_POS, rows - 1);
        let start = row * vectors;
        let unit = UNIT_POS as usize;
        let width = N::value();
        let mut largest = scores[start].extract(0usize) * scale;
        for at in range_stepped(unit, vectors, UNITS) {
            let score = scores[start + at] * Vector::new(scale);
            #[unroll]
            for e in 0..width {
                largest = max(largest, score.extract(e));
            }
        }
        let mut of_units = Shared::<[f32]>::new_slice(UNITS);
        of_units[unit] = largest;
        #[unroll]
        for step in 0..comptime![UNITS.ilog2() as usize] {
            let half = comptime![UNITS >> (step + 1)];
            sync_cube();
            if unit < half {
                of_units[unit] = max(of_units[unit], of_units[unit + half]);
            }
        }
        sync_cube();
        let largest = of_units[0];

        let mut sum = 0.0f32;
        for at in range_stepped(unit, vectors, UNITS) {
            let power = (scores[start + at] * Vector::new(scale) - Vector::new(largest)).exp();
            #[unroll]
            for e in 0..width {
                sum += power.extract(e);
            }
        }
        let sum = row_sum::<Const<1>>(Vector::new(sum), plan).extract(0usize);
        let inverse = 1.0f32 / sum;
        for at in range_stepped(unit, vectors, UNITS) {
            let power = (scores[start + at] * Vector::new(scale) - Vector::new(largest)).exp();
            weights[start + at] = Vector::cast_from(power * Vector::new(inverse));
        }
        if UNIT_POS == 0 {
            lse[row] = largest + sum.ln();
        }
    }
}
