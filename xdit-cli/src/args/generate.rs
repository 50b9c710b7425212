//! The options of `xdit generate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// `xdit generate`
///
/// What is `None` was not given: it comes from `--from`, or is left to the model.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "What to draw",
    after_help = "\
Examples:
  xdit generate --model ./pixart --prompt \"a small cactus\" --seed 7
  xdit generate --model ./pixart --prompt-file prompts.txt --num-images 4 --output out/
  xdit generate --from xdit.png --num-inference-steps 50 --output more-steps.png
  xdit generate --model ./pixart --prompt \"a small cactus\" --quiet --report json | jq .it_per_s"
)]
pub struct GenerateArgs {
    /// A folder in the diffusers layout, or an id on the Hugging Face hub.
    #[arg(long, value_name = "PATH_OR_ID", required_unless_present = "from")]
    pub model: Option<String>,
    /// What to draw; several prompts make several pictures.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// A text file with one prompt a line.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// What the second text encoder is told in place of the prompt: one text for all prompts, or one for each.
    #[arg(long = "prompt-2", num_args = 1.., value_name = "TEXT")]
    pub prompt_2: Vec<String>,
    /// What the third text encoder is told in place of the prompt: one text for all prompts, or one for each.
    #[arg(long = "prompt-3", num_args = 1.., value_name = "TEXT")]
    pub prompt_3: Vec<String>,
    /// What not to draw.
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// What the second text encoder is told in place of the negative prompt.
    #[arg(long = "negative-prompt-2", value_name = "TEXT")]
    pub negative_prompt_2: Option<String>,
    /// What the third text encoder is told in place of the negative prompt.
    #[arg(long = "negative-prompt-3", value_name = "TEXT")]
    pub negative_prompt_3: Option<String>,
    /// Pictures of each prompt.
    #[arg(long, value_name = "COUNT")]
    pub num_images: Option<usize>,
    /// Height in pixels; the default is the model's.
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Width in pixels; the default is the model's.
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Take the parameters from a picture that this program made; options given beside it go before.
    #[arg(long, value_name = "IMAGE.png")]
    pub from: Option<PathBuf>,

    /// Steps of the noise scheduler; the default is diffusers' for the model, see `xdit inspect`.
    #[arg(long, value_name = "STEPS", help_heading = "How to draw it")]
    pub num_inference_steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 and below turns it off. To FLUX.1-dev it is an input.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "How to draw it")]
    pub guidance_scale: Option<f32>,
    /// Strength of classifier-free guidance for FLUX, with the negative prompt; 1 and below turns it off [default: 1].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "How to draw it")]
    pub true_cfg_scale: Option<f32>,
    /// Blocks to leave out in one more branch of guidance, such as `7 8 9`; the picture moves away from what they miss.
    #[arg(long, value_name = "BLOCKS", num_args = 1.., value_delimiter = ',', help_heading = "How to draw it")]
    pub skip_guidance_layers: Vec<usize>,
    /// How far it moves; 0 turns it off [default: 2.8].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "How to draw it")]
    pub skip_layer_guidance_scale: Option<f32>,
    /// The share of the steps after which blocks are left out [default: 0.01].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "How to draw it")]
    pub skip_layer_guidance_start: Option<f64>,
    /// The share of the steps from which on they are not [default: 0.2].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "How to draw it")]
    pub skip_layer_guidance_stop: Option<f64>,
    /// Seed of the first picture; picture `i` has seed + `i` [default: 0].
    #[arg(long, help_heading = "How to draw it")]
    pub seed: Option<u64>,
    /// Start from these latents in place of noise: a safetensors file, key `latents`, [n, c, h, w] in f32.
    #[arg(long, value_name = "FILE", help_heading = "How to draw it")]
    pub init_latents: Option<PathBuf>,
    /// The most tokens of a prompt that T5 is given; the rest is cut off with a warning. CLIP always takes 77.
    #[arg(long, value_name = "TOKENS", help_heading = "How to draw it")]
    pub max_sequence_length: Option<usize>,
    /// Last layers of CLIP to leave out, beyond the one that is always left out.
    #[arg(long, value_name = "LAYERS", help_heading = "How to draw it")]
    pub clip_skip: Option<usize>,
    /// Clean prompts of what the model's training captions did not contain.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "How to draw it")]
    pub clean_caption: Option<bool>,
    /// Generate at the size that was asked for, even if PixArt was not trained for it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "How to draw it")]
    pub no_use_resolution_binning: Option<bool>,
    /// Decode tile by tile: less memory for large pictures, with blended seams.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "How to draw it")]
    pub vae_tiling: Option<bool>,

    /// A file, a folder, or a pattern with `{i}` or `{seed}`; several pictures from `out.png` are `out-0.png`, …
    /// [default: xdit.png]
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// PNG files, or one safetensors file with the final latents [default: png].
    #[arg(long, value_enum, help_heading = "Output")]
    pub output_type: Option<OutputType>,
    /// Write what each rank did when: `.json` for trace viewers such as Perfetto, `.svg` as a picture.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub trace: Option<PathBuf>,
    /// Print timings, what each rank did, and outputs to standard output.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    pub report: Option<ReportFormat>,
    /// Say nothing but warnings and errors.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// Type of weights and activations [default: f32].
    #[arg(long, value_enum, help_heading = "Model and device")]
    pub dtype: Option<Dtype>,
    /// The device that computes: `cpu`.
    #[arg(long, default_value = "cpu", help_heading = "Model and device")]
    pub device: String,
    /// Prefer weight files of this variant, such as `fp16`.
    #[arg(long, help_heading = "Model and device")]
    pub variant: Option<String>,
    /// A branch, tag or commit of the model on the hub.
    #[arg(long, help_heading = "Model and device")]
    pub revision: Option<String>,

    /// How to share the work.
    #[command(flatten)]
    pub parallel: ParallelArgs,
}

/// How the work is shared between ranks, which on the CPU are threads. All methods combine.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Parallelism (the degrees multiply to the number of ranks)")]
pub struct ParallelArgs {
    /// Ranks that share the list of pictures.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub data_parallel_degree: usize,
    /// Ranks that share the heads of attention.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub ulysses_degree: usize,
    /// Ranks that pass keys and values around.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub ring_degree: usize,
    /// Stages of a pipeline of patches.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub pipefusion_parallel_degree: usize,
    /// Patches that go through the stages; as many as stages unless given.
    #[arg(long, value_name = "PATCHES")]
    pub num_pipeline_patch: Option<usize>,
    /// Synchronous steps before stages work on patches; 1 unless given.
    #[arg(long, value_name = "STEPS")]
    pub warmup_steps: Option<usize>,
    /// Blocks of each stage, such as `10 9 9`.
    #[arg(long, value_name = "BLOCKS", num_args = 1.., value_delimiter = ',')]
    pub attn_layer_num_for_pp: Vec<usize>,
    /// Ranks that share each layer.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub tensor_parallel_degree: usize,
    /// How patches are cut: `row`.
    #[arg(long, value_name = "SCHEME", default_value = "row")]
    pub split_scheme: String,
    /// Run the branches of guidance on two ranks: the negative one, and the rest.
    #[arg(long, alias = "use-split-batch")]
    pub use_cfg_parallel: bool,
    /// Decode each picture on all ranks, some rows each.
    #[arg(long)]
    pub use_parallel_vae: bool,
    /// Ranks of the ring axis own a strip each and use the others' keys and values of the step before.
    #[arg(long)]
    pub distrifusion: bool,
}

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputType {
    /// Pictures.
    #[default]
    #[value(alias = "pil")]
    Png,
    /// Final latents, as safetensors.
    Latent,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One JSON object.
    Json,
}

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits; the fastest on a CPU.
    #[default]
    #[value(alias = "float32", alias = "fp32")]
    F32,
    /// 16 bits with the range of f32.
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16 bits with more precision and less range.
    #[value(alias = "float16", alias = "fp16")]
    F16,
}
