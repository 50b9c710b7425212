//! The options of `xdit decode`.

use std::path::PathBuf;

use clap::Args;

use super::OutputType;
use super::model::{ComputeArgs, ModelArgs};
use crate::checkpoints::built_in;

/// `xdit decode`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  xdit generate --prompt \"a small cactus\" --output cactus.safetensors && xdit decode cactus.safetensors")]
pub struct DecodeArgs {
    /// The latents: a safetensors file with the key `latents`, in f32, as `xdit generate --output-type latent` writes it.
    pub latents: PathBuf,
    /// The model: a folder in the diffusers layout, an id on the Hugging Face hub, or `built-in`.
    #[arg(long, short_alias = 'm', value_name = "PATH_OR_ID", default_value = built_in::NAME)]
    pub model: String,
    /// Output path: a file, a folder, or a pattern with `{i}`, and `{frame}` for a file of each frame [default: xdit.png].
    #[arg(long, short_alias = 'o', value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Type of the pictures [default: that of the output's ending, or png].
    #[arg(long, value_enum)]
    pub output_type: Option<OutputType>,
    /// Decode large pictures tile by tile, with blended seams, to save memory.
    #[arg(long)]
    pub vae_tiling: bool,
    /// Frames of a clip that are shown in a second [default: 8].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub fps: Option<f32>,
    /// Number of frames that are decoded together [default: 14 with a temporal decoder, otherwise 1].
    #[arg(long, value_name = "FRAMES")]
    pub decode_chunk_size: Option<usize>,
    /// Print only warnings and errors to standard error.
    #[arg(long)]
    pub quiet: bool,

    /// What computes, and in which type.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Which files of the model to use.
    #[command(flatten)]
    pub files: ModelArgs,
}
