//! What is asked of a pipeline, what it gives back, and how it tells of its progress.

use burn::tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::parallel::plan::{ParallelConfig, Plan};

/// Where and how a pipeline runs.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device that computes.
    pub device: Device,
    /// The type of weights and activations.
    pub dtype: DType,
    /// Which variant of the weight files to take, such as `fp16`; the plain files where there is none.
    pub variant: Option<String>,
}

/// One run: pictures of some prompts.
///
/// What is `None` takes the pipeline's default.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to draw.
    pub prompts: Vec<String>,
    /// What not to draw.
    pub negative_prompt: String,
    /// Pixels.
    pub height: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Steps of the noise scheduler.
    pub num_inference_steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 and below turns it off.
    pub guidance_scale: Option<f32>,
    /// Seed of the first picture; picture `i` of the run has `seed + i`.
    pub seed: u64,
    /// Pictures of each prompt.
    pub images_per_prompt: usize,
    /// Text tokens, the end of the text included.
    pub max_sequence_length: Option<usize>,
    /// Clean the prompts of what the model's training captions did not contain.
    pub clean_caption: bool,
    /// Generate at the nearest size that the model was trained for, then resize and crop.
    pub use_resolution_binning: bool,
    /// Decode large pictures tile by tile, which takes less memory and blends at the seams.
    pub vae_tiling: bool,
    /// Start from these latents `[n, c, y, x]`, one for each picture, instead of noise from the seed.
    pub init_latents: Option<Tensor<4>>,
    /// Whether latents are decoded into pictures.
    pub decode: bool,
    /// How the work is spread over ranks.
    pub parallel: ParallelConfig,
}

impl Request {
    /// One picture of `prompt` with the pipeline's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompts: vec![prompt.into()],
            negative_prompt: String::new(),
            height: None,
            width: None,
            num_inference_steps: None,
            guidance_scale: None,
            seed: 0,
            images_per_prompt: 1,
            max_sequence_length: None,
            clean_caption: false,
            use_resolution_binning: true,
            vae_tiling: false,
            init_latents: None,
            decode: true,
            parallel: ParallelConfig::default(),
        }
    }

    /// How many pictures are asked for.
    pub fn images(&self) -> usize {
        self.prompts.len() * self.images_per_prompt
    }
}

/// A [`Request`] with every default filled in, as it is carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
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

/// What came out of a run. Picture `i` belongs to prompt `i / images_per_prompt`.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Final latents `[n, c, y, x]`, f32, as the diffusion model sees them.
    pub latents: Tensor<4>,
    /// The pictures, unless only latents were asked for.
    pub pictures: Vec<Picture>,
}

/// A picture: rows of red, green and blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height · width · 3` values.
    pub rgb: Vec<u8>,
}

/// A part of a run that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reading the weights of the named component.
    Load(&'static str),
    /// Running the text encoder on all prompts.
    Encode,
    /// Denoising picture `image`.
    Denoise {
        /// Index of the picture.
        image: usize,
    },
    /// Decoding picture `image`.
    Decode {
        /// Index of the picture.
        image: usize,
    },
}

/// Hears of a run's progress. Everything is optional.
pub trait Observer {
    /// A phase begins.
    fn begin(&mut self, _phase: Phase) {}
    /// The phase ended.
    fn end(&mut self, _phase: Phase) {}
    /// Step `done` of `of` of the current phase ended.
    fn step(&mut self, _done: usize, _of: usize) {}
    /// Something the user should know.
    fn warn(&mut self, _message: &str) {}
}

/// Hears nothing.
impl Observer for () {}

/// From prompts to pictures.
pub trait Pipeline {
    /// Fills in the defaults and checks that the request can be carried out, without computing anything.
    ///
    /// # Errors
    /// If it cannot; the error names the value and a way out.
    fn resolve(&self, request: &Request) -> Result<Resolved>;

    /// Carries the request out.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), or if weights cannot be read.
    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated>;
}

/// Checks what is common to all pipelines.
///
/// # Errors
/// If a value is out of its range.
pub fn check(request: &Request) -> Result<()> {
    if request.prompts.is_empty() {
        return Err(Error::usage("there is no prompt"));
    }
    if request.images_per_prompt == 0 {
        return Err(Error::usage("`0` images of each prompt leave nothing to do").hint("ask for at least 1"));
    }
    if request.num_inference_steps == Some(0) {
        return Err(Error::usage("`0` inference steps leave nothing to do").hint("20 is a good start"));
    }
    if let Some(scale) = request.guidance_scale.filter(|scale| !scale.is_finite()) {
        return Err(Error::usage(format!("guidance scale `{scale}` is not a finite number")));
    }
    Ok(())
}
