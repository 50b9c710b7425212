//! Runs plans on ranks that stay: a job goes in, pictures come out one by one.

pub mod cancel;
mod conditions;
pub mod contexts;
pub mod decode;
pub mod execute;
pub mod observer;
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
use crate::scheduler::Scheduler;
use crate::tokens::Tokens;
use crate::transformer::{IntoParts, Transformer};

/// A share that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The part of the transformer.
    pub transformer: T,
    /// [Bytes of its parameters](crate::weights::Weights::taken_bytes).
    pub parameter_bytes: u64,
}

/// A model from which ranks take their shares.
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
    /// If weights cannot be read.
    fn load(&self, share: Share, device: &Device) -> Result<Loaded<Self::Transformer>>;

    /// Loads the autoencoder, or gives that of another rank on the same device.
    ///
    /// # Errors
    /// If weights cannot be read.
    fn load_decoder(&self, device: &Device) -> Result<Arc<Self::Decoder>>;
}

/// The half of an autoencoder that makes pictures of latents.
pub trait Decoder: Send + Sync {
    /// The picture, or those of its rows that become of the rows of `latents`.
    ///
    /// # Shapes
    /// `latents`: `[b, c, y, x]` as the diffusion model sees them; result `[b, 3, y · scale, x · scale]`, values about
    /// -1 to 1.
    fn decode(&self, latents: Tensor<4>, rows: &dyn Rows) -> Tensor<4>;

    /// The same for all rows, tile by tile.
    fn decode_tiled(&self, latents: Tensor<4>) -> Tensor<4>;
}

/// The pictures that are made of latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// The shape `[b, c, y, x]` of the latents of a picture.
    pub latents: [usize; 4],
    /// Height and width, to which pictures are resized and cropped.
    pub size: [usize; 2],
    /// Whether they are decoded tile by tile, on one rank.
    pub tiled: bool,
}

/// The initial latents of a picture: whole, packed, on a rank's device.
pub type Noise = Box<dyn Fn(usize, &Device) -> Tokens + Send + Sync>;

/// The pictures of one request. It holds no data of a device but the conditions.
pub struct Job<C> {
    /// Who does what.
    pub plan: Plan,
    /// The noise scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// The conditions of all branches, which the first rank hands on to the others: only its process needs them.
    pub conditions: Option<Vec<C>>,
    /// The guidance of each picture, its branches as places in `conditions`.
    pub guidance: Vec<Guidance<usize>>,
    /// Makes the initial latents of a picture when it is its turn.
    pub noise: Noise,
    /// Whether and how latents are decoded.
    pub decoding: Option<Decoding>,
}
