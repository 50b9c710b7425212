//! Euler's method over noise levels.

use burn::tensor::Tensor;

use super::grid::{interpolate, linspace_f32};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::{Prediction, to_unit_variance};
use super::sigmas::{LogSigmas, SigmaOptions, Spread};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler};
use crate::Result;

/// Euler's method (arXiv 2206.00364, algorithm 2) without churn: no step adds noise.
///
/// # Source
/// diffusers 0.42.1, `EulerDiscreteScheduler`.
#[derive(Debug)]
pub(super) struct EulerDiscrete {
    timesteps: Vec<f32>,
    /// The noise level at the beginning of each step, and at the end of the last.
    sigmas: Vec<f32>,
    init_noise_sigma: f32,
    prediction: Prediction,
}

impl EulerDiscrete {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let mut names = Prediction::NAMES.to_vec();
        names.push(("original_sample", Prediction::Sample));
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &names)?;
        let log_linear =
            options.choice("interpolation_type", false, &[("linear", false), ("log_linear", true)])?;
        let continuous =
            options.choice("timestep_type", false, &[("discrete", false), ("continuous", true)])?;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
            ],
        )?;
        let schedule = NoiseSchedule::new(options)?.with_finite_sigmas();
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;

        let visited = grid.fractional(schedule.len(), steps);
        let table = schedule.sigmas();
        let trained = LogSigmas::new(&table);
        let at_visited: Vec<f64> = if log_linear {
            let (max, min) = trained.bounds();
            let logarithms = linspace_f32(max as f32, min as f32, steps + 1).into_iter();
            logarithms.map(|ln| f64::from(f64::from(ln).exp() as f32)).collect()
        } else {
            visited.iter().map(|t| interpolate(*t, &table)).collect()
        };
        let bounds = (at_visited[0], at_visited[at_visited.len() - 1]);
        let levels = sigma_options.sigmas(at_visited, bounds, &trained, steps);
        let sigmas = sigma_options.with_final(&levels, &table);

        let timesteps = if continuous && prediction == Prediction::Velocity {
            let levels = &sigmas[..sigmas.len() - 1];
            levels.iter().map(|sigma| 0.25 * f64::from(*sigma).ln() as f32).collect()
        } else if sigma_options.spread == Spread::Timesteps {
            visited.into_iter().map(|t| t as f32).collect()
        } else {
            levels.iter().map(|sigma| trained.timestep(*sigma) as f32).collect()
        };
        let init_noise_sigma = grid.init_noise_sigma(&sigmas);
        Ok(Self { timesteps, sigmas, init_noise_sigma, prediction })
    }
}

impl Scheduler for EulerDiscrete {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: Tensor<3>, step: usize) -> Tensor<3> {
        to_unit_variance(sample, self.sigmas[step])
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
        _: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let (sigma, next) = (self.sigmas[step], self.sigmas[step + 1]);
        let data = self.data(step, output, sample.clone());
        let derivative = (sample.clone() - data) / sigma;
        sample + derivative * (next - sigma)
    }
}
