//! The options of `xdit decode`.

use std::path::PathBuf;

use clap::Args;

use super::{Dtype, OutputType};
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
    /// Output path: a file, a folder, or a pattern with `{i}` [default: xdit.png].
    #[arg(long, short_alias = 'o', value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Type of the pictures [default: that of the output's ending, or png].
    #[arg(long, value_enum)]
    pub output_type: Option<OutputType>,
    /// Decode large pictures tile by tile, with blended seams, to save memory.
    #[arg(long)]
    pub vae_tiling: bool,
    /// Type of weights and activations [default: bf16 on a GPU that computes in it, f32 elsewhere].
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Device to compute on, as in `xdit generate`.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Prefer weight files of this variant, such as `fp16` [default: the files without a variant].
    #[arg(long)]
    pub variant: Option<String>,
    /// Branch, tag or commit of the model on the hub [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// Folder for downloaded models [default: the cache of `huggingface_hub`].
    #[arg(long, value_name = "FOLDER")]
    pub download_dir: Option<PathBuf>,
    /// Number of threads that compute on the CPU [default: one for each core].
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Print only warnings and errors to standard error.
    #[arg(long)]
    pub quiet: bool,
}
