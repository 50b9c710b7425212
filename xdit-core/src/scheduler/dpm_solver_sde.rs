//! DPM-Solver++ (SDE) over noise levels, from k-diffusion.

use burn::tensor::Tensor;

use super::dpm_solver::length_zero;
use super::level::{exp, exp_m1, ln};
use super::noise_schedule::{Defaults, NoiseSchedule};
use super::options::SchedulerOptions;
use super::prediction::{Prediction, to_unit_variance};
use super::sigmas::{LogSigmas, SigmaOptions, Spread, place_between};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, with_noise};
use crate::Result;

/// DPM-Solver++ in its stochastic form, with two evaluations of the model in an interval between noise levels.
///
/// Both steps of an interval start at its beginning: one to the middle, the other one to the end, with noise of one Brownian
/// motion. In diffusers, this motion has a seed of its own, by default another one in each run. Here its increments, from the
/// beginning to the middle and from there to the end, are drawn from the picture's stream: a seed gives one picture.
///
/// # Source
/// diffusers 0.42.1, `DPMSolverSDEScheduler`.
#[derive(Debug)]
pub(super) struct DpmSolverSde {
    timesteps: Vec<f32>,
    /// The noise levels at the ends of the intervals.
    sigmas: Vec<f32>,
    init_noise_sigma: f32,
    prediction: Prediction,
}

/// The factors of a step.
struct Factors {
    sample: f32,
    data: f32,
    /// The standard deviation of the noise.
    noise: f32,
}

impl Factors {
    /// The step from the level with the negative logarithm `from` to `to`.
    fn new(from: f32, to: f32) -> Self {
        let (start, end) = (exp(-from), exp(-to));
        let (variance, end_variance) = (start * start, end * end);
        let noise = end.min((end_variance * (variance - end_variance) / variance).sqrt());
        let down = (end_variance - noise * noise).sqrt();
        let ancestral = -ln(down);
        Self { sample: exp(-ancestral) / start, data: exp_m1(from - ancestral), noise }
    }
}

impl DpmSolverSde {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
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
        options.refuse("noise_sampler_seed", "the noise is that of the picture's seed")?;
        let sigma_options = match sigma_options.spread {
            // As in diffusers, where only the other spreads have bounds of their own.
            Spread::Karras => sigma_options.without_bounds(),
            _ => sigma_options,
        };
        let defaults =
            Defaults { beta_start: 0.00085, beta_end: 0.012, rescales: false, ..Defaults::default() };
        let schedule = NoiseSchedule::with_defaults(options, defaults)?;
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;
        let visited = grid.fractional_f64(schedule.len(), steps);
        let placed = place_between(visited, &sigma_options, &schedule, steps, |_| false);

        let trained = LogSigmas::new(&placed.table);
        let inside = placed.sigmas.windows(2).map(|ends| {
            let [from, to] = [ends[0], ends[1]].map(|sigma| -sigma.ln());
            trained.timestep((-(from + (to - from) * 0.5)).exp()) as f32
        });
        let inside = inside.chain([0.0]);
        let mut timesteps: Vec<f32> =
            placed.timesteps.iter().copied().zip(inside).flat_map(<[f32; 2]>::from).collect();
        timesteps.pop();
        let sigmas = placed.sigmas_to_zero();
        let init_noise_sigma = grid.init_noise_sigma(&sigmas);
        let scheduler = Self { timesteps, sigmas, init_noise_sigma, prediction };
        // The last interval ends without noise.
        let is_finite = |interval: &usize| {
            let [start, middle, end] = scheduler.interval(2 * interval);
            let steps = [Factors::new(start, middle), Factors::new(start, end)];
            let factors = steps.iter().flat_map(|step| [step.sample, step.data, step.noise]);
            factors.chain(shares([start, middle, end])).all(f32::is_finite)
        };
        match (0..steps - 1).find(|interval| !is_finite(interval)) {
            None => Ok(scheduler),
            Some(interval) => Err(length_zero(interval, steps)),
        }
    }

    /// The negative logarithms of the noise levels at the beginning, in the middle and at the end of the interval of `step`.
    fn interval(&self, step: usize) -> [f32; 3] {
        let [start, end] = [0, 1].map(|ahead| -ln(self.sigmas[step / 2 + ahead]));
        [start, start + (end - start) * 0.5, end]
    }

    /// The noise level at which the model is evaluated in `step`.
    fn sigma(&self, step: usize) -> f32 {
        if step.is_multiple_of(2) { self.sigmas[step / 2] } else { exp(-self.interval(step)[1]) }
    }
}

/// The shares of the two increments of a Brownian motion in its increment over the whole interval, each of variance one. The
/// motion is over noise levels.
fn shares([start, middle, end]: [f32; 3]) -> [f32; 2] {
    let [start, middle, end] = [start, middle, end].map(|t| exp(-t));
    [(start - middle) / (start - end), (middle - end) / (start - end)].map(f32::sqrt)
}

impl Scheduler for DpmSolverSde {
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
        // The last step ends without noise.
        step + 1 < self.timesteps.len()
    }

    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let data = self.data(step, output, sample.clone());
        let Some(noise) = noise else {
            let sigma = self.sigma(step);
            let derivative = (sample.clone() - data) / sigma;
            return sample + derivative * (0.0 - sigma);
        };
        let interval = self.interval(step);
        let is_first = step.is_multiple_of(2);
        let (to, sample, drawn) = if is_first {
            history.keep_sample(sample.clone());
            (interval[1], sample, noise.clone())
        } else {
            let [first, second] = shares(interval);
            (interval[2], history.sample(), history.output(0) * first + noise.clone() * second)
        };
        history.push(step, noise, 1);
        let Factors { sample: keep, data: factor, noise: deviation } = Factors::new(interval[0], to);
        with_noise(sample * keep - data * factor, Some(drawn), deviation)
    }
}
