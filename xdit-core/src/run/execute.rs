//! Walks the schedule of one rank.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use burn::tensor::Tensor;
use xdit_comm::{Buffer, Comm, Pending};

use crate::error::{Error, Result};
use crate::finite;
use crate::link::{Place, buffer, fail, wait};
use crate::methods::attention::{KeyExchange, ParallelAttention, Pass};
use crate::methods::distrifusion::DistriFusion;
use crate::methods::ring::Ring;
use crate::methods::ulysses::Ulysses;
use crate::plan::Plan;
use crate::plan::guidance::Guidance;
use crate::plan::mesh::Axis;
use crate::plan::schedule::{Action, schedule};
use crate::run::record::{Activity, Recorder};
use crate::scheduler::{History, Scheduler};
use crate::split;
use crate::tokens::{Positions, Tokens};
use crate::transformer::{Hidden, Transformer};

/// How many actions ahead of their turn receives are posted.
const POST_AHEAD: usize = 8;

/// The groups that one rank talks in.
#[derive(Clone, Debug)]
pub struct Groups {
    rank: usize,
    pipeline: Comm,
    cfg: Comm,
    sequence: Comm,
    ring: Comm,
    ulysses: Comm,
    /// Ranks that share each layer's heads and features.
    pub tensor: Comm,
}

impl Groups {
    /// The groups of this rank of `world` in the plan's mesh. Every rank of the world calls it.
    ///
    /// # Errors
    /// If the world has another size than the mesh, or a group cannot be made.
    pub fn new(world: &Comm, plan: &Plan) -> Result<Self> {
        if world.size() != plan.mesh.size() {
            return Err(Error::usage(format!(
                "the plan has {} ranks, but {} are running",
                plan.mesh.size(),
                world.size()
            )));
        }
        let rank = world.rank();
        let group = |axes: &[Axis]| {
            world.subgroup(&plan.mesh.group(rank, axes)).map_err(|error| Error::failure(error.to_string()))
        };
        Ok(Self {
            rank,
            pipeline: group(&[Axis::Pipeline])?,
            cfg: group(&[Axis::Cfg])?,
            sequence: group(&[Axis::Ring, Axis::Ulysses])?,
            ring: group(&[Axis::Ring])?,
            ulysses: group(&[Axis::Ulysses])?,
            tensor: group(&[Axis::Tensor])?,
        })
    }
}

/// One picture on one rank, about to be denoised.
pub struct Denoising<'a, T: Transformer> {
    /// Who does what.
    pub plan: &'a Plan,
    /// The groups of this rank.
    pub groups: &'a Groups,
    /// The rank's share of the transformer.
    pub transformer: &'a T,
    /// The noise scheduler.
    pub scheduler: &'a dyn Scheduler,
    /// The conditions of the picture.
    pub guidance: &'a Guidance<T::Conditions>,
    /// The whole picture's noise, packed: the same on every rank.
    pub noise: &'a Tokens,
    /// Passes while the run goes on. It is called before each action and each block.
    pub check: &'a dyn Fn() -> Result<()>,
}

impl<T: Transformer> Denoising<'_, T> {
    /// Denoises the picture. The final latents, whole again, are returned on the ranks of the first stage. `recorder`
    /// is told of each action, `on_step` of each step that ended here.
    ///
    /// # Shapes
    /// Result packed, as the noise: `[b, n, c]`.
    ///
    /// # Panics
    /// If guidance or scheduler are not those of the plan. A check that does not pass, a failed transfer and values
    /// that are not finite unwind to [`catch`](crate::link::catch).
    pub fn run(self, recorder: &mut Recorder, on_step: &mut dyn FnMut(usize)) -> Option<Tokens> {
        let Self { plan, groups, scheduler, guidance, .. } = self;
        assert_eq!(guidance.branches.len(), plan.branches.len(), "the plan knows the branches of guidance");
        assert_eq!(scheduler.timesteps().len(), plan.steps, "the plan knows the steps of the scheduler");
        self.check();
        let mut walker = recorder.time(Activity::Prepare, || Walker::new(self));
        let actions = schedule(plan, groups.rank);
        for (index, action) in actions.iter().enumerate() {
            walker.run.check();
            walker.post(&actions[..actions.len().min(index + POST_AHEAD)]);
            let step = recorder.time(Activity::Action(action.clone()), || walker.walk(action));
            recorder.keep_kv(walker.attention.kv_bytes());
            if let Some(step) = step {
                on_step(step);
            }
        }
        recorder.time(Activity::Gather, || walker.finish())
    }

    /// Unwinds to [`catch`](crate::link::catch) unless the run goes on.
    fn check(&self) {
        // Pictures of other ranks are no concern of this one, until one of them fails.
        wait(Pending::ready(self.groups.pipeline.check()));
        (self.check)().unwrap_or_else(|error| fail(error));
    }
}

/// The conditions of each branch that a rank computes, made ready for each of the branch's steps.
struct Contexts<C> {
    first_branch: usize,
    /// The first step, and what is ready from there on.
    branches: Vec<(usize, Vec<C>)>,
}

impl<C> Contexts<C> {
    fn new(branches: Range<usize>, of_branch: impl FnMut(usize) -> (usize, Vec<C>)) -> Self {
        Self { first_branch: branches.start, branches: branches.map(of_branch).collect() }
    }

    fn at(&self, branch: usize, step: usize) -> &C {
        let (first_step, contexts) = &self.branches[branch - self.first_branch];
        &contexts[step - first_step]
    }

    /// At the first step of `branch`.
    fn first(&self, branch: usize) -> &C {
        &self.branches[branch - self.first_branch].1[0]
    }
}

/// A rank on its way through its schedule.
struct Walker<'a, T: Transformer> {
    run: Denoising<'a, T>,
    attention: ParallelAttention,
    positions: Positions,
    /// Batch and features of packed latents, and where they are.
    latents: ([usize; 2], Place),
    /// Where hidden states are: of the model's type, not the latents'.
    hidden_place: Place,
    /// This rank's tokens of each patch.
    shards: Vec<Range<usize>>,
    /// The sample at those tokens, of each patch: what the first stage embeds and the last one advances.
    samples: Vec<Tensor<3>>,
    histories: Vec<History>,
    contexts: Contexts<T::Context>,
    hidden: Option<Hidden>,
    /// What the last pass left for blocks of other stages.
    skips: BTreeMap<usize, Tensor<3>>,
    predictions: Vec<Option<Tensor<3>>>,
    posted: usize,
    /// Receives that were posted, and the tensors they will be.
    arriving: VecDeque<(Pending<Buffer>, Place, [usize; 3])>,
    sending: Vec<Pending<()>>,
}

impl<'a, T: Transformer> Walker<'a, T> {
    fn new(run: Denoising<'a, T>) -> Self {
        let Denoising { plan, groups, transformer, scheduler, guidance, noise, .. } = run;
        let several = |comm: &Comm| (comm.size() > 1).then(|| comm.clone());
        let sequence = plan.mesh.sequence_coordinate(groups.rank);
        let shards: Vec<_> = (0..plan.patches.len()).map(|patch| plan.shard(patch, sequence)).collect();
        let [b, _, c] = noise.x.dims();
        Self {
            attention: ParallelAttention::new(
                plan.clone(),
                plan.mesh.coordinate(groups.rank, Axis::Ring),
                several(&groups.ulysses).map(Ulysses::new),
                several(&groups.ring).map(|comm| match plan.distrifusion {
                    true => KeyExchange::DistriFusion(DistriFusion::new(comm)),
                    false => KeyExchange::Ring(Ring::new(comm)),
                }),
            ),
            hidden_place: Place { dtype: transformer.dtype(), ..Place::of(&noise.x) },
            positions: noise.positions.clone(),
            latents: ([b, c], Place::of(&noise.x)),
            samples: shards.iter().map(|shard| noise.x.clone().narrow(1, shard.start, shard.len())).collect(),
            histories: vec![History::default(); shards.len()],
            contexts: Contexts::new(plan.branches_of(groups.rank), |branch| {
                let Range { start, end } = plan.branches[branch].steps;
                let timesteps = &scheduler.timesteps()[start..end];
                (start, transformer.contexts(&guidance.branches[branch], timesteps))
            }),
            hidden: None,
            skips: BTreeMap::new(),
            predictions: vec![None; plan.branches.len()],
            posted: 0,
            arriving: VecDeque::new(),
            sending: Vec::new(),
            run,
            shards,
        }
    }

    /// This rank's tokens of `patches`.
    fn tokens(&self, patches: &Range<usize>) -> usize {
        self.shards[patches.clone()].iter().map(Range::len).sum()
    }

    fn latents_shape(&self, patches: &Range<usize>) -> [usize; 3] {
        let [b, c] = self.latents.0;
        [b, self.tokens(patches), c]
    }

    fn hidden_shape(&self, patches: &Range<usize>) -> [usize; 3] {
        [self.latents.0[0], self.tokens(patches), self.run.transformer.spec().dim()]
    }

    /// The text that `branch` has beside `patches`.
    fn text_shape(&self, patches: &Range<usize>, branch: usize) -> Option<[usize; 3]> {
        // It does not change over the steps.
        let text = self.run.transformer.text_shape(self.contexts.first(branch));
        text.filter(|_| self.run.plan.brings_text(patches))
    }

    /// Posts the receives of `actions` that have not been posted yet.
    fn post(&mut self, actions: &[Action]) {
        for action in &actions[self.posted..] {
            match action {
                Action::ReceiveLatents { patches } => {
                    let last = self.run.groups.pipeline.size() - 1;
                    self.expect(last, self.latents.1.clone(), self.latents_shape(patches));
                }
                Action::ReceiveHidden { patches, branch } => {
                    let before = self.run.groups.pipeline.rank() - 1;
                    let shapes = [Some(self.hidden_shape(patches)), self.text_shape(patches, *branch)];
                    for shape in shapes.into_iter().flatten() {
                        self.expect(before, self.hidden_place.clone(), shape);
                    }
                }
                Action::ReceiveSkip { patches, from, .. } => {
                    let stage = self.run.plan.stage_of(*from);
                    self.expect(stage, self.hidden_place.clone(), self.hidden_shape(patches));
                }
                _ => {}
            }
        }
        self.posted = self.posted.max(actions.len());
    }

    fn expect(&mut self, from: usize, place: Place, shape: [usize; 3]) {
        let pending = self.run.groups.pipeline.recv(from, place.spec(shape));
        self.arriving.push_back((pending, place, shape));
    }

    fn receive(&mut self) -> Tensor<3> {
        let (pending, place, shape) =
            self.arriving.pop_front().expect("receives are posted ahead of their turn");
        place.wait(pending, shape)
    }

    /// Does `action`; says how many steps are done, if it ended one.
    fn walk(&mut self, action: &Action) -> Option<usize> {
        match action {
            Action::ReceiveLatents { patches } => {
                let x = self.receive();
                self.keep(patches, x);
            }
            Action::ReceiveHidden { patches, branch } => {
                let x = self.receive();
                let text = self.text_shape(patches, *branch).map(|_| self.receive());
                let positions = self.positions.select(&self.shards[patches.clone()]);
                self.hidden = Some(Hidden::new(Tokens { x, positions }, text));
            }
            Action::ReceiveSkip { to, .. } => {
                let x = self.receive();
                self.hidden.as_mut().expect("received before").skips.insert(*to, x);
            }
            Action::Embed { step, patches, branch } => {
                let sample = Tensor::cat(self.samples[patches.clone()].to_vec(), 1);
                let x = self.run.scheduler.scale_model_input(sample, *step);
                let positions = self.positions.select(&self.shards[patches.clone()]);
                let context = self.contexts.at(*branch, *step);
                let Hidden { image, text, skips } =
                    self.run.transformer.embed(Tokens { x, positions }, context);
                self.hidden =
                    Some(Hidden { image, text: text.filter(|_| self.run.plan.brings_text(patches)), skips });
            }
            Action::Blocks { step, blocks, patches, branch } => {
                self.attention.begin(Pass { step: *step, patches: patches.clone(), branch: *branch });
                let mut hidden = self.hidden.take().expect("embedded or received before");
                let context = self.contexts.at(*branch, *step);
                for block in self.run.plan.blocks_of(*branch, blocks.clone()) {
                    self.run.check();
                    hidden = self.run.transformer.block(block, hidden, context, &mut self.attention);
                }
                self.skips = std::mem::take(&mut hidden.skips);
                self.hidden = Some(hidden);
            }
            Action::SendHidden { patches, branch } => {
                let Hidden { image, text, .. } = self.hidden.take().expect("blocks ran before");
                let expected = self.text_shape(patches, *branch);
                assert_eq!(
                    text.as_ref().map(Tensor::dims),
                    expected,
                    "the next stage knows the text's shape"
                );
                let pipeline = &self.run.groups.pipeline;
                for x in [Some(image.x), text].into_iter().flatten() {
                    self.sending.push(pipeline.send(pipeline.rank() + 1, buffer(x)));
                }
            }
            Action::SendSkip { to, .. } => {
                let x = self.skips.remove(to).expect("a block leaves what its skip connections need");
                self.sending.push(self.run.groups.pipeline.send(self.run.plan.stage_of(*to), buffer(x)));
            }
            Action::Finish { step, branch, .. } => {
                let hidden = self.hidden.take().expect("blocks ran before");
                let prediction = self.run.transformer.finish(hidden, self.contexts.at(*branch, *step));
                self.predictions[*branch] = Some(prediction);
            }
            Action::Advance { step, patches } => {
                self.advance(*step, patches);
                return (patches.end == self.run.plan.patches.len()).then_some(step + 1);
            }
            Action::SendLatents { patches } => {
                let x = Tensor::cat(self.samples[patches.clone()].to_vec(), 1);
                self.sending.push(self.run.groups.pipeline.send(0, buffer(x)));
            }
        }
        None
    }

    /// Takes the scheduler's step for `patches` from the predictions of all branches.
    fn advance(&mut self, step: usize, patches: &Range<usize>) {
        if self.run.groups.cfg.size() > 1 {
            self.gather_predictions(step, patches);
        }
        let prediction = self.run.guidance.combine(&self.predictions);
        self.predictions.fill(None);
        let lengths: Vec<usize> = self.shards[patches.clone()].iter().map(Range::len).collect();
        for (patch, run) in patches.clone().zip(split::consecutive(&lengths)) {
            let prediction = prediction.clone().narrow(1, run.start, run.len());
            let sample = self.samples[patch].clone();
            let sample = self.run.scheduler.step(step, &mut self.histories[patch], prediction, sample);
            let what = || format!("the latents after step {} of {}", step + 1, self.run.plan.steps);
            finite::check(&sample, self.run.transformer.dtype(), what).unwrap_or_else(|error| fail(error));
            self.samples[patch] = sample;
        }
    }

    /// Brings together the predictions of all branches, of which each rank of the CFG group has some.
    fn gather_predictions(&mut self, step: usize, patches: &Range<usize>) {
        let group = self.run.plan.mesh.group(self.run.groups.rank, &[Axis::Cfg]);
        let branches = |&rank: &usize| self.run.plan.branches_at(rank, step).collect::<Vec<_>>();
        let branches: Vec<_> = group.ranks().iter().map(branches).collect();
        let [b, n, c] = self.latents_shape(patches);
        let lens: Vec<usize> = branches.iter().map(|branches| branches.len() * b * n * c).collect();
        let mine: Vec<_> = self.predictions.iter_mut().filter_map(Option::take).collect();
        let mine = if mine.is_empty() { self.latents.1.nothing() } else { buffer(Tensor::cat(mine, 0)) };
        let arrived = wait(self.run.groups.cfg.all_gather(mine, &lens));
        for (branches, part) in branches.iter().zip(&arrived).filter(|(branches, _)| !branches.is_empty()) {
            let part: Tensor<3> = self.latents.1.tensor(part, [branches.len() * b, n, c]);
            for (place, &branch) in branches.iter().enumerate() {
                self.predictions[branch] = Some(part.clone().narrow(0, place * b, b));
            }
        }
    }

    /// Stores latents that arrived.
    fn keep(&mut self, patches: &Range<usize>, x: Tensor<3>) {
        let lengths: Vec<usize> = self.shards[patches.clone()].iter().map(Range::len).collect();
        for (patch, run) in patches.clone().zip(split::consecutive(&lengths)) {
            self.samples[patch] = x.clone().narrow(1, run.start, run.len());
        }
    }

    /// The whole image's latents, on the ranks of the first stage.
    fn finish(self) -> Option<Tokens> {
        for sent in self.sending {
            wait(sent);
        }
        if self.run.groups.pipeline.rank() > 0 {
            return None;
        }
        let (plan, sequence) = (self.run.plan, &self.run.groups.sequence);
        let [b, c] = self.latents.0;
        let shards_of = |coordinate| (0..plan.patches.len()).map(move |patch| plan.shard(patch, coordinate));
        let mine = Tensor::cat(self.samples, 1);
        let lens: Vec<usize> = (0..sequence.size())
            .map(|coordinate| b * c * plan.tokens(&(0..plan.patches.len()), coordinate))
            .collect();
        let arrived = wait(sequence.all_gather(buffer(mine), &lens));
        let mut pieces = Vec::new();
        for (coordinate, part) in arrived.iter().enumerate() {
            let lengths: Vec<usize> = shards_of(coordinate).map(|shard| shard.len()).collect();
            let part: Tensor<3> = self.latents.1.tensor(part, [b, lengths.iter().sum(), c]);
            for (shard, run) in shards_of(coordinate).zip(split::consecutive(&lengths)) {
                pieces.push((shard.start, part.clone().narrow(1, run.start, run.len())));
            }
        }
        pieces.sort_by_key(|(start, _)| *start);
        let x = Tensor::cat(pieces.into_iter().map(|(_, piece)| piece).collect(), 1);
        Some(Tokens { x, positions: self.positions })
    }
}
