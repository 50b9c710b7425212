//! Progress of a run, for a caller who wants to follow it.

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

/// Hears of a run's progress. Everything is optional.
pub trait Observer {
    /// A phase begins.
    fn begin(&mut self, _phase: Phase) {}
    /// The phase ended.
    fn end(&mut self, _phase: Phase) {}
    /// Step `done` of `of` of the current phase ended.
    fn step(&mut self, _done: usize, _of: usize) {}
    /// Something the user should know.
    fn warn(&mut self, _message: &str) {}
    /// What a rank did, once it is done. A rank that denoises and then decodes tells twice or more.
    fn rank(&mut self, _report: RankReport) {}
    /// Whether these reports are to hold each activity and each wait, not only sums.
    fn wants_details(&self) -> bool {
        false
    }
}

/// Hears nothing.
impl Observer for () {}
