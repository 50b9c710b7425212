//! The selection of training timesteps for a run.

use super::grid::{arange_down, linspace};
use super::options::SchedulerOptions;
use crate::{Error, Result};

/// How a run's timesteps are spaced over the training timesteps.
///
/// # Source
/// "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), table 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    Linspace,
    Leading,
    Trailing,
}

/// The options that determine the timesteps of a run.
pub(super) struct Timesteps {
    pub(super) spacing: Spacing,
    offset: usize,
    /// The number of training timesteps.
    trained: usize,
    /// The number of steps of the run.
    steps: usize,
}

impl Timesteps {
    pub(super) fn new(
        options: &mut SchedulerOptions<'_>,
        default: Spacing,
        trained: usize,
        steps: usize,
    ) -> Result<Self> {
        let spacing = options.choice(
            "timestep_spacing",
            default,
            &[
                ("linspace", Spacing::Linspace),
                ("leading", Spacing::Leading),
                ("trailing", Spacing::Trailing),
            ],
        )?;
        let offset = options.count("steps_offset", 0)?;
        Ok(Self { spacing, offset, ..Self::linspace(trained, steps)? })
    }

    /// Evenly spaced timesteps, for a scheduler without options for them.
    pub(super) fn linspace(trained: usize, steps: usize) -> Result<Self> {
        if steps > trained {
            return Err(Error::usage(format!("the number of inference steps is `{steps}`")).hint(format!(
                "ask for at most `{trained}` steps, the number of timesteps that the model was trained on"
            )));
        }
        Ok(Self { spacing: Spacing::Linspace, offset: 0, trained, steps })
    }

    /// Timesteps below `end`, the noisiest first, for a solver whose model accepts those between whole ones.
    pub(super) fn fractional(&self, end: usize, points: usize) -> Vec<f64> {
        self.fractional_f64(end, points).into_iter().map(|t| f64::from(t as f32)).collect()
    }

    /// The same, not rounded to f32.
    pub(super) fn fractional_f64(&self, end: usize, points: usize) -> Vec<f64> {
        match self.spacing {
            Spacing::Linspace => linspace(0.0, end as f64 - 1.0, points).into_iter().rev().collect(),
            Spacing::Leading | Spacing::Trailing => self.below(end, points),
        }
    }

    /// The standard deviation of the initial latents of a solver with σ relative to the signal.
    pub(super) fn init_noise_sigma(&self, sigmas: &[f32]) -> f32 {
        let max = sigmas.iter().copied().fold(0.0, f32::max);
        match self.spacing {
            Spacing::Linspace | Spacing::Trailing => max,
            Spacing::Leading => (max * max + 1.0).sqrt(),
        }
    }

    /// Whole timesteps below `end`, the noisiest first. They are taken from a grid of `points`, as many as the run
    /// has steps.
    pub(super) fn below(&self, end: usize, points: usize) -> Vec<f64> {
        let grid: Vec<f64> = match self.spacing {
            Spacing::Linspace => {
                linspace(0.0, end as f64 - 1.0, points).into_iter().map(f64::round_ties_even).collect()
            }
            Spacing::Leading => (0..points).map(|i| (i * (end / points) + self.offset) as f64).collect(),
            Spacing::Trailing => {
                let grid = arange_down(end as f64, self.trained as f64 / self.steps as f64);
                return grid.into_iter().map(|t| t.round_ties_even() - 1.0).collect();
            }
        };
        grid.into_iter().rev().take(self.steps).collect()
    }
}
