//! A record of each rank's activity, for trace viewers and as a picture.

mod chrome;
mod timeline;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xdit_core::pipeline::Phase;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::schedule::Action;
use xdit_core::run::record::{Activity, RankReport};
use xdit_core::{Error, Result};

use crate::output::{check_file, write_file};

/// The activity of a run.
#[derive(Debug)]
pub struct Trace {
    /// The start of the program.
    pub start: Instant,
    /// The arrangement of the ranks.
    pub mesh: Mesh,
    /// The phases of the program, as reported to its user.
    pub phases: Vec<(Phase, Instant, Duration)>,
    /// The activity of each rank; a rank has one entry for each world that it was part of.
    pub ranks: Vec<RankReport>,
}

/// The file that a trace is written to.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    encode: fn(&Trace) -> Vec<u8>,
}

impl TraceFile {
    /// Chooses the format by the extension of `path`, and checks that the file can be written.
    ///
    /// # Errors
    /// If the extension is unknown, or the file cannot be written.
    pub fn plan(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
        let encode = match extension.as_deref() {
            Some("json") => chrome::encode,
            Some("svg") => timeline::encode,
            _ => {
                return Err(Error::usage(format!(
                    "trace `{}` does not end in `.json` or `.svg`",
                    path.display()
                ))
                .hint("use `.json` for trace viewers such as Perfetto, or `.svg` for a picture"));
            }
        };
        Ok(Self { path: check_file(path)?, encode })
    }

    /// Writes `trace`, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, trace: &Trace) -> Result<()> {
        write_file(&self.path, &(self.encode)(trace))
    }
}

/// The position of `rank` on each axis with several ranks, such as `pp 1, ulysses 0`.
fn place(mesh: &Mesh, rank: usize) -> String {
    let axes = Axis::ALL.into_iter().filter(|axis| mesh.degree(*axis) > 1);
    let names: Vec<_> = axes.map(|axis| format!("{} {}", axis.name(), mesh.coordinate(rank, axis))).collect();
    names.join(", ")
}

/// The name of an activity.
fn name(activity: &Activity) -> String {
    let name = match activity {
        Activity::Load => "load",
        Activity::Broadcast => "broadcast conditions",
        Activity::Prepare => "prepare conditions",
        Activity::Gather => "gather latents",
        Activity::Decode => "decode",
        Activity::Action(action) => match action {
            Action::ReceiveLatents { .. } => "receive latents",
            Action::ReceiveHidden { .. } => "receive tokens",
            Action::ReceiveSkip { from, to, .. } => return format!("receive skip {from} to {to}"),
            Action::Embed { .. } => "embed",
            Action::Blocks { blocks, .. } => return format!("blocks {}..{}", blocks.start, blocks.end),
            Action::SendHidden { .. } => "send tokens",
            Action::SendSkip { from, to, .. } => return format!("send skip {from} to {to}"),
            Action::Finish { .. } => "finish",
            Action::Advance { .. } => "step",
            Action::SendLatents { .. } => "send latents",
        },
    };
    name.to_owned()
}
