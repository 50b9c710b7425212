//! What a run asks of its scheduler.

use super::grid::linspace;
use crate::{Error, Result};

/// How many steps a run takes, and what some schedulers need to know to lay them out.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    pub(super) count: usize,
    /// Noise levels to begin with instead of the scheduler's own, one a step.
    pub(super) sigmas: Option<Vec<f64>>,
    pub(super) image_tokens: Option<usize>,
}

impl Steps {
    /// So many steps, laid out as the scheduler does it.
    pub fn new(count: usize) -> Self {
        Self { count, sigmas: None, image_tokens: None }
    }

    /// Noise levels that fall evenly from 1 to 1 / `count` before the scheduler shifts them.
    ///
    /// # Source
    /// diffusers' `FluxPipeline`, which hands them to its scheduler.
    #[must_use]
    pub fn with_even_sigmas(self) -> Self {
        let last = 1.0 / self.count as f64;
        Self { sigmas: Some(linspace(1.0, last, self.count)), ..self }
    }

    /// Steps for an image of so many tokens: dynamic shifting depends on it.
    #[must_use]
    pub fn of_image(self, tokens: usize) -> Self {
        Self { image_tokens: Some(tokens), ..self }
    }

    /// The number of steps, for a scheduler that always has its own noise levels.
    pub(super) fn without_sigmas(&self, class: &str) -> Result<usize> {
        match self.sigmas {
            None => Ok(self.count),
            Some(_) => Err(Error::usage(format!("`{class}` takes its noise levels from nobody else"))
                .hint("a model that sets them itself runs with `FlowMatchEulerDiscreteScheduler`")),
        }
    }
}

impl From<usize> for Steps {
    fn from(count: usize) -> Self {
        Self::new(count)
    }
}
