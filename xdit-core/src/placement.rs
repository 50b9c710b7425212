//! How a model's layers are cut over the ranks of tensor parallelism: data beside the model.

use std::ops::Range;

use xdit_comm::Comm;

use crate::parallel::split;

/// What each rank holds of a linear layer. A layer that is not placed is whole on every rank.
///
/// # Source
/// Megatron-LM (Shoeybi et al. 2019) §3: outputs first, inputs second, one sum after the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Some of the output features, in units such as a head.
    Outputs {
        /// Features that stay together.
        unit: usize,
    },
    /// Some of the input features, in units such as a head; results are summed over the ranks.
    Inputs {
        /// Features that stay together.
        unit: usize,
    },
}

/// The ranks of tensor parallelism, seen from one of them.
#[derive(Clone, Debug)]
pub struct TensorShare {
    /// Their group.
    pub comm: Comm,
}

impl TensorShare {
    /// This rank's part of `features`, cut only between units.
    pub fn part(&self, features: usize, unit: usize) -> Range<usize> {
        let part = split::even(features / unit, self.comm.size())[self.comm.rank()].clone();
        part.start * unit..part.end * unit
    }
}
