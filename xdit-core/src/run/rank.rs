//! One rank, which runs jobs one after another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::Group;
use xdit_kernels::profile;

use crate::error::{Error, Result};
use crate::finite;
use crate::link::{Counted, Link, Meter, catch};
use crate::picture::{Picture, resize_and_crop, to_picture};
use crate::placement::Share;
use crate::plan::Plan;
use crate::plan::mesh::{Axis, Mesh};
use crate::run::cancel::Cancel;
use crate::run::conditions::broadcast;
use crate::run::contexts::SharedContexts;
use crate::run::decode::split_rows;
use crate::run::execute::{Denoising, Groups, Told};
use crate::run::observer::{Completed, Event, Observer, Phase, Step};
use crate::run::preview::Glimpse;
use crate::run::record::{Activity, Recorder};
use crate::run::{Decoder, Decoding, Job, Loaded, Model};
use crate::tokens::unpack;
use crate::transformer::Transformer;

/// The conditions of a model's transformer.
pub type Conditions<M> = <<M as Model>::Transformer as Transformer>::Conditions;

/// The contexts that the ranks of a process share during one job.
pub(crate) type JobContexts<M> = SharedContexts<<<M as Model>::Transformer as Transformer>::Context>;

/// The components that a rank holds between jobs. They survive its thread and its world.
pub struct Held<M: Model> {
    transformer: Option<(Share, Arc<Loaded<M::Transformer>>)>,
    decoder: Option<Arc<M::Decoder>>,
}

impl<M: Model> Default for Held<M> {
    fn default() -> Self {
        Self { transformer: None, decoder: None }
    }
}

/// A rank of a world, with its device and its components.
///
/// Every rank of the world must run the same jobs in the same order, in whatever process it is.
pub struct Rank<M: Model> {
    world: Arc<dyn Link>,
    meter: Arc<Meter>,
    detailed: bool,
    model: Arc<M>,
    device: Device,
    held: Arc<Mutex<Held<M>>>,
    /// Whether components are held between jobs.
    keeps: bool,
    links: Option<Links>,
}

/// The links of the last job, which the next job reuses if it needs the same.
struct Links {
    mesh: Mesh,
    groups: Groups,
    /// The number of ranks that decode a picture, and their link, if this rank is one of them.
    decoding: (usize, Option<Arc<dyn Link>>),
}

impl<M: Model> Rank<M> {
    /// A rank of `world` that computes on `device`. Its reports list each activity if they are `detailed`.
    pub fn new(world: Arc<dyn Link>, model: Arc<M>, device: Device, detailed: bool) -> Self {
        let meter = Meter::new(detailed);
        let world = Counted::new(world, &meter);
        Self { world, meter, detailed, model, device, held: Arc::default(), keeps: false, links: None }
    }

    /// The same rank with the components in `held`, which stay between jobs if `keeps` is set.
    pub(crate) fn holding(mut self, held: Arc<Mutex<Held<M>>>, keeps: bool) -> Self {
        self.held = held;
        self.keeps = keeps;
        self
    }

    /// Runs this rank's part of `job`. `observer` receives the phases and pictures of a data-parallel share on the
    /// share's first rank, the steps on one rank of its last stage, parts of previews on those that have them, and a report
    /// on each rank.
    ///
    /// # Errors
    /// If the plan is for another number of ranks, the job is cancelled, a share cannot be loaded, a value is not
    /// finite, or a transfer fails; the error of a transfer names operation, group and rank. After an error, the world
    /// can no longer be used.
    pub fn run(
        &mut self,
        job: &Job<Conditions<M>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.carry_out(job, &SharedContexts::default(), cancel, &mut |event| event.tell(observer))
    }

    /// As [`run`](Self::run), with contexts that all ranks of this process share for the job.
    pub(crate) fn carry_out(
        &mut self,
        job: &Job<Conditions<M>>,
        contexts: &JobContexts<M>,
        cancel: &Cancel,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let result = catch(|| self.pictures(job, contexts, cancel, tell));
        self.release();
        result
    }

    /// Frees the components unless they stay between jobs.
    fn release(&self) {
        if !self.keeps {
            *self.held() = Held::default();
        }
    }

    fn pictures(
        &mut self,
        job: &Job<Conditions<M>>,
        contexts: &JobContexts<M>,
        cancel: &Cancel,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let plan = &job.plan;
        self.meter.restart();
        let mut recorder = Recorder::new(self.world.rank(), self.meter.clone(), self.detailed);
        let seat = Seat::new(plan, self.world.rank());
        let (groups, decoders) = self.links(job)?;
        let mut loaded = Some(self.transformer(plan, &groups, &seat, &mut recorder, tell)?);
        let conditions = match &job.conditions {
            Some(conditions) if self.world.size() == 1 => conditions.clone(),
            conditions => recorder
                .time(Activity::Broadcast, || broadcast(&self.world, conditions.as_deref(), &self.device)),
        };
        let images = plan.images[seat.share].clone();
        for image in images.clone() {
            cancel.check()?;
            let phase = Phase::Denoise { image };
            seat.lead(|| tell(Event::Begin(phase, Instant::now())));
            recorder.begin_image(image);
            let transformer = &loaded.as_ref().expect("it stays until the last picture").transformer;
            let noise = (job.noise)(image, &self.device);
            let guidance = job.guidance[image].map(|&branch| conditions[branch].clone());
            let denoising = Denoising {
                plan,
                groups: &groups,
                transformer,
                scheduler: &*job.scheduler,
                guidance: &guidance,
                noise,
                contexts: contexts.of_picture(image),
                check: &|| cancel.check(),
                preview_every: job.preview_every,
            };
            let end = denoising.run(&mut recorder, &mut |told| match told {
                Told::Step(done) if seat.steps => {
                    tell(Event::Step(Step { phase, done, of: plan.steps }, Instant::now()));
                }
                Told::Step(_) => {}
                Told::Predicted(done, tokens, latents) => {
                    tell(Event::Glimpse(Glimpse { image, done, tokens, latents }));
                }
            });
            let patch = transformer.spec().patch;
            let end = end.filter(|_| seat.leads);
            let is_clip = end.as_ref().is_some_and(|latents| latents.positions.frames().is_some());
            let latents: Option<Tensor<5>> = end.map(|latents| unpack(latents, patch));
            seat.lead(|| tell(Event::End(phase, Instant::now())));
            if image + 1 == images.end && !self.keeps {
                self.held().transformer = None;
                loaded = None;
                self.device.memory_cleanup();
            }
            cancel.check()?;
            let frames = match (job.decoding, &decoders) {
                (Some(decoding), Some(ranks)) => {
                    self.decode((image, latents.clone()), decoding, ranks, &seat, &mut recorder, tell)?
                }
                _ => Vec::new(),
            };
            if let Some(latents) = latents {
                let latents = latents.cast(DType::F32);
                let latents = match is_clip {
                    true => latents.into_data(),
                    false => latents.squeeze_dim::<4>(2).into_data(),
                };
                // On devices, a transfer may fail after its issue, and leave anything in its place.
                self.world.check().map_err(|error| Error::failure(error.to_string()))?;
                tell(Event::Completed(Completed { image, latents, frames }));
            }
        }
        tell(Event::Rank(Box::new(recorder.report())));
        Ok(())
    }

    /// The links of this rank in the plan's mesh, and the link of the ranks that decode its pictures, if it is one of
    /// them.
    fn links(&mut self, job: &Job<Conditions<M>>) -> Result<(Groups, Option<Arc<dyn Link>>)> {
        let plan = &job.plan;
        let decoding_ranks = match job.decoding {
            Some(Decoding { tiled: false, latents: [_, _, _, rows, _], .. }) => {
                plan.decoding_shares.min(rows)
            }
            _ => 1,
        };
        let known = self.links.take().filter(|known| known.mesh == plan.mesh);
        let groups = match &known {
            Some(known) => known.groups.clone(),
            None => Groups::new(&self.world, plan)?,
        };
        let decoding = match known {
            Some(known) if known.decoding.0 == decoding_ranks => known.decoding,
            _ => {
                let first =
                    |share: &Group| Group::new("vae", share.ranks()[..decoding_ranks].iter().copied());
                let shares: Vec<_> = plan.mesh.groups(&Axis::ALL[1..]).iter().map(first).collect();
                let own = self.world.split(&shares).map_err(|error| Error::failure(error.to_string()))?;
                (decoding_ranks, own)
            }
        };
        let own = decoding.1.clone();
        self.links = Some(Links { mesh: plan.mesh, groups: groups.clone(), decoding });
        Ok((groups, own))
    }

    fn held(&self) -> MutexGuard<'_, Held<M>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rank's share of the transformer: the held one if it fits, otherwise a new one in its place.
    fn transformer(
        &self,
        plan: &Plan,
        groups: &Groups,
        seat: &Seat,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Arc<Loaded<M::Transformer>>> {
        let share = Share { blocks: plan.stage(self.world.rank()), tensor: groups.tensor_share() };
        let held = self.held().transformer.clone();
        let loaded = match held {
            Some((held, loaded)) if same(&held, &share) => loaded,
            held => {
                // The old share is freed before loading, unless only its link for sums differs: then the new share
                // reuses most of its layers.
                let old = held.filter(|(held, _)| held.blocks == share.blocks);
                self.held().transformer = None;
                // Freed weights of an earlier model are of other sizes, for which the device would keep their memory.
                self.device.memory_cleanup();
                let load = || Ok(Arc::new(self.model.load(share.clone(), &self.device)?));
                let loaded = seat.loading("transformer", recorder, tell, load)?;
                drop(old);
                self.held().transformer = Some((share, loaded.clone()));
                loaded
            }
        };
        recorder.hold_parameters(loaded.parameter_bytes);
        Ok(loaded)
    }

    fn decoder(
        &self,
        seat: &Seat,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Arc<M::Decoder>> {
        let held = self.held().decoder.clone();
        if let Some(decoder) = held {
            return Ok(decoder);
        }
        let decoder = seat.loading("vae", recorder, tell, || self.model.load_decoder(&self.device))?;
        self.held().decoder = Some(decoder.clone());
        Ok(decoder)
    }

    /// Decodes `latents`, and returns the picture, or the frames of the clip, on the rank that has them. The other
    /// `ranks` decode some of its rows.
    fn decode(
        &self,
        (image, latents): (usize, Option<Tensor<5>>),
        decoding: Decoding,
        ranks: &Arc<dyn Link>,
        seat: &Seat,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Vec<Picture>> {
        let decoder = self.decoder(seat, recorder, tell)?;
        let phase = Phase::Decode { image };
        seat.lead(|| tell(Event::Begin(phase, Instant::now())));
        let [_, c, count, rows, columns] = decoding.latents;
        let mut frames = Vec::new();
        for start in (0..count).step_by(decoding.chunk) {
            let shape = [decoding.chunk.min(count - start), c, rows, columns];
            let latents =
                latents.as_ref().map(|z| z.clone().narrow(2, start, shape[0]).swap_dims(1, 2).reshape(shape));
            let decoded = recorder.time(Activity::Decode, || {
                let decoded = match latents {
                    Some(latents) if decoding.tiled => {
                        Some(profile::part("VAE", None, &self.device, || decoder.decode_tiled(latents)))
                    }
                    latents => split_rows(ranks, latents, shape, &self.device, |z, rows| {
                        profile::part("VAE", None, &self.device, || decoder.decode(z, rows))
                    }),
                };
                let pictures = |decoded: Tensor<4>| {
                    let what = || format!("the values of picture {} after decoding", image + 1);
                    finite::check(&decoded, decoded.dtype(), what)?;
                    let decoded = resize_and_crop(decoded, decoding.size);
                    Ok((0..shape[0]).map(|index| to_picture(&decoded, index)).collect::<Vec<_>>())
                };
                decoded.map(pictures).transpose()
            })?;
            frames.extend(decoded.into_iter().flatten());
        }
        seat.lead(|| tell(Event::End(phase, Instant::now())));
        Ok(frames)
    }
}

/// Frees the components also after a panic.
impl<M: Model> Drop for Rank<M> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether the two shares have the same parameters and sum over the same link.
fn same(held: &Share, wanted: &Share) -> bool {
    let tensor = match (&held.tensor, &wanted.tensor) {
        (None, None) => true,
        (Some(held), Some(wanted)) => Arc::ptr_eq(&held.link, &wanted.link),
        _ => false,
    };
    tensor && held.blocks == wanted.blocks
}

/// The position of a rank in a plan.
struct Seat {
    /// The data-parallel share.
    share: usize,
    /// Whether this is the first rank of the share.
    leads: bool,
    /// Whether this rank reports steps.
    steps: bool,
}

impl Seat {
    fn new(plan: &Plan, rank: usize) -> Self {
        let at = |axis| plan.mesh.coordinate(rank, axis);
        let first_of = |axes: &[Axis]| axes.iter().all(|&axis| at(axis) == 0);
        Self {
            share: at(Axis::Data),
            leads: first_of(&Axis::ALL[1..]),
            steps: first_of(&[Axis::Cfg, Axis::Ring, Axis::Ulysses, Axis::Tensor])
                && at(Axis::Pipeline) + 1 == plan.stages.len(),
        }
    }

    /// Runs `work` on the first rank of the share only.
    fn lead(&self, work: impl FnOnce()) {
        if self.leads {
            work();
        }
    }

    /// Loads a component. The first rank of the world reports it as a phase.
    fn loading<R>(
        &self,
        component: &'static str,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
        load: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let tells = self.leads && self.share == 0;
        let phase = Phase::Load(component);
        if tells {
            tell(Event::Begin(phase, Instant::now()));
        }
        let loaded = recorder.time(Activity::Load, load);
        if tells {
            tell(Event::End(phase, Instant::now()));
        }
        loaded
    }
}
