//! The pixels under the kernel, with 32 channels of a pixel side by side.

use std::arch::x86_64::*;

use burn::tensor::bf16;

use super::super::image::{Source, Span};
use super::GROUP;
use crate::cpu::blocks::{TILE, TILE_ROW, TILE_TERMS, pack};
use crate::cpu::element::Element;
use crate::cpu::lanes::{Lanes as Vector, Level, Vectorized};
use crate::cpu::math::silu_by_reciprocal;

/// bf16 of a line of the cache.
const CACHE_LINE: usize = 32;

/// Lines of one image.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub source: Source<'a, bf16>,
    pub image: usize,
    pub channels: usize,
    /// Pixels of a line.
    pub pixels: usize,
}

impl Lines<'_> {
    /// f32 of scratch memory for lines of `pixels`.
    pub(super) fn scratch(pixels: usize) -> usize {
        TILE_TERMS * pixels.div_ceil(2)
    }

    /// Writes 32 channels from `first` on, zeros beyond the last channel, of the pixels from padded row `y` and column
    /// `x` on, as many lines as `to` has room for.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW and VL.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn write(&self, first: usize, [y, x]: [usize; 2], to: &mut [f32], scratch: &mut [f32]) {
        let line = self.pixels * TILE_ROW;
        let span = self.source.span(x, self.pixels);
        for r in 0..to.len() / line {
            let row = self.source.row(y + r);
            if r > 0 && row.is_some() && row == self.source.row(y + r - 1) {
                to.copy_within((r - 1) * line..r * line, r * line);
                continue;
            }
            let to = &mut to[r * line..][..line];
            match row {
                // SAFETY: the caller's promise.
                Some(row) if span.count > 0 => unsafe { self.write_line(first, row, &span, to, scratch) },
                _ => to.fill(0.0),
            }
        }
    }

    /// Writes the line of row `row` of the image.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn write_line(&self, first: usize, row: usize, span: &Span, to: &mut [f32], scratch: &mut [f32]) {
        let Self { source, image, channels, .. } = *self;
        let columns = span.end - span.start;
        let scratch: &mut [bf16] = bytemuck::cast_slice_mut(scratch);
        let mut rows: [&[bf16]; TILE_TERMS] = [&[]; TILE_TERMS];
        for ((c, slot), to) in (first..channels).zip(&mut rows).zip(scratch.chunks_exact_mut(columns)) {
            let plane = image * channels + c;
            let start = (plane * source.rows + row) * source.cols + span.start;
            let from = &source.data[start..start + columns];
            // The next line of this channel is far from the next channel's: the processor does not expect it.
            for ahead in (0..columns).step_by(CACHE_LINE) {
                let at = source.data.as_ptr().wrapping_add(start + source.cols + ahead);
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
            }
            match source.norm {
                Some((scale, shift)) => {
                    let (scale, shift) = (scale[plane], shift[plane]);
                    Level::detect().run(NormAct { from, to, scale, shift });
                }
                // Planes often lie at the same places of the cache, so each line of it is read once.
                None => to.copy_from_slice(from),
            }
            *slot = to;
        }
        to[..span.before * TILE_ROW].fill(0.0);
        to[(span.before + span.count) * TILE_ROW..].fill(0.0);
        let to = &mut to[span.before * TILE_ROW..][..span.count * TILE_ROW];
        for at in (0..columns).step_by(GROUP) {
            let len = GROUP.min(columns - at);
            if !source.upsample && len == GROUP {
                // SAFETY: the caller's promise.
                unsafe {
                    transpose(&rows, at, len, (&mut to[at * TILE_ROW..][..TILE]).try_into().expect("a tile"))
                };
                continue;
            }
            let mut pixels = [0.0; TILE];
            // SAFETY: the caller's promise.
            unsafe { transpose(&rows, at, len, &mut pixels) };
            for (column, pixel) in (span.start + at..).zip(pixels.chunks_exact(TILE_ROW)).take(len) {
                // Where the column comes first, and how often.
                let (place, times) = if source.upsample { (2 * column, 2) } else { (column, 1) };
                for place in place.max(span.first)..(place + times).min(span.first + span.count) {
                    to[(place - span.first) * TILE_ROW..][..TILE_ROW].copy_from_slice(pixel);
                }
            }
        }
    }
}

/// Writes `len` pixels of 32 channels from pixel `at` on, and zeros for further ones; channels without elements are
/// zero.
///
/// # Safety
/// The processor must have AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn transpose(channels: &[&[bf16]; TILE_TERMS], at: usize, len: usize, to: &mut [f32; TILE]) {
    let mask = (!0u16) >> (GROUP - len);
    let mut pairs = [0.0f32; TILE];
    for (pair, to) in channels.chunks_exact(2).zip(pairs.chunks_exact_mut(TILE_ROW)) {
        let [low, high] = [pair[0], pair[1]].map(|channel| {
            if channel.is_empty() {
                return _mm512_setzero_si512();
            }
            let from = &channel[at..at + len];
            // SAFETY: the mask leaves out elements beyond `from`.
            unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.as_ptr().cast())) }
        });
        let pair = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
        // SAFETY: `to` has 64 bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pair) };
    }
    let rows = std::array::from_fn(|row| pairs[row * TILE_ROW..].as_ptr().cast());
    // SAFETY: the caller's promise; `pairs` has 16 rows of 64 bytes, and `to` a tile.
    unsafe { pack::transpose(rows, to.as_mut_ptr(), TILE_ROW) };
}

/// `silu(from · scale + shift)`, rounded.
struct NormAct<'a> {
    from: &'a [bf16],
    to: &'a mut [bf16],
    scale: f32,
    shift: f32,
}

impl Vectorized for NormAct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (scale, shift) = (V::splat(self.scale), V::splat(self.shift));
        let len = self.from.len();
        for at in (0..len).step_by(V::N) {
            // The last vector overlaps the one before.
            let at = at.min(len.saturating_sub(V::N));
            let x = bf16::load_or::<V>(&self.from[at..], 0.0);
            let y = silu_by_reciprocal(x.mul_add(scale, shift));
            bf16::store_some(y, &mut self.to[at..]);
        }
    }
}
