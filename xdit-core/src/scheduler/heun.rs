//! Heun's method over noise levels, for diffusion and for flow matching.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::flow_match_euler_discrete::fixed_levels;
use super::noise_schedule::{Defaults, NoiseSchedule};
use super::options::SchedulerOptions;
use super::prediction::{Prediction, to_unit_variance};
use super::sigmas::{SigmaOptions, Spread, place_between};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler};
use crate::Result;

/// Heun's method (arXiv 2206.00364, algorithm 1) without churn: no step adds noise.
///
/// The model is evaluated at both ends of an interval between noise levels, except in the last one, which ends without
/// noise. Each evaluation is a step. The second step of an interval starts again from its beginning.
///
/// # Source
/// diffusers 0.42.1, `HeunDiscreteScheduler` and `FlowMatchHeunDiscreteScheduler`.
#[derive(Debug)]
pub(super) struct Heun {
    timesteps: Vec<f32>,
    /// The noise levels at the ends of the intervals.
    sigmas: Vec<f32>,
    init_noise_sigma: f32,
    prediction: Prediction,
    clip: Option<Clip>,
}

impl Heun {
    /// `HeunDiscreteScheduler`
    pub(super) fn discrete(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &Prediction::NAMES)?;
        let clip = Clip::sample(options, false)?;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
            ],
        )?;
        let defaults =
            Defaults { beta_start: 0.00085, beta_end: 0.012, rescales: false, ..Defaults::default() };
        let schedule = NoiseSchedule::with_defaults(options, defaults)?;
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;

        let visited = grid.fractional(schedule.len(), steps);
        let placed = place_between(visited, &sigma_options, &schedule, steps, |_| false);
        let sigmas = placed.sigmas_to_zero();
        let init_noise_sigma = grid.init_noise_sigma(&sigmas);
        Ok(Self { timesteps: evaluations(&placed.timesteps), sigmas, init_noise_sigma, prediction, clip })
    }

    /// `FlowMatchHeunDiscreteScheduler`
    pub(super) fn flow_match(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let trained = options.count("num_train_timesteps", 1000)? as f64;
        let shift = options.number("shift", 1.0)?;
        let sigmas = fixed_levels(shift, trained, steps).into_iter().map(|sigma| sigma as f32);
        let sigmas: Vec<f32> = sigmas.chain([0.0]).collect();
        let timesteps: Vec<f32> = sigmas[..steps].iter().map(|sigma| sigma * trained as f32).collect();
        Ok(Self {
            timesteps: evaluations(&timesteps),
            sigmas,
            init_noise_sigma: 1.0,
            prediction: Prediction::Flow,
            clip: None,
        })
    }
}

/// All timesteps of the intervals that begin at `timesteps`: each twice, except the first.
fn evaluations(timesteps: &[f32]) -> Vec<f32> {
    let twice = timesteps[1..].iter().flat_map(|timestep| [*timestep; 2]);
    timesteps[..1].iter().copied().chain(twice).collect()
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: Tensor<3>, step: usize) -> Tensor<3> {
        if self.prediction == Prediction::Flow {
            return sample;
        }
        to_unit_variance(sample, self.sigmas[step.div_ceil(2)])
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let sigma = self.sigmas[step.div_ceil(2)];
        clip(self.clip, self.prediction.data_beside_noise(sample, output, sigma))
    }

    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        _: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let sigma = self.sigmas[step.div_ceil(2)];
        let data = self.data(step, output, sample.clone());
        let derivative = (sample.clone() - data) / sigma;
        let interval = step / 2;
        let length = self.sigmas[interval + 1] - self.sigmas[interval];
        history.push(step, derivative.clone(), 2);
        if step.is_multiple_of(2) {
            history.keep_sample(sample.clone());
            return sample + derivative * length;
        }
        let mean = (history.output(1) + derivative) / 2.0;
        history.sample() + mean * length
    }
}
