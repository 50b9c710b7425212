//! The options of the command line, parsed but not yet checked against each other.

mod bench;
mod clip;
mod decode;
mod generate;
mod habits;
mod micro_conditions;
mod model;
mod parse;
mod processes;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::checkpoints::built_in;

pub use bench::BenchArgs;
pub use decode::DecodeArgs;
pub use generate::{Dtype, GenerateArgs, KeepPolicy, OutputType, ParallelArgs, ReportFormat, Seed};
pub use model::{ComputeArgs, ModelArgs};
pub use parse::parse;
pub use processes::{LauncherName, ProcessArgs};

/// Generate pictures with diffusion transformers, on Burn.
///
/// Options may be written with dashes or underscores: `--guidance-scale` is the same as `--guidance_scale`.
#[derive(Debug, Parser)]
#[command(name = "xdit", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// The subcommand to run.
    #[command(subcommand)]
    pub command: Command,
    /// Sentences on options that mean nothing here.
    #[arg(skip)]
    pub notes: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  xdit generate --prompt \"a small cactus\"
      Generate a picture with the built-in model, without a download.
  xdit generate --model PixArt-alpha/PixArt-XL-2-512x512 --prompt \"a small cactus\" --seed 7
      Generate a picture with a checkpoint from the Hugging Face hub.
  xdit inspect PixArt-alpha/PixArt-XL-2-512x512
      Show the components of a checkpoint, and the memory that it needs, before a download.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate pictures from prompts.
    Generate(Box<GenerateArgs>),
    /// Show the work of each rank for `xdit generate` with the same options, without loading weights.
    Plan(Box<GenerateArgs>),
    /// Decode latents that `xdit generate` wrote into pictures.
    Decode(DecodeArgs),
    /// Show the components of a checkpoint and the memory that it needs, or the parameters in a picture.
    Inspect(InspectArgs),
    /// Show the devices of this machine, and what is missing for others.
    Devices(DevicesArgs),
    /// Measure the speed of a model, by default of published size with random weights.
    Bench(Box<BenchArgs>),
    /// Write the built-in model as a checkpoint in the diffusers layout.
    DemoCheckpoint(DemoArgs),
    /// Write a small checkpoint with random weights, for tests.
    ///
    /// The model is untrained: it generates coloured noise that depends on the prompt and the seed.
    RandomCheckpoint(RandomArgs),
    /// Print a completion script, to be sourced by the shell.
    Completions {
        /// The shell to write the script for.
        shell: Shell,
    },
}

/// `xdit inspect`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xdit inspect ./pixart
  xdit inspect xdit.png
  xdit inspect PixArt-alpha/PixArt-XL-2-512x512 --json | jq .parameters")]
pub struct InspectArgs {
    /// The model: a folder in the diffusers layout, an id on the Hugging Face hub, or `built-in`; or a picture.
    #[arg(default_value = built_in::NAME)]
    pub model: String,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Print only warnings and errors to standard error.
    #[arg(long)]
    pub quiet: bool,

    /// Which files of the model to use.
    #[command(flatten)]
    pub files: ModelArgs,
}

/// `xdit devices`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xdit devices
  xdit devices --json | jq -r '.devices[] | select(.usable) | .name'")]
pub struct DevicesArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `xdit demo-checkpoint`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  xdit demo-checkpoint emoji && xdit generate --model emoji --prompt \"a small cactus\"")]
pub struct DemoArgs {
    /// The folder to write; it is created if it does not exist.
    pub dir: PathBuf,
    /// Replace the checkpoint in a folder that is not empty.
    #[arg(long)]
    pub force: bool,
    /// Print only warnings and errors to standard error.
    #[arg(long)]
    pub quiet: bool,
}

/// `xdit random-checkpoint`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  xdit random-checkpoint noise && xdit generate --model noise --prompt \"a small cactus\"")]
pub struct RandomArgs {
    /// The folder to write; it is created if it does not exist.
    pub dir: PathBuf,
    /// Seed of the weights; equal seeds give equal files.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace the checkpoint in a folder that is not empty.
    #[arg(long)]
    pub force: bool,
    /// Print only warnings and errors to standard error.
    #[arg(long)]
    pub quiet: bool,
}
