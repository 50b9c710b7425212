//! The options that several subcommands share: where a model comes from, and what computes it.

use std::path::PathBuf;

use clap::Args;

use super::Dtype;

/// Which files of a model to use, and where they are stored.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Model and device")]
pub struct ModelArgs {
    /// Prefer weight files of this variant, such as `fp16` [default: the files without a variant].
    #[arg(long)]
    pub variant: Option<String>,
    /// Branch, tag or commit of the model on the hub [default: main].
    #[arg(long)]
    pub revision: Option<String>,
    /// Decode Latte's clips by the model's `vae_temporal_decoder`, which makes frames fit each other, and not by its `vae`
    /// [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    pub temporal_decoder: Option<bool>,
    /// Folder for downloaded models [default: the cache of `huggingface_hub`].
    #[arg(long, value_name = "FOLDER")]
    pub download_dir: Option<PathBuf>,
}

/// What computes, and in which type.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Model and device")]
pub struct ComputeArgs {
    /// Type of weights and activations [default: bf16 on a GPU that computes in it, f32 elsewhere].
    #[arg(long, alias = "precision", value_enum)]
    pub dtype: Option<Dtype>,
    /// Device to compute on: `cpu`, `cuda`, `vulkan`, `wgpu`, or one of several as in `cuda:1`; `auto` is the best of
    /// those that `xdit devices` lists. Several ranks take a GPU each where there are enough, or those of `cuda:0,2`.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number of threads that compute on the CPU; no picture depends on it [default: one for each core].
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
}
