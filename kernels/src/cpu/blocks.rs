//! Products of bf16 in hardware: blocks of 32 inputs and 32 outputs, each way to multiply bf16.
//!
//! Both sides are packed into tiles of 1 KiB. A block of sums is four tiles of 16 × 16 f32, left to right and top to
//! bottom.

pub(crate) mod pack;

use std::arch::x86_64::*;

use burn::tensor::bf16;

#[cfg(target_os = "linux")]
use super::amx::{ROW_BYTES, Tiles};

/// Rows of inputs, and outputs, of a block.
pub(crate) const SIDE: usize = 32;

/// Terms of a sum that a tile holds.
pub(crate) const TILE_TERMS: usize = 32;

/// f32 that take as much memory as a tile: 16 rows of 32 bf16, or of 16 f32.
pub(crate) const TILE: usize = 256;

/// f32 that take as much memory as a row of a tile.
pub(crate) const TILE_ROW: usize = 16;

/// Rows of bf16 that lie `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: &'a [bf16],
    pub rows: usize,
    pub len: usize,
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `len`, the first at the start of `data`.
    ///
    /// # Panics
    /// If the last row is not within `data`.
    pub(crate) fn new(data: &'a [bf16], rows: usize, len: usize, stride: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + len <= data.len(), "rows within the memory of the tensor");
        Self { data, rows, len, stride }
    }

    /// Elements from column `at` to the end of row `row`: none if there is no such row.
    pub(crate) fn rest(&self, row: usize, at: usize) -> &'a [bf16] {
        if row < self.rows { &self.data[row * self.stride..][at..self.len] } else { &[] }
    }
}

/// The inputs of a block: two times 16 rows, in tiles.
pub(crate) trait Inputs: Copy {
    /// f32 from a row of a tile to the next.
    fn row_stride(&self) -> usize;

    /// The tiles of step `step`.
    fn tiles(&self, step: usize) -> [*const f32; 2];
}

/// Inputs whose tiles lie one after another.
#[derive(Clone, Copy)]
pub(crate) struct Packed(pub [*const f32; 2]);

impl Inputs for Packed {
    #[inline(always)]
    fn row_stride(&self) -> usize {
        TILE_ROW
    }

    #[inline(always)]
    fn tiles(&self, step: usize) -> [*const f32; 2] {
        self.0.map(|tiles| tiles.wrapping_add(step * TILE))
    }
}

/// A block of sums that is not in the result yet.
pub(crate) trait Pending {
    /// Writes a part of it, if there is any left.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and BF16, and pointers in `self` must be valid.
    unsafe fn advance(&mut self);

    /// Writes all that is left.
    ///
    /// # Safety
    /// As [`advance`](Self::advance).
    unsafe fn finish(&mut self);
}

/// A way to multiply blocks.
pub(crate) trait Block {
    /// Multiplies `count` steps of inputs, `a`, by two times `count` tiles of weights, `b`. Adds the sums in `from`,
    /// unless it is null, and writes them to `to`. Finishes `pending`.
    ///
    /// # Safety
    /// The processor must have the instructions, the pointers must be valid for so many tiles, and `pending` for
    /// [`Pending::finish`].
    unsafe fn run(
        &self,
        a: impl Inputs,
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut impl Pending,
    );
}

/// In AMX tiles.
#[cfg(target_os = "linux")]
pub(crate) struct TileBlock(Tiles);

#[cfg(target_os = "linux")]
impl TileBlock {
    pub(crate) fn new() -> Self {
        Self(Tiles::full())
    }

    /// Tiles `at` of both inputs by those of both weights.
    ///
    /// # Safety
    /// The pointers must be valid for reading tile `at`.
    #[inline(always)]
    unsafe fn step(&self, a: impl Inputs, b: [*const f32; 2], at: usize) {
        let (tiles, stride) = (&self.0, size_of::<f32>() * a.row_stride());
        let a = a.tiles(at);
        // SAFETY: the caller's promise.
        unsafe {
            tiles.load::<4>(a[0].cast(), stride);
            tiles.load::<6>(b[0].add(at * TILE).cast(), ROW_BYTES);
            tiles.load::<5>(a[1].cast(), stride);
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
        a: impl Inputs,
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut impl Pending,
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
                pending.advance();
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
            pending.finish();
            tiles.store::<0>(to.cast(), ROW_BYTES);
            tiles.store::<1>(to.add(TILE).cast(), ROW_BYTES);
            tiles.store::<2>(to.add(2 * TILE).cast(), ROW_BYTES);
            tiles.store::<3>(to.add(3 * TILE).cast(), ROW_BYTES);
        }
    }
}

/// In vectors, by `_mm512_dpbf16_ps`.
pub(crate) struct DotBlock;

impl Block for DotBlock {
    #[inline(always)]
    unsafe fn run(
        &self,
        a: impl Inputs,
        b: [*const f32; 2],
        count: usize,
        from: *const f32,
        to: *mut f32,
        pending: &mut impl Pending,
    ) {
        /// Rows whose sums the registers hold, with two vectors of outputs.
        const ROWS: usize = 8;
        // SAFETY: the caller's promise.
        unsafe { pending.finish() };
        for rows in 0..32 / ROWS {
            let first = rows * ROWS % 16;
            let start = rows * ROWS / 16 * 2 * TILE + first * 16;
            let stride = a.row_stride();
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
                let a = a.tiles(tile)[rows * ROWS / 16].wrapping_add(first * stride);
                for pair in 0..16 {
                    // SAFETY: the caller's promise; a pair is as large as an f32.
                    unsafe {
                        let at = tile * TILE + pair * 16;
                        let weights = [
                            std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(b[0].add(at))),
                            std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(b[1].add(at))),
                        ];
                        for row in 0..ROWS {
                            let input = a.add(row * stride + pair).cast::<i32>().read();
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
