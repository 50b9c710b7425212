//! Progress of a run, for a caller who wants to follow it.

use std::time::Instant;

use burn::tensor::TensorData;

use crate::picture::Picture;
use crate::run::record::RankReport;

/// A part of a run that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reading the weights of the named component.
    Load(&'static str),
    /// Running the text encoder on all prompts.
    Encode,
    /// Denoising picture `image`.
    Denoise {
        /// Index of the picture.
        image: usize,
    },
    /// Decoding picture `image`.
    Decode {
        /// Index of the picture.
        image: usize,
    },
}

/// A step of a [`Phase`] that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The phase.
    pub phase: Phase,
    /// Steps of it that are done.
    pub done: usize,
    /// Steps that it has.
    pub of: usize,
}

/// A picture that is done.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Index of the picture.
    pub image: usize,
    /// Final latents `[1, c, y, x]`, f32, as the diffusion model sees them.
    pub latents: TensorData,
    /// The picture, unless only latents were asked for.
    pub picture: Option<Picture>,
}

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// A phase began.
    Begin(Phase, Instant),
    /// A phase ended.
    End(Phase, Instant),
    /// A step of a phase ended.
    Step(Step, Instant),
    /// Something the user should know.
    Warning(String),
    /// A picture is done.
    Completed(Completed),
    /// What a rank did, once it is done.
    Rank(Box<RankReport>),
}

impl Event {
    /// Passes it on.
    pub fn tell(self, observer: &mut dyn Observer) {
        match self {
            Self::Begin(phase, at) => observer.begin(phase, at),
            Self::End(phase, at) => observer.end(phase, at),
            Self::Step(step, at) => observer.step(step, at),
            Self::Warning(message) => observer.warn(&message),
            Self::Completed(completed) => observer.completed(completed),
            Self::Rank(report) => observer.rank(*report),
        }
    }
}

/// Follows a run. Every method is optional.
///
/// Ranks do not wait for an observer: an event may be told a while after it happened, so it carries its time. Phases of
/// different pictures overlap where data-parallel ranks work on several at once.
pub trait Observer {
    /// A phase begins.
    fn begin(&mut self, _phase: Phase, _at: Instant) {}
    /// The phase ended.
    fn end(&mut self, _phase: Phase, _at: Instant) {}
    /// A step of a phase ended.
    fn step(&mut self, _step: Step, _at: Instant) {}
    /// Something the user should know.
    fn warn(&mut self, _message: &str) {}
    /// A picture is done.
    fn completed(&mut self, _completed: Completed) {}
    /// What a rank did in this run, once it is done.
    fn rank(&mut self, _report: RankReport) {}
    /// Whether these reports are to hold each activity and each wait, not only sums.
    fn wants_details(&self) -> bool {
        false
    }
}

/// Follows nothing.
impl Observer for () {}
