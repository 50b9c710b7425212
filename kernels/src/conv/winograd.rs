//! 3×3 convolution of stride 1 by Winograd's F(4×4, 3×3): 36 products instead of the 144 of direct summation.
//!
//! The output is divided into tiles of 4×4. Adjacent tiles, one for each lane of a vector, form a *pack*, and packs
//! form blocks that one thread computes at a time. The thread transforms the block's input, multiplies each of the 36
//! values of all channels by the transformed weights, a few output channels at a time, and transforms the products to
//! outputs. A thread therefore needs only a few megabytes, regardless of the size of the image.

use rayon::prelude::*;

use super::gemm::{PANEL, Product};
use super::image::{Source, Target};
use super::transforms::{IN, OUT, filter, input, output};
use crate::cpu::lanes::{Lanes, Level, Vectorized};
use crate::cpu::memory::Scratch;

/// The number of values of a tile.
const POINTS: usize = IN * IN;

/// The number of packs in a block. In larger blocks, the weights are read less often.
const BLOCK: usize = 6;

/// The number of panels of output channels whose products are in memory at a time.
const PANELS: usize = 4;

/// The sizes of a convolution and its division into blocks of tiles.
#[derive(Clone, Copy)]
pub(super) struct Winograd {
    batch: usize,
    c_in: usize,
    c_out: usize,
    rows_out: usize,
    cols_out: usize,
    /// The number of tiles in a pack.
    lanes: usize,
    /// The number of tile rows of a block, and of packs in a row.
    block: [usize; 2],
}

impl Winograd {
    /// Creates it from `[batch, c_in, c_out, rows_out, cols_out]`.
    pub(super) fn new(level: Level, [batch, c_in, c_out, rows_out, cols_out]: [usize; 5]) -> Self {
        let lanes = level.lanes();
        let packs = cols_out.div_ceil(OUT * lanes).min(2);
        let tile_rows = rows_out.div_ceil(OUT);
        let beside = batch * cols_out.div_ceil(packs * OUT * lanes);
        // Enough blocks to keep all threads busy to the end. The result of a tile does not depend on its block.
        let threads = rayon::current_num_threads();
        let rounds = (beside * tile_rows.div_ceil(BLOCK / packs)).div_ceil(threads);
        let rows = tile_rows.div_ceil((rounds * threads).div_ceil(beside));
        Self { batch, c_in, c_out, rows_out, cols_out, lanes, block: [rows, packs] }
    }

    fn panels(&self) -> usize {
        self.c_out.div_ceil(PANEL)
    }

    /// Transforms `[c_out, c_in, 3, 3]` to `[panel, point, c_in, PANEL]`, padded with zeros.
    pub(super) fn weights(&self, level: Level, weight: &[f32]) -> Scratch {
        let panel_len = POINTS * self.c_in * PANEL;
        let mut transformed = Scratch::new(self.panels() * panel_len);
        transformed.as_mut_slice().par_chunks_exact_mut(panel_len).enumerate().for_each(|(panel, to)| {
            let from = &weight[panel * PANEL * self.c_in * 9..];
            let from = &from[..from.len().min(PANEL * self.c_in * 9)];
            level.run(TransformWeights { c_in: self.c_in, from, to });
        });
        transformed
    }

    /// The number of blocks.
    pub(super) fn blocks(&self) -> usize {
        let [rows, packs] = self.block;
        self.batch * self.rows_out.div_ceil(rows * OUT) * self.cols_out.div_ceil(packs * OUT * self.lanes)
    }

    fn layout(&self) -> Layout {
        let [rows, packs] = self.block;
        let n = self.lanes;
        // One vector of padding: points at multiples of 4 KiB would share the sets of the cache.
        let v_point = rows * packs * self.c_in * n + n;
        let m_point = PANELS * PANEL * rows * packs * n + n;
        let x_line = IN * packs * n;
        let pixels = (packs + 1) * OUT * n;
        Layout {
            v_point,
            m_point,
            x_line,
            lens: [POINTS * v_point, POINTS * m_point, (rows * OUT + 2) * x_line, 2 * pixels],
        }
    }

    /// The number of elements of scratch memory that a block needs.
    pub(super) fn scratch(&self) -> usize {
        self.layout().lens.iter().sum()
    }
}

/// The parts of a thread's scratch memory.
struct Layout {
    /// The number of elements from the transformed inputs of one point to those of the next.
    v_point: usize,
    /// The number of elements from the products of one point to those of the next.
    m_point: usize,
    /// The number of elements of an input row after its transform along the row.
    x_line: usize,
    /// The lengths of the transformed inputs, the products, the input rows transformed along the row, and a row before
    /// that.
    lens: [usize; 4],
}

struct TransformWeights<'a> {
    c_in: usize,
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Vectorized for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for c in 0..self.c_in {
            let mut taps = [[[0.0f64; PANEL]; 3]; 3];
            for (m, from) in self.from.chunks_exact(self.c_in * 9).enumerate() {
                for tap in 0..9 {
                    taps[tap / 3][tap % 3][m] = f64::from(from[c * 9 + tap]);
                }
            }
            let [a, b, c_] = [filter(taps[0]), filter(taps[1]), filter(taps[2])];
            for x in 0..IN {
                let column = filter([a[x], b[x], c_[x]]);
                for y in 0..IN {
                    let at = ((y * IN + x) * self.c_in + c) * PANEL;
                    for m in 0..PANEL {
                        self.to[at + m] = column[y][m] as f32;
                    }
                }
            }
        }
    }
}

/// A block of output tiles.
pub(super) struct Block<'a> {
    pub sizes: Winograd,
    pub index: usize,
    pub source: Source<'a>,
    pub target: Target<'a>,
    /// From [`Winograd::weights`].
    pub weights: &'a [f32],
    /// Of the size [`Winograd::scratch`].
    pub scratch: &'a mut [f32],
}

impl Vectorized for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { sizes, index, source, target, weights, scratch } = self;
        let [rows, packs] = sizes.block;
        let across = sizes.cols_out.div_ceil(packs * OUT * V::N);
        let down = sizes.rows_out.div_ceil(rows * OUT);
        let x = index % across * packs * OUT * V::N;
        let y = index / across % down * rows * OUT;
        let b = index / across / down;
        let rows = rows.min((sizes.rows_out - y).div_ceil(OUT));
        let packs = packs.min((sizes.cols_out - x).div_ceil(OUT * V::N));

        let layout = sizes.layout();
        let (v, scratch) = scratch.split_at_mut(layout.lens[0]);
        let (m, scratch) = scratch.split_at_mut(layout.lens[1]);
        let (lines, line) = scratch.split_at_mut(layout.lens[2]);
        let depth = sizes.c_in;
        for c in 0..depth {
            transform_rows::<V>(&source, b * depth + c, [y, x], [rows, packs], lines, layout.x_line, line);
            transform_columns::<V>(
                lines,
                layout.x_line,
                [rows, packs],
                &mut v[c * V::N..],
                depth * V::N,
                layout.v_point,
            );
        }
        let c_row = rows * packs * V::N;
        let mut panel = 0;
        while panel < sizes.panels() {
            let panels = PANELS.min(sizes.panels() - panel);
            let channels = (panels * PANEL).min(sizes.c_out - panel * PANEL);
            let product = Product {
                depth,
                panels,
                packs: rows * packs,
                rows: channels,
                a_panel: POINTS * depth * PANEL,
                b_pack: depth * V::N,
                c_row,
                accumulate: false,
            };
            for point in 0..POINTS {
                let a = &weights[(panel * POINTS + point) * depth * PANEL..];
                let (v, m) = (&v[point * layout.v_point..], &mut m[point * layout.m_point..]);
                // SAFETY: `layout` covers the accesses of `product`, and `weights` contains all panels.
                unsafe { product.run::<V>(a.as_ptr(), v.as_ptr(), m.as_mut_ptr()) };
            }
            for channel in 0..channels {
                let plane = b * sizes.c_out + panel * PANEL + channel;
                for pack in 0..rows * packs {
                    let from = &m[channel * c_row + pack * V::N..];
                    let at = [y + pack / packs * OUT, x + pack % packs * OUT * V::N];
                    // SAFETY: these pixels belong to this block alone.
                    unsafe { transform_output::<V>(from, layout.m_point, &target, plane, at) };
                }
            }
            panel += panels;
        }
    }
}

/// Transforms the input rows of a block along the row: `lines` is `[row, point, pack, lane]`.
#[inline(always)]
fn transform_rows<V: Lanes>(
    source: &Source,
    plane: usize,
    [y, x]: [usize; 2],
    [rows, packs]: [usize; 2],
    lines: &mut [f32],
    x_line: usize,
    line: &mut [f32],
) {
    let tiles = packs * V::N;
    let (line, phases) = line.split_at_mut(line.len() / 2);
    let line = &mut line[..tiles * OUT + 2];
    let phase_len = tiles + V::N;
    let phases = &mut phases[..OUT * phase_len];
    for r in 0..rows * OUT + 2 {
        let row = source.row(y + r);
        if r > 0 && row == source.row(y + r - 1) {
            lines.copy_within((r - 1) * x_line..r * x_line, r * x_line);
            continue;
        }
        source.read::<V>(plane, row, x, line);
        // Collects every fourth pixel, and the first two pixels of the tile after the last.
        for pack in 0..packs {
            // SAFETY: `line` has `4 · tiles` elements and two more, each phase `tiles` and `N` more.
            unsafe {
                let pixels = V::load_deinterleaved(line.as_ptr().add(pack * OUT * V::N));
                for phase in 0..OUT {
                    pixels[phase].store(phases.as_mut_ptr().add(phase * phase_len + pack * V::N));
                }
            }
        }
        phases[tiles] = line[tiles * OUT];
        phases[phase_len + tiles] = line[tiles * OUT + 1];
        let to = &mut lines[r * x_line..][..IN * tiles];
        for pack in 0..packs {
            // SAFETY: as above; the fifth and sixth pixel of a tile are the first and second of the next.
            unsafe {
                let from = phases.as_ptr().add(pack * V::N);
                let points = input([
                    V::load(from),
                    V::load(from.add(phase_len)),
                    V::load(from.add(2 * phase_len)),
                    V::load(from.add(3 * phase_len)),
                    V::load(from.add(1)),
                    V::load(from.add(phase_len + 1)),
                ]);
                for point in 0..IN {
                    points[point].store(to.as_mut_ptr().add(point * tiles + pack * V::N));
                }
            }
        }
    }
}

/// Transforms the output of [`transform_rows`] along the columns: `v` is `[point, pack, channel, lane]` from this
/// channel on.
#[inline(always)]
fn transform_columns<V: Lanes>(
    lines: &[f32],
    x_line: usize,
    [rows, packs]: [usize; 2],
    v: &mut [f32],
    v_pack: usize,
    v_point: usize,
) {
    for row in 0..rows {
        for pack in 0..packs {
            for x in 0..IN {
                let from =
                    &lines[row * OUT * x_line + (x * packs + pack) * V::N..][..(IN - 1) * x_line + V::N];
                let to =
                    &mut v[x * v_point + (row * packs + pack) * v_pack..][..(IN - 1) * IN * v_point + V::N];
                // SAFETY: the slices extend to the last of the six.
                unsafe {
                    let points = input(load_points::<V>(from.as_ptr(), x_line));
                    for y in 0..IN {
                        points[y].store(to.as_mut_ptr().add(y * IN * v_point));
                    }
                }
            }
        }
    }
}

/// Transforms the products of a pack of tiles and writes them from `(y, x)` on.
///
/// # Safety
/// No other thread may write there.
#[inline(always)]
unsafe fn transform_output<V: Lanes>(
    m: &[f32],
    m_point: usize,
    target: &Target,
    plane: usize,
    [y, x]: [usize; 2],
) {
    let m = &m[..(POINTS - 1) * m_point + V::N];
    let mut columns = [[V::splat(0.0); OUT]; IN];
    for i in 0..IN {
        // SAFETY: the slice extends to the last of the 36.
        columns[i] = output(unsafe { load_points::<V>(m.as_ptr().add(i * m_point), IN * m_point) });
    }
    for r in 0..OUT {
        let mut row = [V::splat(0.0); IN];
        for i in 0..IN {
            row[i] = columns[i][r];
        }
        let pixels = V::interleave(output(row));
        for part in 0..OUT {
            // SAFETY: the caller's promise.
            unsafe { target.write(plane, y + r, x + part * V::N, pixels[part]) };
        }
    }
}

/// Six vectors, `step` elements apart.
///
/// # Safety
/// `from` must be valid for reading `5 · step + N` elements.
#[inline(always)]
unsafe fn load_points<V: Lanes>(from: *const f32, step: usize) -> [V; IN] {
    let mut points = [V::splat(0.0); IN];
    for i in 0..IN {
        // SAFETY: the caller's promise.
        points[i] = unsafe { V::load(from.add(i * step)) };
    }
    points
}
