//! The sharding of Stable Diffusion 3.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::sd3::Sd3Config;

impl Sharded for Sd3Config {
    /// Attention is sharded by heads, and the feed-forward by features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        let unit = self.spec.head_dim;
        let mut placements = Vec::new();
        for name in ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"] {
            placements.push((name, Placement::Outputs { unit }));
        }
        for name in ["to_out.0", "to_add_out"] {
            placements.push((name, Placement::Inputs { unit }));
        }
        for name in ["ff.net.0.proj", "ff_context.net.0.proj"] {
            placements.push((name, Placement::Outputs { unit: 1 }));
        }
        for name in ["ff.net.2", "ff_context.net.2"] {
            placements.push((name, Placement::Inputs { unit: 1 }));
        }
        placements
    }

    /// A sum follows each attention and feed-forward, except for the text in the last block.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        let exchanges = |block| {
            let attentions = if self.dual_attention_layers.contains(&block) { 2 } else { 1 };
            let text_sums = if block + 1 < self.spec.blocks { 2 } else { 0 };
            BlockExchanges { attentions, image_sums: attentions + 1, text_sums }
        };
        (0..self.spec.blocks).map(exchanges).collect()
    }
}
