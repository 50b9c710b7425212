//! The sharding of DiT.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::dit::DitConfig;

impl Sharded for DitConfig {
    /// Attention is sharded by heads, and the feed-forward by features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        let unit = self.spec.head_dim;
        vec![
            ("attn1.to_q", Placement::Outputs { unit }),
            ("attn1.to_k", Placement::Outputs { unit }),
            ("attn1.to_v", Placement::Outputs { unit }),
            ("attn1.to_out.0", Placement::Inputs { unit }),
            ("ff.net.0.proj", Placement::Outputs { unit: 1 }),
            ("ff.net.2", Placement::Inputs { unit: 1 }),
        ]
    }

    /// A sum follows attention and feed-forward.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 1, image_sums: 2, text_sums: 0 }; self.spec.blocks]
    }
}
