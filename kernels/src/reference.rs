//! Every operation in plain operations of any Burn backend. Backends without a faster version run it, and tests
//! compare faster versions with it.
//!
//! These are the default bodies of the traits ([`AttentionOps`](crate::AttentionOps) and so on), over [`Tensor`]. They
//! fulfil the whole contract of their operations.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use crate::activation::{self, Activation};
use crate::conv::{self, Conv2d, Geometry};
use crate::group_norm::{self, Affine, Moments};
use crate::linear::{
    reference_linear, reference_linear_activate, reference_linear_add, reference_linear_of_two,
};
use crate::rotary::{reference_layer_norm_rotary, reference_rms_norm_rotary, reference_rotary};
use crate::{attention, norm, residual};

/// See [`attention_lse`](crate::attention_lse).
pub fn attention_lse(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: f32,
) -> (Tensor<4>, Tensor<3>) {
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    let (out, lse) = attention::reference_attention_lse::<Dispatch>(q, k, v, bias.into(), scale);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// See [`merge_lse`](crate::merge_lse).
pub fn merge_lse(
    (out_a, lse_a): (Tensor<4>, Tensor<3>),
    (out_b, lse_b): (Tensor<4>, Tensor<3>),
) -> (Tensor<4>, Tensor<3>) {
    let (out, lse) = attention::reference_merge_lse::<Dispatch>(
        out_a.into_dispatch(),
        lse_a.into_dispatch(),
        out_b.into_dispatch(),
        lse_b.into_dispatch(),
    );
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// See [`linear`](crate::linear()).
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let y = reference_linear::<Dispatch>(x.into_dispatch(), weight.into_dispatch(), bias.into());
    Tensor::from_dispatch(y)
}

/// See [`linear_add`](crate::linear_add).
pub fn linear_add<const D: usize>(
    base: Tensor<D>,
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [base, x] = [base, x].map(Tensor::into_dispatch);
    let y = reference_linear_add::<Dispatch>(base, x, weight.into_dispatch(), bias.into());
    Tensor::from_dispatch(y)
}

/// See [`linear_activate`](crate::linear_activate).
pub fn linear_activate<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Activation,
) -> Tensor<D> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let y = reference_linear_activate::<Dispatch>(x, weight, bias.into(), activation);
    Tensor::from_dispatch(y)
}

/// See [`linear_of_two`](crate::linear_of_two).
pub fn linear_of_two<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [x, y] = [x, y].map(Tensor::into_dispatch);
    let y = reference_linear_of_two::<Dispatch>(x, y, weight.into_dispatch(), bias.into());
    Tensor::from_dispatch(y)
}

/// See [`layer_norm`](crate::layer_norm).
pub fn layer_norm(x: Tensor<3>, weight: Option<Tensor<1>>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<3> {
    let y = norm::reference_layer_norm::<Dispatch>(x.into_dispatch(), weight.into(), bias.into(), eps);
    Tensor::from_dispatch(y)
}

/// See [`layer_norm_modulate`](crate::layer_norm_modulate).
pub fn layer_norm_modulate(x: Tensor<3>, shift: Tensor<3>, scale: Tensor<3>, eps: f64) -> Tensor<3> {
    let [x, shift, scale] = [x, shift, scale].map(Tensor::into_dispatch);
    Tensor::from_dispatch(norm::reference_layer_norm_modulate::<Dispatch>(x, shift, scale, eps))
}

/// See [`rms_norm`](crate::rms_norm).
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Option<Tensor<1>>, eps: f64) -> Tensor<D> {
    Tensor::from_dispatch(norm::reference_rms_norm::<Dispatch>(x.into_dispatch(), weight.into(), eps))
}

/// See [`activate`](crate::activate).
pub fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(activation::reference_activate::<Dispatch>(activation, x.into_dispatch()))
}

/// See [`gated_activate`](crate::gated_activate).
pub fn gated_activate<const D: usize>(activation: Activation, gate: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    let [gate, x] = [gate, x].map(Tensor::into_dispatch);
    Tensor::from_dispatch(activation::reference_gated_activate::<Dispatch>(activation, gate, x))
}

/// See [`gated_residual`](crate::gated_residual).
pub fn gated_residual(x: Tensor<3>, gate: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    let [x, gate, y] = [x, gate, y].map(Tensor::into_dispatch);
    Tensor::from_dispatch(residual::reference_gated_residual::<Dispatch>(x, gate, y))
}

/// See [`rms_norm_rotary`](crate::rms_norm_rotary).
pub fn rms_norm_rotary(
    x: Tensor<4>,
    weight: Option<Tensor<1>>,
    eps: f64,
    cos: Tensor<2>,
    sin: Tensor<2>,
) -> Tensor<4> {
    let [x, cos, sin] = [x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()];
    Tensor::from_dispatch(reference_rms_norm_rotary::<Dispatch>(x, weight.into(), eps, cos, sin))
}

/// See [`layer_norm_rotary`](crate::layer_norm_rotary).
pub fn layer_norm_rotary(
    x: Tensor<4>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
    cos: Tensor<2>,
    sin: Tensor<2>,
) -> Tensor<4> {
    let [x, cos, sin] = [x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()];
    Tensor::from_dispatch(reference_layer_norm_rotary::<Dispatch>(
        x,
        weight.into(),
        bias.into(),
        eps,
        cos,
        sin,
    ))
}

/// See [`rotary`](crate::rotary()).
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [cos, sin] = [cos, sin].map(Tensor::into_dispatch);
    Tensor::from_dispatch(reference_rotary::<Dispatch>(x.into_dispatch(), cos, sin))
}

/// See [`conv2d`](crate::conv2d).
pub fn conv2d(conv: &Conv2d, x: Tensor<4>, norm: Option<&Affine>, residual: Option<Tensor<4>>) -> Tensor<4> {
    let Conv2d { weight, bias, stride, padding, upsample } = conv.clone();
    let y = conv::reference_conv2d::<Dispatch>(
        Geometry { stride, padding, upsample },
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into(),
        norm.map(|affine| affine.scale.clone()).into(),
        norm.map(|affine| affine.shift.clone()).into(),
        residual.into(),
    );
    Tensor::from_dispatch(y)
}

/// See [`group_norm_moments`](crate::group_norm_moments).
pub fn group_norm_moments(x: Tensor<4>, groups: usize) -> Moments {
    let [_, c, rows, cols] = x.dims();
    let moments = group_norm::reference_group_norm_moments::<Dispatch>(x.into_dispatch(), groups);
    let (mean, deviation) = (Tensor::from_dispatch(moments.0), Tensor::from_dispatch(moments.1));
    Moments { count: c / groups * rows * cols, mean, deviation }
}

/// See [`norm_act`](crate::norm_act).
pub fn norm_act(x: Tensor<4>, affine: &Affine, act: bool) -> Tensor<4> {
    let [scale, shift] = [&affine.scale, &affine.shift].map(|tensor| tensor.clone().into_dispatch());
    Tensor::from_dispatch(group_norm::reference_norm_act::<Dispatch>(x.into_dispatch(), scale, shift, act))
}
