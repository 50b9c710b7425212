//! The sharding of FLUX.1.

use xdit_core::placement::{Placement, Run};
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::flux::FluxConfig;

impl Sharded for FluxConfig {
    /// Attention is sharded by heads, and the feed-forward by features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        let (dim, unit) = (self.spec.dim(), self.spec.head_dim);
        let mut placements = vec![
            ("net.0.proj", Placement::Outputs { unit: 1 }),
            ("net.2", Placement::Inputs { unit: 1 }),
            ("proj_mlp", Placement::Outputs { unit: 1 }),
        ];
        for projection in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"] {
            placements.push((projection, Placement::Outputs { unit }));
        }
        for projection in ["to_out.0", "to_add_out"] {
            placements.push((projection, Placement::Inputs { unit }));
        }
        let (attention, mlp) = (Run { features: dim, unit }, Run { features: 4 * dim, unit: 1 });
        let out = Placement::ConcatenatedInputs(vec![attention, mlp]);
        placements.push(("single_transformer_blocks.*.proj_out", out));
        placements
    }

    /// A sum follows attention and feed-forward of each stream, and each single block. The last block does not update
    /// the text.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        let exchanges = |block| {
            let image_sums = if block < self.double_blocks { 2 } else { 1 };
            let text_sums = if block + 1 < self.spec.blocks { image_sums } else { 0 };
            BlockExchanges { attentions: 1, image_sums, text_sums }
        };
        (0..self.spec.blocks).map(exchanges).collect()
    }
}
