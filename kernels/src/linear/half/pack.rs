//! Inputs of bf16 as tiles.

use std::arch::x86_64::*;

use super::Sizes;
use crate::cpu::blocks::{Matrix, SIDE, TILE, TILE_TERMS, pack::mask};

/// Packs 32 rows of inputs from `first` on: for each 16 of them all tiles, each with 16 rows of 32 terms.
///
/// # Safety
/// The processor must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn inputs(x: Matrix, first: usize, sizes: Sizes, to: &mut [f32]) {
    assert_eq!(to.len(), 2 * sizes.tiles() * TILE);
    for row in 0..SIDE {
        let from = x.rest(first + row, 0);
        let start = row / 16 * sizes.tiles() * TILE + row % 16 * 16;
        for tile in 0..sizes.tiles() {
            let from = from.get(tile * TILE_TERMS..).unwrap_or(&[]);
            // SAFETY: the mask leaves out elements beyond `from`; the last row of the last tile ends with `to`.
            unsafe {
                let terms = _mm512_maskz_loadu_epi16(mask(from.len()), from.as_ptr().cast());
                _mm512_storeu_si512(to[start + tile * TILE..][..16].as_mut_ptr().cast(), terms);
            }
        }
    }
}
