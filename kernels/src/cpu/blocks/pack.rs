//! Weights of bf16 as tiles.

use std::arch::x86_64::*;

use super::{Matrix, TILE, TILE_ROW, TILE_TERMS};

/// The first of 32 elements that `from` has, as a mask.
#[inline(always)]
pub(crate) fn mask(len: usize) -> u32 {
    if len >= 32 { !0 } else { (1 << len) - 1 }
}

/// Packs weights of `pairs` times 32 outputs from `first` on: for each 16 of them `count` tiles from number `tile` on,
/// each with 16 rows of a pair of terms of 16 outputs.
///
/// # Safety
/// The processor must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn weights(
    weight: Matrix,
    first: usize,
    pairs: usize,
    tile: usize,
    count: usize,
    to: &mut [f32],
) {
    for (panel, to) in to.chunks_exact_mut(count * TILE).take(2 * pairs).enumerate() {
        let first = first + panel * 16;
        let rows: [_; 16] = std::array::from_fn(|row| weight.rest(first + row, 0));
        for (i, to) in to.chunks_exact_mut(TILE).enumerate() {
            let at = (tile + i) * TILE_TERMS;
            if rows[15].len() >= at + TILE_TERMS {
                // SAFETY: all rows have the length of the last, and `to` has a tile.
                unsafe { transpose(rows.map(|row| row.as_ptr().add(at).cast()), to.as_mut_ptr(), TILE_ROW) };
                continue;
            }
            let mut edge = [0u32; TILE];
            for (row, edge) in rows.iter().zip(edge.chunks_exact_mut(16)) {
                let from = row.get(at..).unwrap_or(&[]);
                // SAFETY: the mask leaves out elements beyond `from`; `edge` has 64 bytes.
                unsafe {
                    let terms = _mm512_maskz_loadu_epi16(mask(from.len()), from.as_ptr().cast());
                    _mm512_storeu_si512(edge.as_mut_ptr().cast(), terms);
                }
            }
            let rows = std::array::from_fn(|row| edge[row * 16..].as_ptr().cast());
            // SAFETY: each row of `edge` has 16 pairs, and `to` has a tile.
            unsafe { transpose(rows, to.as_mut_ptr(), TILE_ROW) };
        }
    }
}

/// Writes pair `k` of each of 16 rows to row `k` of `to`, whose rows are `stride` apart.
///
/// # Safety
/// The processor must have AVX-512 F; rows must be valid for reading, and those of `to` for writing, 64 bytes.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose(rows: [*const u8; 16], to: *mut f32, stride: usize) {
    for quarter in 0..4 {
        // SAFETY: the caller's promise; 16 bytes of each row in each quarter.
        unsafe {
            // Rows four apart side by side, so that four times four pairs are left to transpose in each.
            let mut r = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                let load = |row: usize| _mm_loadu_si128(rows[row].add(quarter * 16).cast());
                let v = _mm512_castsi128_si512(load(i));
                let v = _mm512_inserti32x4::<1>(v, load(i + 4));
                let v = _mm512_inserti32x4::<2>(v, load(i + 8));
                r[i] = _mm512_inserti32x4::<3>(v, load(i + 12));
            }
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
            let columns = [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ];
            for i in 0..4 {
                _mm512_storeu_si512(to.add((4 * quarter + i) * stride).cast(), columns[i]);
            }
        }
    }
}
