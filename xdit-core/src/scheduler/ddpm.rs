//! DDPM: each step adds noise.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, with_noise};
use crate::{Error, Result};

/// The smallest variance, whose logarithm is finite.
const MIN_VARIANCE: f32 = 1e-20;

/// Denoising diffusion probabilistic models (arXiv 2006.11239).
///
/// # Source
/// diffusers 0.42.1, `DDPMScheduler`.
#[derive(Debug)]
pub(super) struct Ddpm {
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
    /// The factors of the predicted data and of the sample, and the deviation of the noise.
    of_data: f32,
    of_sample: f32,
    deviation: f32,
}

/// The variance of the added noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variance {
    Small,
    SmallLog,
    Large,
    /// Part of the model's output, which no model here returns.
    Learned,
}

impl Ddpm {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::new(options)?;
        let grid = Timesteps::new(options, Spacing::Leading, schedule.len(), steps)?;
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &Prediction::NAMES)?;
        let variance = options.choice(
            "variance_type",
            Variance::Small,
            &[
                ("fixed_small", Variance::Small),
                ("fixed_small_log", Variance::SmallLog),
                ("fixed_large", Variance::Large),
                ("learned", Variance::Learned),
                ("learned_range", Variance::Learned),
            ],
        )?;
        if variance == Variance::Learned {
            return Err(Error::usage("option `variance_type` of `DDPMScheduler` is a learned variance")
                .hint("set `variance_type` to `fixed_small`: models here return their prediction only"));
        }
        let clip = Clip::new(options, true)?;

        let timesteps: Vec<f32> = grid.below(schedule.len(), steps).into_iter().map(|t| t as f32).collect();
        let step = |(index, &timestep): (usize, &f32)| {
            let start = schedule.level(timestep, steps)?;
            let end = timesteps.get(index + 1).map_or(Ok(1.0), |next| schedule.level(*next, steps))?;
            let step = Step::new(start, end, variance);
            let Step { alpha, of_data, of_sample, deviation, .. } = step;
            let needs_signal = prediction == Prediction::Epsilon && alpha == 0.0;
            if needs_signal || ![of_data, of_sample, deviation].iter().all(|number| number.is_finite()) {
                return Err(Error::usage(format!(
                    "the step at timestep `{timestep}` has no finite result: its noise level is the last or the next one"
                ))
                .hint("use fewer inference steps, or a schedule that begins with less noise"));
            }
            Ok(step)
        };
        let steps = timesteps.iter().enumerate().map(step).collect::<Result<_>>()?;
        Ok(Self { timesteps, steps, prediction, clip })
    }
}

impl Step {
    /// The step from ᾱ = `start` to ᾱ = `end`, computed in f32 as in diffusers.
    fn new(start: f32, end: f32, variance: Variance) -> Self {
        let (noise, noise_after) = (1.0 - start, 1.0 - end);
        let alpha = start / end;
        let beta = 1.0 - alpha;
        let small = (noise_after / noise * beta).max(MIN_VARIANCE);
        let by_f64 = |function: fn(f64) -> f64, x: f32| function(f64::from(x)) as f32;
        Self {
            alpha: start.sqrt(),
            sigma: noise.sqrt(),
            of_data: end.sqrt() * beta / noise,
            of_sample: alpha.sqrt() * noise_after / noise,
            deviation: match variance {
                Variance::Small | Variance::Learned => small.sqrt(),
                Variance::SmallLog => by_f64(f64::exp, 0.5 * by_f64(f64::ln, small)),
                Variance::Large => beta.sqrt(),
            },
        }
    }
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let Step { alpha, sigma, .. } = self.steps[step];
        clip(self.clip, self.prediction.data(sample, output, alpha, sigma))
    }

    fn adds_noise(&self, step: usize) -> bool {
        self.timesteps[step] > 0.0
    }

    fn step_in_f32(
        &self,
        step: usize,
        _: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let Step { of_data, of_sample, deviation, .. } = self.steps[step];
        let data = self.data(step, output, sample.clone());
        let mean = data * of_data + sample * of_sample;
        with_noise(mean, noise, deviation)
    }
}
