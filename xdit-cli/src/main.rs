//! The command `xdit`: generates pictures from diffusers checkpoints.
//!
//! Only this crate reads the environment and prints. Data goes to standard output, messages to standard error.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod checkpoints;
mod decode;
mod devices;
mod fatal;
mod generate;
mod inspect;
mod interrupt;
mod launcher;
mod model;
mod output;
mod parameters;
mod plan;
mod progress;
mod report;
mod resolve;
mod terminal;
mod threads;
mod trace;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use xdit_core::{Error, ErrorKind, Result};

use args::{Cli, Command};
use progress::say;

fn main() -> ExitCode {
    match fatal::install().and_then(|()| args::parse(std::env::args_os())).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            match error.kind() {
                ErrorKind::Usage => ExitCode::from(2),
                ErrorKind::Failure => ExitCode::FAILURE,
                ErrorKind::Cancelled => ExitCode::from(interrupt::INTERRUPTED),
            }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    for note in &cli.notes {
        say(&format!("note: {note}"));
    }
    match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Plan(args) => plan::run(*args),
        Command::Decode(args) => decode::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(*args),
        Command::DemoCheckpoint(args) => checkpoints::demo(&args),
        Command::RandomCheckpoint(args) => checkpoints::random(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "xdit", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes data to standard output. A reader that closes it early (`| head`) is not an error.
fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for data that is no text.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::failure(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
