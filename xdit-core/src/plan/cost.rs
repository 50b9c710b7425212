//! The cost of a plan, computed from sizes alone: the bytes that each rank sends and holds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::{AddAssign, Range};

use burn::tensor::DType;

use crate::error::Result;
use crate::link::HostLink;
use crate::placement::{Share, TensorShare};
use crate::plan::Plan;
use crate::plan::contexts::chunks;
use crate::plan::mesh::Axis;
use crate::plan::schedule::{Action, schedule};
use crate::split;
use crate::transformer::TransformerSpec;
use crate::weights::ParameterBytes;

/// The sizes that costs depend on, besides the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The transformer's sizes.
    pub spec: TransformerSpec,
    /// The type of the hidden state between blocks.
    pub dtype: DType,
    /// Text tokens of each guidance branch if blocks change the text, otherwise 0.
    pub text_tokens: Vec<usize>,
    /// The exchanges of each block.
    pub exchanges: Vec<BlockExchanges>,
    /// The number of frames, if tokens attend to those of their own frame only, otherwise 1.
    pub frames: usize,
    /// The exchanges of each block at other resolutions than that of its tokens.
    pub levels: Vec<LevelExchanges>,
    /// The exchanges of each block among ranks that have rows of the image.
    pub rows: RowExchanges,
}

/// The number of times that a block mixes tokens and sums features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockExchanges {
    /// Attentions among image tokens of several ranks. A text that passes through the blocks takes part in the first.
    pub attentions: usize,
    /// Layers with [cut inputs](crate::placement::Placement::Inputs) that image tokens pass through.
    pub image_sums: usize,
    /// Layers with cut inputs that text tokens pass through.
    pub text_sums: usize,
}

/// The exchanges of a block's layers that see the image at another resolution than that of its tokens, as the levels of a
/// UNet do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelExchanges {
    /// The number of tokens of the whole image at this resolution.
    pub tokens: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// The number of features of a head.
    pub head_dim: usize,
    /// Attentions among image tokens.
    pub attentions: usize,
    /// Layers with [cut inputs](crate::placement::Placement::Inputs).
    pub image_sums: usize,
}

/// The bytes that a block sends for [operations on rows](crate::rows::Rows), if several ranks have rows of the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowExchanges {
    /// Bytes for the rank with the rows above.
    pub up: usize,
    /// Bytes for the rank with the rows below.
    pub down: usize,
    /// Bytes for each other rank.
    pub all: usize,
}

/// Bytes by axis. An axis without an entry has none.
pub type Sent = BTreeMap<Axis, u64>;

/// The bytes that one rank sends and holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes sent to other ranks in a steady step: the first asynchronous step or, if there is none, the last one.
    pub step_bytes: Sent,
    /// Bytes sent in such a step for [operations on rows](crate::rows::Rows), among the ranks of both axes that divide the
    /// tokens.
    pub row_bytes: u64,
    /// The bytes of its share of the transformer.
    pub share: ShareBytes,
    /// The part of these bytes that no lower rank of the process holds: ranks on one device hold equal parts of a
    /// layer, and equal contexts, only once.
    pub added: ShareBytes,
    /// The most bytes of keys and values that it keeps between calls of attention.
    pub peak_kv_bytes: u64,
}

/// Bytes of a share of the transformer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareBytes {
    /// Parameters.
    pub parameters: ParameterBytes,
    /// The timestep-dependent part of [contexts](crate::transformer::Transformer::Context), for all branches and for as
    /// many steps as are computed together.
    pub contexts: u64,
}

impl AddAssign for ShareBytes {
    fn add_assign(&mut self, other: Self) {
        self.parameters += other.parameters;
        self.contexts += other.contexts;
    }
}

/// The sizes of a share, without loading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weighed {
    /// Bytes of its parameters.
    pub parameters: ParameterBytes,
    /// Bytes of the parameters that no previously weighed share holds.
    pub added: ParameterBytes,
    /// The [bytes of a context](crate::transformer::Transformer::context_bytes).
    pub context_bytes: usize,
}

/// The cost of each rank of `plan`, if all ranks are in one process and on one device. `weigh` is called once for each
/// share, and a second time for a share that several ranks have.
///
/// # Errors
/// Those of `weigh`.
pub fn costs(
    plan: &Plan,
    sizes: &Sizes,
    mut weigh: impl FnMut(Share) -> Result<Weighed>,
) -> Result<Vec<Cost>> {
    let tensor_ranks = HostLink::ends(plan.mesh.degree(Axis::Tensor));
    // By share: the sizes for its first rank, and those for its other ranks.
    let mut known: BTreeMap<[usize; 2], (Weighed, Option<Weighed>)> = BTreeMap::new();
    let cost = |rank| {
        let at = |axis| plan.mesh.coordinate(rank, axis);
        let mut weigh = || {
            let tensor = TensorShare { link: tensor_ranks[at(Axis::Tensor)].clone() };
            let tensor = (tensor_ranks.len() > 1).then_some(tensor);
            weigh(Share { blocks: plan.stage(rank), tensor })
        };
        let weighed = match known.entry([Axis::Pipeline, Axis::Tensor].map(at)) {
            Entry::Vacant(entry) => entry.insert((weigh()?, None)).0,
            Entry::Occupied(mut entry) => match &mut entry.get_mut().1 {
                Some(again) => *again,
                again => *again.insert(weigh()?),
            },
        };
        let of_pass = |branches: &Range<usize>| {
            let bytes = branches.len() * weighed.context_bytes;
            let chunks = chunks(&plan.branches[branches.start].steps, bytes);
            chunks.iter().map(ExactSizeIterator::len).max().unwrap_or(0) * bytes
        };
        let contexts = plan.passes_of(rank).iter().map(of_pass).sum::<usize>() as u64;
        let first = [Axis::Ring, Axis::Ulysses, Axis::Tensor].map(at) == [0; 3];
        let steady = plan.synchronous_steps.min(plan.steps - 1);
        Ok(Cost {
            step_bytes: sent_bytes(plan, sizes, rank).swap_remove(steady),
            row_bytes: row_bytes(plan, sizes, rank, steady),
            share: ShareBytes { parameters: weighed.parameters, contexts },
            added: ShareBytes { parameters: weighed.added, contexts: if first { contexts } else { 0 } },
            peak_kv_bytes: peak_kv_bytes(plan, sizes, rank),
        })
    };
    (0..plan.mesh.size()).map(cost).collect()
}

/// The bytes that `rank` sends to other ranks in each step, if messages go directly from rank to rank. The gathering of
/// the final latents is left out.
pub fn sent_bytes(plan: &Plan, sizes: &Sizes, rank: usize) -> Vec<Sent> {
    let rank = Rank { plan, sizes, rank };
    let mut steps = vec![Sent::new(); plan.steps];
    let mut step = 0;
    for action in schedule(plan, rank.rank) {
        // Any other action that sends comes after one of these of the same step.
        if let Action::Blocks { step: current, .. } | Action::Advance { step: current, .. } = action {
            step = current;
        }
        for (axis, bytes) in rank.sends(&action).into_iter().filter(|(_, bytes)| *bytes > 0) {
            *steps[step].entry(axis).or_default() += bytes as u64;
        }
    }
    steps
}

/// The bytes that `rank` sends in `step` for [operations on rows](crate::rows::Rows).
pub fn row_bytes(plan: &Plan, sizes: &Sizes, rank: usize, step: usize) -> u64 {
    let (at, ranks) = (plan.mesh.sequence_coordinate(rank), plan.mesh.sequence_degree());
    let RowExchanges { up, down, all } = sizes.rows;
    // In DistriFusion, the branch's last step sends none: there is no next step to use them.
    let sends = |branch: &usize| {
        !plan.distrifusion
            || step < plan.synchronous_steps
            || plan.branches[*branch].steps.contains(&(step + 1))
    };
    let of_block = up * usize::from(at > 0) + down * usize::from(at + 1 < ranks) + all * (ranks - 1);
    let passes = plan
        .branches_at(rank, step)
        .filter(sends)
        .map(|branch| plan.blocks_of(branch, plan.stage(rank)).count());
    (of_block * passes.sum::<usize>()) as u64
}

/// The most bytes of keys and values that `rank` keeps between calls of attention.
pub fn peak_kv_bytes(plan: &Plan, sizes: &Sizes, rank: usize) -> u64 {
    let at = |axis| plan.mesh.coordinate(rank, axis);
    let view = Rank { plan, sizes, rank };
    let ring_degree = plan.mesh.degree(Axis::Ring);
    let all = 0..plan.patches.len();
    let image = |branch: usize| match plan.distrifusion && ring_degree > 1 {
        // The other strips, for the branch's next step.
        true if plan.branches[branch].steps.len() > 1 => {
            let others = (0..ring_degree).filter(|&ring| ring != at(Axis::Ring));
            others.map(|ring| plan.ring_tokens(&all, ring)).sum()
        }
        // All patches; in DistriFusion twice, since new keys wait for the next step.
        false if plan.caches(branch) => {
            plan.ring_tokens(&all, at(Axis::Ring)) * if plan.distrifusion { 2 } else { 1 }
        }
        _ => 0,
    };
    // In DistriFusion each patch comes with its own text.
    let keeps_text = |branch| plan.caches(branch) && !plan.distrifusion;
    let text = |branch| if keeps_text(branch) { sizes.text_tokens[branch] } else { 0 };
    let width = view.kv_width(&view.resolution());
    let at_level = |level: &LevelExchanges, tokens: usize| {
        let at = view.resolution_of(level);
        level.attentions * at.of(tokens) * view.kv_width(&at)
    };
    let of_branch = |branch| {
        let in_levels: usize = sizes.levels.iter().map(|level| at_level(level, image(branch))).sum();
        let elements = |block: usize| {
            let tokens = sizes.exchanges[block].attentions * image(branch) / sizes.frames + text(branch);
            tokens * width + in_levels
        };
        plan.blocks_of(branch, plan.stage(rank)).map(elements).sum::<usize>()
    };
    let elements: usize = plan.branches_of(rank).map(of_branch).sum();
    (elements * sizes.dtype.size()) as u64
}

/// The heads and the number of tokens of an attention.
struct Resolution {
    heads: usize,
    head_dim: usize,
    /// In attention within frames, a place is one token with the heads of all frames.
    frames: usize,
    /// This number of its tokens …
    tokens: usize,
    /// … are in the place of this number of the plan's.
    planned: usize,
}

impl Resolution {
    /// The number of its tokens in the place of `tokens` of the plan's.
    fn of(&self, tokens: usize) -> usize {
        tokens * self.tokens / self.planned
    }
}

/// One rank's view of the plan.
struct Rank<'a> {
    plan: &'a Plan,
    sizes: &'a Sizes,
    rank: usize,
}

impl Rank<'_> {
    fn at(&self, axis: Axis) -> usize {
        self.plan.mesh.coordinate(self.rank, axis)
    }

    /// The number of other ranks along `axis`.
    fn others(&self, axis: Axis) -> usize {
        self.plan.mesh.degree(axis) - 1
    }

    /// The number of this rank's tokens of `patches`.
    fn tokens(&self, patches: &Range<usize>) -> usize {
        self.plan.tokens(patches, self.plan.mesh.sequence_coordinate(self.rank))
    }

    /// The number of text tokens of each of `branches` that go along with `patches`.
    fn text(&self, patches: &Range<usize>, branches: &Range<usize>) -> usize {
        if self.plan.brings_text(patches) { self.sizes.text_tokens[branches.start] } else { 0 }
    }

    /// The resolution of the blocks' tokens.
    fn resolution(&self) -> Resolution {
        let Sizes { spec, frames, .. } = self.sizes;
        Resolution {
            heads: spec.heads,
            head_dim: spec.head_dim,
            frames: *frames,
            tokens: 1,
            planned: *frames,
        }
    }

    fn resolution_of(&self, level: &LevelExchanges) -> Resolution {
        let planned = self.plan.patches.last().map_or(1, |patch| patch.end);
        let LevelExchanges { tokens, heads, head_dim, .. } = *level;
        Resolution { heads, head_dim, frames: 1, tokens, planned }
    }

    /// The number of heads of each ulysses rank, out of those of this tensor rank.
    fn heads(&self, at: &Resolution) -> Vec<usize> {
        let mesh = &self.plan.mesh;
        let own = split::even(at.heads, mesh.degree(Axis::Tensor))[self.at(Axis::Tensor)].len();
        split::even(own * at.frames, mesh.degree(Axis::Ulysses)).iter().map(Range::len).collect()
    }

    /// The number of elements in a token's keys and values, for the heads of this rank.
    fn kv_width(&self, at: &Resolution) -> usize {
        2 * self.heads(at)[self.at(Axis::Ulysses)] * at.head_dim
    }

    /// Bytes that `action` sends along each axis.
    fn sends(&self, action: &Action) -> Vec<(Axis, usize)> {
        let Sizes { spec, dtype, .. } = self.sizes;
        // Latents are f32, whatever the type of the model.
        let latents = |patches| self.tokens(patches) * spec.channels * spec.patch * spec.patch * 4;
        let hidden = |tokens| tokens * spec.dim() * dtype.size();
        match action {
            Action::Blocks { step, blocks, patches, branches } => {
                let blocks = self.plan.blocks_of(branches.start, blocks.clone());
                blocks.flat_map(|block| self.block(*step, block, patches, branches)).collect()
            }
            Action::SendHidden { patches, branches } => {
                let tokens = self.tokens(patches) + self.text(patches, branches);
                vec![(Axis::Pipeline, branches.len() * hidden(tokens))]
            }
            Action::SendSkip { patches, branches, .. } => {
                vec![(Axis::Pipeline, branches.len() * hidden(self.tokens(patches)))]
            }
            Action::SendLatents { patches } => vec![(Axis::Pipeline, latents(patches))],
            Action::Advance { step, patches } => {
                let predictions = self.plan.branches_at(self.rank, *step).count();
                vec![(Axis::Cfg, predictions * latents(patches) * self.others(Axis::Cfg))]
            }
            Action::Embed { .. } | Action::Finish { .. } => Vec::new(),
            Action::ReceiveLatents { .. } | Action::ReceiveHidden { .. } | Action::ReceiveSkip { .. } => {
                Vec::new()
            }
        }
    }

    /// Bytes that one block sends: around its attention, and for its sums.
    fn block(
        &self,
        step: usize,
        block: usize,
        patches: &Range<usize>,
        branches: &Range<usize>,
    ) -> [(Axis, usize); 3] {
        let Sizes { spec, dtype, exchanges, levels, .. } = self.sizes;
        let text = self.text(patches, branches);
        let BlockExchanges { attentions, image_sums, text_sums } = exchanges[block];
        let mut summed = (image_sums * self.tokens(patches) + text_sums * text) * spec.dim();
        let own = (self.resolution(), attentions, text);
        let at_level = |level: &LevelExchanges| (self.resolution_of(level), level.attentions, 0);
        let (mut ulysses, mut ring) = (0, 0);
        for (at, attentions, text) in [own].into_iter().chain(levels.iter().map(at_level)) {
            ulysses += self.ulysses(&at, patches, attentions, text) * at.head_dim;
            ring += at.of(self.ring(step, patches, branches.start)) * attentions * self.kv_width(&at);
        }
        for level in levels {
            let at = self.resolution_of(level);
            summed += level.image_sums * at.of(self.tokens(patches)) * at.heads * at.head_dim;
        }
        let of_axis = [
            (Axis::Tensor, summed * self.others(Axis::Tensor)),
            (Axis::Ulysses, ulysses),
            (Axis::Ring, ring),
        ];
        of_axis.map(|(axis, elements)| (axis, branches.len() * elements * dtype.size()))
    }

    /// The number of head vectors sent to other ulysses ranks: queries, keys and values before attention, the result
    /// after it, and the text's result to all.
    fn ulysses(&self, at: &Resolution, patches: &Range<usize>, attentions: usize, text: usize) -> usize {
        let (me, heads) = (self.at(Axis::Ulysses), self.heads(at));
        let tokens = self.plan.ulysses_tokens(patches, self.at(Axis::Ring));
        let tokens: Vec<_> = tokens.into_iter().map(|tokens| at.of(tokens)).collect();
        let others = (0..heads.len()).filter(|&other| other != me);
        let image = |other: usize| 3 * tokens[me] * heads[other] + tokens[other] * heads[me];
        others.map(|other| attentions * image(other) + text * heads[me]).sum()
    }

    /// The number of tokens whose keys and values are sent to other ring ranks.
    fn ring(&self, step: usize, patches: &Range<usize>, branch: usize) -> usize {
        let (me, degree) = (self.at(Axis::Ring), self.plan.mesh.degree(Axis::Ring));
        if self.plan.distrifusion {
            // The branch's last step sends none: there is no next step to use them.
            let goes_on = self.plan.branches[branch].steps.contains(&(step + 1));
            let sends = step < self.plan.synchronous_steps || goes_on;
            return if sends { self.plan.ring_tokens(patches, me) * (degree - 1) } else { 0 };
        }
        // The cache holds all patches from the second step on.
        let known = 0..if step == 0 { patches.end } else { self.plan.patches.len() };
        (0..degree - 1).map(|hop| self.plan.ring_tokens(&known, (me + degree - hop) % degree)).sum()
    }
}
