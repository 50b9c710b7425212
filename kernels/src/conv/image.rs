//! The images that a convolution reads and writes, with the operations around it applied on the fly.

use crate::cpu::{lanes::Lanes, silu::norm_act};

/// The input under the sliding kernel: normalised, activated, upsampled and padded, without a copy in memory.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, E = f32> {
    /// `[b, c, rows, cols]`
    pub data: &'a [E],
    pub rows: usize,
    pub cols: usize,
    /// Scale and shift, each `[b, c]`; SiLU follows them.
    pub norm: Option<(&'a [f32], &'a [f32])>,
    pub upsample: bool,
    /// Rows of zeros above the image.
    pub top: usize,
    /// Columns of zeros left of the image.
    pub left: usize,
}

/// A part of a row under the kernel.
pub(super) struct Span {
    /// Pixels of padding before the image.
    pub before: usize,
    /// The first pixel of the upsampled image.
    pub first: usize,
    /// The number of pixels of the upsampled image; padding follows.
    pub count: usize,
    /// The first column of `data`.
    pub start: usize,
    /// The column of `data` after the last, `start` if there is none.
    pub end: usize,
}

impl<E> Source<'_, E> {
    /// The row of `data` for padded row `y`, or `None` in the padding.
    #[inline(always)]
    pub(super) fn row(&self, y: usize) -> Option<usize> {
        let row = y.checked_sub(self.top)? >> u32::from(self.upsample);
        (row < self.rows).then_some(row)
    }

    /// `len` pixels of a row from `x` on.
    #[inline(always)]
    pub(super) fn span(&self, x: usize, len: usize) -> Span {
        let doubled = u32::from(self.upsample);
        let before = self.left.saturating_sub(x).min(len);
        let first = (x + before).saturating_sub(self.left);
        let count = (self.cols << doubled).saturating_sub(first).min(len - before);
        let start = first >> doubled;
        let end = if count == 0 { start } else { ((first + count - 1) >> doubled) + 1 };
        Span { before, first, count, start, end }
    }
}

impl Source<'_> {
    /// Writes the pixels from `x` on of a row (of `data`, by [`row`](Self::row)) of plane `b · channels + c`.
    #[inline(always)]
    pub(super) fn read<V: Lanes>(&self, plane: usize, row: Option<usize>, x: usize, to: &mut [f32]) {
        let Some(row) = row else { return to.fill(0.0) };
        let Span { before, first, count, start, end } = self.span(x, to.len());
        to[..before].fill(0.0);
        to[before + count..].fill(0.0);
        if count == 0 {
            return;
        }
        let to = &mut to[before..before + count];
        let from = &self.data[(plane * self.rows + row) * self.cols..][start..end];
        let part = &mut to[..from.len()];
        match self.norm {
            // SAFETY: both slices have `part.len()` elements, and one is borrowed mutably.
            Some((scale, shift)) => unsafe {
                norm_act::<V>(from.as_ptr(), part.as_mut_ptr(), part.len(), scale[plane], shift[plane], true);
            },
            None => part.copy_from_slice(from),
        }
        if self.upsample {
            // Pixel i is read from an index of at most i, so going backwards overwrites no pixel before it is read.
            for i in (1..count).rev() {
                to[i] = to[((first + i) >> 1) - start];
            }
        }
    }
}

/// The output, which several threads write in disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// `[b, c, rows, cols]`
    pub data: *mut f32,
    /// The tensor that is added to the result: null, `data` itself, or memory that does not overlap it.
    pub residual: *const f32,
    pub bias: Option<&'a [f32]>,
    pub channels: usize,
    pub rows: usize,
    pub cols: usize,
}

// SAFETY: the pointers refer to memory that outlives the threads, and the callers of `write` keep the parts disjoint.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

impl Target<'_> {
    /// Writes `value` plus bias and residual at `(y, x…)`, without the lanes beyond the image.
    ///
    /// # Safety
    /// No other thread may write there.
    #[inline(always)]
    pub(super) unsafe fn write<V: Lanes>(&self, plane: usize, y: usize, x: usize, value: V) {
        if y >= self.rows || x >= self.cols {
            return;
        }
        let bias = V::splat(self.bias.map_or(0.0, |bias| bias[plane % self.channels]));
        let at = (plane * self.rows + y) * self.cols + x;
        let len = V::N.min(self.cols - x);
        // SAFETY: `at + len` is within row `y` of the plane.
        unsafe {
            if len == V::N {
                let mut sum = value + bias;
                if !self.residual.is_null() {
                    sum = sum + V::load(self.residual.add(at));
                }
                sum.store(self.data.add(at));
            } else {
                let mut rest = [0.0f32; 16];
                (value + bias).store(rest.as_mut_ptr());
                for i in 0..len {
                    let residual = if self.residual.is_null() { 0.0 } else { *self.residual.add(at + i) };
                    *self.data.add(at + i) = rest[i] + residual;
                }
            }
        }
    }
}
