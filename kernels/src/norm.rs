//! Normalisation over the features of a token.
//!
//! Half precision is normalised in f32 and rounded once, as PyTorch does: the square of a number above 256 is beyond
//! the range of f16.

mod cpu;
#[cfg(test)]
mod tests;

use burn::tensor::{DType, Tensor};

use crate::cpu::{is_f32, lanes::Level};

/// Layer norm over the last dimension, with an optional scale and shift.
///
/// # Shapes
/// `x`: `[b, n, c]`; `weight`, `bias`: `[c]`.
pub fn layer_norm(x: Tensor<3>, weight: Option<Tensor<1>>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<3> {
    if is_f32(&x) && [&weight, &bias].into_iter().flatten().all(is_f32) {
        return cpu::layer_norm(Level::detect(), x, weight, bias, eps);
    }
    if let Some(half) = half(&x) {
        let [weight, bias] = [weight, bias].map(|values| values.map(|values| values.cast(DType::F32)));
        return layer_norm(x.cast(DType::F32), weight, bias, eps).cast(half);
    }
    reference_layer_norm(x, weight, bias, eps)
}

/// Layer norm without parameters, then `· (1 + scale) + shift`: the adaptive layer norm of DiT.
///
/// # Shapes
/// `x`: `[b, n, c]`; `shift`, `scale`: `[b, 1, c]`.
///
/// # Source
/// DiT (Peebles & Xie 2022) §3.2; diffusers' `AdaLayerNorm*`.
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<3>, scale: Tensor<3>, eps: f64) -> Tensor<3> {
    if [&x, &shift, &scale].into_iter().all(is_f32) {
        return cpu::layer_norm_modulate(Level::detect(), x, shift, scale, eps);
    }
    if let Some(half) = half(&x) {
        let [x, shift, scale] = [x, shift, scale].map(|values| values.cast(DType::F32));
        return layer_norm_modulate(x, shift, scale, eps).cast(half);
    }
    reference_layer_norm_modulate(x, shift, scale, eps)
}

/// Root-mean-square norm over the last dimension.
///
/// # Shapes
/// `x`: `[…, c]`; `weight`: `[c]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Option<Tensor<1>>, eps: f64) -> Tensor<D> {
    if is_f32(&x) && weight.as_ref().is_none_or(is_f32) {
        return cpu::rms_norm(Level::detect(), x, weight, eps);
    }
    if let Some(half) = half(&x) {
        return rms_norm(x.cast(DType::F32), weight.map(|weight| weight.cast(DType::F32)), eps).cast(half);
    }
    reference_rms_norm(x, weight, eps)
}

/// The type of `x` if it has 16 bits.
fn half<const D: usize>(x: &Tensor<D>) -> Option<DType> {
    Some(x.dtype()).filter(|dtype| matches!(dtype, DType::F16 | DType::BF16))
}

/// [`layer_norm`] in plain tensor operations.
pub fn reference_layer_norm(
    x: Tensor<3>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let mut y = centred / variance.add_scalar(eps).sqrt();
    if let Some(weight) = weight {
        y = y * weight.unsqueeze();
    }
    if let Some(bias) = bias {
        y = y + bias.unsqueeze();
    }
    y
}

/// [`layer_norm_modulate`] in plain tensor operations.
pub fn reference_layer_norm_modulate(
    x: Tensor<3>,
    shift: Tensor<3>,
    scale: Tensor<3>,
    eps: f64,
) -> Tensor<3> {
    reference_layer_norm(x, None, None, eps) * scale.add_scalar(1.0) + shift
}

/// [`rms_norm`] in plain tensor operations.
pub fn reference_rms_norm<const D: usize>(x: Tensor<D>, weight: Option<Tensor<1>>, eps: f64) -> Tensor<D> {
    let y = x.clone() / x.square().mean_dim(D - 1).add_scalar(eps).sqrt();
    match weight {
        Some(weight) => y * weight.unsqueeze(),
        None => y,
    }
}
