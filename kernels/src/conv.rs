//! Two-dimensional convolution, fused with the surrounding operations of an autoencoder.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod half;
mod image;
mod patches;
#[cfg(test)]
mod tests;
mod transforms;
mod winograd;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, ops::ConvOptions};

use crate::group_norm::{Affine, reference_norm_act};
use crate::optional::Optional;
use crate::plain::{Plain, dims};
use crate::profile;

/// A convolution with its fused operations: `conv(upsample(silu(affine(x)))) + residual`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, ky, kx]`
    pub weight: Tensor<4>,
    /// `[c_out]`
    pub bias: Option<Tensor<1>>,
    /// The step of the kernel in both directions.
    pub stride: usize,
    /// The width of the zero padding at the top, bottom, left and right. It is added after `affine` and SiLU.
    pub padding: [usize; 4],
    /// Whether rows and columns are doubled (nearest) before the convolution.
    pub upsample: bool,
}

/// The parameters of a [`Conv2d`] that are not tensors.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// See [`Conv2d::stride`].
    pub stride: usize,
    /// See [`Conv2d::padding`].
    pub padding: [usize; 4],
    /// See [`Conv2d::upsample`].
    pub upsample: bool,
}

impl Geometry {
    /// The shape of the result, for an image of shape `x` and a weight of shape `weight`.
    ///
    /// # Panics
    /// If channels differ, or the kernel does not fit into the padded image.
    fn result(&self, x: [usize; 4], weight: [usize; 4]) -> [usize; 4] {
        let ([b, c_in, rows, cols], [c_out, weight_c_in, ky, kx]) = (x, weight);
        assert_eq!(c_in, weight_c_in, "channels of the input and the weight");
        let [top, bottom, left, right] = self.padding;
        let doubled = u32::from(self.upsample);
        let steps = |size: usize, kernel: usize| {
            assert!(size >= kernel, "a kernel of {kernel} does not fit into a padded input of {size}");
            (size - kernel) / self.stride + 1
        };
        let rows = steps((rows << doubled) + top + bottom, ky);
        [b, c_out, rows, steps((cols << doubled) + left + right, kx)]
    }
}

/// Applies `conv` to `x`.
///
/// `norm` is applied to `x` first, followed by SiLU. `residual` is added to the result, and its memory is reused if it
/// is not shared.
///
/// Sums are f32 for all types, and the result is rounded once. The image after norm and SiLU may be rounded to the type
/// of `x`: it is where bf16 is multiplied in hardware.
///
/// # Shapes
/// `x`: `[b, c_in, y, x]`; result and `residual`: `[b, c_out, y', x']`.
pub fn conv2d(conv: &Conv2d, x: Tensor<4>, norm: Option<&Affine>, residual: Option<Tensor<4>>) -> Tensor<4> {
    let Conv2d { weight, bias, stride, padding, upsample } = conv.clone();
    let geometry = Geometry { stride, padding, upsample };
    let _call = profile::operation("convolution", &x, || {
        let ([_, c_in, rows, cols], [_, _, ky, kx]) = (x.dims(), weight.dims());
        let [b, c_out, y_rows, y_cols] = geometry.result(x.dims(), weight.dims());
        let pixels = (b * y_rows * y_cols) as f64;
        let flops = 2.0 * pixels * c_out as f64 * (c_in * ky * kx) as f64;
        (vec![b, c_in, c_out, rows, cols, ky], flops)
    });
    let y = Dispatch::conv2d(
        geometry,
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into(),
        norm.map(|affine| affine.scale.clone()).into(),
        norm.map(|affine| affine.shift.clone()).into(),
        residual.into(),
    );
    Tensor::from_dispatch(y)
}

/// Convolution on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait ConvOps: Backend {
    /// See [`conv2d()`]. `scale` and `shift` are those of `norm`: both are present or neither.
    fn conv2d(
        geometry: Geometry,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        #[extension_type] scale: Optional<Self>,
        #[extension_type] shift: Optional<Self>,
        #[extension_type] residual: Optional<Self>,
    ) -> FloatTensor<Self> {
        reference_conv2d::<Self>(geometry, x, weight, bias, scale, shift, residual)
    }
}

/// [`conv2d()`] on any backend.
///
/// 16-bit tensors are multiplied without widening, as in [`linear`](crate::linear()).
pub(crate) fn reference_conv2d<B: Backend>(
    geometry: Geometry,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
    scale: Optional<B>,
    shift: Optional<B>,
    residual: Optional<B>,
) -> FloatTensor<B> {
    let norm_act = |x, scale, shift| reference_norm_act::<B>(x, scale, shift, true);
    let product = |x, weight, stride: usize| {
        B::conv2d(x, weight, None, ConvOptions::new([stride; 2], [0, 0], [1, 1], 1))
    };
    compose::<B>(geometry, x, weight, bias, scale, shift, residual, norm_act, product)
}

/// [`conv2d()`] of parts: `norm_act` applies the norm with SiLU, and `product` convolves with a stride and without
/// padding. The latter's result may be wider than its input.
fn compose<B: Backend>(
    geometry: Geometry,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Optional<B>,
    scale: Optional<B>,
    shift: Optional<B>,
    residual: Optional<B>,
    norm_act: impl FnOnce(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
    product: impl FnOnce(FloatTensor<B>, FloatTensor<B>, usize) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let shape @ [_, c_out, ..] = geometry.result(dims(&x.shape()), dims(&weight.shape()));
    let x = match (scale.into_option(), shift.into_option()) {
        (Some(scale), Some(shift)) => norm_act(x, scale, shift),
        _ => x,
    };
    let mut x = Plain::<B>::new(x);
    if shape.contains(&0) {
        return x.full_like(shape, 0.0).into_inner();
    }
    if geometry.upsample {
        let [b, c, rows, cols] = x.dims();
        x = x.reshape([b, c, rows, 1, cols, 1]).repeat(3, 2).repeat(5, 2);
        x = x.reshape([b, c, 2 * rows, 2 * cols]);
    }
    let [top, bottom, left, right] = geometry.padding;
    if geometry.padding != [0; 4] {
        x = x.pad(&[(0, 0), (0, 0), (top, bottom), (left, right)]);
    }
    let mut y = Plain::<B>::wide(product(x.into_inner(), weight, geometry.stride));
    if let Some(bias) = bias.into_option() {
        y = y + Plain::wide(bias).reshape([1, c_out, 1, 1]);
    }
    if let Some(residual) = residual.into_option() {
        let residual = Plain::wide(residual);
        assert_eq!(residual.dims(), shape, "a residual of the result's shape");
        y = y + residual;
    }
    y.round_to(dtype)
}
