//! The sharding of PixArt.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::pixart::PixArtConfig;

impl Sharded for PixArtConfig {
    /// Attention is sharded by heads, and the feed-forward by features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        let unit = self.spec.head_dim;
        let mut placements = vec![
            ("ff.net.0.proj", Placement::Outputs { unit: 1 }),
            ("ff.net.2", Placement::Inputs { unit: 1 }),
        ];
        for projection in ["to_q", "to_k", "to_v"] {
            placements.push((projection, Placement::Outputs { unit }));
        }
        placements.push(("to_out.0", Placement::Inputs { unit }));
        placements
    }

    /// A sum follows self-attention, cross-attention and feed-forward.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 1, image_sums: 3, text_sums: 0 }; self.spec.blocks]
    }
}
