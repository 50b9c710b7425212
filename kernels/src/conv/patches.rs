//! Convolution with any kernel size and stride: a product of the weights and the patches under the kernel, for a few
//! output rows at a time.

use rayon::prelude::*;

use super::gemm::{PANEL, Product};
use super::image::{Source, Target};
use crate::cpu::lanes::{Lanes, Vectorized};
use crate::cpu::memory::Scratch;

/// The sizes of a convolution and its division into blocks of `rows × packs` output pixels.
#[derive(Clone, Copy)]
pub(super) struct Patches {
    pub batch: usize,
    pub c_in: usize,
    pub c_out: usize,
    /// The rows and columns of the kernel.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub rows_out: usize,
    pub cols_out: usize,
}

/// The number of packs of pixels in a block: enough to reuse the weights while they are in the cache.
const BLOCK: usize = 6;

/// The number of terms of a sum that a block gathers at a time.
const DEPTH: usize = 256;

impl Patches {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn panels(&self) -> usize {
        self.c_out.div_ceil(PANEL)
    }

    /// The number of input channels that are gathered at a time.
    fn channels_at_once(&self) -> usize {
        (DEPTH / self.taps()).clamp(1, self.c_in)
    }

    /// Rearranges `[c_out, c_in, ky, kx]` to panels `[panel, c_in · ky · kx, PANEL]`, padded with zeros.
    pub(super) fn weights(&self, weight: &[f32]) -> Scratch {
        let depth = self.c_in * self.taps();
        let mut packed = Scratch::new(self.panels() * depth * PANEL);
        packed.as_mut_slice().par_chunks_exact_mut(depth * PANEL).enumerate().for_each(|(panel, to)| {
            for (m, from) in weight[panel * PANEL * depth..].chunks_exact(depth).take(PANEL).enumerate() {
                for k in 0..depth {
                    to[k * PANEL + m] = from[k];
                }
            }
        });
        packed
    }

    /// The rows of a block, and the packs in a row, with `lanes` pixels in a pack.
    fn block(&self, lanes: usize) -> [usize; 2] {
        let packs = self.cols_out.div_ceil(lanes).min(BLOCK);
        [(BLOCK / packs).min(self.rows_out), packs]
    }

    /// The number of blocks.
    pub(super) fn blocks(&self, lanes: usize) -> usize {
        let [rows, packs] = self.block(lanes);
        self.batch * self.rows_out.div_ceil(rows) * self.cols_out.div_ceil(packs * lanes)
    }

    /// The numbers of elements of the gathered patches, of a block's result, and of input rows.
    fn scratch_sizes(&self, lanes: usize) -> [usize; 3] {
        let [rows, packs] = self.block(lanes);
        let patches = rows * packs * self.channels_at_once() * self.taps() * lanes;
        let result = self.panels() * PANEL * rows * packs * lanes;
        let lines = ((rows - 1) * self.stride + self.kernel[0]) * self.line(packs * lanes);
        [patches, result, lines]
    }

    /// The number of elements of scratch memory that a block needs.
    pub(super) fn scratch(&self, lanes: usize) -> usize {
        self.scratch_sizes(lanes).iter().sum()
    }

    /// The number of input pixels under the kernel for `pixels` output pixels of a row.
    fn line(&self, pixels: usize) -> usize {
        (pixels - 1) * self.stride + self.kernel[1]
    }
}

/// A block of output pixels.
pub(super) struct Block<'a> {
    pub sizes: Patches,
    pub index: usize,
    pub source: Source<'a>,
    pub target: Target<'a>,
    /// From [`Patches::weights`].
    pub weights: &'a [f32],
    /// Of the size [`Patches::scratch`].
    pub scratch: &'a mut [f32],
}

impl Vectorized for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { sizes, index, source, target, weights, scratch } = self;
        let [rows, packs] = sizes.block(V::N);
        let [ky, kx] = sizes.kernel;
        let across = sizes.cols_out.div_ceil(packs * V::N);
        let down = sizes.rows_out.div_ceil(rows);
        let (x, y, b) = (index % across * packs * V::N, index / across % down * rows, index / across / down);
        let rows = rows.min(sizes.rows_out - y);
        let packs = packs.min((sizes.cols_out - x).div_ceil(V::N));

        let [patches_len, result_len, _] = sizes.scratch_sizes(V::N);
        let (patches, scratch) = scratch.split_at_mut(patches_len);
        let (result, lines) = scratch.split_at_mut(result_len);
        let line = sizes.line(packs * V::N);
        let step = sizes.channels_at_once();
        let c_row = rows * packs * V::N;
        let mut c = 0;
        while c < sizes.c_in {
            let channels = step.min(sizes.c_in - c);
            let depth = channels * sizes.taps();
            for channel in 0..channels {
                for r in 0..(rows - 1) * sizes.stride + ky {
                    let row = source.row(y * sizes.stride + r);
                    let to = &mut lines[r * line..][..line];
                    source.read::<V>(b * sizes.c_in + c + channel, row, x * sizes.stride, to);
                }
                for pack in 0..rows * packs {
                    let (r, first) = (pack / packs * sizes.stride, pack % packs * V::N * sizes.stride);
                    for tap in 0..ky * kx {
                        let from = &lines[(r + tap / kx) * line + first + tap % kx..];
                        let to = &mut patches[(pack * depth + channel * ky * kx + tap) * V::N..][..V::N];
                        if sizes.stride == 1 {
                            to.copy_from_slice(&from[..V::N]);
                        } else {
                            for i in 0..V::N {
                                to[i] = from[i * sizes.stride];
                            }
                        }
                    }
                }
            }
            let product = Product {
                depth,
                panels: sizes.panels(),
                packs: rows * packs,
                rows: sizes.c_out,
                a_panel: sizes.c_in * sizes.taps() * PANEL,
                b_pack: depth * V::N,
                c_row,
                accumulate: c > 0,
            };
            let weights = &weights[c * sizes.taps() * PANEL..];
            // SAFETY: `scratch_sizes` covers the accesses of `product`, and `weights` contains all its panels.
            unsafe { product.run::<V>(weights.as_ptr(), patches.as_ptr(), result.as_mut_ptr()) };
            c += channels;
        }
        for channel in 0..sizes.c_out {
            for pack in 0..rows * packs {
                let from = &result[channel * c_row + pack * V::N..][..V::N];
                // SAFETY: `from` has `N` elements; these pixels belong to this block alone.
                unsafe {
                    let value = V::load(from.as_ptr());
                    let plane = b * sizes.c_out + channel;
                    target.write(plane, y + pack / packs, x + pack % packs * V::N, value);
                }
            }
        }
    }
}
