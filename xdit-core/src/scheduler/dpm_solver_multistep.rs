//! Multistep DPM-Solver and DPM-Solver++ of orders one to three.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::dpm_solver::{
    Algorithm, Solver, Weights, clipped_len, flow_shift, length_zero, read_order, read_prediction,
};
use super::level::Level;
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::sigmas::{SigmaOptions, Spread, place};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler, Steps, with_noise};
use crate::{Error, Result};

/// With fewer steps than this, `lower_order_final` lowers the order of the last ones.
const FEW_STEPS: usize = 15;

/// DPM-Solver++ (arXiv 2211.01095) and DPM-Solver (arXiv 2206.00927) as multistep solvers, which use the outputs of
/// earlier steps.
///
/// # Source
/// diffusers 0.42.1, `DPMSolverMultistepScheduler`.
#[derive(Debug)]
pub(super) struct DpmSolverMultistep {
    timesteps: Vec<f32>,
    /// The noise level at the beginning of each step, and at the end of the last.
    sigmas: Vec<f32>,
    algorithm: Algorithm,
    solver: Solver,
    solver_order: usize,
    prediction: Prediction,
    clip: Option<Clip>,
    /// Whether σ is a share of the sample, as in flow matching, or relative to the signal.
    flow: bool,
    lower_order_final: bool,
    first_order_final: bool,
}

impl DpmSolverMultistep {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Self> {
        let algorithm = Algorithm::read(options, &[("sde-dpmsolver", Algorithm::SdeDpmSolver)])?;
        let solver = Solver::read(options)?;
        let solver_order = read_order(options)?;
        if algorithm == Algorithm::SdeDpmSolver && solver_order == 3 {
            return Err(Error::usage("option `solver_order` is `3` with `algorithm_type` `sde-dpmsolver`")
                .hint("choose an order of 1 or 2, or set `algorithm_type` to `sde-dpmsolver++`"));
        }
        let prediction = read_prediction(options, algorithm)?;
        let clip = Clip::threshold(options)?;
        let shift = flow_shift(options, steps)?;
        let steps = steps.count;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_lu_lambdas", Spread::Lu),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
                ("use_flow_sigmas", Spread::Flow { shift }),
            ],
        )?;
        algorithm.check_end(&sigma_options)?;

        let schedule = NoiseSchedule::new(options)?.with_finite_sigmas();
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;
        // The grid ends at timestep 0, where a run is already finished, so that point is left out.
        let visited = grid.below(clipped_len(options, &schedule)?, steps + 1);
        let rounds = |spread| matches!(spread, Spread::Karras | Spread::Lu) && !schedule.is_cosine;
        let placed = place(visited, &sigma_options, &schedule, steps, rounds);
        let timesteps = placed.timesteps;
        let sigmas = sigma_options.with_final(&placed.sigmas, &placed.table);

        let lower_order_final = options.flag("lower_order_final", true)? && timesteps.len() < FEW_STEPS;
        let scheduler = Self {
            first_order_final: options.flag("euler_at_final", false)?
                || lower_order_final
                || sigma_options.ends_at_zero(),
            lower_order_final,
            flow: matches!(sigma_options.spread, Spread::Flow { .. }),
            timesteps,
            sigmas,
            algorithm,
            solver,
            solver_order,
            prediction,
            clip,
        };
        scheduler.check_weights()?;
        Ok(scheduler)
    }

    /// The order of a step when `known` earlier outputs are available.
    fn order(&self, step: usize, known: usize) -> usize {
        let last = self.timesteps.len() - 1;
        let limit = if step == last && self.first_order_final {
            1
        } else if step + 1 == last && self.lower_order_final {
            2
        } else {
            3
        };
        self.solver_order.min(known + 1).min(limit)
    }

    fn level(&self, i: usize) -> Level {
        Level::new(self.sigmas[i], self.flow)
    }

    /// The length of a step, relative to `h`.
    fn relative_length(&self, step: usize, h: f32) -> f32 {
        (self.level(step + 1).lambda - self.level(step).lambda) / h
    }

    /// The coefficients of a step of the given order.
    fn combination(&self, step: usize, order: usize) -> Combination {
        let weights = Weights::new(self.algorithm, self.level(step), self.level(step + 1));
        let Weights { h, sample, d0, d1, d2, midpoint, noise } = weights;
        let mut combination = Combination { sample, d0, noise, ..Combination::default() };
        if order == 1 {
            return combination;
        }
        let r0 = self.relative_length(step - 1, h);
        combination.per_r0 = 1.0 / r0;
        combination.d1 = match self.solver {
            Solver::Midpoint if order == 2 => midpoint,
            _ => d1,
        };
        if order > 2 {
            let r1 = self.relative_length(step - 2, h);
            combination.per_r1 = 1.0 / r1;
            combination.per_both = 1.0 / (r0 + r1);
            combination.blend = r0 / (r0 + r1);
            combination.d2 = d2;
        }
        combination
    }

    /// Refuses a schedule in which a difference quotient would divide by a step of length zero.
    fn check_weights(&self) -> Result<()> {
        let steps = self.timesteps.len();
        match (0..steps).find(|step| !self.combination(*step, self.order(*step, *step)).is_finite()) {
            None => Ok(()),
            Some(step) => Err(length_zero(step, steps)),
        }
    }
}

impl Scheduler for DpmSolverMultistep {
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
        let order = self.order(step, history.len());
        let (prediction, level) = (self.prediction, self.level(step));
        let output = self.algorithm.convert(prediction, self.clip, sample.clone(), model_output, level);
        history.push(step, output, self.solver_order);
        let combination = self.combination(step, order);
        let next = combination.apply(order, sample, history);
        with_noise(next, noise, combination.noise)
    }
}

/// The factors of the sample, of the finite differences of outputs, and of noise in a step.
#[derive(Clone, Copy, Debug, Default)]
struct Combination {
    sample: f32,
    /// Factors of the newest output, its slope and its curvature.
    d0: f32,
    d1: f32,
    d2: f32,
    /// Factors from differences to slopes and to the curvature, for a step of length one.
    per_r0: f32,
    per_r1: f32,
    per_both: f32,
    /// The share of the change of slope added to the slope over the last step, to get the slope at the newest
    /// output.
    blend: f32,
    noise: f32,
}

impl Combination {
    fn is_finite(&self) -> bool {
        let Self { sample, d0, d1, d2, per_r0, per_r1, per_both, blend, noise } = *self;
        let all = [sample, d0, d1, d2, per_r0, per_r1, per_both, blend, noise];
        all.iter().all(|factor| factor.is_finite())
    }

    fn apply(&self, order: usize, sample: Tensor<3>, history: &History) -> Tensor<3> {
        let newest = history.output(0);
        let next = sample * self.sample - newest.clone() * self.d0;
        if order == 1 {
            return next;
        }
        let slope = (newest - history.output(1)) * self.per_r0;
        if order == 2 {
            return next - slope * self.d1;
        }
        let older_slope = (history.output(1) - history.output(2)) * self.per_r1;
        let change = slope.clone() - older_slope;
        let slope = slope + change.clone() * self.blend;
        let curvature = change * self.per_both;
        next - slope * self.d1 - curvature * self.d2
    }
}
