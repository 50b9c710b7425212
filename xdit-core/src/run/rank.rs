//! One rank, from job to job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::{Comm, Group};

use crate::error::{Error, Result};
use crate::finite;
use crate::link::catch;
use crate::picture::{Picture, resize_and_crop, to_picture};
use crate::placement::{Share, TensorShare};
use crate::plan::Plan;
use crate::plan::mesh::{Axis, Mesh};
use crate::run::cancel::Cancel;
use crate::run::conditions::broadcast;
use crate::run::decode::split_rows;
use crate::run::execute::{Denoising, Groups};
use crate::run::observer::{Completed, Event, Observer, Phase, Step};
use crate::run::record::{Activity, Recorder};
use crate::run::{Decoder, Decoding, Job, Loaded, Model};
use crate::tokens::{Tokens, unpack};
use crate::transformer::Transformer;

/// The conditions of a model's transformer.
pub type Conditions<M> = <<M as Model>::Transformer as Transformer>::Conditions;

/// The components that a rank holds between jobs. They outlive its thread and its world.
pub struct Held<M: Model> {
    transformer: Option<(Share, Arc<Loaded<M::Transformer>>)>,
    decoder: Option<Arc<M::Decoder>>,
}

impl<M: Model> Default for Held<M> {
    fn default() -> Self {
        Self { transformer: None, decoder: None }
    }
}

/// A rank of a world, with its device and the components that it holds.
///
/// Every rank of the world runs the same jobs in the same order, wherever it is.
pub struct Rank<M: Model> {
    world: Comm,
    model: Arc<M>,
    device: Device,
    held: Arc<Mutex<Held<M>>>,
    /// Whether components are held between jobs.
    keeps: bool,
    /// Those of the last job.
    groups: Option<(Mesh, Groups)>,
}

impl<M: Model> Rank<M> {
    /// A rank that computes on `device`, and has components from `held`. Between jobs it holds them if it `keeps` them.
    pub fn new(world: Comm, model: Arc<M>, device: Device, held: Arc<Mutex<Held<M>>>, keeps: bool) -> Self {
        Self { world, model, device, held, keeps, groups: None }
    }

    /// Does this rank's part of `job`. The first rank of a data-parallel share tells `observer` of the share's progress
    /// and pictures, its last stage of the steps, and each rank of what it did.
    ///
    /// # Errors
    /// If the plan is for another number of ranks, the job is cancelled, a share cannot be loaded, a value is not
    /// finite, or a transfer fails: then the error names operation, group and rank. The world is of no use any more.
    pub fn run(
        &mut self,
        job: &Job<Conditions<M>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let detailed = observer.wants_details();
        self.carry_out(job, cancel, detailed, &mut |event| event.tell(observer))
    }

    /// As [`run`](Self::run); `detailed` reports hold each activity.
    pub(crate) fn carry_out(
        &mut self,
        job: &Job<Conditions<M>>,
        cancel: &Cancel,
        detailed: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let result = catch(|| self.pictures(job, cancel, detailed, tell));
        if !self.keeps {
            *self.held() = Held::default();
        }
        result
    }

    fn pictures(
        &mut self,
        job: &Job<Conditions<M>>,
        cancel: &Cancel,
        detailed: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let plan = &job.plan;
        let mut recorder = Recorder::new(&self.world, detailed);
        let groups = self.groups(plan)?;
        let seat = Seat::new(plan, self.world.rank());
        let mut loaded = Some(self.transformer(plan, &groups, &seat, &mut recorder, tell)?);
        let conditions = match &job.conditions {
            Some(conditions) if self.world.size() == 1 => conditions.clone(),
            conditions => recorder.time(Activity::Broadcast, || {
                broadcast(&self.world, conditions.as_deref(), &self.device)
            }),
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
                noise: &noise,
                check: &|| cancel.check(),
            };
            let end = denoising.run(&mut recorder, &mut |done| {
                if seat.steps {
                    tell(Event::Step(Step { phase, done, of: plan.steps }, Instant::now()));
                }
            });
            let patch = transformer.spec().patch;
            let latents = end.filter(|_| seat.leads).map(|latents| unpack(latents, patch));
            seat.lead(|| tell(Event::End(phase, Instant::now())));
            if image + 1 == images.end && !self.keeps {
                self.held().transformer = None;
                loaded = None;
            }
            cancel.check()?;
            let picture = match job.decoding {
                Some(decoding) => {
                    let shape = latent_shape(&noise, patch);
                    let group = match decoding.tiled {
                        true => &seat.ranks[..1],
                        false => &seat.ranks[..plan.decoding_shares.min(shape[2])],
                    };
                    let decode = Decode { decoding, image, shape, group };
                    self.decode(decode, latents.clone(), &seat, &mut recorder, tell)?
                }
                None => None,
            };
            if let Some(latents) = latents {
                let latents = latents.cast(DType::F32).into_data();
                tell(Event::Completed(Completed { image, latents, picture }));
            }
        }
        tell(Event::Rank(Box::new(recorder.report())));
        Ok(())
    }

    /// The groups of this rank in the plan's mesh. They stay as long as the mesh does.
    fn groups(&mut self, plan: &Plan) -> Result<Groups> {
        match &self.groups {
            Some((mesh, groups)) if *mesh == plan.mesh => Ok(groups.clone()),
            _ => {
                let groups = Groups::new(&self.world, plan)?;
                self.groups = Some((plan.mesh, groups.clone()));
                Ok(groups)
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held<M>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rank's share of the transformer: the one that it holds, or a new one in its place.
    fn transformer(
        &self,
        plan: &Plan,
        groups: &Groups,
        seat: &Seat,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Arc<Loaded<M::Transformer>>> {
        let tensor = (groups.tensor.size() > 1).then(|| TensorShare { comm: groups.tensor.clone() });
        let share = Share { blocks: plan.stage(self.world.rank()), tensor };
        let held = self.held().transformer.take_if(|(held, _)| !same(held, &share));
        // The old one goes before the new one comes.
        drop(held);
        let held = self.held().transformer.as_ref().map(|(_, loaded)| loaded.clone());
        let loaded = match held {
            Some(loaded) => loaded,
            None => {
                let load = || Ok(Arc::new(self.model.load(share.clone(), &self.device)?));
                let loaded = seat.loading("transformer", recorder, tell, load)?;
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
        let load = || Ok(Arc::new(self.model.load_decoder(&self.device)?));
        let decoder = seat.loading("vae", recorder, tell, load)?;
        self.held().decoder = Some(decoder.clone());
        Ok(decoder)
    }

    /// The picture of `latents`, on the rank that has them. The others of the group decode some of its rows.
    fn decode(
        &self,
        Decode { decoding, image, shape, group }: Decode<'_>,
        latents: Option<Tensor<4>>,
        seat: &Seat,
        recorder: &mut Recorder,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Picture>> {
        if !group.contains(&self.world.rank()) {
            return Ok(None);
        }
        let decoder = self.decoder(seat, recorder, tell)?;
        let phase = Phase::Decode { image };
        seat.lead(|| tell(Event::Begin(phase, Instant::now())));
        let picture = recorder.time(Activity::Decode, || {
            let decoded = match (latents, decoding.tiled) {
                (Some(latents), true) => Some(decoder.decode_tiled(latents)),
                (latents, _) => {
                    let group = self.world.subgroup(&Group::new("vae", group.iter().copied()));
                    let group = group.map_err(|error| Error::failure(error.to_string()))?;
                    split_rows(&group, latents, shape, &self.device, |z, rows| decoder.decode(z, rows))
                }
            };
            let picture = |decoded: Tensor<4>| {
                let what = || format!("the values of picture {} after decoding", image + 1);
                finite::check(&decoded, decoded.dtype(), what)?;
                Ok(to_picture(&resize_and_crop(decoded, decoding.size), 0))
            };
            decoded.map(picture).transpose()
        })?;
        seat.lead(|| tell(Event::End(phase, Instant::now())));
        Ok(picture)
    }
}

/// A picture that a group of ranks decodes.
struct Decode<'a> {
    decoding: Decoding,
    image: usize,
    /// Of its latents.
    shape: [usize; 4],
    group: &'a [usize],
}

/// The shape `[b, c, y, x]` of the latents that were packed into `tokens`.
fn latent_shape(tokens: &Tokens, patch: usize) -> [usize; 4] {
    let [b, _, features] = tokens.x.dims();
    let [rows, columns] = tokens.positions.extent();
    [b, features / (patch * patch), rows * patch, columns * patch]
}

/// Whether two ranks that hold these shares hold the same parameters and sum them over the same ranks.
fn same(held: &Share, wanted: &Share) -> bool {
    let tensor = match (&held.tensor, &wanted.tensor) {
        (None, None) => true,
        (Some(held), Some(wanted)) => Arc::ptr_eq(&held.comm, &wanted.comm),
        _ => false,
    };
    tensor && held.blocks == wanted.blocks
}

/// The place of a rank in a plan.
struct Seat {
    /// The data-parallel share.
    share: usize,
    /// All ranks of the share.
    ranks: Vec<usize>,
    /// Whether this is the first of them.
    leads: bool,
    /// Whether steps end here.
    steps: bool,
}

impl Seat {
    fn new(plan: &Plan, rank: usize) -> Self {
        let at = |axis| plan.mesh.coordinate(rank, axis);
        let ranks = plan.mesh.group(rank, &Axis::ALL[1..]).ranks().to_vec();
        let first_of = |axes: &[Axis]| axes.iter().all(|&axis| at(axis) == 0);
        Self {
            share: at(Axis::Data),
            leads: ranks[0] == rank,
            steps: first_of(&[Axis::Cfg, Axis::Ring, Axis::Ulysses, Axis::Tensor])
                && at(Axis::Pipeline) + 1 == plan.stages.len(),
            ranks,
        }
    }

    /// Does `work` on the first rank of the share.
    fn lead(&self, work: impl FnOnce()) {
        if self.leads {
            work();
        }
    }

    /// Loads a component. One rank of the world tells of it.
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
