//! Attention on CubeCL's backends: on an NVIDIA GPU by cuDNN in 16 bits without a bias, or by products of cuBLASLt for
//! one head of many features; by tensor cores in 16 bits elsewhere on CUDA; otherwise by multiply-adds.

mod flash;
mod inputs;
mod matrix;
mod merge;
#[cfg(feature = "cuda")]
mod products;

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{AttentionOps, reference_attention_lse, reference_merge_lse};
use crate::cube::takes;
use crate::optional::Optional;

impl AttentionOps for CubeBackend {
    fn attention_lse(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        bias: Optional<Self>,
        scale: f32,
    ) -> (CubeTensor, CubeTensor) {
        let of_bias = bias.clone().into_option();
        #[cfg(feature = "cuda")]
        if of_bias.is_none()
            && let Some(result) = crate::vendor::cudnn::attention_lse(&q, &k, &v, scale)
                .or_else(|| products::attention_lse(&q, &k, &v, scale))
        {
            return result;
        }
        if !takes([&q, &k, &v].into_iter().chain(&of_bias)) {
            return reference_attention_lse::<Self>(q, k, v, bias, scale);
        }
        if let Some(tile) = matrix::Tile::new([&q, &k, &v]) {
            return matrix::attention_lse(tile, [q, k, v], of_bias, scale);
        }
        match flash::Tile::new(&q) {
            Some(tile) => flash::attention_lse(tile, [q, k, v], of_bias, scale),
            None => reference_attention_lse::<Self>(q, k, v, bias, scale),
        }
    }

    fn merge_lse(
        out_a: CubeTensor,
        lse_a: CubeTensor,
        out_b: CubeTensor,
        lse_b: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        if takes([&out_a, &lse_a, &out_b, &lse_b]) {
            merge::merge_lse((out_a, lse_a), (out_b, lse_b))
        } else {
            reference_merge_lse::<Self>(out_a, lse_a, out_b, lse_b)
        }
    }
}
