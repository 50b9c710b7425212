//! Sums of a block, on their way into the rows of the result.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use crate::cpu::blocks::{Pending, SIDE, TILE};

/// A block of sums that is not in the result yet.
pub(super) struct Rows {
    pub sums: *const f32,
    /// 32 numbers, added to each row.
    pub bias: *const f32,
    pub y: *mut bf16,
    /// Elements from a row of `y` to the next.
    pub stride: usize,
    /// The next row to write.
    pub row: usize,
    /// Rows and outputs of the block that exist.
    pub rows: usize,
    pub outputs: usize,
}

impl Rows {
    /// No block, for a result with rows that are `stride` apart.
    pub(super) fn none(stride: usize) -> Self {
        let (sums, bias, y) = (std::ptr::null(), std::ptr::null(), std::ptr::null_mut());
        Self { sums, bias, y, stride, row: 0, rows: 0, outputs: 0 }
    }

    /// Writes up to `count` more rows.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW and BF16; the pointers must be valid for rows and outputs that exist.
    #[inline(always)]
    unsafe fn write(&mut self, count: usize) {
        let end = self.rows.min(self.row + count);
        while self.row < end {
            // SAFETY: the caller's promise; the mask leaves out outputs that do not exist.
            unsafe {
                let mask = if self.outputs == 32 { !0 } else { (1 << self.outputs) - 1 };
                let sums = self.sums.add(self.row / 16 * 2 * TILE + self.row % 16 * 16);
                let low = _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(self.bias));
                let high = _mm512_add_ps(_mm512_loadu_ps(sums.add(TILE)), _mm512_loadu_ps(self.bias.add(16)));
                let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_epi16(self.y.add(self.row * self.stride).cast(), mask, rounded);
            }
            self.row += 1;
        }
    }
}

impl Pending for Rows {
    #[inline(always)]
    unsafe fn advance(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { self.write(4) }
    }

    #[inline(always)]
    unsafe fn finish(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { self.write(SIDE) }
    }
}
