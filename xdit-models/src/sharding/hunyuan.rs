//! The sharding of HunyuanDiT.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::{Sharded, basic_blocks};
use crate::hunyuan::HunyuanConfig;

impl Sharded for HunyuanConfig {
    /// The layer after a skip connection stays whole: its input is normed over all features.
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        basic_blocks(self.spec.head_dim)
    }

    /// A sum follows self-attention, cross-attention and feed-forward.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 1, image_sums: 3, text_sums: 0 }; self.spec.blocks]
    }
}
