//! The sharding of UNets.

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

use super::Sharded;
use crate::unet::UNetConfig;

impl Sharded for UNetConfig {
    fn placements(&self) -> Vec<(&'static str, Placement)> {
        Vec::new()
    }

    fn exchanges(&self) -> Vec<BlockExchanges> {
        vec![BlockExchanges { attentions: 0, image_sums: 0, text_sums: 0 }]
    }
}
