//! Euler's method with ancestral sampling: each step removes more noise than needed and adds some.

use burn::tensor::Tensor;

use super::grid::interpolate;
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::{Prediction, to_unit_variance};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, with_noise};
use crate::Result;

/// Ancestral sampling with Euler steps, from k-diffusion.
///
/// # Source
/// diffusers 0.42.1, `EulerAncestralDiscreteScheduler`.
#[derive(Debug)]
pub(super) struct EulerAncestralDiscrete {
    timesteps: Vec<f32>,
    /// The noise level at the beginning of each step, and at the end of the last.
    sigmas: Vec<f32>,
    init_noise_sigma: f32,
    prediction: Prediction,
}

impl EulerAncestralDiscrete {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let names = [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::Velocity)];
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &names)?;
        let schedule = NoiseSchedule::new(options)?.with_finite_sigmas();
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;
        let visited = grid.fractional(schedule.len(), steps);
        let table = schedule.sigmas();
        let sigmas = visited.iter().map(|t| interpolate(*t, &table) as f32);
        let sigmas: Vec<f32> = sigmas.chain([0.0]).collect();
        let init_noise_sigma = grid.init_noise_sigma(&sigmas);
        let timesteps = visited.into_iter().map(|t| t as f32).collect();
        Ok(Self { timesteps, sigmas, init_noise_sigma, prediction })
    }
}

impl Scheduler for EulerAncestralDiscrete {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: Tensor<3>, step: usize) -> Tensor<3> {
        to_unit_variance(sample, self.sigmas[step])
    }

    fn adds_noise(&self, step: usize) -> bool {
        // The last step ends without noise.
        step + 1 < self.timesteps.len()
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        self.prediction.data_beside_noise(sample, output, self.sigmas[step])
    }

    fn step_in_f32(
        &self,
        step: usize,
        _: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        let (variance, next_variance) = (sigma * sigma, next * next);
        let up = (next_variance * (variance - next_variance) / variance).sqrt();
        let down = (next_variance - up * up).sqrt();
        let data = self.data(step, output, sample.clone());
        let derivative = (sample.clone() - data) / sigma;
        let mean = sample + derivative * (down - sigma);
        with_noise(mean, noise, up)
    }
}
