//! From what was asked for to what every rank does: computed, checked and printed before anything is loaded.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::parallel::mesh::{Axis, Mesh};
use crate::parallel::split;
use crate::transformer::Spec;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParallelConfig {
    /// Ranks along each axis.
    pub mesh: Mesh,
    /// Strips of the image that follow each other through the pipeline; as many as stages if not given.
    pub patches: Option<usize>,
    /// Steps at the start in which no rank uses anything of an earlier step.
    pub warmup_steps: usize,
    /// Blocks of each stage; evenly split if not given.
    pub stage_blocks: Option<Vec<usize>>,
    /// Whether all ranks decode each picture, some rows each.
    pub parallel_vae: bool,
}

impl Default for ParallelConfig {
    /// One rank.
    fn default() -> Self {
        Self { mesh: Mesh::default(), patches: None, warmup_steps: 1, stage_blocks: None, parallel_vae: false }
    }
}

/// What is to be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The transformer's sizes.
    pub spec: Spec,
    /// Image tokens.
    pub tokens: usize,
    /// Steps of the noise scheduler.
    pub steps: usize,
    /// Whether classifier-free guidance is on.
    pub guided: bool,
    /// Pictures.
    pub images: usize,
}

/// Who does what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How ranks are arranged.
    pub mesh: Mesh,
    /// Blocks of each stage.
    pub stages: Vec<Range<usize>>,
    /// Tokens of each patch.
    pub patches: Vec<Range<usize>>,
    /// Steps that run the image as a whole.
    pub synchronous_steps: usize,
    /// Steps of the noise scheduler.
    pub steps: usize,
    /// Guidance branches: 1, or 2 with guidance. Branch 0 is the negative one then.
    pub branches: usize,
    /// Pictures of each data-parallel share.
    pub images: Vec<Range<usize>>,
    /// Between how many ranks the rows of a picture are split as it is decoded.
    pub decoding_shares: usize,
}

impl Plan {
    /// Makes the plan, or says why there is none.
    ///
    /// # Errors
    /// If `work` cannot be spread as `config` asks; the error names the value and a way out.
    pub fn new(config: &ParallelConfig, work: &Work) -> Result<Self> {
        let mesh = config.mesh;
        let Work { spec, tokens, steps, guided, images } = work;
        let pipeline = mesh.degree(Axis::Pipeline);
        let patches = config.patches.unwrap_or(pipeline);
        let sequence = mesh.sequence_degree();
        let usage = |message: String, hint: String| Err(Error::usage(message).hint(hint));

        match (mesh.degree(Axis::Cfg), guided) {
            (1, _) | (2, true) => {}
            (2, false) => {
                return usage(
                    "CFG parallelism splits two guidance branches, but guidance is off".into(),
                    "raise the guidance scale above 1, or drop CFG parallelism".into(),
                );
            }
            (degree, _) => {
                return usage(format!("CFG degree `{degree}` is not 1 or 2"), "guidance has two branches".into());
            }
        }
        if mesh.degree(Axis::Data) > *images {
            return usage(
                format!("data-parallel degree `{}` for {images} pictures leaves ranks idle", mesh.degree(Axis::Data)),
                format!("use at most `{images}`, or ask for more pictures"),
            );
        }
        let shards = mesh.degree(Axis::Ulysses) * mesh.degree(Axis::Tensor);
        if shards > spec.heads {
            return usage(
                format!("ulysses × tensor degree `{shards}` is more than the model's {} heads", spec.heads),
                "spread the tokens over the ring axis instead".into(),
            );
        }
        if patches == 0 {
            return usage("`0` pipeline patches leave nothing to compute".into(), "use at least 1".into());
        }
        if patches * sequence > *tokens {
            return usage(
                format!("{tokens} tokens cannot be cut into {patches} patches × {sequence} sequence ranks"),
                "make the picture larger, or the degrees smaller".into(),
            );
        }
        Ok(Self {
            mesh,
            stages: stages(config, spec.blocks)?,
            patches: split::even(*tokens, patches),
            // One patch is the whole image: nothing in it is ever of an earlier step.
            synchronous_steps: if patches == 1 { *steps } else { config.warmup_steps.min(*steps) },
            steps: *steps,
            branches: if *guided { 2 } else { 1 },
            images: split::even(*images, mesh.degree(Axis::Data)),
            decoding_shares: if config.parallel_vae { mesh.size() } else { 1 },
        })
    }

    /// The stage of `rank`.
    pub fn stage(&self, rank: usize) -> Range<usize> {
        self.stages[self.mesh.coordinate(rank, Axis::Pipeline)].clone()
    }

    /// The guidance branches that `rank` computes.
    pub fn branches_of(&self, rank: usize) -> Range<usize> {
        split::even(self.branches, self.mesh.degree(Axis::Cfg))[self.mesh.coordinate(rank, Axis::Cfg)].clone()
    }

    /// The tokens of `patch` that the rank at `sequence_coordinate` holds.
    pub fn shard(&self, patch: usize, sequence_coordinate: usize) -> Range<usize> {
        let patch = &self.patches[patch];
        let shard = split::even(patch.len(), self.mesh.sequence_degree())[sequence_coordinate].clone();
        patch.start + shard.start..patch.start + shard.end
    }
}

fn stages(config: &ParallelConfig, blocks: usize) -> Result<Vec<Range<usize>>> {
    let degree = config.mesh.degree(Axis::Pipeline);
    let Some(lengths) = &config.stage_blocks else {
        if degree > blocks {
            return Err(Error::usage(format!(
                "pipeline degree `{degree}` is more than the model's {blocks} blocks"
            ))
            .hint(format!("use at most `{blocks}`")));
        }
        return Ok(split::even(blocks, degree));
    };
    if lengths.len() != degree || lengths.iter().sum::<usize>() != blocks || lengths.contains(&0) {
        return Err(Error::usage(format!("blocks of the stages `{lengths:?}` do not fit")).hint(format!(
            "give {degree} positive numbers that add up to the model's {blocks} blocks"
        )));
    }
    Ok(split::consecutive(lengths))
}

impl fmt::Display for Plan {
    /// A table: one line a rank.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} patches, {} of {} steps synchronous",
            self.mesh,
            self.patches.len(),
            self.synchronous_steps,
            self.steps
        )?;
        writeln!(f, "{:>4}  {:>3} {:>3} {:>3} {:>4} {:>7} {:>3}  {:>8}  {:>8}  {:>8}", "rank", "dp", "cfg", "pp",
            "ring", "ulysses", "tp", "pictures", "blocks", "tokens")?;
        for rank in 0..self.mesh.size() {
            let at = |axis| self.mesh.coordinate(rank, axis);
            let sequence = self.mesh.sequence_coordinate(rank);
            let tokens: usize = (0..self.patches.len()).map(|patch| self.shard(patch, sequence).len()).sum();
            let span = |range: Range<usize>| format!("{}..{}", range.start, range.end);
            writeln!(f, "{rank:>4}  {:>3} {:>3} {:>3} {:>4} {:>7} {:>3}  {:>8}  {:>8}  {tokens:>8}",
                at(Axis::Data), at(Axis::Cfg), at(Axis::Pipeline), at(Axis::Ring), at(Axis::Ulysses),
                at(Axis::Tensor), span(self.images[at(Axis::Data)].clone()), span(self.stage(rank)))?;
        }
        Ok(())
    }
}
