//! Scaled dot-product attention, with the log-sum-exp that lets partial results be merged.

mod cpu;
mod merge;
#[cfg(test)]
mod tests;
mod tile;

use burn::tensor::{DType, Tensor, activation::softmax};

use crate::cpu::{half, is_f32, lanes::Level};

/// `softmax(q kᵀ · scale + bias) v`.
///
/// # Shapes
/// - `q`: `[b, nq, h, d]`
/// - `k`, `v`: `[b, nk, h, d]`
/// - `bias`: broadcastable to `[b, h, nq, nk]`; added to the scaled scores. A masked key has a bias that
///   underflows (`-inf` or a large negative number).
/// - result: `[b, nq, h, d]`
///
/// A query whose every key has a bias of `-inf` gets zeros, and `-inf` for the logarithm of its sum.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f32) -> Tensor<4> {
    attention_lse(q, k, v, bias, scale).0
}

/// [`attention`], and for each query the logarithm of the sum of its exponentials.
///
/// The second result makes attention over parts of the keys mergeable: see [`merge_lse`].
///
/// # Shapes
/// As [`attention`]; the second result is `[b, nq, h]`. On the CPU it is f32 even if the tensors have 16 bits: in
/// bf16, the logarithm for a thousand keys would be off by some percent of the sum.
pub fn attention_lse(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: f32,
) -> (Tensor<4>, Tensor<3>) {
    if [&q, &k, &v].into_iter().chain(&bias).all(is_f32) {
        return cpu::attention_lse(Level::detect(), q, k, v, bias, scale);
    }
    if let Some(half) = half(&q) {
        let [q, k, v] = [q, k, v].map(|x| x.cast(DType::F32));
        let (out, lse) = attention_lse(q, k, v, bias.map(|bias| bias.cast(DType::F32)), scale);
        return (out.cast(half), lse);
    }
    reference_attention_lse(q, k, v, bias, scale)
}

/// [`attention_lse`] in plain tensor operations.
pub fn reference_attention_lse(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: f32,
) -> (Tensor<4>, Tensor<3>) {
    let (q, k, v) = (q.swap_dims(1, 2), k.swap_dims(1, 2), v.swap_dims(1, 2));
    let mut scores = q.matmul(k.transpose()).mul_scalar(scale);
    if let Some(bias) = bias {
        scores = scores + bias;
    }
    let max = scores.clone().max_dim(3);
    let sum = (scores.clone() - max.clone()).exp().sum_dim(3);
    let lse = (sum.log() + max).squeeze_dim::<3>(3).swap_dims(1, 2);
    (softmax(scores, 3).matmul(v).swap_dims(1, 2), lse)
}

/// Attention over the union of two disjoint sets of keys, from attention over each.
///
/// # Shapes
/// `out_*`: `[b, nq, h, d]`, `lse_*`: `[b, nq, h]`; the result has the same two shapes.
///
/// # Source
/// FlashAttention (Dao et al. 2022), the rescaling of §3.1 applied to whole partial results.
pub fn merge_lse(a: (Tensor<4>, Tensor<3>), b: (Tensor<4>, Tensor<3>)) -> (Tensor<4>, Tensor<3>) {
    if is_f32(&a.0) && is_f32(&a.1) && is_f32(&b.0) && is_f32(&b.1) {
        return merge::merge_lse(Level::detect(), a, b);
    }
    if let Some(half) = half(&a.0) {
        let [a, b] = [a, b].map(|(out, lse)| (out.cast(DType::F32), lse.cast(DType::F32)));
        let (out, lse) = merge_lse(a, b);
        return (out.cast(half), lse);
    }
    reference_merge_lse(a, b)
}

/// [`merge_lse`] in plain tensor operations.
pub fn reference_merge_lse(
    (out_a, lse_a): (Tensor<4>, Tensor<3>),
    (out_b, lse_b): (Tensor<4>, Tensor<3>),
) -> (Tensor<4>, Tensor<3>) {
    let max = lse_a.clone().max_pair(lse_b.clone());
    let (weight_a, weight_b) = ((lse_a - max.clone()).exp(), (lse_b - max.clone()).exp());
    let sum = weight_a.clone() + weight_b.clone();
    let share = |weight: Tensor<3>| (weight / sum.clone()).unsqueeze_dim::<4>(3);
    (out_a * share(weight_a) + out_b * share(weight_b), sum.log() + max)
}
