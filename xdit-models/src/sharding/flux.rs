//! How FLUX.1's layers are cut.

use xdit_core::placement::{Placement, Run};
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::flux::FluxConfig;

impl Sharded for FluxConfig {
    /// By heads, and by features of the feed-forward.
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

    /// Sums end attention and feed-forward of each stream, and a block with a single stream. The text ends with the
    /// last block.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        let exchanges = |block| {
            let image_sums = if block < self.double_blocks { 2 } else { 1 };
            let text_sums = if block + 1 < self.spec.blocks { image_sums } else { 0 };
            BlockExchanges { attentions: 1, image_sums, text_sums }
        };
        (0..self.spec.blocks).map(exchanges).collect()
    }
}
