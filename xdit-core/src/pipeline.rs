//! Pipelines: from a request to pictures.

mod engine;
mod request;

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};

pub use engine::{Engine, Running};
pub use request::{Extra, Request, SkipLayerGuidance, check, check_extras};

use crate::error::Result;
pub use crate::picture::Picture;
use crate::plan::Plan;
use crate::plan::cost::Cost;
pub use crate::run::cancel::Cancel;
pub use crate::run::observer::{Completed, Event, Observer, Phase, Step};
use crate::run::record::RankReport;
pub use crate::run::residency::Keep;

/// Where and how a pipeline runs.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device of each rank; a single one is that of all ranks. Texts are encoded on the first.
    pub devices: Vec<Device>,
    /// The type of weights and activations.
    pub dtype: DType,
    /// Which variant of the weight files to take, such as `fp16`; the plain files where there is none.
    pub variant: Option<String>,
    /// Which components stay in memory between requests.
    pub keep: Keep,
}

impl LoadOptions {
    /// All ranks on `device`, the plain files, and whatever fits into memory stays there.
    pub fn new(device: Device, dtype: DType) -> Self {
        Self { devices: vec![device], dtype, variant: None, keep: Keep::Auto }
    }
}

/// A [`Request`] with every default filled in and checked, ready to be carried out.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The request.
    pub request: Request,
    /// Height and width of the pictures.
    pub size: [usize; 2],
    /// Height and width at which they are generated.
    pub generated_size: [usize; 2],
    /// Steps of the noise scheduler.
    pub num_inference_steps: usize,
    /// Strength of classifier-free guidance.
    pub guidance_scale: f32,
    /// Text tokens, the end of the text included.
    pub max_sequence_length: usize,
    /// Which rank does what.
    pub plan: Plan,
}

/// All pictures of a request. Picture `i` belongs to prompt `i / images_per_prompt`.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Final latents `[n, c, y, x]`, f32, as the diffusion model sees them.
    pub latents: Tensor<4>,
    /// The pictures, unless only latents were asked for.
    pub pictures: Vec<Picture>,
}

/// A checkpoint that makes pictures of prompts. Ranks stay from one request to the next, as do the components that
/// [`LoadOptions::keep`] names.
///
/// [`Engine`] runs a pipeline on a thread of its own.
pub trait Pipeline: Send {
    /// Fills in the defaults and checks that the request can be carried out, without computing anything.
    ///
    /// # Errors
    /// If it cannot; the error names the value and a way out.
    fn resolve(&self, request: &Request) -> Result<Resolved>;

    /// What each rank of a [resolved](Self::resolve) request sends and holds, in rank order, without reading a
    /// weight.
    ///
    /// # Errors
    /// If a rank's share of the checkpoint cannot be loaded.
    fn costs(&self, resolved: &Resolved) -> Result<Vec<Cost>>;

    /// Carries out a [resolved](Self::resolve) request. `observer` has each picture as soon as it is done.
    ///
    /// Requests may differ in everything. One with another mesh than the last makes ranks load other shares.
    ///
    /// # Errors
    /// If weights cannot be read, a rank fails, or a value is not finite; of kind
    /// [`Cancelled`](crate::ErrorKind::Cancelled), if it was cancelled. The next request is carried out all the same.
    fn run(&mut self, resolved: &Resolved, cancel: &Cancel, observer: &mut dyn Observer) -> Result<()>;

    /// The device of the first rank.
    fn device(&self) -> &Device;

    /// Carries `request` out and collects its pictures.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`run`](Self::run).
    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        let mut collected = Collected { observer, completed: BTreeMap::new() };
        self.run(&resolved, &Cancel::new(), &mut collected)?;
        let (latents, pictures): (Vec<_>, Vec<_>) =
            collected.completed.into_values().map(|done| (done.latents, done.picture)).unzip();
        let on_device = |latents: TensorData| Tensor::from_data(latents, (self.device(), DType::F32));
        Ok(Generated {
            latents: Tensor::cat(latents.into_iter().map(on_device).collect(), 0),
            pictures: pictures.into_iter().flatten().collect(),
        })
    }
}

/// Keeps pictures, and passes on everything else.
struct Collected<'a> {
    observer: &'a mut dyn Observer,
    completed: BTreeMap<usize, Completed>,
}

impl Observer for Collected<'_> {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.observer.begin(phase, at);
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        self.observer.end(phase, at);
    }

    fn step(&mut self, step: Step, at: Instant) {
        self.observer.step(step, at);
    }

    fn warn(&mut self, message: &str) {
        self.observer.warn(message);
    }

    fn completed(&mut self, completed: Completed) {
        self.completed.insert(completed.image, completed.clone());
        self.observer.completed(completed);
    }

    fn rank(&mut self, report: RankReport) {
        self.observer.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.observer.wants_details()
    }
}
