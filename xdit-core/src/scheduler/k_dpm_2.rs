//! DPM-Solver-2 over noise levels, from k-diffusion: with ancestral sampling and without.

use burn::tensor::Tensor;

use super::level::{exp, ln};
use super::noise_schedule::{Defaults, NoiseSchedule};
use super::options::SchedulerOptions;
use super::prediction::{Prediction, to_unit_variance};
use super::sigmas::{LogSigmas, SigmaOptions, Spread, place_between};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, with_noise};
use crate::{Error, Result};

/// DPM-Solver-2 (arXiv 2206.00364, algorithm 2) without churn.
///
/// An interval between noise levels has two steps, each an evaluation of the model: one to a level inside, and another one
/// from the beginning, with the derivative there. The last interval ends without noise, and has one step.
///
/// # Source
/// diffusers 0.42.1, `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler`.
#[derive(Debug)]
pub(super) struct KDpm2 {
    timesteps: Vec<f32>,
    intervals: Vec<Interval>,
    init_noise_sigma: f32,
    prediction: Prediction,
    ancestral: bool,
}

/// The noise levels of an interval.
#[derive(Clone, Copy, Debug)]
struct Interval {
    start: f32,
    middle: f32,
    /// The level that the second step goes to.
    end: f32,
    /// The standard deviation of the noise that it adds then.
    noise: f32,
}

impl Interval {
    /// The interval from `start` to `end`.
    fn new(start: f32, end: f32, ancestral: bool) -> Self {
        if end == 0.0 {
            return Self { start, middle: 0.0, end, noise: 0.0 };
        }
        let (down, noise) = match ancestral {
            false => (end, 0.0),
            true => {
                let (variance, end_variance) = (start * start, end * end);
                let noise = (end_variance * (variance - end_variance) / variance).sqrt();
                ((end_variance - noise * noise).sqrt(), noise)
            }
        };
        // Halfway between the logarithms, in the direction that diffusers takes.
        let (from, to) = if ancestral { (ln(start), ln(down)) } else { (ln(end), ln(start)) };
        Self { start, middle: exp(to - (to - from) * 0.5), end: down, noise }
    }
}

impl KDpm2 {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize, ancestral: bool) -> Result<Self> {
        let names = [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::Velocity)];
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &names)?;
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
        let placed =
            place_between(visited, &sigma_options, &schedule, steps, |spread| spread == Spread::Karras);

        let sigmas = placed.sigmas_to_zero();
        let intervals: Vec<Interval> =
            sigmas.windows(2).map(|ends| Interval::new(ends[0], ends[1], ancestral)).collect();
        let is_finite = |Interval { start, middle, end, noise }: &Interval| {
            [start, middle, end, noise].iter().all(|level| level.is_finite())
        };
        if let Some(interval) = intervals.iter().position(|interval| !is_finite(interval)) {
            let count = intervals.len();
            return Err(Error::usage(format!(
                "step `{interval}` of `{count}` removes nearly all noise at once"
            ))
            .hint("use more inference steps, another spacing of timesteps or noise levels, or `dpm2`"));
        }
        let trained = LogSigmas::new(&placed.table);
        let inside = intervals.iter().map(|interval| trained.timestep_f32(interval.middle));
        let mut timesteps: Vec<f32> =
            placed.timesteps.into_iter().zip(inside).flat_map(<[f32; 2]>::from).collect();
        timesteps.pop();
        let init_noise_sigma = grid.init_noise_sigma(&sigmas);
        Ok(Self { timesteps, intervals, init_noise_sigma, prediction, ancestral })
    }

    /// The noise level at which the model is evaluated in `step`.
    fn sigma(&self, step: usize) -> f32 {
        let Interval { start, middle, .. } = self.intervals[step / 2];
        if step.is_multiple_of(2) { start } else { middle }
    }
}

impl Scheduler for KDpm2 {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: Tensor<3>, step: usize) -> Tensor<3> {
        to_unit_variance(sample, self.sigma(step))
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        self.prediction.data_beside_noise(sample, output, self.sigma(step))
    }

    fn adds_noise(&self, step: usize) -> bool {
        self.ancestral && !step.is_multiple_of(2)
    }

    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let sigma = self.sigma(step);
        let Interval { start, middle, end, noise: deviation } = self.intervals[step / 2];
        let data = self.data(step, output, sample.clone());
        let derivative = (sample.clone() - data) / sigma;
        history.push(step, derivative.clone(), 1);
        if step.is_multiple_of(2) {
            history.keep_sample(sample.clone());
            return sample + derivative * (middle - start);
        }
        with_noise(history.sample() + derivative * (end - start), noise, deviation)
    }
}
