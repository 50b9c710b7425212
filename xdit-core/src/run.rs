//! Runs jobs on ranks that stay alive between jobs. Pictures are reported one by one.

pub(crate) mod across;
pub mod cancel;
mod conditions;
pub mod contexts;
pub mod decode;
pub mod execute;
pub mod noise;
pub(crate) mod notes;
pub mod observer;
pub mod preview;
pub mod rank;
pub mod ranks;
pub mod record;
pub mod residency;

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::error::Result;
use crate::placement::Share;
use crate::plan::Plan;
use crate::plan::guidance::Guidance;
use crate::rows::Rows;
use crate::run::noise::Noise;
use crate::scheduler::Scheduler;
use crate::transformer::{IntoParts, Transformer};

/// A loaded share.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The part of the transformer.
    pub transformer: T,
    /// The [bytes of its parameters](crate::weights::Weights::taken_bytes).
    pub parameter_bytes: u64,
}

/// A model from which ranks load their shares.
pub trait Model: Send + Sync + 'static {
    /// Its transformer.
    type Transformer: Transformer<Conditions: IntoParts + Send + Sync, Context: Send + Sync>
        + Send
        + Sync
        + 'static;
    /// Its autoencoder.
    type Decoder: Decoder + 'static;

    /// Loads a rank's share of the transformer.
    ///
    /// # Errors
    /// If the weights cannot be read.
    fn load(&self, share: Share, device: &Device) -> Result<Loaded<Self::Transformer>>;

    /// Loads the autoencoder, or returns that of another rank on the same device.
    ///
    /// # Errors
    /// If the weights cannot be read.
    fn load_decoder(&self, device: &Device) -> Result<Arc<Self::Decoder>>;
}

/// The half of an autoencoder that decodes latents into pictures.
pub trait Decoder: Send + Sync {
    /// Decodes `latents`, which are all rows of pictures or the rows of one rank. The pictures of a batch may be consecutive
    /// frames of a clip.
    ///
    /// # Shapes
    /// `latents`: `[b, c, y, x]`, scaled as in the diffusion model; result `[b, 3, y · scale, x · scale]`, values about
    /// -1 to 1.
    fn decode(&self, latents: Tensor<4>, rows: &dyn Rows) -> Tensor<4>;

    /// Decodes the latents of whole pictures tile by tile.
    fn decode_tiled(&self, latents: Tensor<4>) -> Tensor<4>;
}

/// The decoding of latents into pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// The shape `[1, c, frames, y, x]` of the latents; a picture has one frame.
    pub latents: [usize; 5],
    /// The number of frames that are decoded together.
    pub chunk: usize,
    /// Height and width to which pictures are resized and cropped.
    pub size: [usize; 2],
    /// Whether latents are decoded tile by tile, on one rank.
    pub tiled: bool,
}

/// The pictures of one request. Apart from the conditions, a job has no data on a device.
pub struct Job<C> {
    /// The division of the work among the ranks.
    pub plan: Plan,
    /// The noise scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// The conditions of all branches. Only the process of the first rank needs them; the first rank sends them to the
    /// others.
    pub conditions: Option<Vec<C>>,
    /// The guidance of each picture, with its branches as indices into `conditions`.
    pub guidance: Vec<Guidance<usize>>,
    /// Starts the random numbers of a picture when its turn comes.
    pub noise: Noise,
    /// The decoding of latents, unless only latents were requested.
    pub decoding: Option<Decoding>,
    /// The number of steps from one [preview](preview::Glimpse) to the next, if there are any.
    pub preview_every: Option<usize>,
}
