//! Convolution on the CPU: bf16 in the processor's own products where it has fast ones, everything else in f32.

use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

#[cfg(target_arch = "x86_64")]
use super::half;
use super::image::{Source, Target};
use super::patches::{self, Patches};
use super::winograd::{self, Winograd};
use super::{ConvOps, Geometry, reference_conv2d};
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx::Dots;
use crate::cpu::lanes::Level;
use crate::cpu::memory::{Scratch, zeros};
use crate::cpu::workers::for_each;
use crate::cpu::{contiguous, dims, round_to, slice, tensor, wide};
use crate::optional::Optional;

impl ConvOps for Flex {
    fn conv2d(
        geometry: Geometry,
        x: FlexTensor,
        weight: FlexTensor,
        bias: Optional<Self>,
        scale: Optional<Self>,
        shift: Optional<Self>,
        residual: Optional<Self>,
    ) -> FlexTensor {
        match x.dtype() {
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                let [bias, scale, shift] =
                    [bias, scale, shift].map(|optional| optional.into_option().map(wide));
                let (norm, residual) = (scale.zip(shift), residual.into_option());
                let inputs = Inputs { x, weight, bias, norm, residual };
                #[cfg(target_arch = "x86_64")]
                if let dots = Dots::detect()
                    && dots != Dots::Widen
                    && inputs.are_bf16()
                {
                    return half::conv2d(dots, geometry, inputs);
                }
                let algorithm = Algorithm::choose(&geometry, dims(&inputs.x), dims(&inputs.weight));
                round_to(conv2d(Level::detect(), algorithm, geometry, inputs.widen()), dtype)
            }
            _ => reference_conv2d::<Self>(geometry, x, weight, bias, scale, shift, residual),
        }
    }
}

/// The tensors of a convolution. The bias and the norm's scale and shift are f32.
pub(super) struct Inputs {
    pub x: FlexTensor,
    pub weight: FlexTensor,
    pub bias: Option<FlexTensor>,
    pub norm: Option<(FlexTensor, FlexTensor)>,
    pub residual: Option<FlexTensor>,
}

impl Inputs {
    /// Whether the image, the weight and the residual are bf16.
    #[cfg(target_arch = "x86_64")]
    fn are_bf16(&self) -> bool {
        let all = [Some(&self.x), Some(&self.weight), self.residual.as_ref()];
        all.into_iter().flatten().all(|tensor| tensor.dtype() == DType::BF16)
    }

    /// All in f32.
    fn widen(self) -> Self {
        let Self { x, weight, bias, norm, residual } = self;
        Self { x: wide(x), weight: wide(weight), bias, norm, residual: residual.map(wide) }
    }
}

/// The algorithms for f32.
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
    /// The cost of Winograd's transforms is independent of the number of channels on the other side, and for the
    /// weights also of the number of pixels; so it pays off only for large sizes.
    pub(super) fn choose(geometry: &Geometry, x: [usize; 4], weight: [usize; 4]) -> Self {
        let ([_, c_in, rows, cols], [_, _, ky, kx]) = (x, weight);
        let pixels = (rows * cols) << (2 * u32::from(geometry.upsample));
        if [ky, kx] == [3, 3] && geometry.stride == 1 && c_in >= 16 && pixels >= 512 {
            Self::Winograd
        } else {
            Self::Patches
        }
    }
}

/// [`conv2d`](super::conv2d()) of f32 at `level` by `algorithm`.
pub(super) fn conv2d(level: Level, algorithm: Algorithm, geometry: Geometry, inputs: Inputs) -> FlexTensor {
    let Inputs { x, weight, bias, norm, residual } = inputs;
    let Geometry { stride, padding: [top, _, left, _], upsample } = geometry;
    let ([batch, c_in, rows, cols], [.., ky, kx]) = (dims(&x), dims::<4>(&weight));
    let shape @ [_, c_out, rows_out, cols_out] = geometry.result(dims(&x), dims(&weight));

    let weight = contiguous(weight);
    let bias = bias.map(contiguous);
    let norm = norm.map(|(scale, shift)| {
        assert_eq!(dims(&scale), [batch, c_in], "a scale for each channel of each image");
        assert_eq!(dims(&shift), [batch, c_in], "a shift for each channel of each image");
        [contiguous(scale), contiguous(shift)]
    });
    let x = contiguous(x);
    let source = Source {
        data: slice(&x),
        rows,
        cols,
        norm: norm.as_ref().map(|[scale, shift]| (slice(scale), slice(shift))),
        upsample,
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
            assert_eq!(([ky, kx], stride), ([3, 3], 1), "Winograd's kernel and stride");
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
            let sizes = Patches { batch, c_in, c_out, kernel: [ky, kx], stride, rows_out, cols_out };
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
    assert_eq!(dims(&residual), shape, "a residual of the result's shape");
    let mut residual = contiguous(residual);
    if let Some(sum) = residual.try_storage_mut::<f32>() {
        let sum = sum.as_mut_ptr();
        convolve(target(sum, sum));
        return residual;
    }
    let mut y = zeros(shape.iter().product());
    convolve(target(y.as_mut_ptr(), slice(&residual).as_ptr()));
    tensor(y, shape)
}
