//! The options of `xdit generate`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::DType;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::ProcessArgs;
use super::clip::ClipArgs;
use super::micro_conditions::MicroConditionArgs;
use super::model::{ComputeArgs, ModelArgs};

/// `xdit generate`
///
/// `None` stands for an absent option: its value comes from `--from`, or is left to the model.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Picture",
    after_help = "\
Examples:
  xdit generate --prompt \"a small cactus\"
  xdit generate --model ./pixart --prompt \"a small cactus\" --seed 7
  xdit generate --model ./pixart --prompt-file prompts.txt --num-images 4 --output out/
  xdit generate --from xdit.png --num-inference-steps 50 --output more-steps.png
  xdit generate --model ./pixart --prompt \"a small cactus\" --quiet --report json | jq .it_per_s"
)]
pub struct GenerateArgs {
    /// The model: a folder in the diffusers layout, an id on the Hugging Face hub, or `built-in` [default:
    /// built-in].
    #[arg(long, short_alias = 'm', value_name = "PATH_OR_ID")]
    pub model: Option<String>,
    /// Description of the picture; several prompts give several pictures, and `-` reads one from standard input.
    #[arg(long, short_alias = 'p', num_args = 1.., value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Text file with one prompt a line; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Prompt for the second text encoder, one for all prompts or one for each [default: the prompt].
    #[arg(long = "prompt-2", num_args = 1.., value_name = "TEXT")]
    pub prompt_2: Vec<String>,
    /// Prompt for the third text encoder, one for all prompts or one for each [default: the prompt].
    #[arg(long = "prompt-3", num_args = 1.., value_name = "TEXT")]
    pub prompt_3: Vec<String>,
    /// Description of content to avoid, one for all prompts or one for each [default: empty].
    #[arg(long, short_alias = 'n', num_args = 1.., value_name = "TEXT")]
    pub negative_prompt: Vec<String>,
    /// Negative prompt for the second text encoder, one for all prompts or one for each [default: the negative prompt].
    #[arg(long = "negative-prompt-2", num_args = 1.., value_name = "TEXT")]
    pub negative_prompt_2: Vec<String>,
    /// Negative prompt for the third text encoder, one for all prompts or one for each [default: the negative prompt].
    #[arg(long = "negative-prompt-3", num_args = 1.., value_name = "TEXT")]
    pub negative_prompt_3: Vec<String>,
    /// Number of pictures for each prompt [default: 1].
    #[arg(long, alias = "num-images-per-prompt", value_name = "COUNT")]
    pub num_images: Option<usize>,
    /// Height of the picture in pixels [default: the model's].
    #[arg(long, short_alias = 'H', value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Width of the picture in pixels [default: the model's].
    #[arg(long, short_alias = 'W', value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Take the parameters from a picture written by this program; other options override them.
    #[arg(long, value_name = "PICTURE")]
    pub from: Option<PathBuf>,

    /// Number of denoising steps [default: the model's, see `xdit inspect`].
    #[arg(long, alias = "steps", value_name = "STEPS", help_heading = "Generation")]
    pub num_inference_steps: Option<usize>,
    /// Scheduler in place of the model's own, with the same options: ddim, ddpm, dpm++2m, dpm++2m-sde, dpm++2s,
    /// dpm++2s-sde, euler, euler-a, heun, lcm or unipc; for SD3 and FLUX, flow-euler or flow-heun; or a class of
    /// diffusers. `-karras`, `-exponential`, `-beta` or `-lu` at the end chooses the noise levels [default: the model's].
    #[arg(
        long,
        alias = "sampler",
        alias = "sampling-method",
        value_name = "NAME",
        help_heading = "Generation"
    )]
    pub scheduler: Option<String>,
    /// Strength of classifier-free guidance, turned off by 1 and below; FLUX.1-dev takes it as an input instead
    /// [default: the model's, see `xdit inspect`].
    #[arg(
        long,
        alias = "cfg-scale",
        value_name = "SCALE",
        allow_negative_numbers = true,
        help_heading = "Generation"
    )]
    pub guidance_scale: Option<f32>,
    /// Strength of classifier-free guidance in FLUX, if a negative prompt is given; turned off by 1 and below
    /// [default: 1].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Generation")]
    pub true_cfg_scale: Option<f32>,
    /// Share of the prediction that is rescaled to the deviation of the positive branch's, from 0 to 1: strong guidance
    /// otherwise overexposes pictures [default: 0].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Generation")]
    pub guidance_rescale: Option<f32>,
    /// Blocks to skip in an additional branch of guidance, such as `7 8 9`; guidance moves the picture away from
    /// the result of that branch [default: none].
    #[arg(long, value_name = "BLOCKS", num_args = 1.., value_delimiter = ',', help_heading = "Generation")]
    pub skip_guidance_layers: Vec<usize>,
    /// Strength of skip-layer guidance; 0 turns it off [default: 2.8].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Generation")]
    pub skip_layer_guidance_scale: Option<f32>,
    /// Fraction of the steps after which skip-layer guidance starts [default: 0.01].
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, help_heading = "Generation")]
    pub skip_layer_guidance_start: Option<f64>,
    /// Fraction of the steps at which skip-layer guidance stops [default: 0.2].
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, help_heading = "Generation")]
    pub skip_layer_guidance_stop: Option<f64>,
    /// Seed of the first picture, and picture `i` uses seed + `i`; several seeds give a picture of each prompt with each;
    /// `random` takes a new one [default: 0].
    #[arg(long, short_alias = 's', num_args = 1.., value_delimiter = ',', help_heading = "Generation")]
    pub seed: Vec<Seed>,
    /// Start from these latents instead of noise: a safetensors file with the key `latents`, in f32, of shape [n,
    /// c, h, w].
    #[arg(long, value_name = "FILE", help_heading = "Generation")]
    pub init_latents: Option<PathBuf>,
    /// Maximum number of T5 tokens of a prompt; the rest is cut off with a warning; CLIP always takes 77 [default:
    /// the model's, see `xdit inspect`].
    #[arg(long, value_name = "TOKENS", help_heading = "Generation")]
    pub max_sequence_length: Option<usize>,
    /// Number of CLIP layers to skip at the end, in addition to the last one, which is always skipped [default: 0].
    #[arg(long, value_name = "LAYERS", help_heading = "Generation")]
    pub clip_skip: Option<usize>,
    /// Remove content from prompts that PixArt's training captions did not contain, such as web addresses [default:
    /// true, for PixArt].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "Generation")]
    pub clean_caption: Option<bool>,
    /// Leave prompts as they are, in lower case.
    #[arg(long, conflicts_with = "clean_caption", help_heading = "Generation")]
    pub no_clean_caption: bool,
    /// Generate at the requested size, even if PixArt or HunyuanDiT was not trained on it [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "Generation")]
    pub no_use_resolution_binning: Option<bool>,
    /// Decode large pictures tile by tile, with blended seams, to save memory [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true, help_heading = "Generation")]
    pub vae_tiling: Option<bool>,

    /// The sizes and places that some models take as inputs.
    #[command(flatten)]
    pub micro_conditions: MicroConditionArgs,

    /// The frames of a clip.
    #[command(flatten)]
    pub clip: ClipArgs,

    /// Output path: a file, a folder, or a pattern with `{i}` or `{seed}`; several pictures from `out.png` become
    /// `out-0.png`, …; `{frame}` gives each frame of a clip a file; `-` writes a picture to standard output [default: xdit.png
    /// or xdit.safetensors].
    #[arg(long, short_alias = 'o', value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Type of the output: pictures, clips, or one safetensors file with the final latents [default: that of the output's
    /// ending, or png].
    #[arg(long, value_enum, help_heading = "Output")]
    pub output_type: Option<OutputType>,
    /// Do not store the prompt, the seed and the other parameters in pictures.
    #[arg(long, help_heading = "Output")]
    pub no_metadata: bool,
    /// Write a preview every so many steps, as `xdit.preview.png` beside `xdit.png`, until the picture is there; terminals
    /// that can show pictures show it, too.
    #[arg(long, value_name = "STEPS", help_heading = "Output")]
    pub preview: Option<usize>,
    /// Write a trace of each rank's activity: `.json` for trace viewers such as Perfetto, `.svg` for a timeline.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub trace: Option<PathBuf>,
    /// Print timings, the activity of each rank and the output paths to standard output, in this format.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    pub report: Option<ReportFormat>,
    /// Print only warnings and errors to standard error.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// What computes, and in which type.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Components that stay in memory after their use [default: auto, which is `request`].
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Model and device")]
    pub keep: Option<KeepPolicy>,
    /// Which files of the model to use.
    #[command(flatten)]
    pub files: ModelArgs,
    /// `none` leaves out the third text encoder of Stable Diffusion 3, its largest [default: the model's].
    #[arg(long = "text-encoder-3", value_name = "none", value_parser = ["none"], hide_possible_values = true, help_heading = "Model and device")]
    pub text_encoder_3: Option<String>,

    /// The distribution of work over ranks.
    #[command(flatten)]
    pub parallel: ParallelArgs,

    /// The processes that have the ranks.
    #[command(flatten)]
    pub processes: ProcessArgs,
}

/// The distribution of work over ranks, which are threads. All methods can be combined.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Parallelism (the number of ranks is the product of the degrees)")]
pub struct ParallelArgs {
    /// Number of GPUs, each with a rank; without degrees, they divide the tokens as with `--ulysses-degree`.
    #[arg(long, value_name = "COUNT")]
    pub num_gpus: Option<usize>,
    /// Number of ranks that divide the list of pictures.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub data_parallel_degree: usize,
    /// Number of ranks that divide the tokens and exchange them for heads around attention (Ulysses).
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub ulysses_degree: usize,
    /// Number of ranks that divide the tokens and pass keys and values around (ring attention).
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub ring_degree: usize,
    /// Number of pipeline stages, each with a part of the blocks, through which patches pass (PipeFusion).
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub pipefusion_parallel_degree: usize,
    /// Number of patches that pass through the stages [default: the number of stages].
    #[arg(long, value_name = "PATCHES")]
    pub num_pipeline_patch: Option<usize>,
    /// Number of synchronous warm-up steps before patches are processed asynchronously [default: 1].
    #[arg(long, value_name = "STEPS")]
    pub warmup_steps: Option<usize>,
    /// Number of blocks in each stage, such as `10 9 9` [default: an even split].
    #[arg(long, value_name = "BLOCKS", num_args = 1.., value_delimiter = ',')]
    pub attn_layer_num_for_pp: Vec<usize>,
    /// Number of ranks that divide the heads and features of each layer (tensor parallelism).
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub tensor_parallel_degree: usize,
    /// Scheme for cutting a picture into patches; `row` is the only one.
    #[arg(long, value_name = "SCHEME", default_value = "row")]
    pub split_scheme: String,
    /// Run the negative branch of guidance on one half of the ranks, and the other branches on the other half.
    #[arg(long, alias = "use-split-batch")]
    pub use_cfg_parallel: bool,
    /// Whether a rank computes the negative and the positive branch of guidance as one batch, which takes fewer and larger
    /// operations, and more memory [default: auto, which is `on` for GPUs].
    #[arg(long, value_enum, value_name = "WHEN")]
    pub guidance_batch: Option<GuidanceBatch>,
    /// Decode each picture on all ranks, with a part of the rows on each.
    #[arg(long)]
    pub use_parallel_vae: bool,
    /// Use DistriFusion on the ring axis: each rank has one patch, and uses the stale keys and values of the others
    /// from the previous step.
    #[arg(long)]
    pub distrifusion: bool,
}

/// When branches of guidance are one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuidanceBatch {
    /// On GPUs.
    #[default]
    Auto,
    /// Where they have the same blocks.
    On,
    /// Never.
    Off,
}

impl GuidanceBatch {
    /// The same as the library has it.
    pub fn wanted(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::On => Some(true),
            Self::Off => Some(false),
        }
    }
}

/// The seed of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// A new one.
    Random,
    /// This one.
    Of(u64),
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            _ => text
                .parse()
                .map(Self::Of)
                .map_err(|_| "give a whole number that is not negative, or `random`".to_owned()),
        }
    }
}

/// The type of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputType {
    /// Pictures, and animated clips, as PNG files.
    #[default]
    #[value(alias = "pil")]
    Png,
    /// Pictures as JPEG files of high quality.
    #[value(alias = "jpg")]
    Jpeg,
    /// Pictures, and animated clips, as WebP files without loss.
    Webp,
    /// Clips as animated GIF files.
    Gif,
    /// Clips as MP4 files.
    Mp4,
    /// The final latents as a safetensors file.
    Latent,
}

impl OutputType {
    /// The endings of the names of such files; the first one is the default.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Png => &["png"],
            Self::Jpeg => &["jpg", "jpeg"],
            Self::Webp => &["webp"],
            Self::Gif => &["gif"],
            Self::Mp4 => &["mp4"],
            Self::Latent => &["safetensors"],
        }
    }

    /// The type whose files end like `path`, if there is one.
    pub fn of(path: &Path) -> Option<Self> {
        let found = path.extension()?;
        let is_of = |output_type: &Self| {
            output_type.extensions().iter().any(|known| found.eq_ignore_ascii_case(known))
        };
        Self::value_variants().iter().copied().find(is_of)
    }
}

/// The format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One JSON object.
    Json,
}

/// The type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[value(alias = "float32", alias = "fp32", alias = "torch.float32")]
    F32,
    /// 16 bits with the range of f32: half of the memory, and faster where hardware multiplies it.
    #[value(alias = "bfloat16", alias = "torch.bfloat16")]
    Bf16,
    /// 16 bits with more precision and less range.
    #[value(alias = "float16", alias = "fp16", alias = "torch.float16")]
    F16,
}

impl Dtype {
    /// The same as Burn calls it.
    pub fn burn(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// The type that Burn calls `dtype`.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            _ => Self::F32,
        }
    }
}

/// The components that stay in memory after their use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KeepPolicy {
    /// As `request`, since a command is one request.
    #[default]
    Auto,
    /// Text encoders, transformer and VAE.
    All,
    /// Transformer and VAE.
    Transformer,
    /// The transformer until the last picture is denoised, and the VAE.
    Request,
    /// The same without the layers that process the conditions, which are read again for each picture.
    None,
}
