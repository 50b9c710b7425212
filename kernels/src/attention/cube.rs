//! Attention on CubeCL's backends.

mod merge;

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::{AttentionOps, reference_merge_lse};
use crate::cube::takes;

impl AttentionOps for CubeBackend {
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
