//! Two-dimensional convolution with what surrounds it in an autoencoder folded in.

use burn::tensor::{Tensor, module, ops::ConvOptions};

use crate::cpu::lanes::Level;
use crate::group_norm::{Affine, reference_norm_act};

mod cpu;
mod gemm;
mod image;
mod patches;
#[cfg(test)]
mod tests;
mod transforms;
mod winograd;

/// A convolution and what is folded into it: `conv(upsample(silu(affine(x)))) + residual`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[c_out, c_in, ky, kx]`
    pub weight: Tensor<4>,
    /// `[c_out]`
    pub bias: Option<Tensor<1>>,
    /// Step of the kernel in both directions.
    pub stride: usize,
    /// Zeros around the input: top, bottom, left, right. They are zeros after `affine` and SiLU.
    pub padding: [usize; 4],
    /// Doubles rows and columns (nearest) before convolving.
    pub upsample: bool,
}

/// Applies `conv` to `x`.
///
/// `norm` is applied to `x` first, followed by SiLU; `residual` is added to the result, and its memory is reused
/// where nobody else holds it.
///
/// # Shapes
/// `x`: `[b, c_in, y, x]`; result and `residual`: `[b, c_out, y', x']`.
pub fn conv2d(conv: &Conv2d, x: Tensor<4>, norm: Option<&Affine>, residual: Option<Tensor<4>>) -> Tensor<4> {
    if cpu::runs(conv, &x, norm, residual.as_ref()) {
        return cpu::conv2d(Level::detect(), cpu::Algorithm::choose(conv, &x), conv, x, norm, residual);
    }
    reference_conv2d(conv, x, norm, residual)
}

/// [`conv2d`] in plain tensor operations.
pub fn reference_conv2d(
    conv: &Conv2d,
    x: Tensor<4>,
    norm: Option<&Affine>,
    residual: Option<Tensor<4>>,
) -> Tensor<4> {
    let mut x = match norm {
        Some(affine) => reference_norm_act(x, affine, true),
        None => x,
    };
    if conv.upsample {
        let [b, c, rows, cols] = x.dims();
        x = x.reshape([b, c, rows, 1, cols, 1]).repeat_dim(3, 2).repeat_dim(5, 2).reshape([
            b,
            c,
            rows * 2,
            cols * 2,
        ]);
    }
    let [top, bottom, left, right] = conv.padding;
    if conv.padding != [0; 4] {
        x = x.pad((left, right, top, bottom), 0.0);
    }
    let options = ConvOptions::new([conv.stride; 2], [0, 0], [1, 1], 1);
    let y = module::conv2d(x, conv.weight.clone(), conv.bias.clone(), options);
    match residual {
        Some(residual) => residual + y,
        None => y,
    }
}
