//! Scaled dot-product attention, with the log-sum-exp that is needed to merge partial results.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod half;
mod merge;
#[cfg(test)]
mod tests;
mod tile;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};

use crate::optional::Optional;
use crate::plain::{Plain, dims};
use crate::profile;

/// `softmax(q kᵀ · scale + bias) v`.
///
/// # Shapes
/// - `q`: `[b, nq, h, d]`
/// - `k`, `v`: `[b, nk, h, d]`
/// - `bias`: broadcastable to `[b, h, nq, nk]`; added to the scaled scores. A masked key has a bias that
///   underflows (`-inf` or a large negative number).
/// - result: `[b, nq, h, d]`
///
/// A query without keys, or with a bias of `-inf` for every key, gets zeros and a log-sum-exp of `-inf`. For 16-bit
/// tensors, scores and sums are f32 and the result is rounded once. On processors with bf16 products, the exponentials
/// of the softmax are rounded once as well.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>, scale: f32) -> Tensor<4> {
    attention_lse(q, k, v, bias, scale).0
}

/// [`attention`], and the log-sum-exp of each query: the logarithm of the sum of its exponentials.
///
/// The second result makes attention over disjoint sets of keys mergeable: see [`merge_lse`].
///
/// # Shapes
/// As [`attention`]; the second result is `[b, nq, h]`. It is f32 even for 16-bit tensors: in bf16, the error of the
/// logarithm for a thousand keys would amount to several percent of the sum.
pub fn attention_lse(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    scale: f32,
) -> (Tensor<4>, Tensor<3>) {
    let name = if bias.is_some() { "attention with bias" } else { "attention" };
    let _call = profile::operation(name, &q, || {
        let ([b, nq, h, d], [_, nk, ..]) = (q.dims(), k.dims());
        (vec![b, nq, nk, h, d], 4.0 * (b * nq) as f64 * (nk * h * d) as f64)
    });
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    let (out, lse) = Dispatch::attention_lse(q, k, v, bias.into(), scale);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Merges attention over two disjoint sets of keys into attention over their union.
///
/// If a query has no keys in either part, the result is the same as in [`attention_lse`]: zeros and `-inf`.
///
/// # Shapes
/// `out_*`: `[b, nq, h, d]`, `lse_*`: `[b, nq, h]`; the results have the same two shapes. The first result has the
/// type of `out_a`. The second is f32 if that type has 16 bits.
///
/// # Source
/// FlashAttention (Dao et al. 2022), the rescaling of §3.1 applied to whole partial results.
pub fn merge_lse(
    (out_a, lse_a): (Tensor<4>, Tensor<3>),
    (out_b, lse_b): (Tensor<4>, Tensor<3>),
) -> (Tensor<4>, Tensor<3>) {
    let _call = profile::light("merge of attention", &out_a);
    let (out, lse) = Dispatch::merge_lse(
        out_a.into_dispatch(),
        lse_a.into_dispatch(),
        out_b.into_dispatch(),
        lse_b.into_dispatch(),
    );
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Attention on the tensors of a backend.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait AttentionOps: Backend {
    /// See [`attention_lse`].
    fn attention_lse(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] bias: Optional<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference_attention_lse::<Self>(q, k, v, bias, scale)
    }

    /// See [`merge_lse`].
    fn merge_lse(
        out_a: FloatTensor<Self>,
        lse_a: FloatTensor<Self>,
        out_b: FloatTensor<Self>,
        lse_b: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference_merge_lse::<Self>(out_a, lse_a, out_b, lse_b)
    }
}

/// [`attention_lse`] on any backend.
pub(crate) fn reference_attention_lse<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: Optional<B>,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = q.dtype();
    let [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let [q, k, v] = [q, k, v].map(|x| Plain::<B>::wide(x).swap_dims(1, 2));
    if nk == 0 || q.is_empty() {
        let (out, lse) = (q.full_like([b, nq, h, d], 0.0), q.full_like([b, nq, h], f64::NEG_INFINITY));
        return (out.round_to(dtype), lse.into_inner());
    }
    let mut scores = q.matmul(k.transpose()) * f64::from(scale);
    if let Some(bias) = bias.into_option() {
        scores = scores + Plain::wide(bias);
    }
    // Finite even if every key is masked, because `-inf` minus `-inf` would be NaN.
    let max = scores.clone().max_dim(3).clamp_min(f64::from(f32::MIN));
    let weights = (scores - max.clone()).exp();
    let sum = weights.clone().sum_dim(3);
    let lse = (sum.clone().log() + max).reshape([b, h, nq]).swap_dims(1, 2);
    // The largest score adds 1 to the sum, unless there are no keys; then zeros are divided by 1.
    let out = weights.matmul(v) / sum.clamp_min(1.0);
    (out.swap_dims(1, 2).round_to(dtype), lse.into_inner())
}

/// [`merge_lse`] on any backend.
pub(crate) fn reference_merge_lse<B: Backend>(
    out_a: FloatTensor<B>,
    lse_a: FloatTensor<B>,
    out_b: FloatTensor<B>,
    lse_b: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = out_a.dtype();
    let [out_a, out_b, lse_a, lse_b] = [out_a, out_b, lse_a, lse_b].map(Plain::<B>::wide);
    let [b, n, h, _] = out_a.dims();
    if out_a.is_empty() {
        return (out_a.round_to(dtype), lse_a.into_inner());
    }
    let [lse_a, lse_b] = [lse_a, lse_b].map(|lse| lse.reshape([b, n, h, 1]));
    let max = Plain::cat(vec![lse_a.clone(), lse_b.clone()], 3).max_dim(3).clamp_min(f64::from(f32::MIN));
    let [a, b_] = [lse_a, lse_b].map(|lse| (lse - max.clone()).exp());
    let sum = a.clone() + b_.clone();
    let lse = (sum.clone().log() + max).reshape([b, n, h]);
    // The larger part has weight 1, unless both are empty; then zeros are divided by 1.
    let out = (out_a * a + out_b * b_) / sum.clamp_min(1.0);
    (out.round_to(dtype), lse.into_inner())
}

/// The numbers of images, queries, keys, heads, and features of a head.
///
/// # Panics
/// If the shapes do not match.
fn sizes(q: &Shape, k: &Shape, v: &Shape) -> [usize; 5] {
    let ([b, nq, h, d], [_, nk, _, _]) = (dims(q), dims(k));
    assert_eq!(dims(k), [b, nk, h, d], "keys of the batch, heads and features of the queries");
    assert_eq!(dims(v), [b, nk, h, d], "values of the shape of the keys");
    [b, nq, nk, h, d]
}
