//! Products of packed bf16 with 32 columns: by tiles of AMX, or by dot products of pairs in vectors.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::pack::{DEPTH, ROWS, TILE, WIDTH};
#[cfg(target_os = "linux")]
use crate::cpu::amx::{ROW_BYTES, Tiles};

/// `c = a · b`, or `c += a · b`, in f32.
///
/// # Shapes
/// - `a`: `[rows, pairs, 2]`, in tiles `[16, 32]`, both sizes rounded up to whole ones
/// - `b`: `[pairs, a multiple of 16, 32, 2]`
/// - `c`: `[rows, a multiple of 16, 32]`
///
/// Of the pairs beyond `pairs`, `b` holds zeros and `a` finite numbers. Rows of `c` beyond `rows` are written, too.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub rows: usize,
    pub pairs: usize,
    pub a: *const bf16,
    /// Elements from a tile of `a` to the one that holds the next 16 rows.
    pub next_rows: usize,
    /// Elements from a tile of `a` to the one that holds the next 32 columns.
    pub next_columns: usize,
    pub b: *const bf16,
    pub c: *mut f32,
    /// Whether `a · b` is added to `c`.
    pub accumulate: bool,
}

/// The instructions to multiply with.
pub(super) enum Unit {
    Vectors,
    #[cfg(target_os = "linux")]
    Tiles(Tiles),
}

impl Unit {
    /// Makes `product`.
    ///
    /// # Safety
    /// The memory of `product` is as large as it says, and the processor has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[inline]
    pub(super) unsafe fn multiply(&self, product: &Product) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Vectors => multiply(product),
                #[cfg(target_os = "linux")]
                Self::Tiles(tiles) => {
                    for row in (0..product.rows).step_by(2 * ROWS) {
                        if product.rows - row > ROWS {
                            multiply_tiles::<2>(tiles, product, row);
                        } else {
                            multiply_tiles::<1>(tiles, product, row);
                        }
                    }
                }
            }
        }
    }
}

/// Makes `M` tiles of rows of `product`, from row `row` on: sums in tiles 0 to 3, rows of A in 4 and 5, columns of B in 6
/// and 7.
///
/// # Safety
/// As [`Unit::multiply`].
#[cfg(target_os = "linux")]
#[inline(always)]
unsafe fn multiply_tiles<const M: usize>(tiles: &Tiles, product: &Product, row: usize) {
    const B_BYTES: usize = 2 * WIDTH * size_of::<bf16>();
    const C_BYTES: usize = WIDTH * size_of::<f32>();
    let Product { pairs, a, next_rows, next_columns, b, c, accumulate, .. } = *product;
    // SAFETY: the caller's promise; every access is a whole tile.
    unsafe {
        let mut a: *const u8 = a.add(row / ROWS * next_rows).cast();
        let mut b: *const u8 = b.cast();
        let c: *mut u8 = c.add(row * WIDTH).cast();
        let c_next = c.wrapping_add(ROWS * C_BYTES);
        if accumulate {
            tiles.load::<0>(c, C_BYTES);
            tiles.load::<1>(c.add(ROW_BYTES), C_BYTES);
            if M == 2 {
                tiles.load::<2>(c_next, C_BYTES);
                tiles.load::<3>(c_next.add(ROW_BYTES), C_BYTES);
            }
        } else {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for _ in 0..pairs.div_ceil(ROWS) {
            tiles.load::<6>(b, B_BYTES);
            tiles.load::<4>(a, ROW_BYTES);
            tiles.dot::<0, 4, 6>();
            tiles.load::<7>(b.add(ROW_BYTES), B_BYTES);
            tiles.dot::<1, 4, 7>();
            if M == 2 {
                tiles.load::<5>(a.add(next_rows * size_of::<bf16>()), ROW_BYTES);
                tiles.dot::<2, 5, 6>();
                tiles.dot::<3, 5, 7>();
            }
            a = a.wrapping_add(next_columns * size_of::<bf16>());
            b = b.wrapping_add(ROWS * B_BYTES);
        }
        tiles.store::<0>(c, C_BYTES);
        tiles.store::<1>(c.add(ROW_BYTES), C_BYTES);
        if M == 2 {
            tiles.store::<2>(c_next, C_BYTES);
            tiles.store::<3>(c_next.add(ROW_BYTES), C_BYTES);
        }
    }
}

/// Makes `product` with vectors, eight rows at a time.
///
/// # Safety
/// As [`Unit::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn multiply(product: &Product) {
    const M: usize = 8;
    let Product { rows, pairs, a, next_rows, next_columns, b, c, accumulate } = *product;
    for row in (0..rows).step_by(M) {
        // SAFETY: the caller's promise; `M` divides the rows of a tile.
        unsafe {
            let (a, c) = (a.add(row / ROWS * next_rows + row % ROWS * DEPTH), c.add(row * WIDTH));
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            if accumulate {
                for i in 0..M {
                    sums[i] = [_mm512_loadu_ps(c.add(i * WIDTH)), _mm512_loadu_ps(c.add(i * WIDTH + 16))];
                }
            }
            for step in 0..pairs.div_ceil(ROWS) {
                let (a, b) = (a.add(step * next_columns).cast::<i32>(), b.add(step * 2 * TILE));
                for pair in 0..ROWS.min(pairs - step * ROWS) {
                    let columns = b.add(pair * 2 * WIDTH);
                    let b0 = pairs_of(_mm512_loadu_si512(columns.cast()));
                    let b1 = pairs_of(_mm512_loadu_si512(columns.add(WIDTH).cast()));
                    for i in 0..M {
                        let left = pairs_of(_mm512_set1_epi32(*a.add(i * DEPTH / 2 + pair)));
                        sums[i][0] = _mm512_dpbf16_ps(sums[i][0], left, b0);
                        sums[i][1] = _mm512_dpbf16_ps(sums[i][1], left, b1);
                    }
                }
            }
            for i in 0..M {
                _mm512_storeu_ps(c.add(i * WIDTH), sums[i][0]);
                _mm512_storeu_ps(c.add(i * WIDTH + 16), sums[i][1]);
            }
        }
    }
}

/// The bits as pairs of bf16.
#[target_feature(enable = "avx512f")]
#[inline]
fn pairs_of(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain numbers.
    unsafe { std::mem::transmute(bits) }
}
