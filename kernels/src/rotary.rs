//! Rotary position embedding: features of queries and keys turned by angles that depend on the token's place.

mod cpu;
#[cfg(test)]
mod tests;

use burn::tensor::{DType, Tensor};

use crate::cpu::{is_f32, lanes::Level};

/// Turns each pair of features that lie side by side: `(x₀, x₁)` becomes `(x₀ cos − x₁ sin, x₁ cos + x₀ sin)`, with
/// one angle for each token and pair. Works in `x`'s memory where nobody else holds it.
///
/// # Shapes
/// `x`: `[b, n, h, d]`; `cos`, `sin`: `[n, d/2]`, f32 whatever `x` is.
///
/// # Source
/// RoFormer (Su et al. 2021) §3.2.2; diffusers' `apply_rotary_emb` with `use_real_unbind_dim = -1`.
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    if is_f32(&x) && is_f32(&cos) && is_f32(&sin) {
        return cpu::rotary(Level::detect(), x, cos, sin);
    }
    reference_rotary(x, cos, sin)
}

/// [`rotary`] in plain tensor operations, computed in f32.
pub fn reference_rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let ([b, n, h, d], dtype) = (x.dims(), x.dtype());
    let pairs = x.cast(DType::F32).reshape([b, n, h, d / 2, 2]);
    let [first, second] = [0, 1].map(|at| pairs.clone().narrow(4, at, 1));
    let [cos, sin] = [cos, sin].map(|table| table.reshape([1, n, 1, d / 2, 1]));
    let turned = [
        first.clone() * cos.clone() - second.clone() * sin.clone(), //
        second * cos + first * sin,
    ];
    Tensor::cat(turned.to_vec(), 4).reshape([b, n, h, d]).cast(dtype)
}
