//! Events of a run, for a caller that follows its progress.

use std::time::Instant;

use burn::tensor::TensorData;

use crate::picture::Picture;
use crate::run::preview::Glimpse;
use crate::run::record::RankReport;

/// A phase of a run.
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

/// A finished step of a [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The phase.
    pub phase: Phase,
    /// The number of finished steps.
    pub done: usize,
    /// The number of all steps of the phase.
    pub of: usize,
}

/// A finished picture or clip.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Index of the picture.
    pub image: usize,
    /// Final latents `[1, c, y, x]`, or `[1, c, frames, y, x]` of a clip, in f32, scaled as in the diffusion model.
    pub latents: TensorData,
    /// The picture, or the frames of the clip. There is none if only latents were requested.
    pub frames: Vec<Picture>,
}

/// A picture or clip before its last step: the data that the model predicts, with colours by a linear map in place of the
/// decoder.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Index of the picture.
    pub image: usize,
    /// The number of finished steps.
    pub done: usize,
    /// The number of all steps.
    pub of: usize,
    /// The picture, or the frames of the clip, at half of the size.
    pub frames: Vec<Picture>,
}

/// An event of a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// A phase began.
    Begin(Phase, Instant),
    /// A phase ended.
    End(Phase, Instant),
    /// A step of a phase ended.
    Step(Step, Instant),
    /// A warning for the user.
    Warning(String),
    /// A part of a prediction, for a preview.
    Glimpse(Glimpse),
    /// A preview.
    Preview(Preview),
    /// A picture is finished.
    Completed(Completed),
    /// A rank has finished the run; this is its report.
    Rank(Box<RankReport>),
}

impl Event {
    /// Calls the method of `observer` for this event.
    pub fn tell(self, observer: &mut dyn Observer) {
        match self {
            Self::Begin(phase, at) => observer.begin(phase, at),
            Self::End(phase, at) => observer.end(phase, at),
            Self::Step(step, at) => observer.step(step, at),
            Self::Warning(message) => observer.warn(&message),
            Self::Glimpse(glimpse) => observer.glimpse(glimpse),
            Self::Preview(preview) => observer.preview(preview),
            Self::Completed(completed) => observer.completed(completed),
            Self::Rank(report) => observer.rank(*report),
        }
    }
}

/// Receives the events of a run. Every method is optional.
///
/// Ranks do not wait for an observer: an event may be delivered some time after it happened, so it carries its time.
/// Phases of different pictures overlap if data-parallel ranks work on several pictures at once.
pub trait Observer {
    /// A phase began.
    fn begin(&mut self, _phase: Phase, _at: Instant) {}
    /// A phase ended.
    fn end(&mut self, _phase: Phase, _at: Instant) {}
    /// A step of a phase ended.
    fn step(&mut self, _step: Step, _at: Instant) {}
    /// A warning for the user.
    fn warn(&mut self, _message: &str) {}
    /// A part of a prediction. A pipeline puts them together for [`preview`](Self::preview).
    fn glimpse(&mut self, _glimpse: Glimpse) {}
    /// A preview, if the request wants some.
    fn preview(&mut self, _preview: Preview) {}
    /// A picture is finished.
    fn completed(&mut self, _completed: Completed) {}
    /// A rank has finished the run; this is its report.
    fn rank(&mut self, _report: RankReport) {}
    /// Whether reports should list each activity and each wait, not only sums.
    fn wants_details(&self) -> bool {
        false
    }
}

/// Ignores all events.
impl Observer for () {}
