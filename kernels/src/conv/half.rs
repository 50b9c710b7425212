//! Convolution of bf16 in the processor's own bf16 products: sums in f32, one rounding.
//!
//! A task computes some rows and columns of the result. It copies the pixels under the kernel to *lines*: normalised,
//! activated, upsampled and padded, rounded to bf16, and with 32 channels of a pixel side by side. Sixteen pixels of a
//! line are then a tile of inputs, wherever they begin; so each tap of the kernel multiplies other pixels of the same
//! lines, and patches are never put together in memory. All threads share the packed weights.
//!
//! Channels of the image are filled up with zeros to a multiple of 32.

mod lines;
mod planes;
#[cfg(test)]
mod tests;

use burn::tensor::bf16;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::Geometry;
use super::cpu;
use super::image::Source;
#[cfg(target_os = "linux")]
use crate::cpu::blocks::TileBlock;
use crate::cpu::{
    amx::Dots,
    blocks::{Block, DotBlock, Inputs, Matrix, SIDE, TILE, TILE_ROW, TILE_TERMS, pack},
    contiguous, dims,
    memory::{Scratch, room},
    slice, tensor_of,
    workers::{PerTask, for_each},
};
use lines::Lines;
use planes::{Planes, Row};

/// Pixels of a tile.
const GROUP: usize = 16;

/// Columns of a task, in groups of pixels: enough that rows of the image are read in long runs.
const GROUPS: usize = 8;

/// The most rows of a task.
const ROWS: usize = 32;

/// About how many f32 the lines of a task take: leaves as much of a second-level cache of 2 MiB to the weights.
const LINES: usize = 256 << 10;

/// [`conv2d`](super::conv2d()) of a bf16 image, weight and residual with `dots`.
///
/// # Panics
/// If `dots` is not available or widens, or the shapes do not fit.
pub(super) fn conv2d(dots: Dots, geometry: Geometry, inputs: cpu::Inputs) -> FlexTensor {
    assert!(dots != Dots::Widen && Dots::available().contains(&dots), "{dots:?} multiplies bf16");
    let cpu::Inputs { x, weight, bias, norm, residual } = inputs;
    let Geometry { stride, padding: [top, _, left, _], upsample } = geometry;
    let ([batch, c_in, rows, cols], [.., ky, kx]) = (dims(&x), dims::<4>(&weight));
    let shape @ [_, c_out, rows_out, cols_out] = geometry.result(dims(&x), dims(&weight));
    let norm = norm.map(|(scale, shift)| {
        assert_eq!(dims(&scale), [batch, c_in], "a scale for each channel of each image");
        assert_eq!(dims(&shift), [batch, c_in], "a shift for each channel of each image");
        [contiguous(scale), contiguous(shift)]
    });
    let mut residual = residual.map(|residual| {
        assert_eq!(dims(&residual), shape, "a residual of the result's shape");
        contiguous(residual)
    });
    let count = shape.iter().product::<usize>();
    if count == 0 {
        return tensor_of(Vec::<bf16>::new(), shape);
    }
    let (x, weight, bias) = (contiguous(x), contiguous(weight), bias.map(contiguous));
    let sizes = Sizes::new([batch, c_in, c_out], [ky, kx], stride, [rows_out, cols_out]);
    let weights = sizes.weights(elements(&weight));
    let mut padded_bias = vec![0.0; c_out.next_multiple_of(SIDE)];
    if let Some(bias) = &bias {
        padded_bias[..c_out].copy_from_slice(slice(bias));
    }
    let source = Source {
        data: elements(&x),
        rows,
        cols,
        norm: norm.as_ref().map(|[scale, shift]| (slice(scale), slice(shift))),
        upsample,
        top,
        left,
    };
    let convolve = |y: *mut bf16, residual: *const bf16| {
        let (y, residual) = (PerTask(y), PerTask(residual.cast_mut()));
        let work = Work { dots, sizes, source, weights: weights.as_slice(), bias: &padded_bias, y, residual };
        for_each(
            sizes.tasks(),
            count * sizes.steps() * TILE_TERMS,
            || Scratch::new(sizes.scratch().iter().sum()),
            // SAFETY: it was checked that `dots` is available, and each task has pixels of its own.
            |scratch, task| unsafe { work.run(task, scratch.as_mut_slice()) },
        );
    };
    if let Some(sum) = residual.as_mut().and_then(|residual| residual.try_storage_mut::<bf16>()) {
        let sum = sum.as_mut_ptr();
        convolve(sum, sum);
        return residual.expect("just written to");
    }
    let mut y = room::<bf16>(count);
    convolve(y.as_mut_ptr(), residual.as_ref().map_or(std::ptr::null(), |r| elements(r).as_ptr()));
    // SAFETY: the tasks write each pixel of each channel.
    unsafe { y.set_len(count) };
    tensor_of(y, shape)
}

/// The elements of a contiguous bf16 tensor.
fn elements(tensor: &FlexTensor) -> &[bf16] {
    tensor.as_slice().expect("made contiguous")
}

/// The sizes of a convolution and its division into tasks.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    c_in: usize,
    c_out: usize,
    /// The rows and columns of the kernel.
    kernel: [usize; 2],
    stride: usize,
    rows_out: usize,
    cols_out: usize,
    /// Rows of a task, and groups of pixels in each.
    task: [usize; 2],
}

impl Sizes {
    fn new(
        [batch, c_in, c_out]: [usize; 3],
        kernel: [usize; 2],
        stride: usize,
        [rows_out, cols_out]: [usize; 2],
    ) -> Self {
        let groups = cols_out.div_ceil(GROUP).min(GROUPS);
        let row = c_in.div_ceil(TILE_TERMS).max(1) * groups * GROUP * TILE_ROW * stride * stride;
        let most = (LINES / row).clamp(1, ROWS);
        // Enough tasks to keep all threads busy to the end. The result of a pixel does not depend on its task.
        let threads = rayon::current_num_threads();
        let beside = batch * cols_out.div_ceil(groups * GROUP);
        let rounds = (beside * rows_out.div_ceil(most)).div_ceil(threads);
        let rows = rows_out.div_ceil((rounds * threads).div_ceil(beside));
        Self { batch, c_in, c_out, kernel, stride, rows_out, cols_out, task: [rows, groups] }
    }

    /// Groups of 32 channels of the image.
    fn chunks(&self) -> usize {
        self.c_in.div_ceil(TILE_TERMS).max(1)
    }

    /// Tiles of a sum: for each chunk those of all taps.
    fn steps(&self) -> usize {
        self.chunks() * self.kernel[0] * self.kernel[1]
    }

    /// The number of tasks, in each direction.
    fn tasks_each(&self) -> [usize; 3] {
        let [rows, groups] = self.task;
        [self.batch, self.rows_out.div_ceil(rows), self.cols_out.div_ceil(groups * GROUP)]
    }

    fn tasks(&self) -> usize {
        self.tasks_each().iter().product()
    }

    /// Lines of a task, and pixels of a line.
    fn lines(&self) -> [usize; 2] {
        let [rows, groups] = self.task;
        let [ky, kx] = self.kernel;
        [(rows - 1) * self.stride + ky, (groups * GROUP - 1) * self.stride + kx]
    }

    /// f32 from the lines of a chunk to those of the next.
    fn chunk(&self) -> usize {
        let [lines, pixels] = self.lines();
        lines * pixels * TILE_ROW
    }

    /// f32 of lines, of two blocks of finished sums, of two rows of sums in order, and of a line before it is in order.
    fn scratch(&self) -> [usize; 4] {
        let ordered = Planes::scratch(self.task[1]);
        [self.chunks() * self.chunk(), 2 * SIDE * SIDE, ordered, Lines::scratch(self.lines()[1])]
    }

    /// Packs `[c_out, c_in, ky, kx]`: for each 16 outputs the tiles of all steps.
    fn weights(&self, weight: &[bf16]) -> Scratch {
        let (taps, steps) = (self.kernel[0] * self.kernel[1], self.steps());
        let mut packed = Scratch::new(self.c_out.div_ceil(SIDE) * 2 * steps * TILE);
        packed.as_mut_slice().par_chunks_exact_mut(2 * steps * TILE).enumerate().for_each(|(pair, to)| {
            let outputs = SIDE.min(self.c_out - pair * SIDE);
            let len = steps * TILE_TERMS;
            let mut ordered = vec![bf16::ZERO; outputs * len];
            for (output, ordered) in ordered.chunks_exact_mut(len).enumerate() {
                let from = &weight[(pair * SIDE + output) * self.c_in * taps..][..self.c_in * taps];
                for (channel, from) in from.chunks_exact(taps).enumerate() {
                    let first = channel / TILE_TERMS * taps * TILE_TERMS + channel % TILE_TERMS;
                    for (tap, &weight) in from.iter().enumerate() {
                        ordered[first + tap * TILE_TERMS] = weight;
                    }
                }
            }
            let ordered = Matrix::new(&ordered, outputs, len, len);
            // SAFETY: both kinds of `dots` have AVX-512.
            unsafe { pack::weights(ordered, 0, 1, 0, steps, to) };
        });
        packed
    }
}

/// The pixels of a block under each tap: two groups within lines.
#[derive(Clone, Copy)]
struct Taps<'a> {
    groups: [*const f32; 2],
    /// f32 from there to the tiles of each step.
    offsets: &'a [usize],
    stride: usize,
}

impl Inputs for Taps<'_> {
    #[inline(always)]
    fn row_stride(&self) -> usize {
        self.stride
    }

    #[inline(always)]
    fn tiles(&self, step: usize) -> [*const f32; 2] {
        let offset = self.offsets[step];
        self.groups.map(|group| group.wrapping_add(offset))
    }
}

/// What the tasks share.
struct Work<'a> {
    dots: Dots,
    sizes: Sizes,
    source: Source<'a, bf16>,
    /// By [`Sizes::weights`].
    weights: &'a [f32],
    /// For the channels of whole blocks.
    bias: &'a [f32],
    y: PerTask<bf16>,
    /// Null, `y` itself, or memory that does not overlap it.
    residual: PerTask<bf16>,
}

impl Work<'_> {
    /// # Safety
    /// The processor must have `dots`, and nobody else may write the pixels of this task.
    unsafe fn run(&self, task: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dots {
                #[cfg(target_os = "linux")]
                Dots::Amx => self.run_tiles(task, scratch),
                _ => self.run_dots(task, scratch),
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run_tiles(&self, task: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with(&TileBlock::new(), task, scratch) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn run_dots(&self, task: usize, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with(&DotBlock, task, scratch) }
    }

    #[inline(always)]
    unsafe fn run_with<B: Block>(&self, block: &B, task: usize, scratch: &mut [f32]) {
        let Sizes { c_out, stride, rows_out, cols_out, task: [rows, groups], kernel: [ky, kx], .. } =
            self.sizes;
        let [_, down, across] = self.sizes.tasks_each();
        let (image, y, x) =
            (task / across / down, task / across % down * rows, task % across * groups * GROUP);
        let rows = rows.min(rows_out - y);
        let groups = groups.min((cols_out - x).div_ceil(GROUP));

        let [lines_len, finished_len, ordered_len, _] = self.sizes.scratch();
        let (lines, scratch) = scratch.split_at_mut(lines_len);
        let (finished, scratch) = scratch.split_at_mut(finished_len);
        let (ordered, scratch) = scratch.split_at_mut(ordered_len);
        let [_, pixels] = self.sizes.lines();
        let chunk = self.sizes.chunk();
        let fill = Lines { source: self.source, image, channels: self.sizes.c_in, pixels };
        for (index, lines) in lines.chunks_exact_mut(chunk).enumerate() {
            let lines = &mut lines[..((rows - 1) * stride + ky) * pixels * TILE_ROW];
            // SAFETY: the caller's promise.
            unsafe { fill.write(index * TILE_TERMS, [y * stride, x * stride], lines, scratch) };
        }

        let offsets: Vec<usize> = (0..self.sizes.chunks())
            .flat_map(|c| (0..ky * kx).map(move |tap| c * chunk + (tap / kx * pixels + tap % kx) * TILE_ROW))
            .collect();
        let finished = finished.as_mut_ptr();
        let plane = rows_out * cols_out;
        let len = (groups * GROUP).min(cols_out - x);
        let mut pending = Planes::new(self.y.get(), self.residual.get(), plane, self.sizes.task[1], ordered);
        let mut flip = 0;
        for (pair, weights) in self.weights.chunks_exact(2 * offsets.len() * TILE).enumerate() {
            let b = [0, 1].map(|half| weights[half * offsets.len() * TILE..].as_ptr());
            let bias = &self.bias[pair * SIDE..][..SIDE];
            for row in 0..rows {
                let group = |index: usize| {
                    // The last block of a row may lack a group; it repeats the one before.
                    let column = index.min(groups - 1) * GROUP;
                    lines[(row * pixels + column) * stride * TILE_ROW..].as_ptr()
                };
                for index in (0..groups).step_by(2) {
                    flip = SIDE * SIDE - flip;
                    let to = finished.wrapping_add(flip);
                    let groups = [group(index), group(index + 1)];
                    let taps = Taps { groups, offsets: &offsets, stride: stride * TILE_ROW };
                    // SAFETY: the lines have a pixel under each tap of all groups, `b` as many tiles as there are
                    // offsets, and `pending` is of the other half of `finished`.
                    unsafe { block.run(taps, b, offsets.len(), std::ptr::null(), to, &mut pending) };
                    pending.block(to, index * GROUP);
                }
                let start = (image * c_out + pair * SIDE) * plane + (y + row) * cols_out + x;
                let channels = SIDE.min(c_out - pair * SIDE);
                // SAFETY: these pixels belong to this task alone.
                unsafe { pending.row(Row { start, len, channels, bias }) };
            }
        }
        // SAFETY: as above.
        unsafe { pending.flush() };
    }
}
