//! What a pipeline is: what it is asked, what it gives back, and how it tells of its progress.

mod request;

use burn::tensor::{DType, Device, Tensor};

pub use request::{Extra, Request, SkipLayerGuidance, check, check_extras};

use crate::error::Result;
pub use crate::picture::Picture;
use crate::plan::Plan;
use crate::plan::cost::Cost;
pub use crate::run::observer::{Observer, Phase};

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

/// From prompts to pictures.
pub trait Pipeline {
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

    /// Carries the request out.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), or if weights cannot be read.
    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated>;
}
