//! Some queries of one head in bf16 against all its keys, blockwise, with a running softmax.
//!
//! As in the tile of f32, queries lie along the vectors: scores are `[keys, queries]`, and the result is accumulated as
//! `[d, queries]`. Both products multiply packed bf16 and sum in f32. Exponentials are computed in f32, their sums too;
//! the product with V takes them rounded to bf16. Each query is computed by itself, so that the result does not depend
//! on how queries are cut.
//!
//! # Source
//! FlashAttention-2 (Dao 2023), Algorithm 1.

use std::arch::x86_64::*;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use burn::tensor::{bf16, f16};

use super::super::tile::{Head, HeadBias, HeadOut};
pub(super) use super::pack::WIDTH;
use super::pack::{DEPTH, ROWS, TILE, fetch_bias, pack_bias, pack_keys, pack_queries, pack_values, unpack};
use super::products::{Product, Unit};
use crate::cpu::memory::Scratch;

/// Keys in a block. Their scores for a tile of queries stay in the first-level cache.
pub(super) const KEYS: usize = 128;

/// The most queries of a task. They share the reading of K and V.
pub(super) const QUERIES: usize = 256;

/// Elements of bf16 for the packed keys of a block.
fn keys_len(d: usize) -> usize {
    KEYS / ROWS * d.div_ceil(DEPTH) * TILE
}

/// Elements of bf16 for a block of packed keys and values.
pub(super) fn packed_len(d: usize) -> usize {
    keys_len(d) + KEYS / DEPTH * d.div_ceil(ROWS) * TILE
}

/// Packs a block of `keys` (at most [`KEYS`]), to be read by [`Attend`].
///
/// # Safety
/// The processor must have AVX-512 F, BW and VL.
pub(super) unsafe fn pack(k: Head<bf16>, v: Head<bf16>, keys: Range<usize>, to: &mut [bf16]) {
    let (k_to, v_to) = to.split_at_mut(keys_len(k.d));
    let parts = |i: usize| keys.end.min(keys.start + i * DEPTH)..keys.end.min(keys.start + (i + 1) * DEPTH);
    for (i, to) in k_to.chunks_exact_mut(keys_len(k.d) * DEPTH / KEYS).enumerate() {
        pack_keys(k, parts(i), to);
    }
    for (i, to) in v_to.chunks_exact_mut(v.d.div_ceil(ROWS) * TILE).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { pack_values(v, parts(i), to) };
    }
}

/// One head of a bias of any type.
#[derive(Clone, Copy)]
pub(super) enum AnyBias<'a> {
    F32(HeadBias<'a, f32>),
    F16(HeadBias<'a, f16>),
    Bf16(HeadBias<'a, bf16>),
}

/// Attention of `queries` (at most [`QUERIES`]) of one head.
pub(super) struct Attend<'a> {
    pub q: Head<'a, bf16>,
    /// What [`pack`] made of block after block of [`KEYS`] keys.
    pub packed: &'a [bf16],
    pub nk: usize,
    pub bias: Option<AnyBias<'a>>,
    pub scale: f32,
    pub queries: Range<usize>,
    /// Nobody else reads or writes the rows of `queries` while the task runs.
    pub out: HeadOut<bf16>,
    /// Made by [`scratch`] for heads of this size.
    pub scratch: &'a mut Scratch,
}

/// The parts of a task's memory.
struct Parts<'a> {
    /// `[tile, pairs of d, WIDTH, 2]`
    q: &'a mut [bf16],
    /// `[tile, d, WIDTH]`
    out: &'a mut [f32],
    /// `[KEYS, WIDTH]`
    scores: &'a mut [f32],
    /// `[KEYS / 2, WIDTH, 2]`: exponentials.
    weights: &'a mut [bf16],
    /// `[KEYS, WIDTH]`: the bias, to base 2.
    bias: &'a mut [f32],
    /// `[tile, WIDTH]`: the largest score so far, to base 2. The exponentials are relative to it.
    max: &'a mut [f32],
    /// `[tile, WIDTH]`: the sum of exponentials so far.
    sum: &'a mut [f32],
}

/// Tiles of a task.
const TILES: usize = QUERIES / WIDTH;

/// Elements of bf16 of a tile of queries.
fn queries_len(d: usize) -> usize {
    d.div_ceil(DEPTH) * ROWS * 2 * WIDTH
}

/// Elements of f32 of a tile's results.
fn out_len(d: usize) -> usize {
    d.next_multiple_of(ROWS) * WIDTH
}

/// The memory that a task over heads of size `d` needs. The next task may use it again.
pub(super) fn scratch(d: usize) -> Scratch {
    Scratch::new(TILES * (queries_len(d) / 2 + out_len(d) + 2 * WIDTH) + 3 * KEYS * WIDTH)
}

impl<'a> Parts<'a> {
    /// Cuts what [`scratch`] made for `d`; each part starts a cache line.
    fn of(scratch: &'a mut Scratch, d: usize) -> Self {
        let mut rest = scratch.as_mut_slice();
        let mut part = |len| rest.split_off_mut(..len).expect("made for this");
        Self {
            q: bytemuck::cast_slice_mut(part(TILES * queries_len(d) / 2)),
            out: part(TILES * out_len(d)),
            scores: part(KEYS * WIDTH),
            weights: bytemuck::cast_slice_mut(part(KEYS * WIDTH / 2)),
            bias: part(KEYS * WIDTH),
            max: part(TILES * WIDTH),
            sum: part(TILES * WIDTH),
        }
    }
}

impl Attend<'_> {
    /// Does the work.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn run(self, unit: &Unit) {
        let d = self.q.d;
        let tiles = self.queries.len().div_ceil(WIDTH);
        let (q_len, out_len, block_len) = (queries_len(d), out_len(d), packed_len(d));
        let blocks = self.nk.div_ceil(KEYS);
        assert!(tiles <= TILES && self.packed.len() >= blocks * block_len);
        let queries = |tile: usize| {
            let first = self.queries.start + tile * WIDTH;
            first..(first + WIDTH).min(self.queries.end)
        };
        let keys_of = |block: usize| (block * KEYS).min(self.nk)..((block + 1) * KEYS).min(self.nk);
        let Parts { q, out, scores, weights, bias, max, sum } = Parts::of(self.scratch, d);
        for (tile, to) in q.chunks_exact_mut(q_len).take(tiles).enumerate() {
            pack_queries(self.q, queries(tile), self.scale < 0.0, to);
        }
        out.fill(0.0);
        max.fill(f32::MIN);
        sum.fill(0.0);

        for block in 0..blocks {
            let keys = keys_of(block);
            let packed = &self.packed[block * block_len..][..block_len];
            let (packed_keys, packed_values) = packed.split_at(keys_len(d));
            for tile in 0..tiles {
                let score = Product {
                    rows: keys.len(),
                    pairs: d.div_ceil(2),
                    a: packed_keys.as_ptr(),
                    next_rows: d.div_ceil(DEPTH) * TILE,
                    next_columns: TILE,
                    b: q[tile * q_len..][..q_len].as_ptr(),
                    c: scores.as_mut_ptr(),
                    accumulate: false,
                };
                // SAFETY: the parts have room for whole tiles.
                unsafe { unit.multiply(&score) };
                let mut softmax = Softmax {
                    scores: &mut scores[..keys.len() * WIDTH],
                    scale: self.scale.abs() * LOG2_E,
                    max: max[tile * WIDTH..].first_chunk_mut().expect("whole tiles"),
                    sum: sum[tile * WIDTH..].first_chunk_mut().expect("whole tiles"),
                };
                if let Some(any) = self.bias {
                    any.pack(queries(tile), keys.clone(), bias);
                    let (block, tile) = if tile + 1 < tiles { (block, tile + 1) } else { (block + 1, 0) };
                    any.fetch(queries(tile), keys_of(block));
                    softmax.add_bias(bias);
                }
                let out = &mut out[tile * out_len..][..out_len];
                if let Some(factors) = softmax.raise_max() {
                    scale_rows(out, factors);
                }
                softmax.weigh(weights);
                let mix = Product {
                    rows: d,
                    pairs: keys.len().div_ceil(2),
                    a: packed_values.as_ptr(),
                    next_rows: TILE,
                    next_columns: d.div_ceil(ROWS) * TILE,
                    b: weights.as_ptr(),
                    c: out.as_mut_ptr(),
                    accumulate: true,
                };
                // SAFETY: as above.
                unsafe { unit.multiply(&mix) };
            }
        }

        for tile in 0..tiles {
            let (max, sum) = (&max[tile * WIDTH..], &sum[tile * WIDTH..]);
            let mut inverses = [0.0; WIDTH];
            for (i, query) in queries(tile).enumerate() {
                if sum[i] != 0.0 {
                    inverses[i] = 1.0 / sum[i];
                }
                let lse = max[i] * LN_2 + sum[i].ln();
                // SAFETY: the place belongs to this task alone, see `Attend::out`.
                unsafe { self.out.lse.add(query * self.out.lse_stride).write(lse) };
            }
            let inverses = [load(&inverses), load(&inverses[16..])];
            let (from, queries) = (&out[tile * out_len..][..out_len], queries(tile));
            // SAFETY: as above.
            unsafe {
                let to = self.out.out.add(queries.start * self.out.stride);
                unpack(from, inverses, queries.len(), d, to, self.out.stride);
            }
        }
    }
}

impl AnyBias<'_> {
    /// [`pack_bias`] of any type.
    #[target_feature(enable = "avx512f")]
    fn pack(self, queries: Range<usize>, keys: Range<usize>, to: &mut [f32]) {
        match self {
            Self::F32(bias) => pack_bias(bias, queries, keys, to),
            Self::F16(bias) => pack_bias(bias, queries, keys, to),
            Self::Bf16(bias) => pack_bias(bias, queries, keys, to),
        }
    }

    /// [`fetch_bias`] of any type.
    fn fetch(self, queries: Range<usize>, keys: Range<usize>) {
        match self {
            Self::F32(bias) => fetch_bias(bias, queries, keys),
            Self::F16(bias) => fetch_bias(bias, queries, keys),
            Self::Bf16(bias) => fetch_bias(bias, queries, keys),
        }
    }
}

/// The softmax of a tile of queries over a block of keys.
struct Softmax<'a> {
    /// `[keys, WIDTH]`
    scores: &'a mut [f32],
    /// To be multiplied with the scores: they are to base 2 then.
    scale: f32,
    max: &'a mut [f32; WIDTH],
    sum: &'a mut [f32; WIDTH],
}

impl Softmax<'_> {
    /// Adds a bias to base 2; the scores are then to base 2, too.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_bias(&mut self, bias: &[f32]) {
        let scale = _mm512_set1_ps(self.scale);
        for (score, bias) in self.scores.as_chunks_mut::<16>().0.iter_mut().zip(bias.as_chunks::<16>().0) {
            store(_mm512_fmadd_ps(load(score), scale, load(bias)), score);
        }
        self.scale = 1.0;
    }

    /// Finds the largest scores. If one is larger than those of the blocks before, the sums are rescaled and the factors
    /// for the results so far are returned.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn raise_max(&mut self) -> Option<[__m512; 2]> {
        let mut largest = [[_mm512_set1_ps(f32::NEG_INFINITY); 2]; 2];
        let (pairs, rest) = self.scores.as_chunks::<{ 2 * WIDTH }>();
        for pair in pairs {
            for i in 0..2 {
                for j in 0..2 {
                    largest[i][j] = _mm512_max_ps(load(&pair[i * WIDTH + j * 16..]), largest[i][j]);
                }
            }
        }
        for (j, rest) in rest.as_chunks::<16>().0.iter().enumerate() {
            largest[0][j] = _mm512_max_ps(load(rest), largest[0][j]);
        }
        let mut factors = [_mm512_setzero_ps(); 2];
        let mut any = 0;
        for j in 0..2 {
            let largest = _mm512_max_ps(largest[0][j], largest[1][j]);
            let largest = _mm512_mul_ps(largest, _mm512_set1_ps(self.scale));
            let old = load(&self.max[j * 16..]);
            let new = _mm512_max_ps(largest, old);
            any |= _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old);
            store(new, &mut self.max[j * 16..]);
            factors[j] = exp2(_mm512_sub_ps(old, new));
        }
        if any == 0 {
            return None;
        }
        scale_rows(self.sum, factors);
        Some(factors)
    }

    /// Adds the exponentials of the scores to the sums and writes them as pairs of bf16, with zeros up to a whole step.
    ///
    /// # Shapes
    /// - `weights`: `[KEYS / 2, WIDTH, 2]`
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    #[inline]
    fn weigh(self, weights: &mut [bf16]) {
        let keys = self.scores.len() / WIDTH;
        let scale = _mm512_set1_ps(self.scale);
        let max = [load(&self.max[..]), load(&self.max[16..])];
        let mut sums = [[_mm512_setzero_ps(); 2]; 2];
        let (pairs, rest) = self.scores.as_chunks::<{ 2 * WIDTH }>();
        let mut weights = weights.as_chunks_mut::<{ 2 * WIDTH }>().0.iter_mut();
        for (pair, to) in pairs.iter().zip(&mut weights) {
            for j in 0..2 {
                let mut both = [_mm512_setzero_ps(); 2];
                for i in 0..2 {
                    let score = load(&pair[i * WIDTH + j * 16..]);
                    both[i] = exp2(_mm512_fmsub_ps(score, scale, max[j]));
                    sums[i][j] = _mm512_add_ps(sums[i][j], both[i]);
                }
                store_pairs(both, &mut to[j * WIDTH..]);
            }
        }
        if !rest.is_empty() {
            let to = weights.next().expect("room for all keys");
            for j in 0..2 {
                let weight = exp2(_mm512_fmsub_ps(load(&rest[j * 16..]), scale, max[j]));
                sums[0][j] = _mm512_add_ps(sums[0][j], weight);
                store_pairs([weight, _mm512_setzero_ps()], &mut to[j * WIDTH..]);
            }
        }
        for to in weights.take(keys.next_multiple_of(DEPTH) / 2 - keys.div_ceil(2)) {
            to.fill(bf16::ZERO);
        }
        for j in 0..2 {
            let sum = _mm512_add_ps(load(&self.sum[j * 16..]), _mm512_add_ps(sums[0][j], sums[1][j]));
            store(sum, &mut self.sum[j * 16..]);
        }
    }
}

/// Multiplies rows of [`WIDTH`] queries.
#[target_feature(enable = "avx512f")]
#[inline]
fn scale_rows(rows: &mut [f32], factors: [__m512; 2]) {
    for row in rows.as_chunks_mut::<WIDTH>().0 {
        for j in 0..2 {
            store(_mm512_mul_ps(load(&row[j * 16..]), factors[j]), &mut row[j * 16..]);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(from: &[f32]) -> __m512 {
    // SAFETY: the slice has 16 elements.
    unsafe { _mm512_loadu_ps(from[..16].as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(x: __m512, to: &mut [f32]) {
    // SAFETY: the slice has 16 elements.
    unsafe { _mm512_storeu_ps(to[..16].as_mut_ptr(), x) }
}

/// Two vectors rounded to bf16, to the nearest and ties away from zero, as pairs.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn store_pairs(both: [__m512; 2], to: &mut [bf16]) {
    let half = _mm512_set1_epi32(0x8000);
    let [low, high] = both.map(|x| _mm512_add_epi32(_mm512_castps_si512(x), half));
    // Where a bit of the mask is set, that of `high`, else that of `low`, moved from the upper half.
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let pairs = _mm512_ternarylogic_epi32::<0xca>(upper, high, _mm512_srli_epi32::<16>(low));
    // SAFETY: the slice has 32 elements of 16 bits.
    unsafe { _mm512_storeu_si512(to[..WIDTH].as_mut_ptr().cast(), pairs) }
}

/// `2ˣ` for any `x`, 0 for -∞; right to 2e-7 of the result.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // Minimax over [0, 1) with the first coefficient exact.
    const FIT: [f32; 6] = [1.0, 0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_031, 0.001_867_13];
    const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    let rest = _mm512_reduce_ps::<FLOOR>(x);
    let mut sum = _mm512_set1_ps(FIT[5]);
    for i in (0..5).rev() {
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(FIT[i]));
    }
    // Scales by two to the power of the integer not above `x`.
    _mm512_scalef_ps(sum, x)
}
