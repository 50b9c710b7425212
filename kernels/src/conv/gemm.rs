//! The matrix product that both convolution algorithms use.
//!
//! `C[m, n] = Σₖ A[k, m] · B[k, n]`. A is stored in panels of [`PANEL`] rows, `[panel, k, PANEL]`; B and C are stored
//! in packs with as many columns as a vector has lanes.

use crate::cpu::lanes::Lanes;

/// The number of rows of C that one panel of A produces.
pub(super) const PANEL: usize = 8;

/// The number of terms that are summed in registers before they are added to C. It bounds the rounding error of long
/// sums and the data that must stay in the first-level cache.
const DEPTH: usize = 256;

/// `C = A · B`, or `C += A · B` if `accumulate`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// The number of terms.
    pub depth: usize,
    /// The number of panels of A.
    pub panels: usize,
    /// The number of packs of B and C.
    pub packs: usize,
    /// The number of rows of C, at most `panels · PANEL`.
    pub rows: usize,
    /// The number of elements from a panel of A to the next.
    pub a_panel: usize,
    /// The number of elements from a pack of B to the next.
    pub b_pack: usize,
    /// The number of elements from a row of C to the next; the packs of a row are adjacent.
    pub c_row: usize,
    pub accumulate: bool,
}

impl Product {
    /// Computes the product.
    ///
    /// # Safety
    /// `a`, `b` and `c` must be valid for the accesses that the sizes imply.
    #[inline(always)]
    pub(super) unsafe fn run<V: Lanes>(&self, a: *const f32, b: *const f32, c: *mut f32) {
        let mut k = 0;
        while k < self.depth {
            let depth = DEPTH.min(self.depth - k);
            let mut pack = 0;
            while pack < self.packs {
                // Three packs keep the registers full; two and two are better than three and one.
                let left = self.packs - pack;
                let packs = if left == 4 { 2 } else { left.min(3) };
                for panel in 0..self.panels {
                    // SAFETY: `k + depth` ≤ `self.depth`, `pack + packs` ≤ `self.packs`, `panel` < `self.panels`.
                    unsafe {
                        let tile = Tile {
                            depth,
                            a: a.add(panel * self.a_panel + k * PANEL),
                            b: b.add(pack * self.b_pack + k * V::N),
                            b_pack: self.b_pack,
                            c: c.add(panel * PANEL * self.c_row + pack * V::N),
                            c_row: self.c_row,
                            rows: PANEL.min(self.rows - panel * PANEL),
                            accumulate: self.accumulate || k > 0,
                        };
                        match packs {
                            1 => tile.run_panel::<V, 1>(),
                            2 => tile.run_panel::<V, 2>(),
                            _ => tile.run_panel::<V, 3>(),
                        }
                    }
                }
                pack += packs;
            }
            k += depth;
        }
    }
}

/// The part of the product that fits into the registers.
#[derive(Clone, Copy)]
struct Tile {
    depth: usize,
    a: *const f32,
    b: *const f32,
    b_pack: usize,
    c: *mut f32,
    c_row: usize,
    rows: usize,
    accumulate: bool,
}

impl Tile {
    #[inline(always)]
    unsafe fn run_panel<V: Lanes, const PACKS: usize>(self) {
        // SAFETY: both halves are within the caller's promise.
        unsafe {
            if V::REGISTERS >= 32 && self.rows > 4 {
                self.run::<V, 8, PACKS>();
                return;
            }
            self.run::<V, 4, PACKS>();
            if self.rows > 4 {
                Self { a: self.a.add(4), c: self.c.add(4 * self.c_row), rows: self.rows - 4, ..self }
                    .run::<V, 4, PACKS>();
            }
        }
    }

    #[inline(always)]
    unsafe fn run<V: Lanes, const ROWS: usize, const PACKS: usize>(self) {
        let mut sums = [[V::splat(0.0); PACKS]; ROWS];
        let (mut a, mut b) = (self.a, self.b);
        for _ in 0..self.depth {
            // SAFETY: within the caller's promise; a panel of A has `PANEL ≥ ROWS` rows, valid or zero.
            unsafe {
                let mut columns = [V::splat(0.0); PACKS];
                for j in 0..PACKS {
                    columns[j] = V::load(b.add(j * self.b_pack));
                }
                for m in 0..ROWS {
                    let row = V::splat(*a.add(m));
                    for j in 0..PACKS {
                        sums[m][j] = row.mul_add(columns[j], sums[m][j]);
                    }
                }
                a = a.add(PANEL);
                b = b.add(V::N);
            }
        }
        for m in 0..ROWS {
            if m < self.rows {
                for j in 0..PACKS {
                    // SAFETY: row `m` of C exists.
                    unsafe {
                        let c = self.c.add(m * self.c_row + j * V::N);
                        let sum = if self.accumulate { sums[m][j] + V::load(c) } else { sums[m][j] };
                        sum.store(c);
                    }
                }
            }
        }
    }
}
