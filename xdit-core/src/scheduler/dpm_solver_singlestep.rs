//! Singlestep DPM-Solver and DPM-Solver++ of orders one to three.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::dpm_solver::{
    Algorithm, Solver, Weights, clipped_len, flow_shift, length_zero, read_order, read_prediction,
};
use super::level::Level;
use super::noise_schedule::{Defaults, NoiseSchedule};
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::sigmas::{SigmaOptions, Spread, place};
use super::timesteps::Timesteps;
use super::{History, Scheduler, Steps, with_noise};
use crate::{Error, Result};

/// DPM-Solver++ (arXiv 2211.01095) and DPM-Solver (arXiv 2206.00927) as singlestep solvers.
///
/// Steps form groups, as many steps as the order. The first of a group is of order one, and each further step starts
/// again from the beginning of the group, with an order more.
///
/// # Source
/// diffusers 0.42.1, `DPMSolverSinglestepScheduler`.
#[derive(Debug)]
pub(super) struct DpmSolverSinglestep {
    timesteps: Vec<f32>,
    /// The noise level at the beginning of each step, and at the end of the last.
    sigmas: Vec<f32>,
    /// The order of each step.
    orders: Vec<usize>,
    algorithm: Algorithm,
    solver: Solver,
    prediction: Prediction,
    clip: Option<Clip>,
    /// Whether σ is a share of the sample, as in flow matching, or relative to the signal.
    flow: bool,
}

impl DpmSolverSinglestep {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Self> {
        let algorithm = Algorithm::read(options, &[])?;
        let solver = Solver::read(options)?;
        let solver_order = read_order(options)?;
        let prediction = read_prediction(options, algorithm)?;
        let clip = Clip::threshold(options)?;
        if clip.is_some() && !algorithm.integrates_data() {
            return Err(Error::usage("option `thresholding` is `true` with `algorithm_type` `dpmsolver`")
                .hint("set `thresholding` to `false`, or `algorithm_type` to `dpmsolver++`"));
        }
        let shift = flow_shift(options, steps)?;
        let steps = steps.count;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
                ("use_flow_sigmas", Spread::Flow { shift }),
            ],
        )?;
        algorithm.check_end(&sigma_options)?;

        let defaults = Defaults { rescales: false, ..Defaults::default() };
        let schedule = NoiseSchedule::with_defaults(options, defaults)?;
        let grid = Timesteps::linspace(schedule.len(), steps)?;
        // The grid ends at timestep 0, where a run is already finished, so that point is left out.
        let visited = grid.below(clipped_len(options, &schedule)?, steps + 1);
        let placed = place(visited, &sigma_options, &schedule, steps, |spread| spread == Spread::Karras);

        let lower_order_final = options.flag("lower_order_final", false)?
            || !steps.is_multiple_of(solver_order)
            || sigma_options.ends_at_zero();
        let scheduler = Self {
            sigmas: sigma_options.with_final(&placed.sigmas, &placed.table),
            timesteps: placed.timesteps,
            orders: orders(solver_order, steps, lower_order_final, sigma_options.ends_at_zero()),
            algorithm,
            solver,
            prediction,
            clip,
            flow: matches!(sigma_options.spread, Spread::Flow { .. }),
        };
        match (0..steps).find(|step| !scheduler.combination(*step).is_finite()) {
            None => Ok(scheduler),
            Some(step) => Err(length_zero(step, steps)),
        }
    }

    fn level(&self, i: usize) -> Level {
        Level::new(self.sigmas[i], self.flow)
    }

    /// The coefficients of a step, from the beginning of its group.
    fn combination(&self, step: usize) -> Combination {
        let order = self.orders[step];
        let first = step + 1 - order;
        let start = self.level(first);
        let weights = Weights::new(self.algorithm, start, self.level(step + 1));
        let r = |step: usize| (self.level(step).lambda - start.lambda) / weights.h;
        let (r0, r1) = (r(step), r(step.saturating_sub(1)));
        Combination { order, weights, r0, r1, heun: self.solver == Solver::Heun }
    }
}

/// The order of each of `steps` steps, as in diffusers' `get_order_list`.
fn orders(order: usize, steps: usize, lower_order_final: bool, ends_at_zero: bool) -> Vec<usize> {
    let mut orders: Vec<usize> = (0..steps).map(|step| step % order + 1).collect();
    // The last group is replaced by a shorter one and a single step.
    if lower_order_final && order > 1 && steps.is_multiple_of(order) {
        orders[steps - 1] = 1;
    }
    if ends_at_zero {
        orders[steps - 1] = 1;
    }
    orders
}

impl Scheduler for DpmSolverSinglestep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn adds_noise(&self, _step: usize) -> bool {
        self.algorithm.adds_noise()
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let Level { alpha, sigma, .. } = self.level(step);
        clip(self.clip, self.prediction.data(sample, output, alpha, sigma))
    }

    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        model_output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let (prediction, level) = (self.prediction, self.level(step));
        let output = self.algorithm.convert(prediction, self.clip, sample.clone(), model_output, level);
        history.push(step, output, 3);
        let combination = self.combination(step);
        if combination.order == 1 {
            history.keep_sample(sample);
        }
        let next = combination.apply(history);
        with_noise(next, noise, combination.weights.noise)
    }
}

/// The factors of a step of a group.
#[derive(Clone, Copy, Debug)]
struct Combination {
    order: usize,
    weights: Weights,
    /// The places of the newest output and of the one before, as shares of the interval; unused in the first step.
    r0: f32,
    r1: f32,
    heun: bool,
}

impl Combination {
    fn is_finite(&self) -> bool {
        let Self { r0, r1, .. } = *self;
        let Weights { sample, d0, d1, d2, midpoint, noise, .. } = self.weights;
        let further = match (self.order, self.heun) {
            (1, _) => vec![],
            (2, false) => vec![midpoint, 1.0 / r0],
            (2, true) | (_, false) => vec![d1, 1.0 / r0],
            (_, true) => vec![d1, d2, 1.0 / r0, 1.0 / r1, 1.0 / (r0 - r1)],
        };
        [sample, d0, noise].into_iter().chain(further).all(f32::is_finite)
    }

    /// The sample at the end of the step, from the sample and the outputs that `history` keeps.
    fn apply(&self, history: &History) -> Tensor<3> {
        let Self { order, weights, r0, r1, heun } = *self;
        let Weights { sample, d0, d1, d2, midpoint, .. } = weights;
        let first = history.output(order - 1);
        let next = history.sample() * sample - first.clone() * d0;
        if order == 1 {
            return next;
        }
        let slope = (history.output(0) - first.clone()) * (1.0 / r0);
        if order == 2 {
            return next - slope * if heun { d1 } else { midpoint };
        }
        if !heun {
            return next - slope * d1;
        }
        let earlier = (history.output(1) - first) * (1.0 / r1);
        let start = (earlier.clone() * r0 - slope.clone() * r1) / (r0 - r1);
        let curvature = (slope - earlier) * 2.0 / (r0 - r1);
        next - start * d1 - curvature * d2
    }
}
