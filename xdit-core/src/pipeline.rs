//! Pipelines, which turn requests into pictures.

mod engine;
mod request;

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
pub use xdit_comm::{Ended, MeetError, Meeting, Processes};

pub use engine::{Engine, Running};
pub use request::{Extra, MicroConditions, Request, SkipLayerGuidance, check, check_extras};

use crate::error::Result;
pub use crate::picture::Picture;
use crate::plan::Plan;
use crate::plan::cost::Cost;
pub use crate::run::across::{end_all, followed};
pub use crate::run::cancel::Cancel;
pub use crate::run::observer::{Completed, Event, Observer, Phase, Preview, Step};
pub use crate::run::preview::Glimpse;
use crate::run::record::RankReport;
pub use crate::run::residency::{Keep, Kept};
use crate::transformer::Part;

/// The devices, types and files of a pipeline.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device of each rank, or a single one for all ranks. Texts are encoded on the first device.
    pub devices: Vec<Device>,
    /// The type of weights and activations.
    pub dtype: DType,
    /// The variant of the weight files, such as `fp16`. Components without that variant use the plain files.
    pub variant: Option<String>,
    /// The scheduler in place of the checkpoint's own, by a name that [`replaced`](crate::scheduler::replaced) accepts.
    pub scheduler: Option<String>,
    /// Whether to leave out the third text encoder of Stable Diffusion 3, its largest, without which it was trained, too.
    pub no_text_encoder_3: bool,
    /// Whether Latte's autoencoder is the one in the folder `vae_temporal_decoder`, which decodes frames together, and not the
    /// one in `vae`.
    pub temporal_decoder: bool,
    /// The components that stay in memory between requests.
    pub keep: Keep,
    /// Whether weights are random numbers made on the device, for benchmarks. Of the files, only headers are read.
    pub random_weights: bool,
    /// The processes that have the ranks, if there are several. Each must open the same pipeline and carry out the same
    /// requests; the first one receives all pictures. `devices` are then those of the ranks of this process.
    pub processes: Option<Processes>,
}

impl LoadOptions {
    /// All ranks on `device`, the plain weight files, and [`Keep::Auto`].
    pub fn new(device: Device, dtype: DType) -> Self {
        Self {
            devices: vec![device],
            dtype,
            variant: None,
            scheduler: None,
            no_text_encoder_3: false,
            temporal_decoder: false,
            keep: Keep::Auto,
            random_weights: false,
            processes: None,
        }
    }
}

/// A checked [`Request`] with all defaults filled in.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The request.
    pub request: Request,
    /// Height and width of the pictures.
    pub size: [usize; 2],
    /// Height and width at which they are generated, before resizing.
    pub generated_size: [usize; 2],
    /// The number of steps of the noise scheduler.
    pub num_inference_steps: usize,
    /// The strength of classifier-free guidance, or, with [`distilled_guidance`](Self::distilled_guidance), an input of the
    /// model.
    pub guidance_scale: f32,
    /// Whether the model takes the guidance scale as an input, so that classifier-free guidance has a scale of its own.
    pub distilled_guidance: bool,
    /// The largest number of text tokens, including the end of the text.
    pub max_sequence_length: usize,
    /// The number of frames of each clip, or `None` for pictures.
    pub frames: Option<usize>,
    /// The division of the work among the ranks.
    pub plan: Plan,
}

impl Resolved {
    /// A warning, if there is a negative prompt and no guidance by it. (Models with
    /// [`distilled_guidance`](Self::distilled_guidance) have a scale of their own for that.)
    pub fn unguided(&self) -> Option<String> {
        let negative = self.request.negative_prompts.iter().any(|text| !text.is_empty());
        let unguided = negative && !self.distilled_guidance && self.guidance_scale <= 1.0;
        unguided.then(|| {
            let scale = self.guidance_scale;
            format!("the negative prompt changes nothing: guidance is off at a guidance scale of {scale}, and on above 1")
        })
    }
}

/// All pictures of a request. Picture `i` belongs to prompt `i / images_per_prompt`.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The pictures, or the frames of all clips one after another, unless only latents were requested.
    pub pictures: Vec<Picture>,
    latents: Part,
}

impl Generated {
    /// Final latents `[n, c, y, x]`, or `[n, c, frames, y, x]` of clips, in f32, scaled as in the diffusion model.
    ///
    /// # Panics
    /// If they have another number of dimensions.
    pub fn latents<const D: usize>(&self) -> Tensor<D> {
        self.latents.clone().tensor()
    }
}

/// A checkpoint that turns prompts into pictures. The ranks stay between requests, and so do the components that
/// [`LoadOptions::keep`] names.
///
/// An [`Engine`] runs a pipeline on a thread of its own.
pub trait Pipeline: Send {
    /// Fills in the defaults and checks that the request can be carried out. Computes nothing.
    ///
    /// # Errors
    /// If the request cannot be carried out; the error names the value, and its hint a way out.
    fn resolve(&self, request: &Request) -> Result<Resolved>;

    /// The bytes that each rank sends and holds for a [resolved](Self::resolve) request, in rank order. Reads no
    /// weights.
    ///
    /// # Errors
    /// If a rank's share of the checkpoint cannot be loaded.
    fn costs(&self, resolved: &Resolved) -> Result<Vec<Cost>>;

    /// The policy for components in memory.
    fn kept(&self) -> Kept;

    /// Carries out a [resolved](Self::resolve) request. `observer` receives each picture as soon as it is finished.
    ///
    /// A request may differ from the last one in every option. With another mesh, ranks load other shares.
    ///
    /// # Errors
    /// If weights cannot be read, a rank fails, or a value is not finite; of kind
    /// [`Cancelled`](crate::ErrorKind::Cancelled), if it was cancelled. Later requests are not affected.
    fn run(&mut self, resolved: &Resolved, cancel: &Cancel, observer: &mut dyn Observer) -> Result<()>;

    /// Decodes latents as [`run`](Self::run) does, on the device of the first rank. `tiled` stands for
    /// [`Request::vae_tiling`], and `chunk` for [`Request::decode_chunk_size`]. `save` receives the index and the picture, or the
    /// frames of a clip, of each.
    ///
    /// # Shapes
    /// `latents`: `[n, c, y, x]`, or `[n, c, frames, y, x]` of clips, in f32, scaled as in the diffusion model.
    ///
    /// # Errors
    /// If the latents do not fit the model, weights cannot be read, a value is not finite, or `save` fails.
    fn decode(
        &self,
        latents: &TensorData,
        tiled: bool,
        chunk: Option<usize>,
        save: &mut dyn FnMut(usize, Vec<Picture>) -> Result<()>,
    ) -> Result<()>;

    /// The device of the first rank.
    fn device(&self) -> &Device;

    /// Carries out `request` and collects its pictures.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`run`](Self::run).
    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        let mut collected = Collected { observer, completed: BTreeMap::new() };
        self.run(&resolved, &Cancel::new(), &mut collected)?;
        let (latents, pictures): (Vec<_>, Vec<_>) =
            collected.completed.into_values().map(|done| (done.latents, done.frames)).unzip();
        let mut shape = latents[0].shape().to_vec();
        shape[0] = latents.len();
        let values = |latents: TensorData| latents.try_to_vec::<f32>().expect("latents are f32");
        let values: Vec<f32> = latents.into_iter().flat_map(values).collect();
        let values = TensorData::new(values, [shape.iter().product::<usize>()]);
        let x = Tensor::from_data(values, (self.device(), DType::F32));
        Ok(Generated { pictures: pictures.into_iter().flatten().collect(), latents: Part { x, shape } })
    }
}

/// Collects the pictures, and passes on all events.
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

    fn preview(&mut self, preview: Preview) {
        self.observer.preview(preview);
    }

    fn rank(&mut self, report: RankReport) {
        self.observer.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.observer.wants_details()
    }
}
