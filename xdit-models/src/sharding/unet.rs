//! The sharding of UNets.

use xdit_core::placement::{Placement, Run};
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::unet::{Level, UNetConfig};

impl Sharded for UNetConfig {
    /// None: heads differ by level.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        Vec::new()
    }

    /// Attention is sharded by heads, and the feed-forward by features. Convolutions are whole on each rank.
    fn placements_by_level(&self) -> Vec<(String, Placement)> {
        let levels = self.levels.len();
        let mut placements = Vec::new();
        let mut place = |block: String, level: &Level| {
            let at = |name: &str| format!("{block}.attentions.*.transformer_blocks.*.{name}");
            let unit = level.head_dim();
            for attention in ["attn1", "attn2"] {
                for name in ["to_q", "to_k", "to_v"] {
                    placements.push((at(&format!("{attention}.{name}")), Placement::Outputs { unit }));
                }
                placements.push((at(&format!("{attention}.to_out.0")), Placement::Inputs { unit }));
            }
            // Values and gates.
            let half = Run { features: 4 * level.channels, unit: 1 };
            placements.push((at("ff.net.0.proj"), Placement::ConcatenatedOutputs(vec![half; 2])));
            placements.push((at("ff.net.2"), Placement::Inputs { unit: 1 }));
        };
        for (index, level) in self.levels.iter().enumerate() {
            if level.down > 0 {
                place(format!("down_blocks.{index}"), level);
            }
            if level.up > 0 {
                place(format!("up_blocks.{}", levels - 1 - index), level);
            }
        }
        place("mid_block".to_owned(), &self.levels[levels - 1]);
        placements
    }

    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 0, image_sums: 0, text_sums: 0 }]
    }
}
