//! `x · weightᵀ + bias` of bf16 in the processor's own bf16 products: sums in f32, one rounding.
//!
//! Both sides are packed into tiles of 1 KiB. The inputs are packed once for all threads. A thread takes some outputs,
//! packs their weights for its second-level cache and goes over all inputs, 32 rows at a time. Long sums are cut into
//! parts of equal length, between which they lie in memory as f32.

mod pack;
mod pending;
#[cfg(test)]
mod tests;

use burn::tensor::bf16;
use rayon::prelude::*;

#[cfg(target_os = "linux")]
use crate::cpu::blocks::TileBlock;
use crate::cpu::{
    amx::Dots,
    blocks::{
        Block, DotBlock, Matrix, Packed, Pending, SIDE, TILE, TILE_TERMS, pack::weights as pack_weights,
    },
    memory::Scratch,
    workers::{PerTask, for_each},
};
use pending::Rows;

/// The most terms that are summed before the sum is put into memory.
const TERMS: usize = 1536;

/// Packed weights that a thread goes through again and again, in f32: leaves most of a cache of 1 or 2 MiB to them.
const PANEL: usize = 192 << 10;

/// The most rows of inputs that are packed at a time.
const SLAB: usize = 2048;

/// `x · weightᵀ + bias` with `dots`.
///
/// # Panics
/// If `dots` is not available or widens, or the lengths of rows differ.
pub(super) fn multiply(dots: Dots, x: Matrix, weight: Matrix, bias: Option<&[f32]>) -> Vec<bf16> {
    assert!(dots != Dots::Widen && Dots::available().contains(&dots), "{dots:?} multiplies bf16");
    assert_eq!(x.len, weight.len, "features of the input that the weight takes");
    let count = x.rows * weight.rows;
    let mut y = Vec::with_capacity(count);
    if count == 0 {
        return y;
    }
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows), "a bias for each output");
    let mut padded_bias = vec![0.0; weight.rows.next_multiple_of(SIDE)];
    padded_bias[..weight.rows].copy_from_slice(bias.unwrap_or(&vec![0.0; weight.rows]));
    let sizes = Sizes::new(weight.rows, weight.len);
    let mut packed = Scratch::new(x.rows.min(SLAB).div_ceil(SIDE) * 2 * sizes.tiles() * TILE);
    for first in (0..x.rows).step_by(SLAB) {
        let rows = SLAB.min(x.rows - first);
        let group_len = 2 * sizes.tiles() * TILE;
        let packed = &mut packed.as_mut_slice()[..rows.div_ceil(SIDE) * group_len];
        packed.par_chunks_exact_mut(group_len).enumerate().for_each(|(group, to)| {
            // SAFETY: both kinds of `dots` have AVX-512.
            unsafe { pack::inputs(x, first + group * SIDE, sizes, to) };
        });
        let slab = Slab {
            dots,
            sizes,
            inputs: packed,
            rows,
            weight,
            bias: &padded_bias,
            y: PerTask(y.spare_capacity_mut()[first * weight.rows..].as_mut_ptr().cast()),
        };
        for_each(
            weight.rows.div_ceil(sizes.outputs),
            rows * weight.rows * weight.len,
            || Scratch::new(slab.scratch_sizes().iter().sum()),
            // SAFETY: `multiply` looked whether `dots` is available; each call has outputs of its own.
            |scratch, task| unsafe { slab.run(task * sizes.outputs, scratch.as_mut_slice()) },
        );
    }
    // SAFETY: the tasks of all slabs write each output of each row.
    unsafe { y.set_len(count) };
    y
}

/// How a product is cut.
#[derive(Clone, Copy)]
struct Sizes {
    /// Outputs of a task.
    outputs: usize,
    /// Tiles of a part of a sum.
    part: usize,
    /// Parts of a sum.
    parts: usize,
}

impl Sizes {
    /// Depends on the number of threads, but only in `outputs`, which changes no sum.
    fn new(outputs: usize, terms: usize) -> Self {
        let tiles = terms.div_ceil(TILE_TERMS).max(1);
        let parts = (tiles * TILE_TERMS).div_ceil(TERMS);
        let part = tiles.div_ceil(parts);
        let most = (PANEL / (2 * TILE * part)).clamp(1, 16) * SIDE;
        // As many tasks as keep all threads busy to the end.
        let threads = rayon::current_num_threads();
        let tasks = outputs.div_ceil(most).next_multiple_of(threads);
        Self { outputs: outputs.div_ceil(tasks).next_multiple_of(SIDE), part, parts }
    }

    /// Tiles of a whole sum; what is beyond the terms is zero.
    fn tiles(&self) -> usize {
        self.part * self.parts
    }
}

/// Rows of inputs with all outputs.
struct Slab<'a> {
    dots: Dots,
    sizes: Sizes,
    /// By [`pack::inputs`].
    inputs: &'a [f32],
    rows: usize,
    weight: Matrix<'a>,
    /// For the outputs of whole blocks.
    bias: &'a [f32],
    y: PerTask<bf16>,
}

impl Slab<'_> {
    /// f32 of packed weights, of sums between the parts, and of two blocks of finished sums.
    fn scratch_sizes(&self) -> [usize; 3] {
        let Sizes { outputs, part, parts } = self.sizes;
        let sums = if parts == 1 { 0 } else { self.rows.div_ceil(SIDE) * SIDE * outputs };
        [outputs / 16 * part * TILE, sums, 2 * SIDE * SIDE]
    }

    /// # Safety
    /// The processor must have `dots`, and nobody else may write these outputs.
    unsafe fn run(&self, first: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dots {
                #[cfg(target_os = "linux")]
                Dots::Amx => self.run_tiles(first, scratch),
                _ => self.run_dots(first, scratch),
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run_tiles(&self, first: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with(&TileBlock::new(), first, scratch) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run_dots(&self, first: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with(&DotBlock, first, scratch) }
    }

    #[inline(always)]
    unsafe fn run_with<B: Block>(&self, block: &B, first: usize, scratch: &mut [f32]) {
        let Sizes { outputs, part, parts } = self.sizes;
        let outputs = outputs.min(self.weight.rows - first);
        let [weights_len, sums_len, _] = self.scratch_sizes();
        let (weights, scratch) = scratch.split_at_mut(weights_len);
        let (sums, finished) = scratch.split_at_mut(sums_len);
        assert!(parts == 1 || sums.len() >= self.rows.div_ceil(SIDE) * outputs.div_ceil(SIDE) * SIDE * SIDE);
        assert!(finished.len() >= 2 * SIDE * SIDE);
        let (sums, finished) = (sums.as_mut_ptr(), finished.as_mut_ptr());
        let pairs = outputs.div_ceil(SIDE);
        let mut pending = Rows::none(self.weight.rows);
        let mut flip = 0;
        for p in 0..parts {
            let is_last = p + 1 == parts;
            // SAFETY: the caller's promise.
            unsafe { pack_weights(self.weight, first, pairs, p * part, part, weights) };
            for group in 0..self.rows.div_ceil(SIDE) {
                let inputs = &self.inputs[group * 2 * self.sizes.tiles() * TILE..];
                let a = [0, 1].map(|half| inputs[(half * self.sizes.tiles() + p * part) * TILE..].as_ptr());
                for pair in 0..pairs {
                    let b = [0, 1].map(|half| weights[(2 * pair + half) * part * TILE..].as_ptr());
                    let partial = sums.wrapping_add((group * pairs + pair) * SIDE * SIDE);
                    let from = if p == 0 { std::ptr::null() } else { partial.cast_const() };
                    let to = if is_last {
                        flip = SIDE * SIDE - flip;
                        finished.wrapping_add(flip)
                    } else {
                        partial
                    };
                    // SAFETY: `a` and `b` have `part` tiles each, `from` and `to` a block, and `pending` is of the other
                    // half of `finished`.
                    unsafe { block.run(Packed(a), b, part, from, to, &mut pending) };
                    if is_last {
                        let (row, output) = (group * SIDE, first + pair * SIDE);
                        pending = Rows {
                            sums: to,
                            bias: self.bias[output..][..SIDE].as_ptr(),
                            y: self.y.get().wrapping_add(row * self.weight.rows + output),
                            stride: self.weight.rows,
                            row: 0,
                            rows: SIDE.min(self.rows - row),
                            outputs: SIDE.min(self.weight.rows - output),
                        };
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { pending.finish() };
    }
}
