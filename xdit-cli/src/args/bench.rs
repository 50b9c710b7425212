//! The options of `xdit bench`.

use clap::Args;

use super::generate::{GenerateArgs, KeepPolicy, ParallelArgs, ReportFormat};
use super::model::{ComputeArgs, ModelArgs};

/// `xdit bench`
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Picture",
    after_help = "\
Examples:
  xdit bench pixart-sigma --num-inference-steps 2
  xdit bench flux-dev --ulysses-degree 2 --dtype bf16 --report json
  xdit bench ./pixart --height 2048 --width 2048
  xdit bench sd3-medium --profile

Models of published size: dit-xl, flux-dev, flux-schnell, hunyuan-11, hunyuan-12, latte, pixart-alpha,
pixart-sigma, sd3-medium, sd35-large, sd35-medium, sdxl-base."
)]
pub struct BenchArgs {
    /// A model of published size with random weights, see below; or a folder or an id, with its own weights.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Height of the picture in pixels [default: the model's].
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Width of the picture in pixels [default: the model's].
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Number of denoising steps.
    #[arg(long, alias = "steps", value_name = "STEPS", default_value_t = 4, help_heading = "Generation")]
    pub num_inference_steps: usize,
    /// Strength of classifier-free guidance [default: the model's].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Generation")]
    pub guidance_scale: Option<f32>,
    /// Number of pictures before the measurement.
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "Measurement")]
    pub warmup: usize,
    /// Number of measured pictures.
    #[arg(long, value_name = "COUNT", default_value_t = 3, help_heading = "Measurement")]
    pub repeat: usize,
    /// Measure one more picture, with the device's time in each operation and block.
    #[arg(long, help_heading = "Measurement")]
    pub profile: bool,
    /// Print the figures to standard output in this format instead of a table.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    pub report: Option<ReportFormat>,
    /// Print only warnings and errors to standard error.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// What computes, and in which type.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Components that stay in memory between pictures [default: all].
    #[arg(long, value_enum, value_name = "POLICY", help_heading = "Model and device")]
    pub keep: Option<KeepPolicy>,
    /// Which files of the model to use.
    #[command(flatten)]
    pub files: ModelArgs,

    /// The distribution of work over ranks.
    #[command(flatten)]
    pub parallel: ParallelArgs,
}

impl BenchArgs {
    /// The options of the run that is measured.
    pub fn generate(self) -> GenerateArgs {
        GenerateArgs {
            model: Some(self.model),
            prompt: vec!["a small cactus".to_owned()],
            height: self.height,
            width: self.width,
            num_inference_steps: Some(self.num_inference_steps),
            guidance_scale: self.guidance_scale,
            compute: self.compute,
            keep: Some(self.keep.unwrap_or(KeepPolicy::All)),
            files: self.files,
            parallel: self.parallel,
            ..GenerateArgs::default()
        }
    }
}
