//! Worlds of many ranks: the possible meshes, and a toy's run on the ranks of a world.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData};
use xdit_comm::{LaunchOptions, Report, launch};
use xdit_core::error::{Error, Result};
use xdit_core::link::{HostLink, Link};
use xdit_core::noise::Generator;
use xdit_core::pipeline::{Cancel, Completed, Keep, Observer, Phase, Step};
use xdit_core::placement::Share;
use xdit_core::plan::Plan;
use xdit_core::plan::guidance::Guidance;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::rows::Rows;
use xdit_core::run::noise::PictureNoise;
use xdit_core::run::rank::Rank;
use xdit_core::run::ranks::Ranks;
use xdit_core::run::record::RankReport;
use xdit_core::run::{self, Decoder, Loaded, Model};
use xdit_core::scheduler::Scheduler;
use xdit_core::tokens::{Tokens, pack};
use xdit_core::transformer::{IntoParts, Transformer};

use crate::device;

/// Loads a rank's share of the transformer.
pub type Load<T> = Box<dyn Fn(Share) -> Result<Loaded<T>> + Send + Sync>;

/// A model and a job for it that produces only latents.
pub struct Job<T: Transformer> {
    /// The work of each rank.
    pub plan: Plan,
    /// Loads a share of the model.
    pub load: Load<T>,
    /// The noise scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// The conditions of each picture.
    pub guidance: Vec<Guidance<T::Conditions>>,
    /// The initial latents of each picture, packed and whole.
    pub noise: Vec<Tokens>,
}

/// The model of a [`Job`].
pub struct Loader<T>(Load<T>);

/// A decoder for jobs that decode no pictures.
pub enum NoDecoder {}

impl Decoder for NoDecoder {
    fn decode(&self, _: Tensor<4>, _: &dyn Rows) -> Tensor<4> {
        match *self {}
    }

    fn decode_tiled(&self, _: Tensor<4>) -> Tensor<4> {
        match *self {}
    }
}

impl<T> Model for Loader<T>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    type Transformer = T;
    type Decoder = NoDecoder;

    fn load(&self, share: Share, _: &burn::tensor::Device) -> Result<Loaded<T>> {
        (self.0)(share)
    }

    fn load_decoder(&self, _: &burn::tensor::Device) -> Result<Arc<NoDecoder>> {
        Err(Error::failure("no picture is decoded"))
    }
}

impl<T: Transformer> Job<T>
where
    T::Conditions: 'static,
{
    /// The model, and the job in the form that the engine takes.
    pub fn split(self) -> (Arc<Loader<T>>, run::Job<T::Conditions>) {
        let mut conditions = Vec::new();
        let mut place = |branch: &T::Conditions| {
            conditions.push(branch.clone());
            conditions.len() - 1
        };
        let guidance = self.guidance.iter().map(|guidance| guidance.map(&mut place)).collect();
        let noise = self.noise;
        let job = run::Job {
            plan: self.plan,
            scheduler: self.scheduler,
            guidance,
            conditions: Some(conditions),
            noise: Box::new(move |image, _| picture_noise(&noise[image], image)),
            decoding: None,
            preview_every: None,
        };
        (Arc::new(Loader(self.load)), job)
    }
}

/// The random numbers of a picture: its initial latents, and noise by its number for the steps.
pub fn picture_noise(latents: &Tokens, image: usize) -> PictureNoise {
    let (shape, mut generator) = (latents.x.dims(), Generator::from_seed(image as u64));
    PictureNoise::new(latents.clone(), move || {
        let values = generator.randn(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), (&device(), DType::F32))
    })
}

/// Collects the latents of each picture, with one token for each latent pixel, and forwards everything else.
struct Latents<'a> {
    observer: &'a mut dyn Observer,
    latents: Vec<(usize, Tokens)>,
}

impl Latents<'_> {
    /// The latents in the order of the pictures.
    fn sorted(mut self) -> Vec<Tokens> {
        self.latents.sort_by_key(|(image, _)| *image);
        self.latents.into_iter().map(|(_, latents)| latents).collect()
    }
}

impl Observer for Latents<'_> {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.observer.begin(phase, at);
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        self.observer.end(phase, at);
    }

    fn step(&mut self, step: Step, at: Instant) {
        self.observer.step(step, at);
    }

    fn completed(&mut self, Completed { image, latents, .. }: Completed) {
        let place = (&device(), DType::F32);
        let latents = match latents.shape().num_dims() {
            4 => pack(Tensor::<4>::from_data(latents, place), 1),
            _ => pack(Tensor::<5>::from_data(latents, place), 1),
        };
        self.latents.push((image, latents));
    }

    fn rank(&mut self, report: RankReport) {
        self.observer.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.observer.wants_details()
    }
}

use crate::in_order::{InOrder, Order, RENDEZVOUS};

/// All meshes of up to `max_ranks` ranks along `axes`, with degree 1 on the other axes and at most two ranks along the
/// axis of guidance.
pub fn meshes(axes: &[Axis], max_ranks: usize) -> Vec<Mesh> {
    axes.iter().fold(vec![Mesh::default()], |meshes, &axis| {
        let degrees = if axis == Axis::Cfg { 1..=2 } else { 1..=max_ranks };
        let longer = |mesh: &Mesh| degrees.clone().map(|degree| mesh.with(axis, degree)).collect::<Vec<_>>();
        meshes.iter().flat_map(longer).filter(|mesh| mesh.size() <= max_ranks).collect()
    })
}

/// The final latents of all pictures of `job`, on newly started ranks.
///
/// # Errors
/// The first cause, if a rank fails.
pub fn run<T>(job: Job<T>, observer: &mut dyn Observer) -> Result<Vec<Tokens>>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    let (model, job) = job.split();
    run_on(&mut Ranks::new(model, vec![device()], Keep::None), job, &Cancel::new(), observer)
}

/// The final latents of all pictures of `job`, which is run on `ranks`.
///
/// # Errors
/// The errors of the engine.
pub fn run_on<T>(
    ranks: &mut Ranks<Loader<T>>,
    job: run::Job<T::Conditions>,
    cancel: &Cancel,
    observer: &mut dyn Observer,
) -> Result<Vec<Tokens>>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    let mut latents = Latents { observer, latents: Vec::new() };
    ranks.run(job, cancel, &mut latents)?;
    Ok(latents.sorted())
}

/// The final latents of the pictures that a rank of `world` reports, after its part of the job.
///
/// # Errors
/// If the rank fails.
pub fn run_rank<T>(
    world: &Arc<dyn Link>,
    (model, job): &(Arc<Loader<T>>, run::Job<T::Conditions>),
    observer: &mut dyn Observer,
) -> Result<Vec<Tokens>>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    let mut rank = Rank::new(world.clone(), model.clone(), device(), observer.wants_details());
    let mut latents = Latents { observer, latents: Vec::new() };
    rank.run(job, &Cancel::new(), &mut latents)?;
    Ok(latents.sorted())
}

/// Collects the reports of ranks, in rank order.
#[derive(Default)]
pub struct Reports {
    /// Whether reports include each activity and each wait.
    pub details: bool,
    /// One report for each rank.
    pub ranks: Vec<RankReport>,
}

impl Observer for Reports {
    fn rank(&mut self, report: RankReport) {
        self.ranks.push(report);
        self.ranks.sort_by_key(|report| report.rank);
    }

    fn wants_details(&self) -> bool {
        self.details
    }
}

/// Runs `job` on the ranks of a world, each of which uses its link as wrapped by `seen`.
pub fn run_in<T>(
    job: Job<T>,
    options: &LaunchOptions,
    seen: impl Fn(Arc<dyn Link>) -> Arc<dyn Link> + Send + Sync + 'static,
) -> Report<Vec<Tokens>, Error>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    let (size, job) = (job.plan.mesh.size(), Arc::new(job.split()));
    launch(size, options, move |world| run_rank(&seen(HostLink::new(world)), &job, &mut ()))
}

/// The latents of all pictures of `job`, on ranks whose links have [the order of NCCL](crate::in_order) and whose
/// sends wait for their receives.
///
/// # Panics
/// If a rank fails, or all ranks wait for each other.
pub fn pictures_in_order<T>(job: Job<T>) -> Vec<Tensor<3>>
where
    T: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync> + Send + Sync + 'static,
{
    let order = Order::new(job.plan.mesh.size(), RENDEZVOUS);
    pictures(run_in(job, &LaunchOptions::default(), move |world| InOrder::world(world, &order)))
}

/// The latents of all pictures of a successful run, from the report of [`run_in`].
///
/// # Panics
/// If the run failed; the message is the first cause.
pub fn pictures(report: Report<Vec<Tokens>, Error>) -> Vec<Tensor<3>> {
    let ranks = report.into_result().unwrap_or_else(|error| panic!("{error}"));
    ranks.into_iter().flatten().map(|latents| latents.x).collect()
}
