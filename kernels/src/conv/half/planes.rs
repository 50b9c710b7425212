//! Sums of a block, on their way into the planes of the result.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::GROUP;
use crate::cpu::blocks::{Pending, TILE, TILE_ROW, pack};

/// A block of sums that is not in the result yet: two groups of pixels of 32 channels.
pub(super) struct Planes {
    y: *mut bf16,
    /// Null, `y`, or what is added to it.
    residual: *const bf16,
    /// Elements of a plane.
    plane: usize,
    sums: *const f32,
    /// 32 numbers.
    bias: *const f32,
    /// The first pixel of each group in its plane, and how many pixels of it exist.
    groups: [(usize, usize); 2],
    /// The plane of the first channel.
    first: usize,
    /// Channels that exist.
    channels: usize,
    /// The next tile to write, of four.
    tile: usize,
}

impl Planes {
    /// No block yet, for the result `y` with planes of `plane` elements.
    pub(super) fn none(y: *mut bf16, residual: *const bf16, plane: usize) -> Self {
        let (sums, bias) = (std::ptr::null(), std::ptr::null());
        Self { y, residual, plane, sums, bias, groups: [(0, 0); 2], first: 0, channels: 0, tile: 4 }
    }

    /// Makes it the block `sums`, after the one before is finished.
    pub(super) fn set(
        &mut self,
        sums: *const f32,
        bias: &[f32],
        groups: [(usize, usize); 2],
        first: usize,
        channels: usize,
    ) {
        assert!(self.tile == 4 && bias.len() >= 2 * TILE_ROW);
        let bias = bias.as_ptr();
        *self = Self { sums, bias, groups, first, channels, tile: 0, ..*self };
    }
}

impl Pending for Planes {
    /// Writes a tile.
    #[inline(always)]
    unsafe fn advance(&mut self) {
        if self.tile == 4 {
            return;
        }
        let (start, len) = self.groups[self.tile / 2];
        let first = self.tile % 2 * TILE_ROW;
        let channels = self.channels.saturating_sub(first).min(TILE_ROW);
        if len > 0 && channels > 0 {
            let mask = (!0u16) >> (GROUP - len);
            let mut pixels = [0.0f32; TILE];
            // SAFETY: the caller's promise; `pixels` has a tile, and the mask leaves out pixels that do not exist.
            unsafe {
                let sums = self.sums.add(self.tile * TILE).cast::<u8>();
                let rows = std::array::from_fn(|row| sums.wrapping_add(row * size_of::<[f32; TILE_ROW]>()));
                pack::transpose(rows, pixels.as_mut_ptr());
                for channel in 0..channels {
                    let at = (self.first + first + channel) * self.plane + start;
                    let bias = _mm512_set1_ps(*self.bias.add(first + channel));
                    let mut sum =
                        _mm512_add_ps(_mm512_loadu_ps(pixels.as_ptr().add(channel * TILE_ROW)), bias);
                    if !self.residual.is_null() {
                        let residual = _mm256_maskz_loadu_epi16(mask, self.residual.add(at).cast());
                        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(residual));
                        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(wide));
                    }
                    let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(sum));
                    _mm256_mask_storeu_epi16(self.y.add(at).cast(), mask, rounded);
                }
            }
        }
        self.tile += 1;
    }

    #[inline(always)]
    unsafe fn finish(&mut self) {
        while self.tile < 4 {
            // SAFETY: the caller's promise.
            unsafe { self.advance() };
        }
    }
}
