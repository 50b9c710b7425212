//! The sharding of each transformer's layers over the ranks of tensor parallelism: a table beside each model, so that
//! the model itself stays single-device code.

mod dit;
mod flux;
mod hunyuan;
mod latte;
mod pixart;
mod sd3;
mod unet;

use burn::tensor::DType;
use xdit_core::placement::Placement;
use xdit_core::plan::cost::{BlockExchanges, LevelExchanges, RowExchanges};

/// A transformer's configuration with a sharding table.
pub trait Sharded {
    /// The placement of each sharded layer. A layer is identified by the end of its path, in which `*` stands for any
    /// single name.
    fn placements(&self) -> Vec<(&'static str, Placement)>;

    /// The placement of layers whose names depend on the configuration. It is empty for models whose blocks are alike.
    fn placements_by_level(&self) -> Vec<(String, Placement)> {
        Vec::new()
    }

    /// All placements.
    fn all_placements(&self) -> Vec<(String, Placement)> {
        let placements = self.placements().into_iter().map(|(name, placement)| (name.to_owned(), placement));
        placements.chain(self.placements_by_level()).collect()
    }

    /// For each block, the number of attentions over tokens and of sums of features over ranks.
    fn exchanges(&self) -> Vec<BlockExchanges>;

    /// The exchanges of each block at other resolutions, for an image of so many rows and columns of tokens. Most models
    /// have one resolution.
    fn levels(&self, _grid: [usize; 2]) -> Vec<LevelExchanges> {
        Vec::new()
    }

    /// The bytes of rows and moments that each block sends if it computes in `dtype`. Transformers send none.
    fn rows(&self, _grid: [usize; 2], _dtype: DType) -> RowExchanges {
        RowExchanges::default()
    }
}

/// The placements of diffusers' `BasicTransformerBlock`: each attention by heads, and the feed-forward by features.
fn basic_blocks(head_dim: usize) -> Vec<(&'static str, Placement)> {
    vec![
        ("ff.net.0.proj", Placement::Outputs { unit: 1 }),
        ("ff.net.2", Placement::Inputs { unit: 1 }),
        ("to_q", Placement::Outputs { unit: head_dim }),
        ("to_k", Placement::Outputs { unit: head_dim }),
        ("to_v", Placement::Outputs { unit: head_dim }),
        ("to_out.0", Placement::Inputs { unit: head_dim }),
    ]
}
