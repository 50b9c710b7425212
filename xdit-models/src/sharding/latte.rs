//! The sharding of Latte.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::latte::LatteConfig;

impl Sharded for LatteConfig {
    /// Attention is sharded by heads, and the feed-forward by features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        let unit = self.spec.head_dim;
        vec![
            ("ff.net.0.proj", Placement::Outputs { unit: 1 }),
            ("ff.net.2", Placement::Inputs { unit: 1 }),
            ("to_q", Placement::Outputs { unit }),
            ("to_k", Placement::Outputs { unit }),
            ("to_v", Placement::Outputs { unit }),
            ("to_out.0", Placement::Inputs { unit }),
        ]
    }

    /// A sum follows each attention and feed-forward. Attention of temporal blocks stays within places, all frames of
    /// which are on one rank.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        let spatial = BlockExchanges { attentions: 1, image_sums: 3, text_sums: 0 };
        let temporal = BlockExchanges { attentions: 0, image_sums: 2, text_sums: 0 };
        [spatial, temporal].repeat(self.spec.blocks / 2)
    }
}
