//! The sharding of PixArt.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::{Sharded, basic_blocks};
use crate::pixart::PixArtConfig;

impl Sharded for PixArtConfig {
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        basic_blocks(self.spec.head_dim)
    }

    /// A sum follows self-attention, cross-attention and feed-forward.
    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 1, image_sums: 3, text_sums: 0 }; self.spec.blocks]
    }
}
