//! Blocks of 32 inputs and 32 outputs, each way to multiply bf16.
//!
//! A block of sums is four tiles of 16 × 16 f32, left to right and top to bottom.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::TILE;
#[cfg(target_os = "linux")]
use crate::cpu::amx::{ROW_BYTES, Tiles};

/// A block of sums that is not in the result yet.
pub(super) struct Pending {
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

impl Pending {
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
    pub(super) unsafe fn finish(&mut self, count: usize) {
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

/// A way to multiply blocks.
pub(super) trait Block {
    /// Multiplies two times `count` tiles of inputs, `a`, by two times `count` of weights, `b`. Adds the sums in `from`,
    /// unless it is null, and writes them to `to`. Finishes `pending`.
    ///
    /// # Safety
    /// The processor must have the instructions, the pointers must be valid for so many tiles, and `pending` for
    /// [`Pending::finish`].
    unsafe fn run(
        &self,
        a: [*const f32; 2],
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut Pending,
    );
}

/// In AMX tiles.
#[cfg(target_os = "linux")]
pub(super) struct TileBlock(Tiles);

#[cfg(target_os = "linux")]
impl TileBlock {
    pub(super) fn new() -> Self {
        Self(Tiles::full())
    }

    /// Tiles `at` of both inputs by those of both weights.
    ///
    /// # Safety
    /// The pointers must be valid for reading tile `at`.
    #[inline(always)]
    unsafe fn step(&self, a: [*const f32; 2], b: [*const f32; 2], at: usize) {
        let tiles = &self.0;
        // SAFETY: the caller's promise.
        unsafe {
            tiles.load::<4>(a[0].add(at * TILE).cast(), ROW_BYTES);
            tiles.load::<6>(b[0].add(at * TILE).cast(), ROW_BYTES);
            tiles.load::<5>(a[1].add(at * TILE).cast(), ROW_BYTES);
            tiles.load::<7>(b[1].add(at * TILE).cast(), ROW_BYTES);
        }
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        tiles.dot::<2, 5, 6>();
        tiles.dot::<3, 5, 7>();
    }
}

#[cfg(target_os = "linux")]
impl Block for TileBlock {
    #[inline(always)]
    unsafe fn run(
        &self,
        a: [*const f32; 2],
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut Pending,
    ) {
        let tiles = &self.0;
        let mut unused = [0.0f32; TILE];
        if from.is_null() {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
        } else {
            // SAFETY: the caller's promise.
            unsafe {
                tiles.load::<0>(from.cast(), ROW_BYTES);
                tiles.load::<1>(from.add(TILE).cast(), ROW_BYTES);
                tiles.load::<2>(from.add(2 * TILE).cast(), ROW_BYTES);
                tiles.load::<3>(from.add(3 * TILE).cast(), ROW_BYTES);
            }
        }
        let mut at = 0;
        while at + 4 <= count {
            // SAFETY: the caller's promise; `unused` has a tile.
            unsafe {
                self.step(a, b, at);
                // Vector instructions run beside the tiles'.
                pending.finish(4);
                self.step(a, b, at + 1);
                self.step(a, b, at + 2);
                self.step(a, b, at + 3);
                // A store that comes after 32 steps or more without one delays the processor by some 10 steps, for a
                // reason that its manuals do not give. So there is one now and then, of whatever.
                if at % 12 == 8 {
                    tiles.store::<4>(unused.as_mut_ptr().cast(), ROW_BYTES);
                }
            }
            at += 4;
        }
        while at < count {
            // SAFETY: the caller's promise.
            unsafe { self.step(a, b, at) };
            at += 1;
        }
        // SAFETY: the caller's promise.
        unsafe {
            pending.finish(32);
            tiles.store::<0>(to.cast(), ROW_BYTES);
            tiles.store::<1>(to.add(TILE).cast(), ROW_BYTES);
            tiles.store::<2>(to.add(2 * TILE).cast(), ROW_BYTES);
            tiles.store::<3>(to.add(3 * TILE).cast(), ROW_BYTES);
        }
    }
}

/// In vectors, by `_mm512_dpbf16_ps`.
pub(super) struct DotBlock;

impl Block for DotBlock {
    #[inline(always)]
    unsafe fn run(
        &self,
        a: [*const f32; 2],
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut Pending,
    ) {
        /// Rows whose sums the registers hold, with two vectors of outputs.
        const ROWS: usize = 8;
        // SAFETY: the caller's promise.
        unsafe { pending.finish(32) };
        for rows in 0..32 / ROWS {
            let first = rows * ROWS % 16;
            let start = rows * ROWS / 16 * 2 * TILE + first * 16;
            let a = a[rows * ROWS / 16].wrapping_add(first * 16);
            let mut sums = [[zero(); 2]; ROWS];
            if !from.is_null() {
                for row in 0..ROWS {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let from = from.add(start + row * 16);
                        sums[row] = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(TILE))];
                    }
                }
            }
            for tile in 0..count {
                for pair in 0..16 {
                    // SAFETY: the caller's promise; a pair is as large as an f32.
                    unsafe {
                        let at = tile * TILE + pair * 16;
                        let weights = [
                            std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(b[0].add(at))),
                            std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(b[1].add(at))),
                        ];
                        for row in 0..ROWS {
                            let input = a.add(tile * TILE + row * 16 + pair).cast::<i32>().read();
                            let input = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(input));
                            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], input, weights[0]);
                            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], input, weights[1]);
                        }
                    }
                }
            }
            for row in 0..ROWS {
                // SAFETY: the caller's promise.
                unsafe {
                    let to = to.add(start + row * 16);
                    _mm512_storeu_ps(to, sums[row][0]);
                    _mm512_storeu_ps(to.add(TILE), sums[row][1]);
                }
            }
        }
    }
}

#[inline(always)]
fn zero() -> __m512 {
    // SAFETY: all bits zero are 16 zeros.
    unsafe { std::mem::zeroed() }
}
