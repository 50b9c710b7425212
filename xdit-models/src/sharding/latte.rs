//! The sharding of Latte.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::{Sharded, basic_blocks};
use crate::latte::LatteConfig;

impl Sharded for LatteConfig {
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        basic_blocks(self.spec.head_dim)
    }

    /// A sum follows each attention and feed-forward. Attention of temporal blocks stays within places, all frames of
    /// which are on one rank.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        let spatial = BlockExchanges { attentions: 1, image_sums: 3, text_sums: 0 };
        let temporal = BlockExchanges { attentions: 0, image_sums: 2, text_sums: 0 };
        [spatial, temporal].repeat(self.spec.blocks / 2)
    }
}
