//! The command line as it is written: every option, before anything is checked against anything else.

mod generate;
mod parse;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub use generate::{Dtype, GenerateArgs, OutputType, ParallelArgs, ReportFormat};
pub use parse::parse;

/// Pictures from diffusion transformers, on Burn.
///
/// Options may be spelled with dashes or underscores: `--guidance-scale` is `--guidance_scale`.
#[derive(Debug, Parser)]
#[command(name = "xdit", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  xdit demo-checkpoint demo && xdit generate --model demo --prompt \"a small cactus\"
      A picture without a download, from a model that has learned nothing.
  xdit generate --model PixArt-alpha/PixArt-XL-2-512x512 --prompt \"a small cactus\" --seed 7
      A real picture, from a checkpoint on the Hugging Face hub.
  xdit inspect PixArt-alpha/PixArt-XL-2-512x512
      What a checkpoint consists of, and the memory it needs.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate pictures from prompts.
    Generate(Box<GenerateArgs>),
    /// Show which rank would do what for `xdit generate` with the same options, without loading anything.
    Plan(Box<GenerateArgs>),
    /// Show what a checkpoint consists of and the memory it needs.
    Inspect(InspectArgs),
    /// Write a small checkpoint with random weights, to try the program without a download.
    ///
    /// The model is untrained: it makes coloured noise that depends on the prompt and the seed, not pictures.
    DemoCheckpoint(DemoArgs),
    /// Print the completions of a shell, to be sourced by it.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// `xdit inspect`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xdit inspect ./pixart
  xdit inspect PixArt-alpha/PixArt-XL-2-512x512 --json | jq .parameters")]
pub struct InspectArgs {
    /// A folder in the diffusers layout, or an id on the Hugging Face hub.
    pub model: String,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub json: bool,
    /// Prefer weight files of this variant, such as `fp16`.
    #[arg(long)]
    pub variant: Option<String>,
    /// A branch, tag or commit of the model on the hub.
    #[arg(long)]
    pub revision: Option<String>,
    /// Say nothing but warnings and errors.
    #[arg(long)]
    pub quiet: bool,
}

/// `xdit demo-checkpoint`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  xdit demo-checkpoint demo && xdit generate --model demo --prompt \"a small cactus\"")]
pub struct DemoArgs {
    /// The folder to write; it is made if it does not exist.
    pub dir: PathBuf,
    /// Seed of the weights: equal seeds give equal files.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace what is in the folder.
    #[arg(long)]
    pub force: bool,
    /// Say nothing but warnings and errors.
    #[arg(long)]
    pub quiet: bool,
}
