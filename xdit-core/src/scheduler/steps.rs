//! The steps that a run requests from its scheduler.

use super::grid::linspace;

/// The number of steps, and further data that some schedulers need to place them.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    pub(super) count: usize,
    /// Initial noise levels, one a step, that replace the scheduler's own.
    pub(super) sigmas: Option<Vec<f64>>,
    pub(super) image_tokens: Option<usize>,
}

impl Steps {
    /// Requests `count` steps, placed by the scheduler.
    pub fn new(count: usize) -> Self {
        Self { count, sigmas: None, image_tokens: None }
    }

    /// Uses noise levels that fall evenly from 1 to 1 / `count`, before the scheduler shifts them.
    ///
    /// # Source
    /// diffusers' `FluxPipeline`, which passes these levels to its scheduler.
    #[must_use]
    pub fn with_even_sigmas(self) -> Self {
        let last = 1.0 / self.count as f64;
        Self { sigmas: Some(linspace(1.0, last, self.count)), ..self }
    }

    /// Sets the number of image tokens, which dynamic shifting depends on.
    #[must_use]
    pub fn of_image(self, tokens: usize) -> Self {
        Self { image_tokens: Some(tokens), ..self }
    }
}

impl From<usize> for Steps {
    fn from(count: usize) -> Self {
        Self::new(count)
    }
}
