//! Rows of bf16 rearranged into the tiles of 16 rows of 64 bytes that products of pairs take, and back.
//!
//! Where a pair must lie along another dimension than it did, it is one number of 32 bits in a transposition.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use burn::tensor::bf16;

use super::super::tile::{Head, HeadBias};

/// Queries of a tile: two vectors.
pub(super) const WIDTH: usize = 32;

/// Rows of a hardware tile.
pub(super) const ROWS: usize = 16;

/// Elements of bf16 in a row of a hardware tile.
pub(super) const DEPTH: usize = 32;

/// Elements of bf16 in a hardware tile.
pub(super) const TILE: usize = ROWS * DEPTH;

/// The mask of the first `len` of 32 lanes.
fn first(len: usize) -> u32 {
    if len >= 32 { u32::MAX } else { (1 << len) - 1 }
}

/// A 16 × 16 matrix of 32 bits with rows and columns exchanged.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    // Within quarters of four numbers: element (i, j) of each 4 × 4 matrix to (j, i).
    for i in 0..4 {
        let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        pairs[4 * i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        pairs[4 * i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        pairs[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        pairs[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // The quarters themselves.
    let mut columns = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[i], pairs[4 + i], pairs[8 + i], pairs[12 + i]];
        let (ab_even, ab_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
        let (cd_even, cd_odd) =
            (_mm512_shuffle_i32x4::<0b10_00_10_00>(c, d), _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, cd_even);
        columns[4 + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, cd_odd);
        columns[8 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, cd_even);
        columns[12 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, cd_odd);
    }
    columns
}

/// `keys` (at most 32) as two rows of tiles `[16 keys, 32 features]`, with zeros for keys and features beyond the last.
///
/// # Shapes
/// - `to`: `[2, d / 32 rounded up, 16, 32]`
pub(super) fn pack_keys(k: Head<bf16>, keys: Range<usize>, to: &mut [bf16]) {
    let steps = k.d.div_ceil(DEPTH);
    for (i, row) in (0..2 * ROWS).map(|i| (i, keys.start + i)) {
        let to = &mut to[(i / ROWS * steps * ROWS + i % ROWS) * DEPTH..];
        if row >= keys.end {
            for step in 0..steps {
                to[step * TILE..][..DEPTH].fill(bf16::ZERO);
            }
            continue;
        }
        let (whole, rest) = k.row(row).as_chunks::<DEPTH>();
        for (step, whole) in whole.iter().enumerate() {
            to[step * TILE..][..DEPTH].copy_from_slice(whole);
        }
        if !rest.is_empty() {
            let to = &mut to[whole.len() * TILE..][..DEPTH];
            to[..rest.len()].copy_from_slice(rest);
            to[rest.len()..].fill(bf16::ZERO);
        }
    }
}

/// `keys` (at most 32) of V as tiles `[16 features, 32 keys]`, with zeros for keys and features beyond the last.
///
/// # Shapes
/// - `to`: `[d / 16 rounded up, 16, 32]`
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_values(v: Head<bf16>, keys: Range<usize>, to: &mut [bf16]) {
    for (tile, to) in to.chunks_exact_mut(TILE).take(v.d.div_ceil(ROWS)).enumerate() {
        let features = tile * ROWS..v.d.min((tile + 1) * ROWS);
        let mask = first(features.len()) as u16;
        let row = |key: usize| {
            if key >= keys.end {
                return _mm512_setzero_si512();
            }
            let row = &v.row(key)[features.clone()];
            // SAFETY: as many elements as `row` has are read.
            _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, row.as_ptr().cast()) })
        };
        let mut pairs = [_mm512_setzero_si512(); 16];
        for (i, pair) in pairs.iter_mut().enumerate() {
            let key = keys.start + 2 * i;
            *pair = _mm512_or_si512(row(key), _mm512_slli_epi32::<16>(row(key + 1)));
        }
        for (row, to) in transpose(pairs).into_iter().zip(to.as_chunks_mut::<DEPTH>().0) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
        }
    }
}

/// `queries` (at most [`WIDTH`]), pairs of features transposed, with zeros for queries and features beyond the last.
/// All signs are changed if `negate`.
///
/// # Shapes
/// - `to`: `[pairs of d, a multiple of 16, WIDTH, 2]`
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_queries(q: Head<bf16>, queries: Range<usize>, negate: bool, to: &mut [bf16]) {
    let signs = _mm512_set1_epi32(if negate { 0x8000_8000u32 as i32 } else { 0 });
    for (step, to) in to.chunks_exact_mut(ROWS * 2 * WIDTH).take(q.d.div_ceil(DEPTH)).enumerate() {
        let features = step * DEPTH..q.d.min((step + 1) * DEPTH);
        let mask = first(features.len());
        for half in 0..2 {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, to) in rows.iter_mut().enumerate() {
                let query = queries.start + half * 16 + i;
                if query < queries.end {
                    let row = &q.row(query)[features.clone()];
                    // SAFETY: as many elements as `row` has are read.
                    let row = unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().cast()) };
                    *to = _mm512_xor_si512(row, signs);
                }
            }
            for (row, to) in transpose(rows).into_iter().zip(to.chunks_exact_mut(2 * WIDTH)) {
                let to = &mut to[half * WIDTH..][..WIDTH];
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
            }
        }
    }
}

/// A bias for `queries` (at most [`WIDTH`]) transposed, to base 2. What is beyond the last query is of no use.
///
/// # Shapes
/// - `to`: `[keys, a multiple of 16, WIDTH]`
#[target_feature(enable = "avx512f")]
pub(super) fn pack_bias<T: Copy + Into<f32>>(
    bias: HeadBias<T>,
    queries: Range<usize>,
    keys: Range<usize>,
    to: &mut [f32],
) {
    if bias.stride_q == 0 {
        for (to, key) in to.chunks_exact_mut(WIDTH).zip(keys) {
            to.fill(bias.at(0, key).into() * LOG2_E);
        }
        return;
    }
    for (to, first) in to.chunks_exact_mut(16 * WIDTH).zip(keys.clone().step_by(16)) {
        let keys = first..keys.end.min(first + 16);
        for half in 0..2 {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, query) in rows.iter_mut().zip((queries.start + half * 16)..queries.end) {
                let mut numbers = [0.0; 16];
                let together = if bias.stride_k == 1 { bias.row(query, keys.clone()) } else { &[] };
                // The common case has a fixed length, for which the compiler uses vectors.
                if let Some(together) = together.first_chunk::<16>() {
                    numbers = together.map(|x| x.into() * LOG2_E);
                } else {
                    for (to, key) in numbers.iter_mut().zip(keys.clone()) {
                        *to = bias.at(query, key).into() * LOG2_E;
                    }
                }
                // SAFETY: 64 bytes.
                *row = unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
            }
            for (row, to) in transpose(rows).into_iter().zip(to.chunks_exact_mut(WIDTH)) {
                let to = &mut to[half * 16..][..16];
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
            }
        }
    }
}

/// Asks for what [`pack_bias`] will read, if that is much: a few lines of each row, too few for the processor to foresee.
pub(super) fn fetch_bias<T: Copy>(bias: HeadBias<T>, queries: Range<usize>, keys: Range<usize>) {
    const LINE: usize = 64;
    if bias.stride_q == 0 || bias.stride_k != 1 || keys.is_empty() {
        return;
    }
    for query in queries {
        for numbers in bias.row(query, keys.clone()).chunks(LINE / size_of::<T>()) {
            // SAFETY: the instruction has no effect on memory.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(numbers.as_ptr().cast()) };
        }
    }
}

/// Rows of a tile's results, each times its query's number in `factors`, rounded and written as rows of features.
///
/// # Shapes
/// - `from`: `[d, a multiple of 16, WIDTH]`
///
/// # Safety
/// `to` must be valid for writing `d` elements `stride · i` beyond it for each query `i` of `count`, at most [`WIDTH`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn unpack(
    from: &[f32],
    factors: [__m512; 2],
    count: usize,
    d: usize,
    to: *mut bf16,
    stride: usize,
) {
    for (tile, from) in from.chunks_exact(ROWS * WIDTH).take(d.div_ceil(ROWS)).enumerate() {
        let mask = first(d - tile * ROWS) as u16;
        for half in 0..2 {
            let mut features = [_mm512_setzero_si512(); 16];
            for (feature, from) in features.iter_mut().zip(from.chunks_exact(WIDTH)) {
                // SAFETY: 64 bytes.
                let sums = unsafe { _mm512_loadu_ps(from[half * 16..][..16].as_ptr()) };
                *feature = _mm512_castps_si512(_mm512_mul_ps(sums, factors[half]));
            }
            for (i, row) in transpose(features).into_iter().enumerate() {
                let query = half * 16 + i;
                if query < count {
                    let row = _mm512_cvtneps_pbh(_mm512_castsi512_ps(row));
                    // SAFETY: features below `d` of a query below `count`, by the mask.
                    unsafe {
                        let row = std::mem::transmute::<__m256bh, __m256i>(row);
                        _mm256_mask_storeu_epi16(to.add(query * stride + tile * ROWS).cast(), mask, row);
                    }
                }
            }
        }
    }
}
