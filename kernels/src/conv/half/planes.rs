//! Sums of blocks, on their way into the planes of the result.
//!
//! Planes lie far apart, often at the same places of the cache. So the pixels of a row are put together for 32 channels,
//! and then written channel by channel in long runs.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::GROUP;
use crate::cpu::blocks::{Pending, SIDE, TILE, TILE_ROW, pack};

/// Channels that are written at a time, beside a tile that is put in order.
const CHANNELS: usize = 2;

/// A part of a row of the result, for 32 channels.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// The first pixel, in the plane of the first channel.
    pub start: usize,
    /// The number of pixels.
    pub len: usize,
    /// Channels that exist.
    pub channels: usize,
    /// 32 numbers.
    pub bias: &'a [f32],
}

/// The block that is not put in order yet, and the row that is not written yet.
pub(super) struct Planes<'a> {
    y: *mut bf16,
    /// Null, `y`, or what is added to it.
    residual: *const bf16,
    /// Elements of a plane.
    plane: usize,
    /// Two rows of 32 channels: that of the block, and the one before.
    rows: [*mut f32; 2],
    /// f32 of a channel in them.
    stride: usize,
    sums: *const f32,
    /// The first pixel of the block within its row.
    column: usize,
    /// The next tile of the block, of four.
    tile: usize,
    done: Row<'a>,
    /// The next channel of the row that is done.
    channel: usize,
}

impl<'a> Planes<'a> {
    /// f32 of scratch memory for rows of `groups` groups of pixels.
    pub(super) fn scratch(groups: usize) -> usize {
        2 * SIDE * Self::stride(groups)
    }

    /// An even number of groups, and a vector to keep channels off the same places of the cache.
    fn stride(groups: usize) -> usize {
        groups.next_multiple_of(2) * GROUP + TILE_ROW
    }

    /// Nothing yet, for the result `y` with planes of `plane` elements and rows of `groups` groups of pixels.
    pub(super) fn new(
        y: *mut bf16,
        residual: *const bf16,
        plane: usize,
        groups: usize,
        scratch: &mut [f32],
    ) -> Self {
        assert_eq!(scratch.len(), Self::scratch(groups));
        let (row, before) = scratch.split_at_mut(scratch.len() / 2);
        Self {
            y,
            residual,
            plane,
            rows: [row.as_mut_ptr(), before.as_mut_ptr()],
            stride: Self::stride(groups),
            sums: std::ptr::null(),
            column: 0,
            tile: 4,
            done: Row { start: 0, len: 0, channels: 0, bias: &[] },
            channel: 0,
        }
    }

    /// The block after one that is finished: `sums` of 32 pixels from `column` on.
    pub(super) fn block(&mut self, sums: *const f32, column: usize) {
        assert!(self.tile == 4 && column + SIDE <= self.stride);
        (self.sums, self.column, self.tile) = (sums, column, 0);
    }

    /// Takes the row as done.
    ///
    /// # Safety
    /// As [`Pending::finish`]; pixels and channels of `row` must exist, and nobody else may write them.
    #[inline(always)]
    pub(super) unsafe fn row(&mut self, row: Row<'a>) {
        assert!(row.len <= self.stride && row.channels <= SIDE && row.bias.len() >= row.channels);
        // SAFETY: the caller's promise.
        unsafe {
            self.finish();
            self.write(SIDE);
        }
        self.rows.swap(0, 1);
        (self.done, self.channel) = (row, 0);
    }

    /// Writes what is left of everything.
    ///
    /// # Safety
    /// As [`Pending::finish`].
    #[inline(always)]
    pub(super) unsafe fn flush(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { self.write(SIDE) }
    }

    /// Puts a tile in order.
    #[inline(always)]
    unsafe fn order(&mut self) {
        let first = self.tile % 2 * TILE_ROW;
        let column = self.column + self.tile / 2 * GROUP;
        // SAFETY: the caller's promise for the sums; `block` checked that the pixels are within the row.
        unsafe {
            let sums = self.sums.add(self.tile * TILE).cast::<u8>();
            let rows = std::array::from_fn(|row| sums.wrapping_add(row * size_of::<[f32; TILE_ROW]>()));
            pack::transpose(rows, self.rows[0].add(first * self.stride + column), self.stride);
        }
        self.tile += 1;
    }

    /// Writes up to `count` more channels of the row that is done.
    #[inline(always)]
    unsafe fn write(&mut self, count: usize) {
        let Row { start, len, channels, bias } = self.done;
        let end = channels.min(self.channel + count);
        while self.channel < end {
            // SAFETY: the caller's promise.
            let bias = unsafe { _mm512_set1_ps(bias[self.channel]) };
            let at = self.channel * self.plane + start;
            for x in (0..len).step_by(GROUP) {
                let mask = if len - x >= GROUP { !0 } else { (1 << (len - x)) - 1 };
                // SAFETY: the caller's promise; the mask leaves out pixels beyond the row.
                unsafe {
                    let sum = _mm512_loadu_ps(self.rows[1].add(self.channel * self.stride + x));
                    let mut sum = _mm512_add_ps(sum, bias);
                    if !self.residual.is_null() {
                        let residual = _mm256_maskz_loadu_epi16(mask, self.residual.add(at + x).cast());
                        let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(residual));
                        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(wide));
                    }
                    let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(sum));
                    _mm256_mask_storeu_epi16(self.y.add(at + x).cast(), mask, rounded);
                }
            }
            self.channel += 1;
        }
    }
}

impl Pending for Planes<'_> {
    #[inline(always)]
    unsafe fn advance(&mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.tile < 4 {
                self.order();
            }
            self.write(CHANNELS);
        }
    }

    /// Puts the whole block in order.
    #[inline(always)]
    unsafe fn finish(&mut self) {
        while self.tile < 4 {
            // SAFETY: the caller's promise.
            unsafe { self.order() };
        }
    }
}
