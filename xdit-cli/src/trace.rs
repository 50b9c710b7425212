//! What each rank did when: for trace viewers, and as a picture.

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

/// What a run did.
#[derive(Debug)]
pub struct Trace {
    /// When the program started.
    pub start: Instant,
    /// How the ranks are arranged.
    pub mesh: Mesh,
    /// What the program did, as its user is told.
    pub phases: Vec<(Phase, Instant, Duration)>,
    /// What ranks did, each in one world or several.
    pub ranks: Vec<RankReport>,
}

/// The file that a trace goes to.
#[derive(Debug)]
pub struct TraceFile {
    path: PathBuf,
    encode: fn(&Trace) -> Vec<u8>,
}

impl TraceFile {
    /// Chooses the format by the extension of `path`, and makes sure that it can be written.
    ///
    /// # Errors
    /// If there is no such format, or the file cannot be written.
    pub fn plan(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
        let encode = match extension.as_deref() {
            Some("json") => chrome::encode,
            Some("svg") => timeline::encode,
            _ => {
                return Err(Error::usage(format!(
                    "trace `{}` ends in neither `.json` nor `.svg`",
                    path.display()
                ))
                .hint("`.json` is for trace viewers such as Perfetto, `.svg` is a picture"));
            }
        };
        check_file(path)?;
        Ok(Self { path: path.to_owned(), encode })
    }

    /// Writes `trace`, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, trace: &Trace) -> Result<()> {
        write_file(&self.path, &(self.encode)(trace))
    }
}

/// Where `rank` is along the axes that have several ranks, such as `pp 1, ulysses 0`.
fn place(mesh: &Mesh, rank: usize) -> String {
    let axes = Axis::ALL.into_iter().filter(|axis| mesh.degree(*axis) > 1);
    let names: Vec<_> = axes.map(|axis| format!("{} {}", axis.name(), mesh.coordinate(rank, axis))).collect();
    names.join(", ")
}

/// A few words for an activity.
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
