//! The plan of a run: derived from the request, checked and printable before anything is loaded.

pub mod contexts;
pub mod cost;
pub mod guidance;
pub mod mesh;
pub mod schedule;

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::plan::guidance::Branch;
use crate::plan::mesh::{Axis, Mesh};
use crate::split;
use crate::transformer::TransformerSpec;

/// The parallelism requested for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParallelConfig {
    /// Ranks along each axis.
    pub mesh: Mesh,
    /// Number of patches that go through the pipeline one after another; by default the number of stages.
    pub patches: Option<usize>,
    /// Warm-up steps: synchronous steps at the start.
    pub warmup_steps: usize,
    /// Number of blocks of each stage; by default an even split.
    pub stage_blocks: Option<Vec<usize>>,
    /// Whether the ranks of the ring axis use each other's stale keys (DistriFusion) instead of passing fresh ones
    /// around. A single rank with several patches computes the same result.
    pub distrifusion: bool,
    /// Whether all ranks that denoise a picture decode it, too, some rows each.
    pub parallel_vae: bool,
    /// Whether a rank computes branches of guidance as one batch, if they have the same steps and blocks: fewer and
    /// larger operations, and more memory for activations. `None` stands for a pipeline's default, which is true on
    /// accelerators and false on the CPU. For a plan, it is false.
    pub guidance_batch: Option<bool>,
}

impl Default for ParallelConfig {
    /// One rank.
    fn default() -> Self {
        Self {
            mesh: Mesh::default(),
            patches: None,
            warmup_steps: 1,
            stage_blocks: None,
            distrifusion: false,
            parallel_vae: false,
            guidance_batch: None,
        }
    }
}

/// The work to be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The transformer's sizes.
    pub spec: TransformerSpec,
    /// Number of image tokens.
    pub tokens: usize,
    /// Number of consecutive image tokens that stay together on a rank: 1, or the frames of a clip, so that each rank
    /// has all frames of its places.
    pub grain: usize,
    /// Number of denoising steps.
    pub steps: usize,
    /// Branches of guidance.
    pub branches: Vec<Branch>,
    /// Number of pictures.
    pub images: usize,
}

/// The division of a run's work among its ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The arrangement of the ranks.
    pub mesh: Mesh,
    /// Blocks of each stage.
    pub stages: Vec<Range<usize>>,
    /// Long skip connections of the model, from block to block.
    pub skips: Vec<[usize; 2]>,
    /// Tokens of each patch.
    pub patches: Vec<Range<usize>>,
    /// Number of consecutive tokens that stay together.
    pub grain: usize,
    /// Whether the keys of all other patches are stale, not only those of patches that come later in the step.
    pub distrifusion: bool,
    /// Number of synchronous steps at the start.
    pub synchronous_steps: usize,
    /// Number of denoising steps.
    pub steps: usize,
    /// Branches of guidance; the steps of each end at the last step of the run.
    pub branches: Vec<Branch>,
    /// Pictures of each data-parallel share.
    pub images: Vec<Range<usize>>,
    /// Between how many ranks the rows of a picture are split as it is decoded: those that denoised it, or one.
    pub decoding_shares: usize,
    /// Whether a rank computes branches of guidance as one batch, if they have the same steps and blocks.
    pub guidance_batch: bool,
}

impl Plan {
    /// Plans `work` for the parallelism of `config`.
    ///
    /// # Errors
    /// If `work` cannot be divided as `config` requests; the error names the value, and its hint a way out.
    ///
    /// # Panics
    /// If branch 0 does not take part in every step, or another one in none.
    pub fn new(config: &ParallelConfig, work: &Work) -> Result<Self> {
        let mesh = config.mesh;
        let Work { spec, tokens, grain, steps, branches, images } = work;
        assert!(tokens.is_multiple_of(*grain), "{tokens} tokens in pieces of {grain}");
        let pieces = tokens / grain;
        let pipeline = mesh.degree(Axis::Pipeline);
        let distrifusion = config.distrifusion;
        let patches = config.patches.unwrap_or(pipeline);
        let sequence = mesh.sequence_degree();
        let usage = |message: String, hint: String| Err(Error::usage(message).hint(hint));

        match (mesh.degree(Axis::Cfg), branches.len()) {
            (1, _) | (2, 2..) => {}
            (2, _) => {
                return usage(
                    "CFG parallelism splits two guidance branches, but guidance is off".into(),
                    "raise the scale of classifier-free guidance above 1, or drop CFG parallelism".into(),
                );
            }
            (degree, _) => {
                return usage(
                    format!("CFG degree `{degree}` is not 1 or 2"),
                    "it splits the negative branch of guidance from the rest".into(),
                );
            }
        }
        if mesh.degree(Axis::Data) > *images {
            return usage(
                format!(
                    "data-parallel degree `{}` for {} leaves ranks idle",
                    mesh.degree(Axis::Data),
                    count(*images, "picture", "pictures")
                ),
                format!("use at most `{images}`, or ask for more pictures"),
            );
        }
        // Products saturate, so that excessive degrees are refused instead of wrapping around.
        let shards = mesh.degree(Axis::Ulysses).saturating_mul(mesh.degree(Axis::Tensor));
        if shards > spec.heads {
            return usage(
                format!("ulysses × tensor degree `{shards}` is more than the model's {} heads", spec.heads),
                "spread the tokens over the ring axis instead".into(),
            );
        }
        if distrifusion && (pipeline > 1 || (patches > 1 && mesh.degree(Axis::Ring) > 1)) {
            return usage(
                "DistriFusion gives every rank of the ring axis one patch, and has no pipeline".into(),
                "use the ring degree for its ranks, and leave pipeline degree and patches out".into(),
            );
        }
        if distrifusion && patches == 1 && mesh.degree(Axis::Ring) == 1 {
            return usage(
                "DistriFusion with one patch has nobody to exchange keys with".into(),
                "give its number of ranks as the ring degree".into(),
            );
        }
        if patches == 0 {
            return usage("`0` pipeline patches leave nothing to compute".into(), "use at least 1".into());
        }
        if patches.saturating_mul(sequence) > pieces {
            let frames = if *grain > 1 { format!(" in {grain} frames") } else { String::new() };
            return usage(
                format!(
                    "{pieces} tokens{frames} cannot be cut into {patches} patches × {sequence} sequence ranks"
                ),
                "make the picture larger, or the degrees smaller".into(),
            );
        }
        branches.iter().try_for_each(|branch| check_skipped_layers(&branch.skip_layers, spec))?;
        let first = branches.first().map(|branch| of_run(branch, *steps).steps);
        assert_eq!(first, Some(0..*steps), "branch 0 takes part in every step");
        // A branch that joins late has no stale keys before it has run once.
        let latest = branches.iter().map(|branch| branch.steps.start).max().unwrap_or(0);
        Ok(Self {
            mesh,
            stages: stages(config, spec)?,
            skips: spec.skips.clone(),
            patches: split_at(0..*tokens, *grain, patches),
            grain: *grain,
            distrifusion,
            synchronous_steps: match (distrifusion, patches) {
                // The first step is always synchronous: no step precedes it.
                (true, _) => config.warmup_steps.max(latest).saturating_add(1).min(*steps),
                // One patch is the whole image: nothing is ever stale.
                (false, 1) => *steps,
                (false, _) if latest > 0 => config.warmup_steps.max(latest + 1).min(*steps),
                (false, _) => config.warmup_steps.min(*steps),
            },
            steps: *steps,
            branches: branches.iter().map(|branch| of_run(branch, *steps)).collect(),
            images: split::even(*images, mesh.degree(Axis::Data)),
            decoding_shares: if config.parallel_vae { mesh.size() / mesh.degree(Axis::Data) } else { 1 },
            guidance_batch: config.guidance_batch.unwrap_or(false),
        })
    }

    /// The number of patches whose keys may be one step stale; a single rank with this many patches reproduces the
    /// result.
    pub fn stale_patches(&self) -> usize {
        if self.distrifusion { self.patches.len() * self.mesh.degree(Axis::Ring) } else { self.patches.len() }
    }

    /// Whether the text goes through the blocks together with `patches`. It does so once per step, with the first
    /// patch; the other patches use its cached keys and values. In DistriFusion each patch stands for a rank, and
    /// every rank has its own copy of the text.
    pub fn brings_text(&self, patches: &Range<usize>) -> bool {
        patches.start == 0 || self.distrifusion
    }

    /// The stage of `rank`.
    pub fn stage(&self, rank: usize) -> Range<usize> {
        self.stages[self.mesh.coordinate(rank, Axis::Pipeline)].clone()
    }

    /// The stage that holds `block`.
    pub fn stage_of(&self, block: usize) -> usize {
        self.stages.iter().position(|blocks| blocks.contains(&block)).expect("every block is of a stage")
    }

    /// The guidance branches that `rank` computes: all, the negative one, or all others.
    pub fn branches_of(&self, rank: usize) -> Range<usize> {
        let all = self.branches.len();
        match (self.mesh.degree(Axis::Cfg), self.mesh.coordinate(rank, Axis::Cfg)) {
            (1, _) => 0..all,
            (_, 0) => 0..1,
            (_, _) => 1..all,
        }
    }

    /// The [branches of `rank`](Self::branches_of) that take part in `step`.
    pub fn branches_at(&self, rank: usize, step: usize) -> impl Iterator<Item = usize> {
        self.branches_of(rank).filter(move |&branch| self.branches[branch].steps.contains(&step))
    }

    /// The [branches of `rank`](Self::branches_of), those together that pass through the blocks as one batch.
    pub fn passes_of(&self, rank: usize) -> Vec<Range<usize>> {
        let mut passes: Vec<Range<usize>> = Vec::new();
        for branch in self.branches_of(rank) {
            match passes.last_mut() {
                Some(pass) if self.guidance_batch && self.branches[pass.start] == self.branches[branch] => {
                    pass.end += 1;
                }
                _ => passes.push(branch..branch + 1),
            }
        }
        passes
    }

    /// The [passes of `rank`](Self::passes_of) that take part in `step`.
    pub fn passes_at(&self, rank: usize, step: usize) -> Vec<Range<usize>> {
        let mut passes = self.passes_of(rank);
        passes.retain(|pass| self.branches[pass.start].steps.contains(&step));
        passes
    }

    /// The `blocks` that `branch` goes through.
    pub fn blocks_of(&self, branch: usize, blocks: Range<usize>) -> impl Iterator<Item = usize> {
        blocks.filter(move |block| !self.branches[branch].skip_layers.contains(block))
    }

    /// Whether patches of `branch` ever use keys of other patches from a [cache].
    ///
    /// [cache]: crate::methods::pipefusion::KvCache
    pub fn caches(&self, branch: usize) -> bool {
        self.patches.len() > 1 && self.synchronous_steps < self.branches[branch].steps.end
    }

    /// The tokens of `patch` that the rank at `sequence_coordinate` holds: a part of its ring rank's strip.
    pub fn shard(&self, patch: usize, sequence_coordinate: usize) -> Range<usize> {
        let ulysses = self.mesh.degree(Axis::Ulysses);
        let part =
            |of: &Range<usize>, parts, index: usize| split_at(of.clone(), self.grain, parts)[index].clone();
        let strip = part(&self.patches[patch], self.mesh.degree(Axis::Ring), sequence_coordinate / ulysses);
        part(&strip, ulysses, sequence_coordinate % ulysses)
    }

    /// The number of tokens of `patches` that the rank at `sequence_coordinate` holds.
    pub fn tokens(&self, patches: &Range<usize>, sequence_coordinate: usize) -> usize {
        patches.clone().map(|patch| self.shard(patch, sequence_coordinate).len()).sum()
    }

    /// The number of tokens of `patches` that each of the ulysses ranks at `ring_coordinate` holds.
    pub fn ulysses_tokens(&self, patches: &Range<usize>, ring_coordinate: usize) -> Vec<usize> {
        let degree = self.mesh.degree(Axis::Ulysses);
        let first = ring_coordinate * degree;
        (first..first + degree).map(|sequence| self.tokens(patches, sequence)).collect()
    }

    /// The number of tokens of `patches` that the ranks at `ring_coordinate` hold together.
    pub fn ring_tokens(&self, patches: &Range<usize>, ring_coordinate: usize) -> usize {
        self.ulysses_tokens(patches, ring_coordinate).iter().sum()
    }
}

/// Divides `range` into `parts` as evenly as possible, at multiples of `grain`.
fn split_at(range: Range<usize>, grain: usize, parts: usize) -> Vec<Range<usize>> {
    let at = |piece: usize| range.start + piece * grain;
    split::even(range.len() / grain, parts).into_iter().map(|part| at(part.start)..at(part.end)).collect()
}

/// `branch` with its steps limited to those of the run.
///
/// # Panics
/// If it takes part in none of them.
fn of_run(branch: &Branch, steps: usize) -> Branch {
    let Range { start, end } = branch.steps;
    let of_run = Branch { steps: start..end.min(steps), ..branch.clone() };
    assert!(!of_run.steps.is_empty(), "a branch takes part in some step");
    of_run
}

/// Checks that a model with this `spec` can skip these blocks.
///
/// # Errors
/// If the model has no such block, or if another block needs its output.
pub fn check_skipped_layers(layers: &[usize], spec: &TransformerSpec) -> Result<()> {
    for &layer in layers {
        if layer >= spec.blocks {
            return Err(Error::usage(format!(
                "block `{layer}` cannot be skipped: the model has {}",
                spec.blocks
            ))
            .hint(format!("they are counted from 0; the last one is `{}`", spec.blocks - 1)));
        }
        if spec.skips.iter().flatten().any(|&end| end == layer) {
            return Err(Error::usage(format!("block `{layer}` cannot be skipped: another one needs it"))
                .hint("skip blocks that have no long skip connection"));
        }
    }
    Ok(())
}

fn stages(config: &ParallelConfig, spec: &TransformerSpec) -> Result<Vec<Range<usize>>> {
    let blocks = spec.blocks;
    let degree = config.mesh.degree(Axis::Pipeline);
    let Some(lengths) = &config.stage_blocks else {
        if degree > blocks {
            return Err(Error::usage(format!(
                "pipeline degree `{degree}` is more than the model's {blocks} blocks"
            ))
            .hint(format!("use at most `{blocks}`")));
        }
        return Ok(match &spec.block_parameters[..] {
            [] => split::even(blocks, degree),
            parameters => split::balanced(parameters, degree),
        });
    };
    let sum = lengths.iter().fold(0, |sum: usize, &length| sum.saturating_add(length));
    if lengths.len() != degree || sum != blocks || lengths.contains(&0) {
        return Err(Error::usage(format!("blocks of the stages `{lengths:?}` do not fit"))
            .hint(format!("give {degree} positive numbers that add up to the model's {blocks} blocks")));
    }
    Ok(split::consecutive(lengths))
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

impl fmt::Display for Plan {
    /// A summary of the steps, and a table with one line per rank.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} of {} steps synchronous",
            self.mesh,
            count(self.patches.len(), "patch", "patches"),
            self.synchronous_steps,
            self.steps
        )?;
        // Blocks that branch 0 skips are of no use to any branch.
        let first = self.branches.first().map_or(&[][..], |branch| &branch.skip_layers);
        let listed = |layers: &[usize]| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        if !first.is_empty() {
            writeln!(f, "without blocks {}", listed(first))?;
        }
        for branch in self.branches.iter().filter(|branch| branch.skip_layers != first) {
            let layers = listed(&branch.skip_layers);
            let Range { start, end } = branch.steps;
            writeln!(f, "one more branch of guidance in steps {start}..{end}, without blocks {layers}")?;
        }
        let passes = (0..self.mesh.size()).flat_map(|rank| self.passes_of(rank));
        if let Some(most) = passes.map(|pass| pass.len()).max().filter(|&most| most > 1) {
            writeln!(f, "{most} branches of guidance as one batch")?;
        }
        writeln!(
            f,
            "{:>4}  {:>3} {:>3} {:>3} {:>4} {:>7} {:>3}  {:>8}  {:>8}  {:>8}",
            "rank", "dp", "cfg", "pp", "ring", "ulysses", "tp", "pictures", "blocks", "tokens"
        )?;
        for rank in 0..self.mesh.size() {
            let at = |axis| self.mesh.coordinate(rank, axis);
            let sequence = self.mesh.sequence_coordinate(rank);
            let tokens = self.tokens(&(0..self.patches.len()), sequence);
            let span = |range: Range<usize>| format!("{}..{}", range.start, range.end);
            writeln!(
                f,
                "{rank:>4}  {:>3} {:>3} {:>3} {:>4} {:>7} {:>3}  {:>8}  {:>8}  {tokens:>8}",
                at(Axis::Data),
                at(Axis::Cfg),
                at(Axis::Pipeline),
                at(Axis::Ring),
                at(Axis::Ulysses),
                at(Axis::Tensor),
                span(self.images[at(Axis::Data)].clone()),
                span(self.stage(rank))
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        let spec = TransformerSpec {
            patch: 2,
            channels: 4,
            blocks: 4,
            heads: 4,
            head_dim: 8,
            skips: Vec::new(),
            block_parameters: Vec::new(),
        };
        Work { spec, tokens: 64, grain: 1, steps: 4, branches: Branch::classifier_free(true), images: 2 }
    }

    /// Products and sums of degrees that would wrap around to legal values in 64 bits.
    #[test]
    fn degrees_that_wrap_around_are_refused() {
        const HALF: usize = 1 << (usize::BITS - 1);
        let on = |axes: &[(Axis, usize)]| ParallelConfig {
            mesh: axes.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree)),
            ..ParallelConfig::default()
        };
        let (patches, parts) = (Some(HALF), vec![usize::MAX, 5]);
        for config in [
            ParallelConfig { patches, ..on(&[(Axis::Ring, 2)]) },
            ParallelConfig { patches, distrifusion: true, ..on(&[]) },
            on(&[(Axis::Ulysses, HALF), (Axis::Tensor, 2)]),
            on(&[(Axis::Ring, HALF), (Axis::Ulysses, 2)]),
            ParallelConfig { stage_blocks: Some(parts), ..on(&[(Axis::Pipeline, 2)]) },
        ] {
            assert!(Plan::new(&config, &work()).is_err(), "{config:?}");
        }
        assert_eq!(on(&[(Axis::Ring, HALF), (Axis::Data, 2)]).mesh.size(), usize::MAX);
    }
}
