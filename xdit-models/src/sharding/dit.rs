//! The sharding of DiT.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::{Sharded, basic_blocks};
use crate::dit::DitConfig;

impl Sharded for DitConfig {
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        basic_blocks(self.spec.head_dim)
    }

    /// A sum follows attention and feed-forward.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 1, image_sums: 2, text_sums: 0 }; self.spec.blocks]
    }
}
