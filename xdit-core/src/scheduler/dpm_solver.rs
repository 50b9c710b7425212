//! DPM-Solver: the parts that its multistep and singlestep forms share.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::flow_match_euler_discrete::Shift;
use super::level::{Level, exp, ln};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::sigmas::SigmaOptions;
use super::steps::Steps;
use crate::{Error, Result};

/// The quantity that is integrated over the log signal-to-noise ratio, and the kind of equation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// The predicted data, in the ordinary differential equation (arXiv 2211.01095).
    DpmSolverPlusPlus,
    /// The predicted noise (arXiv 2206.00927).
    DpmSolver,
    /// The predicted data, in the stochastic differential equation: each step adds noise.
    SdeDpmSolverPlusPlus,
    /// The predicted noise, in the stochastic differential equation.
    SdeDpmSolver,
}

/// The kind of second-order step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Solver {
    Midpoint,
    Heun,
}

impl Algorithm {
    /// Reads `algorithm_type`; `further` are values besides those that all forms have.
    pub(super) fn read(options: &mut SchedulerOptions<'_>, further: &[(&str, Self)]) -> Result<Self> {
        let mut choices = vec![
            ("dpmsolver++", Self::DpmSolverPlusPlus),
            ("dpmsolver", Self::DpmSolver),
            ("sde-dpmsolver++", Self::SdeDpmSolverPlusPlus),
            // The value in a config taken over from `DEISMultistepScheduler`.
            ("deis", Self::DpmSolverPlusPlus),
        ];
        choices.extend(further);
        options.choice("algorithm_type", Self::DpmSolverPlusPlus, &choices)
    }

    /// Whether the predicted data is integrated, not the predicted noise.
    pub(super) fn integrates_data(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }

    /// Whether steps add noise.
    pub(super) fn adds_noise(self) -> bool {
        matches!(self, Self::SdeDpmSolverPlusPlus | Self::SdeDpmSolver)
    }

    /// Refuses to integrate noise to a level of zero, where it has infinite weight.
    pub(super) fn check_end(self, sigma_options: &SigmaOptions) -> Result<()> {
        if !self.integrates_data() && sigma_options.ends_at_zero() {
            let name = if self == Self::DpmSolver { "dpmsolver" } else { "sde-dpmsolver" };
            return Err(Error::usage(format!(
                "option `final_sigmas_type` is `zero` with `algorithm_type` `{name}`"
            ))
            .hint(format!("set `final_sigmas_type` to `sigma_min`, or `algorithm_type` to `{name}++`")));
        }
        Ok(())
    }

    /// The quantity that is integrated, at `level`.
    pub(super) fn convert(
        self,
        prediction: Prediction,
        limit: Option<Clip>,
        sample: Tensor<3>,
        output: Tensor<3>,
        level: Level,
    ) -> Tensor<3> {
        let Level { alpha, sigma, .. } = level;
        if self.integrates_data() {
            return clip(limit, prediction.data(sample, output, alpha, sigma));
        }
        let noise = prediction.noise(sample.clone(), output, alpha, sigma);
        if limit.is_none() {
            return noise;
        }
        let data = clip(limit, (sample.clone() - noise * sigma) / alpha);
        (sample - data * alpha) / sigma
    }
}

impl Solver {
    pub(super) fn read(options: &mut SchedulerOptions<'_>) -> Result<Self> {
        options.choice(
            "solver_type",
            Self::Midpoint,
            &[
                ("midpoint", Self::Midpoint),
                ("heun", Self::Heun),
                // The values in configs taken over from DEIS and UniPC.
                ("logrho", Self::Midpoint),
                ("bh1", Self::Midpoint),
                ("bh2", Self::Midpoint),
            ],
        )
    }
}

/// Reads `solver_order`.
pub(super) fn read_order(options: &mut SchedulerOptions<'_>) -> Result<usize> {
    let order = options.count("solver_order", 2)?;
    if !(1..=3).contains(&order) {
        return Err(
            Error::usage(format!("option `solver_order` is `{order}`")).hint("choose an order from 1 to 3")
        );
    }
    Ok(order)
}

/// Reads the shift of a flow. One by the size of the image has the formula of a fixed one.
pub(super) fn flow_shift(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Shift> {
    if options.flag("use_dynamic_shifting", false)? {
        options.choice("time_shift_type", (), &[("exponential", ())])?;
    }
    Ok(Shift::of_flow(options, steps)?.as_fixed())
}

/// The factors of the sample, of the outputs' Taylor series, and of noise over an interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    /// λ at the end less λ at the beginning.
    pub(super) h: f32,
    pub(super) sample: f32,
    /// What is subtracted for the output, its slope and its curvature at the beginning, over an interval of length 1.
    pub(super) d0: f32,
    pub(super) d1: f32,
    pub(super) d2: f32,
    /// What is subtracted for the slope in a step of the midpoint method.
    pub(super) midpoint: f32,
    pub(super) noise: f32,
}

impl Weights {
    /// All algorithms use the same formulas with other levels.
    pub(super) fn new(algorithm: Algorithm, start: Level, end: Level) -> Self {
        let h = end.lambda - start.lambda;
        let (sample, scale, signed_h) = match algorithm {
            Algorithm::DpmSolverPlusPlus => (end.sigma / start.sigma, end.alpha, -h),
            Algorithm::SdeDpmSolverPlusPlus => (end.sigma / start.sigma * exp(-h), end.alpha, -2.0 * h),
            Algorithm::DpmSolver | Algorithm::SdeDpmSolver => (end.alpha / start.alpha, end.sigma, h),
        };
        let phi = exp(signed_h) - 1.0;
        let d0 = scale * phi;
        let d1 = scale * (phi / signed_h - 1.0);
        let d2 = scale * ((phi - signed_h) / (signed_h * signed_h) - 0.5);
        let weights = Self { h, sample, d0, d1, d2, midpoint: 0.5 * d0, noise: 0.0 };
        match algorithm {
            Algorithm::DpmSolverPlusPlus | Algorithm::DpmSolver => weights,
            Algorithm::SdeDpmSolverPlusPlus => Self {
                // The sign of the half is that of diffusers.
                d2: scale * ((phi - signed_h) / (signed_h * signed_h) + 0.5),
                noise: end.sigma * (1.0 - exp(-2.0 * h)).sqrt(),
                ..weights
            },
            Algorithm::SdeDpmSolver => Self {
                d0: 2.0 * d0,
                d1: 2.0 * d1,
                midpoint: d0,
                noise: end.sigma * (exp(2.0 * h) - 1.0).sqrt(),
                ..weights
            },
        }
    }
}

/// Reads the quantity that the model predicts.
pub(super) fn read_prediction(
    options: &mut SchedulerOptions<'_>,
    algorithm: Algorithm,
) -> Result<Prediction> {
    let mut names = Prediction::NAMES.to_vec();
    if algorithm.integrates_data() {
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
pub(super) fn clipped_len(options: &mut SchedulerOptions<'_>, schedule: &NoiseSchedule) -> Result<usize> {
    let lambda_min = options.number("lambda_min_clipped", f64::NEG_INFINITY)? as f32;
    let lambda = |alpha: &f32| ln(alpha.sqrt()) - ln((1.0 - alpha).sqrt());
    let clipped = schedule.alphas_cumprod.iter().rev().take_while(|alpha| lambda(alpha) < lambda_min).count();
    if clipped == schedule.len() {
        return Err(Error::usage(format!("option `lambda_min_clipped` is `{lambda_min}`"))
            .hint("use a lower value: this one leaves no timestep"));
    }
    Ok(schedule.len() - clipped)
}

/// The error for a step in which a difference quotient would divide by zero.
pub(super) fn length_zero(step: usize, steps: usize) -> Error {
    Error::usage(format!(
        "step `{step}` of `{steps}` has length zero: its noise level equals that of an adjacent step"
    ))
    .hint("use fewer inference steps, or another spacing of timesteps or noise levels")
}
