//! How the layers of each transformer are cut between the ranks of tensor parallelism: a table beside each model, so that
//! the model itself stays single-device code.

mod flux;
mod pixart;
mod sd3;

use xdit_core::placement::Placement;
use xdit_core::plan::cost::BlockExchanges;

/// A transformer's configuration with a sharding table.
pub trait Sharded {
    /// The placement of each layer that is cut. A layer is named by the end of its path, in which `*` stands for any one
    /// name.
    fn placements(&self) -> Vec<(&'static str, Placement)>;

    /// For each block, how often its tokens mix and how often its features are summed over ranks.
    fn exchanges(&self) -> Vec<BlockExchanges>;
}
