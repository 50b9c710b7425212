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

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::tile::{Attend, Head, HeadBias, HeadOut, QUERIES, scratch};
use crate::cpu::{
    amx::Dots,
    lanes::Level,
    memory::Scratch,
    workers::{self, PerTask},
};

/// Elements of f32 in the packed keys and values of the heads that are worked on at the same time.
const GROUP: usize = 2 << 20;

/// A `[b, n, h, d]` tensor whose `d` numbers of a head lie together.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub data: &'a [T],
    pub start: usize,
    /// Elements from an image, a token and a head to the next.
    pub strides: [isize; 3],
    pub d: usize,
}

impl<'a, T> Heads<'a, T> {
    pub(super) fn head(&self, image: usize, head: usize) -> Head<'a, T> {
        let [of_image, stride, of_head] = self.strides;
        let start = self.start as isize + image as isize * of_image + head as isize * of_head;
        Head { data: self.data, start: start as usize, stride, d: self.d }
    }
}

/// Numbers of any type that a bias may have.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// A bias broadcast to `[b, h, nq, nk]`, with a stride of 0 where it is repeated.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    pub data: Numbers<'a>,
    pub start: usize,
    pub strides: [isize; 4],
}

impl<'a> Bias<'a> {
    /// The bias of one head, whose numbers are in `data`.
    fn head<T>(&self, data: &'a [T], image: usize, head: usize) -> HeadBias<'a, T> {
        let [of_image, of_head, stride_q, stride_k] = self.strides;
        let start = self.start as isize + image as isize * of_image + head as isize * of_head;
        HeadBias { data, start: start as usize, stride_q, stride_k }
    }
}

/// The sizes of an attention.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub b: usize,
    pub nq: usize,
    pub nk: usize,
    pub h: usize,
    pub d: usize,
}

/// How bf16 is multiplied fastest on this processor.
///
/// Not every processor that multiplies pairs in vectors should: those of Intel that have tiles take four times as long
/// as for the same number of f32, so that without tiles, widening is faster there.
pub(super) fn detect() -> Dots {
    match Dots::detect() {
        #[cfg(target_arch = "x86_64")]
        Dots::Avx512Bf16 if is_x86_feature_detected!("avx512fp16") => Dots::Widen,
        #[cfg(target_arch = "x86_64")]
        _ if !is_x86_feature_detected!("avx512dq") => Dots::Widen,
        dots => dots,
    }
}

/// Attention of bf16, multiplied by `dots`, which the processor has.
///
/// # Shapes
/// - `q`: `[b, nq, h, d]`
/// - `k`, `v`: `[b, nk, h, d]`
/// - results: `[b, nq, h, d]`, and the log-sum-exp, `[b, nq, h]`
#[cfg(target_arch = "x86_64")]
pub(super) fn attend_packed(
    dots: Dots,
    sizes: Sizes,
    q: Heads<bf16>,
    [k, v]: [Heads<bf16>; 2],
    bias: Option<Bias>,
    scale: f32,
) -> (Vec<bf16>, Vec<f32>) {
    assert!(dots != Dots::Widen && Dots::available().contains(&dots) && is_x86_feature_detected!("avx512dq"));
    let Sizes { nk, d, .. } = sizes;
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
            bias: bias.map(|bias| match bias.data {
                Numbers::F32(data) => packed::AnyBias::F32(bias.head(data, image, head)),
                Numbers::F16(data) => packed::AnyBias::F16(bias.head(data, image, head)),
                Numbers::Bf16(data) => packed::AnyBias::Bf16(bias.head(data, image, head)),
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
    for_each_part(sizes, packed::QUERIES, blocks, pack, || packed::scratch(d), work)
}

/// Attention of any 16-bit type, widened to f32 a few heads at a time and rounded once, by the tile of f32 at `level`.
///
/// # Shapes
/// As [`attend_packed`].
pub(super) fn attend_widened<T: Copy + Send + Sync>(
    level: Level,
    sizes: Sizes,
    q: Heads<T>,
    [k, v]: [Heads<T>; 2],
    bias: Option<Bias>,
    scale: f32,
) -> (Vec<T>, Vec<f32>)
where
    [T]: HalfFloatSliceExt,
{
    let Sizes { nk, d, .. } = sizes;
    let wide: Vec<f32>;
    let bias = match bias {
        None => None,
        Some(bias) => {
            let data = match bias.data {
                Numbers::F32(data) => data,
                Numbers::F16(data) => {
                    wide = data.to_f32_vec();
                    &wide
                }
                Numbers::Bf16(data) => {
                    wide = data.to_f32_vec();
                    &wide
                }
            };
            Some((bias, data))
        }
    };
    let pack = |[image, head]: [usize; 2], key: usize, to: &mut [f32]| {
        let (k_to, v_to) = to.split_at_mut(d);
        k.head(image, head).row(key).convert_to_f32_slice(k_to);
        v.head(image, head).row(key).convert_to_f32_slice(v_to);
    };
    // Queries and results of a task in f32.
    let wide_scratch = || (scratch(d), Scratch::new(2 * QUERIES * d));
    let work = |(scratch, wide): &mut (Scratch, Scratch),
                [image, head]: [usize; 2],
                queries: Range<usize>,
                packed: &[f32],
                out: HeadOut<T>| {
        let (wide_q, wide_out) = wide.as_mut_slice().split_at_mut(QUERIES * d);
        let from = q.head(image, head);
        for (to, query) in wide_q.chunks_exact_mut(d).zip(queries.clone()) {
            from.row(query).convert_to_f32_slice(to);
        }
        let rows = |start| Head { data: packed, start, stride: 2 * d as isize, d };
        level.run(Attend {
            q: Head { data: wide_q, start: 0, stride: d as isize, d },
            k: rows(0),
            v: rows(d),
            nk,
            bias: bias.map(|(bias, data)| {
                let mut bias = bias.head(data, image, head);
                bias.start = (bias.start as isize + queries.start as isize * bias.stride_q) as usize;
                bias
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
            // SAFETY: the row belongs to this task alone.
            let to = unsafe { std::slice::from_raw_parts_mut(out.out.add(query * out.stride), d) };
            to.convert_from_f32_slice(from);
        }
    };
    for_each_part(sizes, QUERIES, (nk, 2 * d), pack, wide_scratch, work)
}

/// Packs the keys and values of a few heads at a time and works on the queries of these heads, at most `most_queries` in
/// a task.
///
/// - `packed`: how many units a head is packed into, and the length of each
/// - `pack`: given image and head, the unit, and the place for it
/// - `work`: given image and head, queries, the packed head and the place for the results, of which it writes those of
///   its queries
fn for_each_part<T: Copy + Send, S>(
    sizes: Sizes,
    most_queries: usize,
    packed: (usize, usize),
    pack: impl Fn([usize; 2], usize, &mut [f32]) + Sync,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, [usize; 2], Range<usize>, &[f32], HeadOut<T>) + Sync,
) -> (Vec<T>, Vec<f32>) {
    let Sizes { b, nq, h, d, .. } = sizes;
    let (units, unit_len) = packed;
    let head_len = units * unit_len;
    let threads = rayon::current_num_threads();
    let (mut out, mut lse) =
        (Vec::<T>::with_capacity(b * nq * h * d), Vec::<f32>::with_capacity(b * nq * h));
    let results = (PerTask(out.as_mut_ptr()), PerTask(lse.as_mut_ptr()));
    // Few queries are cut finer to keep all threads busy. The results do not depend on the cut.
    let per_task = (b * h * nq).div_ceil(4 * threads).next_multiple_of(48).min(most_queries);
    let tasks = nq.div_ceil(per_task.max(1));
    let group = (GROUP / head_len.max(1)).max((4 * threads).div_ceil(tasks.max(1))).clamp(1, (b * h).max(1));
    let mut memory = Scratch::new(group * head_len);
    for first in (0..b * h).step_by(group) {
        let heads = group.min(b * h - first);
        let at = |index: usize| [(first + index) / h, (first + index) % h];
        let memory = &mut memory.as_mut_slice()[..heads * head_len];
        memory.par_chunks_mut(unit_len.max(1)).with_min_len(8).enumerate().for_each(|(index, to)| {
            pack(at(index / units), index % units, to);
        });
        let memory = &*memory;
        workers::for_each(heads * tasks, &scratch, |scratch, index| {
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
    (out, lse)
}
