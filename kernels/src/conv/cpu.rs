//! Convolution on the CPU.

use burn::tensor::Tensor;
use burn_flex::Flex;

use super::Conv2d;
use super::image::{Source, Target};
use super::patches::{self, Patches};
use super::winograd::{self, Winograd};
use crate::cpu::lanes::Level;
use crate::cpu::memory::{Scratch, zeros};
use crate::cpu::workers::for_each;
use crate::cpu::{contiguous, is_f32, slice, tensor};
use crate::group_norm::Affine;

/// How to convolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Any kernel and stride.
    Patches,
    /// 3×3 and stride 1 only.
    Winograd,
}

impl Algorithm {
    /// The faster one.
    ///
    /// Winograd's transforms cost as much however many channels they serve on the other side, and those of the
    /// weights however few the pixels.
    pub(super) fn choose(conv: &Conv2d, x: &Tensor<4>) -> Self {
        let [_, c_in, rows, cols] = x.dims();
        let [_, _, ky, kx] = conv.weight.dims();
        let pixels = (rows * cols) << (2 * u32::from(conv.upsample));
        if [ky, kx] == [3, 3] && conv.stride == 1 && c_in >= 16 && pixels >= 512 {
            Self::Winograd
        } else {
            Self::Patches
        }
    }
}

/// Whether [`conv2d`] here can take these tensors.
pub(super) fn runs(
    conv: &Conv2d,
    x: &Tensor<4>,
    norm: Option<&Affine>,
    residual: Option<&Tensor<4>>,
) -> bool {
    is_f32(x)
        && is_f32(&conv.weight)
        && conv.bias.as_ref().is_none_or(is_f32)
        && norm.is_none_or(|affine| is_f32(&affine.scale) && is_f32(&affine.shift))
        && residual.is_none_or(is_f32)
}

/// [`conv2d`](super::conv2d) at `level` by `algorithm`.
pub(super) fn conv2d(
    level: Level,
    algorithm: Algorithm,
    conv: &Conv2d,
    x: Tensor<4>,
    norm: Option<&Affine>,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    let [batch, c_in, rows, cols] = x.dims();
    let [c_out, weight_c_in, ky, kx] = conv.weight.dims();
    assert_eq!(c_in, weight_c_in, "channels of the input and the weight");
    let [top, bottom, left, right] = conv.padding;
    let doubled = u32::from(conv.upsample);
    let steps = |size: usize, kernel: usize| {
        assert!(size >= kernel, "a kernel of {kernel} does not fit into a padded input of {size}");
        (size - kernel) / conv.stride + 1
    };
    let rows_out = steps((rows << doubled) + top + bottom, ky);
    let cols_out = steps((cols << doubled) + left + right, kx);
    let shape = [batch, c_out, rows_out, cols_out];

    let weight = contiguous(conv.weight.clone());
    let bias = conv.bias.clone().map(contiguous);
    let norm = norm.map(|affine| {
        assert_eq!(affine.scale.dims(), [batch, c_in], "a scale for each channel of each image");
        assert_eq!(affine.shift.dims(), [batch, c_in], "a shift for each channel of each image");
        [contiguous(affine.scale.clone()), contiguous(affine.shift.clone())]
    });
    let x = contiguous(x);
    let source = Source {
        data: slice(&x),
        rows,
        cols,
        norm: norm.as_ref().map(|[scale, shift]| (slice(scale), slice(shift))),
        upsample: conv.upsample,
        top,
        left,
    };
    let target = |data: *mut f32, residual: *const f32| Target {
        data,
        residual,
        bias: bias.as_ref().map(slice),
        channels: c_out,
        rows: rows_out,
        cols: cols_out,
    };
    let products = shape.iter().product::<usize>() * c_in * ky * kx;
    let convolve = |target: Target| match algorithm {
        Algorithm::Winograd => {
            assert_eq!(([ky, kx], conv.stride), ([3, 3], 1), "Winograd's kernel and stride");
            let sizes = Winograd::new(level, [batch, c_in, c_out, rows_out, cols_out]);
            let weights = sizes.weights(level, slice(&weight));
            let weights = weights.as_slice();
            for_each(
                sizes.blocks(),
                products,
                || Scratch::new(sizes.scratch()),
                |scratch, index| {
                    let scratch = scratch.as_mut_slice();
                    level.run(winograd::Block { sizes, index, source, target, weights, scratch });
                },
            );
        }
        Algorithm::Patches => {
            let lanes = level.lanes();
            let sizes =
                Patches { batch, c_in, c_out, kernel: [ky, kx], stride: conv.stride, rows_out, cols_out };
            let weights = sizes.weights(slice(&weight));
            let weights = weights.as_slice();
            for_each(
                sizes.blocks(lanes),
                products,
                || Scratch::new(sizes.scratch(lanes)),
                |scratch, index| {
                    let scratch = scratch.as_mut_slice();
                    level.run(patches::Block { sizes, index, source, target, weights, scratch });
                },
            );
        }
    };
    let Some(residual) = residual else {
        let mut y = zeros(shape.iter().product());
        convolve(target(y.as_mut_ptr(), std::ptr::null()));
        return tensor(y, shape);
    };
    assert_eq!(residual.dims(), shape, "a residual of the result's shape");
    let mut residual = contiguous(residual);
    if let Some(sum) = residual.try_storage_mut::<f32>() {
        let sum = sum.as_mut_ptr();
        convolve(target(sum, sum));
        return Tensor::from_primitive::<Flex>(residual);
    }
    let mut y = zeros(shape.iter().product());
    convolve(target(y.as_mut_ptr(), slice(&residual).as_ptr()));
    tensor(y, shape)
}
