//! Attention of a few queries of one head to all its keys, block by block, with a running softmax.
//!
//! All intermediate values have the *queries* along the vector: scores are `[keys, queries]`, and the result is
//! accumulated as `[d, queries]`. The maximum and the sum over keys are then element-wise, and there is no reduction
//! across a vector. Both products are the same loop: a number of K or V, the same for all queries, times a vector over
//! queries. A query is computed with the same operations in the same order at every position of a tile, so the result
//! does not depend on the division of queries into tasks, patches or shards.
//!
//! # Source
//! FlashAttention-2 (Dao 2023), Algorithm 1.

use std::ops::Range;

use crate::cpu::{
    lanes::{Lanes, Vectorized},
    math::exp2,
    memory::Scratch,
};

/// The number of keys in a block: its scores for a tile, and its V, fit into the first-level cache.
const KEYS: usize = 64;

/// The maximum number of queries of a task. They share the copies of K and V blocks.
pub(super) const QUERIES: usize = 192;

/// The maximum number of vectors of queries in a tile.
const WIDTH: usize = 3;

/// One head of a `[b, n, h, d]` tensor: `n` rows of `d` numbers.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T = f32> {
    pub data: &'a [T],
    pub start: usize,
    pub stride: isize,
    pub d: usize,
}

impl<'a, T> Head<'a, T> {
    #[inline(always)]
    pub(super) fn row(&self, n: usize) -> &'a [T] {
        let start = (self.start as isize + n as isize * self.stride) as usize;
        &self.data[start..start + self.d]
    }
}

/// One head of a bias broadcast to `[b, h, nq, nk]`.
#[derive(Clone, Copy)]
pub(super) struct HeadBias<'a, T = f32> {
    pub data: &'a [T],
    pub start: usize,
    pub stride_q: isize,
    pub stride_k: isize,
}

impl<T: Copy> HeadBias<'_, T> {
    #[inline(always)]
    pub(super) fn at(&self, q: usize, k: usize) -> T {
        self.data[(self.start as isize + q as isize * self.stride_q + k as isize * self.stride_k) as usize]
    }

    /// The bias of a query for `keys`, which is contiguous.
    pub(super) fn row(&self, q: usize, keys: Range<usize>) -> &[T] {
        debug_assert_eq!(self.stride_k, 1);
        let start = self.start as isize + q as isize * self.stride_q;
        &self.data[(start as usize + keys.start)..][..keys.len()]
    }
}

/// The memory for the results of a head.
#[derive(Clone, Copy)]
pub(super) struct HeadOut<T = f32> {
    /// Row 0 of the head, with `d` numbers; rows are `stride` apart.
    pub out: *mut T,
    pub stride: usize,
    /// The log-sum-exp of query 0; queries are `lse_stride` apart.
    pub lse: *mut f32,
    pub lse_stride: usize,
}

/// Attention of `queries` (at most [`QUERIES`]) of one head.
pub(super) struct Attend<'a> {
    pub q: Head<'a>,
    pub k: Head<'a>,
    pub v: Head<'a>,
    pub nk: usize,
    pub bias: Option<HeadBias<'a>>,
    pub scale: f32,
    pub queries: Range<usize>,
    /// No other task reads or writes the rows of `queries` while this one runs.
    pub out: HeadOut,
    /// Created by [`scratch`] for heads of this size.
    pub scratch: &'a mut Scratch,
}

/// The parts of a task's scratch memory. `w` is the number of queries in a tile.
struct Parts<'a> {
    /// `[tile, d, w]`, scaled so that scores are logarithms to base 2.
    q: &'a mut [f32],
    /// `[tile, padded(d), w]`
    out: &'a mut [f32],
    /// `[KEYS, d]`
    k: &'a mut [f32],
    /// `[KEYS, padded(d)]`
    v: &'a mut [f32],
    /// `[KEYS, w]`: scores, then their exponentials.
    p: &'a mut [f32],
    /// `[tile, w]`: the largest score so far.
    max: &'a mut [f32],
    /// `[tile, w]`: the sum of exponentials so far, relative to `max`.
    sum: &'a mut [f32],
}

/// `d` rounded up to whole cache lines, and thereby to whole register tiles.
fn padded(d: usize) -> usize {
    d.next_multiple_of(16)
}

/// The scratch memory for a task over heads of size `d`; it can be reused by the next task.
pub(super) fn scratch(d: usize) -> Scratch {
    let d = padded(d);
    Scratch::new(2 * d * QUERIES + 2 * d * KEYS + KEYS * WIDTH * 16 + 2 * QUERIES)
}

impl<'a> Parts<'a> {
    /// Divides the memory from [`scratch`] for `d`; each part begins on a cache line.
    fn of(scratch: &'a mut Scratch, d: usize) -> Self {
        let d = padded(d);
        let (q, rest) = scratch.as_mut_slice().split_at_mut(d * QUERIES);
        let (out, rest) = rest.split_at_mut(d * QUERIES);
        let (k, rest) = rest.split_at_mut(d * KEYS);
        let (v, rest) = rest.split_at_mut(d * KEYS);
        let (p, rest) = rest.split_at_mut(KEYS * WIDTH * 16);
        let (max, sum) = rest.split_at_mut(QUERIES);
        Self { q, out, k, v, p, max, sum }
    }
}

impl Vectorized for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        // 8 × 3 sums fit into 32 registers, and 4 × 3 into 16.
        if V::REGISTERS >= 32 { self.run_tiles::<V, 8>() } else { self.run_tiles::<V, 4>() }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn run_tiles<V: Lanes, const M: usize>(self) {
        let Self { q, k, v, nk, bias, scale, queries, out, scratch } = self;
        let d = q.d;
        let parts = Parts::of(scratch, d);
        let w = WIDTH * V::N;
        let tiles = queries.clone().step_by(w).map(|first| first..(first + w).min(queries.end));
        for (tile, queries) in tiles.clone().enumerate() {
            let w_tile = queries.len().next_multiple_of(V::N);
            pack_queries(q, queries, w_tile, scale, &mut parts.q[tile * w * d..]);
        }
        parts.out.fill(0.0);
        parts.max.fill(f32::MIN);
        parts.sum.fill(0.0);
        for first_key in (0..nk).step_by(KEYS) {
            let keys = first_key..(first_key + KEYS).min(nk);
            pack_rows(k, keys.clone(), d, parts.k);
            pack_rows(v, keys.clone(), padded(d), parts.v);
            for (tile, queries) in tiles.clone().enumerate() {
                let w_tile = queries.len().next_multiple_of(V::N);
                if let Some(bias) = bias {
                    pack_bias(bias, queries, keys.clone(), w_tile, parts.p);
                }
                let block = Block {
                    q: &parts.q[tile * w * d..],
                    k: parts.k,
                    v: parts.v,
                    p: parts.p,
                    out: &mut parts.out[tile * w * padded(d)..],
                    max: &mut parts.max[tile * w..],
                    sum: &mut parts.sum[tile * w..],
                    d,
                    keys: keys.len(),
                    biased: bias.is_some(),
                };
                match w_tile / V::N {
                    1 => block.run::<V, M, 1>(),
                    2 => block.run::<V, M, 2>(),
                    _ => block.run::<V, M, 3>(),
                }
            }
        }
        for (tile, queries) in tiles.enumerate() {
            let w_tile = queries.len().next_multiple_of(V::N);
            let (max, sum) = (&parts.max[tile * w..], &parts.sum[tile * w..]);
            unpack_out(&parts.out[tile * w * padded(d)..], max, sum, w_tile, queries, d, out);
        }
    }
}

/// Queries transposed to `[d, w]` and multiplied by `scale` and log₂ e, with zeros after the last.
#[inline(always)]
fn pack_queries(q: Head, queries: Range<usize>, w: usize, scale: f32, to: &mut [f32]) {
    let scale = (f64::from(scale) * std::f64::consts::LOG2_E) as f32;
    let to = &mut to[..q.d * w];
    for lane in (0..w).step_by(4) {
        // Four rows at a time, so that the writes are contiguous.
        let row = |i| if lane + i < queries.len() { q.row(queries.start + lane + i) } else { &[] };
        let rows = [row(0), row(1), row(2), row(3)];
        if let [&[_, ..], &[_, ..], &[_, ..], &[_, ..]] = rows {
            let [a, b, c, d] = rows.map(|row| &row[..q.d]);
            for i in 0..q.d {
                let four = [a[i] * scale, b[i] * scale, c[i] * scale, d[i] * scale];
                to[i * w + lane..][..4].copy_from_slice(&four);
            }
        } else {
            for i in 0..q.d {
                let four = rows.map(|row| row.get(i).map_or(0.0, |x| x * scale));
                to[i * w + lane..][..4].copy_from_slice(&four);
            }
        }
    }
}

/// Copies rows to memory where they are `width` apart.
#[inline(always)]
fn pack_rows(from: Head, rows: Range<usize>, width: usize, to: &mut [f32]) {
    for (to, n) in to.chunks_exact_mut(width).zip(rows) {
        to[..from.d].copy_from_slice(from.row(n));
    }
}

/// The bias transposed to `[keys, w]` and converted to base 2.
#[inline(always)]
fn pack_bias(bias: HeadBias, queries: Range<usize>, keys: Range<usize>, w: usize, to: &mut [f32]) {
    use std::f32::consts::LOG2_E;
    for (to, key) in to.chunks_exact_mut(w).zip(keys) {
        if bias.stride_q == 0 {
            to.fill(bias.at(0, key) * LOG2_E);
        } else {
            for (to, query) in to.iter_mut().zip(queries.clone()) {
                *to = bias.at(query, key) * LOG2_E;
            }
        }
    }
}

/// Divides the results of a tile by the sums and writes them, transposed, to the output. A query with every key masked
/// gets zeros and a log-sum-exp of -inf, the neutral element of merging.
#[inline(always)]
fn unpack_out(
    from: &[f32],
    max: &[f32],
    sum: &[f32],
    w: usize,
    queries: Range<usize>,
    d: usize,
    to: HeadOut,
) {
    let from = &from[..d * w];
    for lane in (0..queries.len()).step_by(4) {
        let mut inverses = [0.0; 4];
        let lanes = queries.len().min(lane + 4) - lane;
        for i in 0..lanes {
            let (max, sum) = (max[lane + i], sum[lane + i]);
            inverses[i] = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let lse = max * std::f32::consts::LN_2 + sum.ln();
            // SAFETY: this memory belongs to this task alone, see `Attend::out`.
            unsafe { to.lse.add((queries.start + lane + i) * to.lse_stride).write(lse) };
        }
        for f in 0..d {
            // Four queries at a time, so that the reads are contiguous.
            let four = &from[f * w + lane..][..4];
            for i in 0..4 {
                if i < lanes {
                    // SAFETY: as above.
                    unsafe {
                        to.out.add((queries.start + lane + i) * to.stride + f).write(four[i] * inverses[i])
                    };
                }
            }
        }
    }
}

/// A block of keys against a tile of queries.
struct Block<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    p: &'a mut [f32],
    out: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    d: usize,
    keys: usize,
    /// Whether `p` already holds the bias.
    biased: bool,
}

impl Block<'_> {
    #[inline(always)]
    fn run<V: Lanes, const M: usize, const N: usize>(self) {
        let Self { q, k, v, p, out, max, sum, d, keys, biased } = self;
        let w = N * V::N;
        assert!(q.len() >= d * w && out.len() >= padded(d) * w && max.len() >= w && sum.len() >= w);
        assert!(keys <= KEYS && k.len() >= KEYS * d && v.len() >= KEYS * padded(d) && p.len() >= KEYS * w);
        // SAFETY: the loops below stay within the lengths that were just asserted.
        unsafe {
            let mut old_max = [V::splat(0.0); N];
            for j in 0..N {
                old_max[j] = V::load(max.as_ptr().add(j * V::N));
            }
            let mut new_max = old_max;
            let p = p.as_mut_ptr();
            for key in (0..keys).step_by(M) {
                // The rows after the last key contain keys of an earlier block; their scores are discarded.
                let scores = product::<V, M, N>(k.as_ptr().add(key * d), d, 1, q.as_ptr(), d);
                for i in 0..M.min(keys - key) {
                    for j in 0..N {
                        let at = p.add((key + i) * w + j * V::N);
                        let score = if biased { scores[i][j] + V::load(at) } else { scores[i][j] };
                        new_max[j] = new_max[j].max(score);
                        score.store(at);
                    }
                }
            }
            let mut block_sum = [V::splat(0.0); N];
            for key in 0..keys {
                for j in 0..N {
                    let at = p.add(key * w + j * V::N);
                    let weight = exp2(V::load(at) - new_max[j]);
                    block_sum[j] = block_sum[j] + weight;
                    weight.store(at);
                }
            }
            let mut rescale = [V::splat(0.0); N];
            for j in 0..N {
                rescale[j] = exp2(old_max[j] - new_max[j]);
                let sum = sum.as_mut_ptr().add(j * V::N);
                V::load(sum).mul_add(rescale[j], block_sum[j]).store(sum);
                new_max[j].store(max.as_mut_ptr().add(j * V::N));
            }
            for feature in (0..d).step_by(M) {
                let sums = product::<V, M, N>(v.as_ptr().add(feature), 1, padded(d), p, keys);
                for i in 0..M {
                    for j in 0..N {
                        let at = out.as_mut_ptr().add((feature + i) * w + j * V::N);
                        V::load(at).mul_add(rescale[j], sums[i][j]).store(at);
                    }
                }
            }
        }
    }
}

/// `c[i][j] = Σ_t a[i · row + t · step] · b[t][j]`: M numbers times N vectors, `depth` terms, summed in registers.
///
/// # Safety
/// `a` must be readable at each of these offsets, and `b` for `depth · N` vectors.
#[inline(always)]
unsafe fn product<V: Lanes, const M: usize, const N: usize>(
    a: *const f32,
    row: usize,
    step: usize,
    b: *const f32,
    depth: usize,
) -> [[V; N]; M] {
    let mut c = [[V::splat(0.0); N]; M];
    for t in 0..depth {
        // SAFETY: the caller's promise.
        unsafe {
            let mut right = [V::splat(0.0); N];
            for j in 0..N {
                right[j] = V::load(b.add((t * N + j) * V::N));
            }
            for i in 0..M {
                let left = V::splat(*a.add(i * row + t * step));
                for j in 0..N {
                    c[i][j] = left.mul_add(right[j], c[i][j]);
                }
            }
        }
    }
    c
}
