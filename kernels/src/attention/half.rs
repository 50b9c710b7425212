//! Attention of 16-bit tensors on the CPU: bf16 multiplied in hardware where the processor can, else widened a few heads
//! at a time.

#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod products;
#[cfg(test)]
mod tests;

use std::ops::Range;

use ::half::slice::HalfFloatSliceExt;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element, bf16, f16};
use burn_flex::FlexTensor;
use bytemuck::Pod;
use rayon::prelude::*;

use super::cpu::{Bias, Heads};
use super::sizes;
use super::tile::{Attend, Head, HeadBias, HeadOut, QUERIES, scratch};
use crate::cpu::{
    amx::Dots,
    lanes::Level,
    memory::Scratch,
    tensor, tensor_of,
    workers::{self, PerTask},
};

/// Elements of f32 in the packed keys and values of the heads that are worked on at the same time: these stay in a
/// cache.
const GROUP: usize = 2 << 20;

/// The fewest elements of f32 that are packed in a task.
const PACKED: usize = 16 << 10;

/// Attention of bf16 on this processor.
pub(super) fn attend_bf16(
    q: FlexTensor,
    kv: [FlexTensor; 2],
    bias: Option<FlexTensor>,
    scale: f32,
) -> (FlexTensor, FlexTensor) {
    match Dots::detect() {
        Dots::Widen => attend_widened::<bf16>(Level::detect(), q, kv, bias, scale),
        #[cfg(target_arch = "x86_64")]
        dots => attend_packed(dots, q, kv, bias, scale),
    }
}

/// [`attention_lse`](super::attention_lse) of bf16, multiplied by `dots`.
///
/// # Panics
/// If the processor has not `dots`.
#[cfg(target_arch = "x86_64")]
pub(super) fn attend_packed(
    dots: Dots,
    q: FlexTensor,
    [k, v]: [FlexTensor; 2],
    bias: Option<FlexTensor>,
    scale: f32,
) -> (FlexTensor, FlexTensor) {
    assert!(dots != Dots::Widen && Dots::available().contains(&dots));
    let sizes @ [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let (q, k, v) = (Heads::new(q), Heads::new(k), Heads::new(v));
    let bias = bias.map(|bias| Bias::new(bias, [b, h, nq, nk]));
    let pack = |[image, head]: [usize; 2], block: usize, to: &mut [f32]| {
        let keys = block * packed::KEYS..nk.min((block + 1) * packed::KEYS);
        let (k, v, to) = (k.head(image, head), v.head(image, head), bytemuck::cast_slice_mut(to));
        // SAFETY: the processor has what `dots` needs.
        unsafe { packed::pack(k, v, keys, to) };
    };
    let work = |scratch: &mut Scratch, [image, head]: [usize; 2], queries, packed: &[f32], out| {
        let work = packed::Attend {
            q: q.head(image, head),
            packed: bytemuck::cast_slice(packed),
            nk,
            bias: bias.as_ref().map(|bias| match bias.dtype() {
                DType::F32 => packed::AnyBias::F32(bias.head(image, head)),
                DType::F16 => packed::AnyBias::F16(bias.head(image, head)),
                DType::BF16 => packed::AnyBias::Bf16(bias.head(image, head)),
                other => panic!("a bias of {other:?}"),
            }),
            scale,
            queries,
            out,
            scratch,
        };
        let unit = match dots {
            #[cfg(target_os = "linux")]
            Dots::Amx => products::Unit::Tiles(crate::cpu::amx::Tiles::full()),
            _ => products::Unit::Vectors,
        };
        // SAFETY: the processor has what `dots` needs, and AVX-512 DQ.
        unsafe { work.run(&unit) };
    };
    let blocks = (nk.div_ceil(packed::KEYS), packed::packed_len(d) / 2);
    let cut = (packed::WIDTH, packed::QUERIES);
    for_each_part::<bf16, _>(sizes, cut, blocks, pack, || packed::scratch(d), work)
}

/// [`attention_lse`](super::attention_lse) of a 16-bit type, widened to f32 a few heads at a time and rounded once, by
/// the tile of f32 at `level`.
pub(super) fn attend_widened<T: Element + Pod + Send + Sync>(
    level: Level,
    q: FlexTensor,
    [k, v]: [FlexTensor; 2],
    bias: Option<FlexTensor>,
    scale: f32,
) -> (FlexTensor, FlexTensor)
where
    [T]: HalfFloatSliceExt,
{
    let sizes @ [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let (q, k, v) = (Heads::new(q), Heads::new(k), Heads::new(v));
    let bias = bias.map(|bias| Bias::new(bias, [b, h, nq, nk]));
    let pack = |[image, head]: [usize; 2], key: usize, to: &mut [f32]| {
        let (k_to, v_to) = to.split_at_mut(d);
        k.head::<T>(image, head).row(key).convert_to_f32_slice(k_to);
        v.head::<T>(image, head).row(key).convert_to_f32_slice(v_to);
    };
    // Besides the tile's own: queries and results of a task in f32, a rounded result, and a bias in f32.
    let task_scratch = || (scratch(d), Scratch::new(2 * QUERIES * d), vec![T::zeroed(); d], Vec::new());
    let work = |(scratch, wide, rounded, wide_bias): &mut (Scratch, Scratch, Vec<T>, Vec<f32>),
                [image, head]: [usize; 2],
                queries: Range<usize>,
                packed: &[f32],
                out: HeadOut<T>| {
        let (wide_q, wide_out) = wide.as_mut_slice().split_at_mut(QUERIES * d);
        let from = q.head::<T>(image, head);
        for (to, query) in wide_q.chunks_exact_mut(d).zip(queries.clone()) {
            from.row(query).convert_to_f32_slice(to);
        }
        let rows = |start| Head { data: packed, start, stride: 2 * d as isize, d };
        level.run(Attend {
            q: Head { data: wide_q, start: 0, stride: d as isize, d },
            k: rows(0),
            v: rows(d),
            nk,
            bias: bias.as_ref().map(|bias| match bias.dtype() {
                DType::F16 => widen_bias::<f16>(bias.head(image, head), queries.clone(), nk, wide_bias),
                DType::BF16 => widen_bias::<bf16>(bias.head(image, head), queries.clone(), nk, wide_bias),
                _ => {
                    let mut bias = bias.head(image, head);
                    bias.start = (bias.start as isize + queries.start as isize * bias.stride_q) as usize;
                    bias
                }
            }),
            scale,
            queries: 0..queries.len(),
            out: HeadOut {
                out: wide_out.as_mut_ptr(),
                stride: d,
                // SAFETY: the first query of the task is within the allocation.
                lse: unsafe { out.lse.add(queries.start * out.lse_stride) },
                lse_stride: out.lse_stride,
            },
            scratch,
        });
        for (from, query) in wide_out.chunks_exact(d).zip(queries) {
            rounded.convert_from_f32_slice(from);
            // SAFETY: the row belongs to this task alone.
            unsafe { rounded.as_ptr().copy_to_nonoverlapping(out.out.add(query * out.stride), d) };
        }
    };
    for_each_part::<T, _>(sizes, (48, QUERIES), (nk, 2 * d), pack, task_scratch, work)
}

/// The rows of `bias` for `queries` in f32, the first of them now that of query 0.
fn widen_bias<'a, T: Copy + Into<f32>>(
    bias: HeadBias<T>,
    queries: Range<usize>,
    nk: usize,
    to: &'a mut Vec<f32>,
) -> HeadBias<'a>
where
    [T]: HalfFloatSliceExt,
{
    let repeated = bias.stride_q == 0;
    let queries = if repeated { queries.start..queries.start + 1 } else { queries };
    to.resize(queries.len() * nk, 0.0);
    for (to, query) in to.chunks_exact_mut(nk.max(1)).zip(queries) {
        if bias.stride_k == 1 {
            bias.row(query, 0..nk).convert_to_f32_slice(to);
        } else {
            to.iter_mut().enumerate().for_each(|(key, to)| *to = bias.at(query, key).into());
        }
    }
    HeadBias { data: to, start: 0, stride_q: if repeated { 0 } else { nk as isize }, stride_k: 1 }
}

/// Packs the keys and values of a few heads at a time and works on the queries of these heads.
///
/// - `queries`: the number of which those of a task are a multiple, and the most of a task
/// - `packed`: how many units a head is packed into, and the length of each
/// - `pack`: given image and head, the unit, and the place for it
/// - `work`: given image and head, queries, the packed head and the place for the results, of which it writes those of
///   its queries
fn for_each_part<T: Element + Pod + Send + Sync, S>(
    sizes: [usize; 5],
    (few_queries, most_queries): (usize, usize),
    packed: (usize, usize),
    pack: impl Fn([usize; 2], usize, &mut [f32]) + Sync,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, [usize; 2], Range<usize>, &[f32], HeadOut<T>) + Sync,
) -> (FlexTensor, FlexTensor) {
    let [b, nq, nk, h, d] = sizes;
    let (units, unit_len) = packed;
    let head_len = units * unit_len;
    let threads = rayon::current_num_threads();
    let (mut out, mut lse) = (Vec::<T>::with_capacity(b * nq * h * d), Vec::<f32>::with_capacity(b * nq * h));
    let results = (PerTask(out.as_mut_ptr()), PerTask(lse.as_mut_ptr()));
    // Few queries are cut finer to keep all threads busy. Neither this cut nor the number of heads in a group changes
    // the results.
    let per_task = (b * h * nq).div_ceil(4 * threads).next_multiple_of(few_queries).min(most_queries);
    let tasks = nq.div_ceil(per_task.max(1));
    let group = (GROUP / head_len.max(1)).max((4 * threads).div_ceil(tasks.max(1))).clamp(1, (b * h).max(1));
    let mut memory = Scratch::new(group * head_len);
    for first in (0..b * h).step_by(group) {
        let heads = group.min(b * h - first);
        let at = |index: usize| [(first + index) / h, (first + index) % h];
        let memory = &mut memory.as_mut_slice()[..heads * head_len];
        let pack_one = |(index, to): (usize, &mut [f32])| pack(at(index / units), index % units, to);
        let products = 2 * heads * nq * nk * d;
        if products < workers::TOO_FEW_TO_SHARE {
            memory.chunks_mut(unit_len.max(1)).enumerate().for_each(pack_one);
        } else {
            let few = (PACKED / unit_len.max(1)).max(1);
            memory.par_chunks_mut(unit_len.max(1)).with_min_len(few).enumerate().for_each(pack_one);
        }
        let memory = &*memory;
        workers::for_each(heads * tasks, products, &scratch, |scratch, index| {
            let [image, head] = at(index / tasks);
            let queries = index % tasks * per_task..nq.min((index % tasks + 1) * per_task);
            let packed = &memory[index / tasks * head_len..][..head_len];
            // SAFETY: the first row of this head is within both allocations.
            let (out, lse) = unsafe {
                (results.0.get().add((image * nq * h + head) * d), results.1.get().add(image * nq * h + head))
            };
            work(scratch, [image, head], queries, packed, HeadOut { out, stride: h * d, lse, lse_stride: h });
        });
    }
    // SAFETY: the tasks wrote every query of every head.
    unsafe {
        out.set_len(b * nq * h * d);
        lse.set_len(b * nq * h);
    }
    (tensor_of(out, [b, nq, h, d]), tensor(lse, [b, nq, h]))
}
