//! Multistep DPM-Solver and DPM-Solver++ of orders one to three.

use burn::tensor::{DType, Tensor};

use super::grid::interpolate;
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::sigmas::{LogSigmas, SigmaOptions, Spread};
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler};
use crate::{Error, Result};

/// With fewer steps than this, `lower_order_final` lowers the order of the last ones.
const FEW_STEPS: usize = 15;

/// DPM-Solver++ (arXiv 2211.01095) and DPM-Solver (arXiv 2206.00927) as multistep solvers.
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
    /// Whether σ is a share of the sample, as in flow matching, or relative to the signal.
    flow: bool,
    lower_order_final: bool,
    first_order_final: bool,
}

/// The quantity that is integrated over the log signal-to-noise ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// The predicted data.
    DpmSolverPlusPlus,
    /// The predicted noise.
    DpmSolver,
}

/// The kind of second-order step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Solver {
    Midpoint,
    Heun,
}

/// The signal level α, the noise level σ, and half the log signal-to-noise ratio, λ = ln(α / σ).
#[derive(Clone, Copy)]
struct Level {
    alpha: f32,
    sigma: f32,
    lambda: f32,
}

impl DpmSolverMultistep {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let algorithm = options.choice(
            "algorithm_type",
            Algorithm::DpmSolverPlusPlus,
            &[
                ("dpmsolver++", Algorithm::DpmSolverPlusPlus),
                ("dpmsolver", Algorithm::DpmSolver),
                // The value in a config taken over from `DEISMultistepScheduler`.
                ("deis", Algorithm::DpmSolverPlusPlus),
            ],
        )?;
        let solver = options.choice(
            "solver_type",
            Solver::Midpoint,
            &[
                ("midpoint", Solver::Midpoint),
                ("heun", Solver::Heun),
                // The values in configs taken over from DEIS and UniPC.
                ("logrho", Solver::Midpoint),
                ("bh1", Solver::Midpoint),
                ("bh2", Solver::Midpoint),
            ],
        )?;
        let solver_order = options.count("solver_order", 2)?;
        if !(1..=3).contains(&solver_order) {
            return Err(Error::usage(format!("option `solver_order` is `{solver_order}`"))
                .hint("choose an order from 1 to 3"));
        }
        let prediction = read_prediction(options, algorithm)?;
        options.refuse_flag("thresholding", "a patch cannot compute a quantile of the whole sample")?;
        options.refuse_flag("use_dynamic_shifting", "the shift would depend on the size of the image")?;

        let shift = options.number("flow_shift", 1.0)?;
        let sigma_options = SigmaOptions::new(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_lu_lambdas", Spread::Lu),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_flow_sigmas", Spread::Flow { shift }),
            ],
        )?;
        if algorithm == Algorithm::DpmSolver && sigma_options.ends_at_zero() {
            return Err(Error::usage(
                "option `final_sigmas_type` is `zero` with `algorithm_type` `dpmsolver`",
            )
            .hint("set `final_sigmas_type` to `sigma_min`, or `algorithm_type` to `dpmsolver++`"));
        }

        let schedule = NoiseSchedule::new(options)?.with_finite_sigmas();
        let grid = Timesteps::new(options, Spacing::Linspace, schedule.len(), steps)?;
        // The grid ends at timestep 0, where a run is already finished, so that point is left out.
        let visited = grid.below(clipped_len(options, &schedule)?, steps + 1);
        let (timesteps, sigmas) = place(visited, &sigma_options, &schedule, steps);

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
        let sigma = self.sigmas[i];
        let (alpha, sigma) = if self.flow {
            (1.0 - sigma, sigma)
        } else {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            (alpha, sigma * alpha)
        };
        Level { alpha, sigma, lambda: ln(alpha) - ln(sigma) }
    }

    /// The coefficients of a step of the given order. Both algorithms use the same formulas with other levels.
    fn weights(&self, step: usize, order: usize) -> Weights {
        let end = self.level(step + 1);
        let start = self.level(step);
        let h = end.lambda - start.lambda;
        let (sample, scale, signed_h) = match self.algorithm {
            Algorithm::DpmSolverPlusPlus => (end.sigma / start.sigma, end.alpha, -h),
            Algorithm::DpmSolver => (end.alpha / start.alpha, end.sigma, h),
        };
        let phi = exp(signed_h) - 1.0;
        let mut weights = Weights { sample, d0: scale * phi, ..Weights::default() };
        if order == 1 {
            return weights;
        }

        // The lengths of the earlier steps, relative to this one.
        let length = |from: usize| self.level(from + 1).lambda - self.level(from).lambda;
        let r0 = length(step - 1) / h;
        weights.per_r0 = 1.0 / r0;
        weights.d1 = match self.solver {
            Solver::Midpoint if order == 2 => 0.5 * weights.d0,
            _ => scale * (phi / signed_h - 1.0),
        };
        if order > 2 {
            let r1 = length(step - 2) / h;
            weights.per_r1 = 1.0 / r1;
            weights.per_both = 1.0 / (r0 + r1);
            weights.blend = r0 / (r0 + r1);
            weights.d2 = scale * ((phi - signed_h) / (signed_h * signed_h) - 0.5);
        }
        weights
    }

    /// Refuses a schedule in which a difference quotient would divide by a step of length zero.
    fn check_weights(&self) -> Result<()> {
        let steps = self.timesteps.len();
        match (0..steps).find(|step| !self.weights(*step, self.order(*step, *step)).are_finite()) {
            None => Ok(()),
            Some(step) => Err(Error::usage(format!(
                "step `{step}` of `{steps}` has length zero: its noise level equals that of an adjacent step"
            ))
            .hint("use fewer inference steps, or another spacing of timesteps or noise levels")),
        }
    }
}

impl Scheduler for DpmSolverMultistep {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(
        &self,
        step: usize,
        history: &mut History,
        model_output: Tensor<3>,
        sample: Tensor<3>,
        _: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let (model_output, sample) = (model_output.cast(DType::F32), sample.cast(DType::F32));
        let Level { alpha, sigma, .. } = self.level(step);
        let order = self.order(step, history.len());
        let convert = match self.algorithm {
            Algorithm::DpmSolverPlusPlus => Prediction::data,
            Algorithm::DpmSolver => Prediction::noise,
        };
        history.push(
            step,
            convert(self.prediction, sample.clone(), model_output, alpha, sigma),
            self.solver_order,
        );
        self.weights(step, order).apply(order, sample, history)
    }
}

/// The factors of the sample and of the finite differences of outputs in a step.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
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
}

impl Weights {
    fn are_finite(&self) -> bool {
        let Self { sample, d0, d1, d2, per_r0, per_r1, per_both, blend } = *self;
        [sample, d0, d1, d2, per_r0, per_r1, per_both, blend].iter().all(|weight| weight.is_finite())
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

fn read_prediction(options: &mut SchedulerOptions<'_>, algorithm: Algorithm) -> Result<Prediction> {
    let mut names = Prediction::NAMES.to_vec();
    if algorithm == Algorithm::DpmSolverPlusPlus {
        names.push(("flow_prediction", Prediction::Flow));
    }
    let prediction = options.choice("prediction_type", Prediction::Epsilon, &names)?;
    let learned = options.choice(
        "variance_type",
        None,
        &[
            ("fixed_small", None),
            ("fixed_small_log", None),
            ("fixed_large", None),
            ("fixed_large_log", None),
            ("learned", Some("learned")),
            ("learned_range", Some("learned_range")),
        ],
    )?;
    // In this case diffusers keeps the first three channels of the output, which suits pixels but not latents.
    if let (Some(learned), Prediction::Epsilon) = (learned, prediction) {
        return Err(Error::usage(format!("option `variance_type` is `{learned}`"))
            .hint("remove the variance from the model's output and set `variance_type` to `null`"));
    }
    Ok(prediction)
}

/// The number of training timesteps with λ of at least `lambda_min_clipped`.
fn clipped_len(options: &mut SchedulerOptions<'_>, schedule: &NoiseSchedule) -> Result<usize> {
    let lambda_min = options.number("lambda_min_clipped", f64::NEG_INFINITY)? as f32;
    let lambda = |alpha: &f32| ln(alpha.sqrt()) - ln((1.0 - alpha).sqrt());
    let clipped = schedule.alphas_cumprod.iter().rev().take_while(|alpha| lambda(alpha) < lambda_min).count();
    if clipped == schedule.len() {
        return Err(Error::usage(format!("option `lambda_min_clipped` is `{lambda_min}`"))
            .hint("use a lower value: this one leaves no timestep"));
    }
    Ok(schedule.len() - clipped)
}

/// The timesteps of a run and their noise levels; the options decide which of the two follows from the other.
fn place(
    visited: Vec<f64>,
    sigma_options: &SigmaOptions,
    schedule: &NoiseSchedule,
    steps: usize,
) -> (Vec<f32>, Vec<f32>) {
    let table = schedule.sigmas();
    let trained = LogSigmas::new(&table);
    let bounds = (table[table.len() - 1].into(), table[0].into());
    let at_visited = visited.iter().map(|t| interpolate(*t, &table)).collect();
    let sigmas = sigma_options.sigmas(at_visited, bounds, &trained, steps);

    let looked_up = || sigmas.iter().map(|sigma| trained.timestep(*sigma));
    let timesteps: Vec<f64> = match sigma_options.spread {
        Spread::Timesteps => visited,
        Spread::Flow { .. } => sigmas.iter().map(|sigma| sigma * schedule.len() as f64).collect(),
        Spread::Karras | Spread::Lu if !schedule.is_cosine => looked_up().map(f64::round_ties_even).collect(),
        Spread::Karras | Spread::Lu | Spread::Exponential => looked_up().collect(),
    };
    // The model is always given whole timesteps, even for noise levels between them.
    let timesteps = timesteps.into_iter().map(|t| t.trunc() as f32).collect();
    (timesteps, sigma_options.with_final(&sigmas, &table))
}

/// The logarithm, correctly rounded except for rare ties.
fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// The exponential, correctly rounded except for rare ties.
fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}
