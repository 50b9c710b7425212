//! Latent consistency models: each step predicts the data and adds noise again.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::noise_schedule::{BetaSchedule, Defaults, NoiseSchedule};
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::{History, Scheduler};
use crate::{Error, Result};

/// The standard deviation of the data that the model's boundary condition assumes.
const SIGMA_DATA: f32 = 0.5;

/// Multistep sampling of latent consistency models (arXiv 2310.04378).
///
/// # Source
/// diffusers 0.42.1, `LCMScheduler`.
#[derive(Debug)]
pub(super) struct Lcm {
    timesteps: Vec<f32>,
    steps: Vec<Step>,
    prediction: Prediction,
    clip: Option<Clip>,
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The levels of signal and noise at its beginning.
    alpha: f32,
    sigma: f32,
    /// The factors of the predicted data and of the sample.
    of_data: f32,
    of_sample: f32,
    /// The levels of signal and noise at its end.
    next_alpha: f32,
    next_sigma: f32,
}

impl Lcm {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let defaults = Defaults {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Defaults::default()
        };
        let schedule = NoiseSchedule::with_defaults(options, defaults)?;
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &Prediction::NAMES)?;
        let clip = Clip::new(options, false)?;
        let scaling = options.number("timestep_scaling", 10.0)? as f32;
        let timesteps = distilled(options, schedule.len(), steps)?;

        let step = |(index, &timestep): (usize, &f32)| {
            let start = schedule.level(timestep, steps)?;
            let next = timesteps.get(index + 1).copied().unwrap_or(timestep);
            let end = schedule.level(next, steps)?;
            let scaled = timestep * scaling;
            let (data, total) = (SIGMA_DATA * SIGMA_DATA, scaled * scaled + SIGMA_DATA * SIGMA_DATA);
            let step = Step {
                alpha: start.sqrt(),
                sigma: (1.0 - start).sqrt(),
                of_data: scaled / total.sqrt(),
                of_sample: data / total,
                next_alpha: end.sqrt(),
                next_sigma: (1.0 - end).sqrt(),
            };
            if step.alpha == 0.0 && prediction == Prediction::Epsilon {
                return Err(Error::usage(format!(
                    "the step at timestep `{timestep}` has no finite result: it has no signal"
                ))
                .hint("set `rescale_betas_zero_snr` to `false` in the scheduler config"));
            }
            Ok(step)
        };
        let steps = timesteps.iter().enumerate().map(step).collect::<Result<_>>()?;
        Ok(Self { timesteps, steps, prediction, clip })
    }
}

/// The timesteps of a run: some of those that the model was distilled on, evenly spaced.
fn distilled(options: &mut SchedulerOptions<'_>, trained: usize, steps: usize) -> Result<Vec<f32>> {
    let original = options.count("original_inference_steps", 50)?;
    if !(1..=trained).contains(&original) {
        return Err(Error::usage(format!("option `original_inference_steps` is `{original}`"))
            .hint(format!("expected 1 to `{trained}`, the number of training timesteps")));
    }
    if steps > original {
        return Err(Error::usage(format!("the number of inference steps is `{steps}`")).hint(format!(
            "ask for at most `{original}` steps, the number that the model was distilled on"
        )));
    }
    let stride = trained / original;
    let skip = original as f64 / steps as f64;
    let timestep = |step: usize| {
        let index = (step as f64 * skip).floor() as usize;
        ((original - index) * stride - 1) as f32
    };
    Ok((0..steps).map(timestep).collect())
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let Step { alpha, sigma, .. } = self.steps[step];
        clip(self.clip, self.prediction.data(sample, output, alpha, sigma))
    }

    fn adds_noise(&self, step: usize) -> bool {
        step + 1 < self.timesteps.len()
    }

    fn step_in_f32(
        &self,
        step: usize,
        _: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let Step { of_data, of_sample, next_alpha, next_sigma, .. } = self.steps[step];
        let data = self.data(step, output, sample.clone());
        let data = data * of_data + sample * of_sample;
        match noise {
            Some(noise) => data * next_alpha + noise * next_sigma,
            None => data,
        }
    }
}
