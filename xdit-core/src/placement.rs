//! The sharding of a model's layers over the ranks of tensor parallelism, as data beside the model.

use std::ops::Range;
use std::sync::Arc;

use crate::link::Link;
use crate::split;

/// The shard of a linear layer on each rank. A layer without a placement is whole on every rank.
///
/// # Source
/// Megatron-LM (Shoeybi et al. 2019) §3: outputs first, inputs second, one sum after the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Some of the output features, in units such as a head.
    Outputs {
        /// The number of features in a unit.
        unit: usize,
    },
    /// Some of the input features, in units such as a head; results are summed over the ranks.
    Inputs {
        /// The number of features in a unit.
        unit: usize,
    },
    /// As `Outputs`, for a layer whose output is a concatenation of several results.
    ConcatenatedOutputs(Vec<Run>),
    /// As `Inputs`, for a layer whose input is a concatenation of several results.
    ConcatenatedInputs(Vec<Run>),
}

/// One of several concatenated results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of its features.
    pub features: usize,
    /// The number of features in a unit.
    pub unit: usize,
}

/// Whether `layer` matches `pattern`, which is the end of a path; `*` stands for any one name.
pub(crate) fn matches(layer: &str, pattern: &str) -> bool {
    let mut names = layer.rsplit('.');
    pattern.rsplit('.').all(|wanted| names.next().is_some_and(|name| wanted == "*" || wanted == name))
}

/// The part of a transformer that one rank holds.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its blocks.
    pub blocks: Range<usize>,
    /// The ranks that share each layer with it, if there are any.
    pub tensor: Option<TensorShare>,
}

/// The ranks of tensor parallelism, seen from one of them.
#[derive(Clone, Debug)]
pub struct TensorShare {
    /// Their link.
    pub link: Arc<dyn Link>,
}

impl TensorShare {
    /// This rank's part of `features`, cut only between units.
    pub fn part(&self, features: usize, unit: usize) -> Range<usize> {
        let part = split::even(features / unit, self.link.size())[self.link.rank()].clone();
        part.start * unit..part.end * unit
    }

    /// This rank's parts of several concatenated results.
    pub fn parts(&self, runs: &[Run]) -> Vec<Range<usize>> {
        let lengths: Vec<_> = runs.iter().map(|run| run.features).collect();
        let places = split::consecutive(&lengths);
        let part = |(run, place): (&Run, Range<usize>)| {
            let part = self.part(run.features, run.unit);
            place.start + part.start..place.start + part.end
        };
        runs.iter().zip(places).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_ends_of_paths() {
        assert!(matches("blocks.3.attn.to_q", "to_q"));
        assert!(matches("blocks.3.proj_out", "blocks.*.proj_out"));
        assert!(!matches("proj_out", "blocks.*.proj_out"));
        assert!(!matches("blocks.3.add_to_q", "to_q"));
    }
}
