//! Convolutions by cuDNN, of images whose channels lie together: several times as fast as of channels one by one.
//!
//! Shapes stay those of `[b, c, y, x]`; only strides differ. An image that comes in another layout is copied once, and
//! all others that a decoder makes of it follow.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;

use super::super::Geometry;
use crate::cube::{addresses, buffer, cubes, dims, elem, empty_pixels, is_pixels, wide, width};
use crate::group_norm::GroupNormOps;
use crate::optional::Optional;
use crate::plain::Plain;
use crate::vendor::cudnn;

/// cuDNN's fast engines take multiples of so many channels; others are filled up with zeros.
const CHANNELS: usize = 8;

/// A convolution that cuDNN has a plan for.
pub(super) struct Convolution {
    geometry: Geometry,
    by_cudnn: cudnn::Convolution,
    /// Output channels that are asked for.
    c_out: usize,
}

impl Convolution {
    /// None if the backend is to compute it.
    pub(super) fn new(
        geometry: &Geometry,
        x: &CubeTensor,
        weight: &CubeTensor,
        residual: &Optional<CubeBackend>,
    ) -> Option<Self> {
        let ([b, c_in, rows, cols], [c_out, _, ky, kx]) = (dims(x), dims::<4>(weight));
        let is_half = matches!(x.dtype, DType::F16 | DType::BF16) && weight.dtype == x.dtype;
        let padded = c_out.next_multiple_of(CHANNELS);
        if !is_half || (padded != c_out && matches!(residual, Optional::Present(_))) {
            return None;
        }
        let doubled = u32::from(geometry.upsample);
        let of_x = [b, c_in.next_multiple_of(CHANNELS), rows << doubled, cols << doubled];
        let of_weight = [padded, of_x[1], ky, kx];
        let by_cudnn = cudnn::Convolution::new(x, of_x, of_weight, geometry.stride, geometry.padding)?;
        Some(Self { geometry: *geometry, by_cudnn, c_out })
    }

    /// See [`conv2d`](crate::conv2d()).
    pub(super) fn run(
        self,
        x: CubeTensor,
        weight: CubeTensor,
        bias: Option<CubeTensor>,
        norm: Option<(CubeTensor, CubeTensor)>,
        residual: Option<CubeTensor>,
    ) -> CubeTensor {
        let Self { geometry, by_cudnn, c_out } = self;
        let of_y = geometry.result(dims(&x), dims(&weight));
        let mut x = pixels(x);
        if let Some((scale, shift)) = norm {
            x = <CubeBackend as GroupNormOps>::norm_act(x, scale, shift, true);
        }
        let x = pixels(padded(x, [0, 1, 0, 0]));
        let x = if geometry.upsample { doubled(x) } else { x };
        let weight = pixels(padded(weight, [1, 1, 0, 0]));
        let bias = bias.map(|bias| into_contiguous(wide(padded(bias, [1]))));
        let y = by_cudnn.run(&x, &weight);
        let y = match (bias, residual.map(pixels)) {
            (None, None) => y,
            (bias, residual) => {
                if let Some(residual) = &residual {
                    assert_eq!(dims(residual), of_y, "a residual of the result's shape");
                }
                added(y, bias, residual)
            }
        };
        let [_, channels, ..] = dims::<4>(&y);
        if channels == c_out { y } else { Plain::<CubeBackend>::new(y).narrow(1, 0, c_out).into_inner() }
    }
}

/// `x` with its channels together, at a multiple of 16 bytes. Tensors in that order are not copied.
fn pixels(x: CubeTensor) -> CubeTensor {
    let aligned = x.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    let [_, c, rows, cols] = dims(&x);
    let is_both = x.is_contiguous() && (c == 1 || rows * cols == 1);
    if aligned && is_pixels(&x) {
        return x;
    }
    let by_pixel = permute(x, &[0, 2, 3, 1]);
    let together = match aligned && is_both {
        true => by_pixel,
        // Also copies what is in order, but not aligned.
        false if by_pixel.is_contiguous() => (Plain::<CubeBackend>::new(by_pixel) * 1.0).into_inner(),
        false => into_contiguous(by_pixel),
    };
    permute(together, &[0, 3, 1, 2])
}

/// `x` with zeros behind its elements, in the dimensions that are `wanted`, up to a multiple of [`CHANNELS`].
fn padded<const D: usize>(x: CubeTensor, wanted: [usize; D]) -> CubeTensor {
    let shape: [usize; D] = dims(&x);
    let missing = |dim: usize| wanted[dim] * (shape[dim].next_multiple_of(CHANNELS) - shape[dim]);
    if (0..D).all(|dim| missing(dim) == 0) {
        return x;
    }
    let padding: Vec<_> = (0..D).map(|dim| (0, missing(dim))).collect();
    Plain::<CubeBackend>::new(x).pad(&padding).into_inner()
}

/// `x` with rows and columns doubled.
fn doubled(x: CubeTensor) -> CubeTensor {
    let [b, c, rows, cols] = dims(&x);
    let y = empty_pixels(&x, [b, c, 2 * rows, 2 * cols], x.dtype);
    let width = width([&x], [c]);
    let vectors = y.meta.num_elements() / width;
    let (count, dim) = cubes(&x.client, vectors);
    // SAFETY: units below the number of vectors write one vector of the result, and read that of the pixel at half its
    // row and column.
    unsafe {
        kernel::doubled::launch_unchecked(
            &x.client,
            count,
            dim,
            addresses([&y]),
            width,
            buffer(&x),
            buffer(&y),
            vectors,
            c / width,
            cols,
            elem(x.dtype),
        );
    }
    y
}

/// `y + bias + residual`, in the memory of `y`, which nobody else holds.
fn added(y: CubeTensor, bias: Option<CubeTensor>, residual: Option<CubeTensor>) -> CubeTensor {
    let [_, c, ..] = dims::<4>(&y);
    let width = width([&y], [c]);
    let vectors = y.meta.num_elements() / width;
    let (count, dim) = cubes(&y.client, vectors);
    let of_residual = residual.as_ref().map_or(y.dtype, |residual| residual.dtype);
    let residual = residual.as_ref().map(buffer);
    let bias = bias.as_ref().map(buffer);
    // SAFETY: units below the number of vectors read and write one vector of `y`, and read that of the residual, which
    // lies alike, and the numbers of its channels.
    unsafe {
        kernel::added::launch_unchecked(
            &y.client,
            count,
            dim,
            addresses([&y]),
            width,
            buffer(&y),
            bias.into(),
            residual.into(),
            vectors,
            c / width,
            [elem(y.dtype), elem(of_residual)],
        );
    }
    y
}

/// The kernels. CubeCL's prelude has names that Burn has, too.
mod kernel {
    use cubecl::prelude::*;

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn doubled<F: Float, N: Size>(
        x: &[Vector<F, N>],
        y: &mut [Vector<F, N>],
        vectors: usize,
        vectors_of_pixel: usize,
        cols: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let at = ABSOLUTE_POS % vectors_of_pixel;
        let pixel = ABSOLUTE_POS / vectors_of_pixel;
        let col = pixel % (2 * cols) / 2;
        // Images have even numbers of rows, so that rows are halved across them, too.
        let row = pixel / (2 * cols) / 2;
        y[ABSOLUTE_POS] = x[(row * cols + col) * vectors_of_pixel + at];
    }

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn added<F: Float, G: Float, N: Size>(
        y: &mut [Vector<F, N>],
        bias: ComptimeOption<&[f32]>,
        residual: ComptimeOption<&[Vector<G, N>]>,
        vectors: usize,
        vectors_of_pixel: usize,
        #[define(F, G)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let mut sum = Vector::<f32, N>::cast_from(y[ABSOLUTE_POS]);
        #[comptime]
        if let ComptimeOption::Some(bias) = bias {
            let first = ABSOLUTE_POS % vectors_of_pixel * N::value();
            let mut summand = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for e in 0..N::value() {
                summand.insert(e, bias[first + e]);
            }
            sum += summand;
        }
        #[comptime]
        if let ComptimeOption::Some(residual) = residual {
            sum += Vector::<f32, N>::cast_from(residual[ABSOLUTE_POS]);
        }
        y[ABSOLUTE_POS] = Vector::cast_from(sum);
    }
}
