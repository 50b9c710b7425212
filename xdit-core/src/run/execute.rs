//! Carries out the schedule of one rank.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_comm::Group;
use xdit_kernels::profile;

use crate::error::{Error, Result};
use crate::finite;
use crate::link::{Arriving, Link, Place, Slot, fail, must};
use crate::methods::attention::{KeyExchange, ParallelAttention, Pass};
use crate::methods::distrifusion::DistriFusion;
use crate::methods::ring::Ring;
use crate::methods::ulysses::Ulysses;
use crate::placement::TensorShare;
use crate::plan::Plan;
use crate::plan::guidance::Guidance;
use crate::plan::mesh::Axis;
use crate::plan::schedule::{Action, edges, schedule};
use crate::run::contexts::{Contexts, PictureContexts};
use crate::run::noise::PictureNoise;
use crate::run::record::{Activity, Recorder};
use crate::scheduler::{History, Scheduler};
use crate::split;
use crate::tokens::{Positions, Tokens};
use crate::transformer::{Hidden, Transformer};

/// The number of actions by which receives are posted ahead of their turn.
const POST_AHEAD: usize = 8;

/// The links of one rank. An axis with one rank has no link.
#[derive(Clone, Debug)]
pub struct Groups {
    rank: usize,
    world: Arc<dyn Link>,
    /// The links between stages that start or end at this rank's stage, by sending and receiving stage. Each is ordered
    /// independently, so that receives may be posted ahead. The first rank of a link sends, the second one receives.
    edges: BTreeMap<[usize; 2], Arc<dyn Link>>,
    cfg: Option<Arc<dyn Link>>,
    sequence: Option<Arc<dyn Link>>,
    ring: Option<Arc<dyn Link>>,
    ulysses: Option<Arc<dyn Link>>,
    tensor: Option<Arc<dyn Link>>,
}

impl Groups {
    /// Creates the links of this rank of `world` for the plan's mesh. Every rank of the world must call it.
    ///
    /// # Errors
    /// If the sizes of the world and the mesh differ, or the ranks of a group cannot be joined.
    pub fn new(world: &Arc<dyn Link>, plan: &Plan) -> Result<Self> {
        let mesh = &plan.mesh;
        if world.size() != mesh.size() {
            return Err(Error::usage(format!(
                "the plan has {} ranks, but {} are running",
                mesh.size(),
                world.size()
            )));
        }
        let split = |groups: &[Group]| world.split(groups).map_err(|error| Error::failure(error.to_string()));
        let along = |axes: &[Axis]| match axes.iter().any(|&axis| mesh.degree(axis) > 1) {
            true => split(&mesh.groups(axes)),
            false => Ok(None),
        };
        let mut links = BTreeMap::new();
        for edge in edges(plan) {
            let ends = |pipeline: &Group| {
                Group::new(pipeline.label().clone(), edge.map(|stage| pipeline.ranks()[stage]))
            };
            let groups: Vec<_> = mesh.groups(&[Axis::Pipeline]).iter().map(ends).collect();
            let link = world.channels(&groups).map_err(|error| Error::failure(error.to_string()))?;
            links.extend(link.map(|link| (edge, link)));
        }
        Ok(Self {
            rank: world.rank(),
            world: world.clone(),
            edges: links,
            cfg: along(&[Axis::Cfg])?,
            sequence: along(&[Axis::Ring, Axis::Ulysses])?,
            ring: along(&[Axis::Ring])?,
            ulysses: along(&[Axis::Ulysses])?,
            tensor: along(&[Axis::Tensor])?,
        })
    }

    /// The link of the ranks that share each layer's heads and features, if there are several.
    pub fn tensor_share(&self) -> Option<TensorShare> {
        self.tensor.clone().map(|link| TensorShare { link })
    }
}

/// The denoising of one picture on one rank.
pub struct Denoising<'a, T: Transformer> {
    /// The division of the work among the ranks.
    pub plan: &'a Plan,
    /// The links of this rank.
    pub groups: &'a Groups,
    /// The rank's share of the transformer.
    pub transformer: &'a T,
    /// The noise scheduler.
    pub scheduler: &'a dyn Scheduler,
    /// The conditions of the picture.
    pub guidance: &'a Guidance<T::Conditions>,
    /// The random numbers of the picture, the same on every rank.
    pub noise: PictureNoise,
    /// The contexts of the picture.
    pub contexts: PictureContexts<'a, T::Context>,
    /// Fails once the job must end. It is called before each action and each block.
    pub check: &'a dyn Fn() -> Result<()>,
    /// The number of steps from one preview to the next, if there are any.
    pub preview_every: Option<usize>,
}

/// What a rank tells of a picture while it denoises it.
pub enum Told {
    /// A step has ended on this rank; this is the number of finished steps.
    Step(usize),
    /// The data that the model predicts after a number of steps, `[1, n, c]` in f32, at some tokens of the picture.
    Predicted(usize, Range<usize>, TensorData),
}

impl<T: Transformer> Denoising<'_, T> {
    /// Denoises the picture, and returns the whole final latents on the ranks of the first stage. `recorder` records
    /// each action; `tell` is called for each step that ends on this rank, and for its parts of previews.
    ///
    /// # Shapes
    /// The result is packed like the noise: `[b, n, c]`.
    ///
    /// # Panics
    /// If guidance or scheduler do not belong to the plan. A failed check or transfer, and values that are not finite,
    /// unwind to [`catch`](crate::link::catch).
    pub fn run(self, recorder: &mut Recorder, tell: &mut dyn FnMut(Told)) -> Option<Tokens> {
        let Self { plan, groups, scheduler, guidance, .. } = self;
        assert_eq!(guidance.branches.len(), plan.branches.len(), "the plan knows the branches of guidance");
        assert_eq!(scheduler.timesteps().len(), plan.steps, "the plan knows the steps of the scheduler");
        let device = self.noise.latents().x.device();
        let walker = || profile::part("conditions", None, &device, || Walker::new(self));
        let mut walker = recorder.time(Activity::Prepare, walker);
        let actions = schedule(plan, groups.rank);
        for (index, action) in actions.iter().enumerate() {
            walker.check();
            walker.post(&actions[..actions.len().min(index + POST_AHEAD)]);
            if let Some(missing) = walker.contexts.missing(action) {
                let prepare = || walker.contexts.prepare(missing);
                recorder.time(Activity::Prepare, || profile::part("conditions", None, &device, prepare));
            }
            let step = recorder.time(Activity::Action(action.clone()), || walker.walk(action));
            walker.reap();
            recorder.keep_kv(walker.attention.kv_bytes());
            walker.predicted.drain(..).for_each(&mut *tell);
            if let Some(step) = step {
                tell(Told::Step(step));
            }
        }
        recorder.time(Activity::Gather, || walker.finish())
    }
}

/// The state of a rank on its way through its schedule.
struct Walker<'a, T: Transformer> {
    plan: &'a Plan,
    groups: &'a Groups,
    transformer: &'a T,
    scheduler: &'a dyn Scheduler,
    guidance: &'a Guidance<T::Conditions>,
    check: &'a dyn Fn() -> Result<()>,
    attention: ParallelAttention,
    positions: Positions,
    /// Batch and features of packed latents, and their place.
    latents: ([usize; 2], Place),
    /// The place of hidden states, which have the model's type, not that of latents.
    hidden_place: Place,
    /// This rank's tokens of each patch.
    shards: Vec<Range<usize>>,
    /// The sample at those tokens, for each patch. The first stage embeds it, and the last stage advances it.
    samples: Vec<Tensor<3>>,
    histories: Vec<History>,
    noise: PictureNoise,
    contexts: Contexts<'a, T>,
    hidden: Option<Hidden>,
    /// Skip connections from the last pass to blocks of other stages, by receiving block.
    skips: BTreeMap<usize, Tensor<3>>,
    predictions: Vec<Option<Tensor<3>>>,
    posted: usize,
    /// The posted receives.
    arriving: VecDeque<Arriving<3>>,
    /// Sends that may still be in flight.
    sending: Vec<Arriving<3>>,
    /// The number of steps from one preview to the next, if this rank has parts of them.
    preview_every: Option<usize>,
    /// Parts of previews to tell.
    predicted: Vec<Told>,
}

impl<'a, T: Transformer> Walker<'a, T> {
    fn new(denoising: Denoising<'a, T>) -> Self {
        let Denoising {
            plan,
            groups,
            transformer,
            scheduler,
            guidance,
            noise,
            contexts,
            check,
            preview_every,
        } = denoising;
        // All ranks along these axes predict the same.
        let is_first = |axis| plan.mesh.coordinate(groups.rank, axis) == 0;
        let previews = is_first(Axis::Cfg) && is_first(Axis::Tensor);
        let sequence = plan.mesh.sequence_coordinate(groups.rank);
        let shards: Vec<_> = (0..plan.patches.len()).map(|patch| plan.shard(patch, sequence)).collect();
        let Tokens { x: latents, positions } = noise.latents().clone();
        let [b, _, c] = latents.dims();
        Self {
            attention: ParallelAttention::new(
                plan.clone(),
                plan.mesh.coordinate(groups.rank, Axis::Ring),
                groups.ulysses.clone().map(Ulysses::new),
                groups.ring.clone().map(|link| match plan.distrifusion {
                    true => KeyExchange::DistriFusion(DistriFusion::new(link)),
                    false => KeyExchange::Ring(Ring::new(link)),
                }),
            )
            .splitting_rows(groups.sequence.clone(), groups.ring.clone()),
            hidden_place: Place { dtype: transformer.dtype(), ..Place::of(&latents) },
            positions,
            latents: ([b, c], Place::of(&latents)),
            samples: shards.iter().map(|shard| latents.clone().narrow(1, shard.start, shard.len())).collect(),
            histories: vec![History::default(); shards.len()],
            contexts: Contexts::new(
                plan,
                groups.rank,
                transformer,
                scheduler.timesteps(),
                guidance,
                contexts,
                latents.device(),
            ),
            noise,
            hidden: None,
            skips: BTreeMap::new(),
            predictions: vec![None; plan.branches.len()],
            posted: 0,
            arriving: VecDeque::new(),
            sending: Vec::new(),
            preview_every: preview_every.filter(|_| previews),
            predicted: Vec::new(),
            plan,
            groups,
            transformer,
            scheduler,
            guidance,
            check,
            shards,
        }
    }

    fn device(&self) -> &Device {
        &self.latents.1.device
    }

    /// Unwinds to [`catch`](crate::link::catch) once the job must end.
    fn check(&self) {
        // A failure in another data-parallel share ends this rank, too.
        must(self.groups.world.check());
        (self.check)().unwrap_or_else(|error| fail(error));
    }

    /// This rank's tokens of `patches`.
    fn tokens(&self, patches: &Range<usize>) -> usize {
        self.shards[patches.clone()].iter().map(Range::len).sum()
    }

    fn latents_shape(&self, patches: &Range<usize>) -> [usize; 3] {
        let [b, c] = self.latents.0;
        [b, self.tokens(patches), c]
    }

    fn hidden_shape(&self, patches: &Range<usize>, branches: &Range<usize>) -> [usize; 3] {
        [branches.len() * self.latents.0[0], self.tokens(patches), self.transformer.spec().dim()]
    }

    /// The shape of the text of `branches` that goes along with `patches`, if any.
    fn text_shape(&self, patches: &Range<usize>, branches: &Range<usize>) -> Option<[usize; 3]> {
        self.contexts.text_shape(branches).filter(|_| self.plan.brings_text(patches))
    }

    /// The stage of this rank.
    fn stage(&self) -> usize {
        self.plan.mesh.coordinate(self.groups.rank, Axis::Pipeline)
    }

    /// Posts the receives of `actions` that have not been posted yet.
    fn post(&mut self, actions: &[Action]) {
        for action in &actions[self.posted..] {
            let (from, slots) = match action {
                Action::ReceiveLatents { patches } => {
                    (self.plan.stages.len() - 1, vec![self.latents.1.slot(self.latents_shape(patches))])
                }
                Action::ReceiveHidden { patches, branches } => {
                    let shapes =
                        [Some(self.hidden_shape(patches, branches)), self.text_shape(patches, branches)];
                    let slots = shapes.into_iter().flatten().map(|shape| self.hidden_place.slot(shape));
                    (self.stage() - 1, slots.collect())
                }
                Action::ReceiveSkip { patches, branches, from, .. } => {
                    let slot = self.hidden_place.slot(self.hidden_shape(patches, branches));
                    (self.plan.stage_of(*from), vec![slot])
                }
                _ => continue,
            };
            self.expect(from, slots);
        }
        self.posted = self.posted.max(actions.len());
    }

    fn expect(&mut self, from: usize, slots: Vec<Slot<3>>) {
        let edge = &self.groups.edges[&[from, self.stage()]];
        self.arriving.push_back(edge.exchange(Vec::new(), slots.into_iter().map(|slot| (0, slot)).collect()));
    }

    fn receive(&mut self) -> Vec<Tensor<3>> {
        self.arriving.pop_front().expect("receives are posted ahead of their turn").wait()
    }

    fn receive_one(&mut self) -> Tensor<3> {
        self.receive().pop().expect("one tensor was posted")
    }

    fn send(&mut self, to: usize, tensors: Vec<Tensor<3>>) {
        let edge = &self.groups.edges[&[self.stage(), to]];
        self.sending.push(edge.exchange(tensors.into_iter().map(|x| (1, x)).collect(), Vec::new()));
    }

    /// Frees the tensors of completed sends.
    fn reap(&mut self) {
        let complete = self.sending.extract_if(.., Arriving::is_complete);
        // Waiting returns at once by now, but reports a failed send.
        complete.for_each(|sent| drop(sent.wait()));
    }

    /// Carries out `action`. If it ends a step, returns the number of finished steps.
    fn walk(&mut self, action: &Action) -> Option<usize> {
        match action {
            Action::ReceiveLatents { patches } => {
                let x = self.receive_one();
                self.keep(patches, x);
            }
            Action::ReceiveHidden { patches, .. } => {
                let mut arrived = self.receive().into_iter();
                let (x, text) = (arrived.next().expect("the image's tokens"), arrived.next());
                let positions = self.positions.select(&self.shards[patches.clone()]);
                self.hidden = Some(Hidden::new(Tokens { x, positions }, text));
            }
            Action::ReceiveSkip { to, .. } => {
                let x = self.receive_one();
                self.hidden.as_mut().expect("received before").skips.insert(*to, x);
            }
            Action::Embed { step, patches, branches } => {
                let sample = Tensor::cat(self.samples[patches.clone()].to_vec(), 1);
                let x = self.scheduler.scale_model_input(sample, *step);
                let x = if branches.len() > 1 { x.repeat_dim(0, branches.len()) } else { x };
                let positions = self.positions.select(&self.shards[patches.clone()]);
                let context = self.contexts.at(branches, *step);
                let embed = || self.transformer.embed(Tokens { x, positions }, context);
                let Hidden { image, text, skips } = profile::part("embedding", None, self.device(), embed);
                self.hidden =
                    Some(Hidden { image, text: text.filter(|_| self.plan.brings_text(patches)), skips });
            }
            Action::Blocks { step, blocks, patches, branches } => {
                let pass = Pass { step: *step, patches: patches.clone(), branches: branches.clone() };
                self.attention.begin(pass);
                let mut hidden = self.hidden.take().expect("embedded or received before");
                let context = self.contexts.at(branches, *step);
                for block in self.plan.blocks_of(branches.start, blocks.clone()) {
                    // A failure elsewhere, or a cancelled job, ends this rank within one block.
                    self.check();
                    let (transformer, attention) = (self.transformer, &mut self.attention);
                    let work = || transformer.block(block, hidden, context, attention);
                    hidden = profile::part("block", Some(block), &self.latents.1.device, work);
                }
                self.skips = std::mem::take(&mut hidden.skips);
                self.hidden = Some(hidden);
            }
            Action::SendHidden { patches, branches } => {
                let Hidden { image, text, .. } = self.hidden.take().expect("blocks ran before");
                let expected = self.text_shape(patches, branches);
                assert_eq!(
                    text.as_ref().map(Tensor::dims),
                    expected,
                    "the next stage knows the text's shape"
                );
                self.send(self.stage() + 1, [Some(image.x), text].into_iter().flatten().collect());
            }
            Action::SendSkip { to, .. } => {
                let x = self.skips.remove(to).expect("a block leaves what its skip connections need");
                self.send(self.plan.stage_of(*to), vec![x]);
            }
            Action::Finish { step, branches, .. } => {
                let hidden = self.hidden.take().expect("blocks ran before");
                let context = self.contexts.at(branches, *step);
                let finish = || self.transformer.finish(hidden, context);
                let prediction = profile::part("output", None, self.device(), finish);
                let b = self.latents.0[0];
                for (place, branch) in branches.clone().enumerate() {
                    self.predictions[branch] = Some(match branches.len() {
                        1 => prediction.clone(),
                        _ => prediction.clone().narrow(0, place * b, b),
                    });
                }
            }
            Action::Advance { step, patches } => {
                let device = self.device().clone();
                profile::part("scheduler", None, &device, || self.advance(*step, patches));
                return (patches.end == self.plan.patches.len()).then_some(step + 1);
            }
            Action::SendLatents { patches } => {
                let x = Tensor::cat(self.samples[patches.clone()].to_vec(), 1);
                self.send(0, vec![x]);
            }
        }
        None
    }

    /// Takes the scheduler's step for `patches`, with the combined predictions of all branches.
    fn advance(&mut self, step: usize, patches: &Range<usize>) {
        let groups = self.groups;
        if let Some(cfg) = &groups.cfg {
            self.gather_predictions(&**cfg, step, patches);
        }
        let prediction = self.guidance.combine(&self.predictions);
        let moments = |x: Tensor<3>| self.attention.exact_rows().moments(x.unsqueeze_dim(1), 1);
        let prediction = self.guidance.rescale(prediction, &self.predictions, moments);
        self.predictions.fill(None);
        let lengths: Vec<usize> = self.shards[patches.clone()].iter().map(Range::len).collect();
        for (patch, run) in patches.clone().zip(split::consecutive(&lengths)) {
            let prediction = prediction.clone().narrow(1, run.start, run.len());
            let sample = self.samples[patch].clone();
            if self.is_previewed(step) {
                let data = self.scheduler.data(
                    step,
                    prediction.clone().cast(DType::F32),
                    sample.clone().cast(DType::F32),
                );
                self.predicted.push(Told::Predicted(step + 1, self.shards[patch].clone(), data.into_data()));
            }
            let adds_noise = self.scheduler.adds_noise(step);
            let noise = adds_noise.then(|| self.noise.of_step(step, &self.shards[patch]));
            let sample = self.scheduler.step(step, &mut self.histories[patch], prediction, sample, noise);
            let what = || format!("the latents after step {} of {}", step + 1, self.plan.steps);
            finite::check(&sample, self.transformer.dtype(), what).unwrap_or_else(|error| fail(error));
            self.samples[patch] = sample;
        }
    }

    /// Whether a preview follows `step`. The picture itself follows the last one.
    fn is_previewed(&self, step: usize) -> bool {
        self.preview_every.is_some_and(|every| (step + 1).is_multiple_of(every)) && step + 1 < self.plan.steps
    }

    /// Gathers the predictions of all branches; each rank of the CFG group has some of them.
    fn gather_predictions(&mut self, cfg: &dyn Link, step: usize, patches: &Range<usize>) {
        let branches = |&rank: &usize| self.plan.branches_at(rank, step).collect::<Vec<_>>();
        let branches: Vec<_> = cfg.group().ranks().iter().map(branches).collect();
        let [b, n, c] = self.latents_shape(patches);
        let shapes: Vec<_> = branches.iter().map(|branches| [branches.len() * b, n, c]).collect();
        let mine: Vec<_> = self.predictions.iter_mut().filter_map(Option::take).collect();
        // A rank has none if its branches take no part in this step.
        let mine = match mine.is_empty() {
            true => {
                let Place { device, dtype } = &self.latents.1;
                Tensor::empty([0, n, c], (device, *dtype))
            }
            false => Tensor::cat(mine, 0),
        };
        for (branches, part) in branches.iter().zip(cfg.all_gather(mine, &shapes).wait()) {
            for (place, &branch) in branches.iter().enumerate() {
                self.predictions[branch] = Some(part.clone().narrow(0, place * b, b));
            }
        }
    }

    /// Stores the received latents `x` of `patches`.
    fn keep(&mut self, patches: &Range<usize>, x: Tensor<3>) {
        let lengths: Vec<usize> = self.shards[patches.clone()].iter().map(Range::len).collect();
        for (patch, run) in patches.clone().zip(split::consecutive(&lengths)) {
            self.samples[patch] = x.clone().narrow(1, run.start, run.len());
        }
    }

    /// Gathers the latents of the whole image on the ranks of the first stage.
    fn finish(self) -> Option<Tokens> {
        let (first, sequence) = (self.stage() == 0, &self.groups.sequence);
        for sent in self.sending {
            sent.wait();
        }
        if !first {
            return None;
        }
        let plan = self.plan;
        let [b, c] = self.latents.0;
        let mine = Tensor::cat(self.samples, 1);
        let arrived = match sequence {
            None => vec![mine],
            Some(sequence) => {
                let all = 0..plan.patches.len();
                let shapes: Vec<_> =
                    (0..sequence.size()).map(|coordinate| [b, plan.tokens(&all, coordinate), c]).collect();
                sequence.all_gather(mine, &shapes).wait()
            }
        };
        let mut pieces = Vec::new();
        for (coordinate, part) in arrived.into_iter().enumerate() {
            let shards: Vec<_> = (0..plan.patches.len()).map(|patch| plan.shard(patch, coordinate)).collect();
            let lengths: Vec<usize> = shards.iter().map(Range::len).collect();
            for (shard, run) in shards.iter().zip(split::consecutive(&lengths)) {
                pieces.push((shard.start, part.clone().narrow(1, run.start, run.len())));
            }
        }
        pieces.sort_by_key(|(start, _)| *start);
        let x = Tensor::cat(pieces.into_iter().map(|(_, piece)| piece).collect(), 1);
        Some(Tokens { x, positions: self.positions })
    }
}
