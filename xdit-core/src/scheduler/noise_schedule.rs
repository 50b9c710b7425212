//! The amount of noise at each training timestep.

use super::grid::linspace_f32;
use super::options::SchedulerOptions;
use crate::{Error, Result};

/// More timesteps than any model was trained with: the tables of a schedule have an entry for each.
const MAX_TIMESTEPS: usize = 1_000_000;

/// A variance-preserving noise schedule: ᾱ of each training timestep.
///
/// # Source
/// diffusers 0.42.1, `DDIMScheduler.__init__`, `betas_for_alpha_bar`, `rescale_zero_terminal_snr`.
pub(super) struct NoiseSchedule {
    /// ᾱ, the remaining share of the signal's variance: the cumulative product of 1 - β.
    pub(super) alphas_cumprod: Vec<f32>,
    /// Whether the last timestep was rescaled to pure noise.
    zero_terminal_snr: bool,
    /// Whether the options select the squared-cosine schedule.
    pub(super) is_cosine: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    Cosine,
}

/// The defaults of a scheduler class.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    /// β of the first and the last timestep.
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    /// Whether the class can rescale the schedule to a terminal timestep of pure noise. Others ignore that option.
    pub(super) rescales: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { beta_start: 0.0001, beta_end: 0.02, beta_schedule: BetaSchedule::Linear, rescales: true }
    }
}

impl NoiseSchedule {
    /// Reads the schedule of a class with the usual [`Defaults`].
    pub(super) fn new(options: &mut SchedulerOptions<'_>) -> Result<Self> {
        Self::with_defaults(options, Defaults::default())
    }

    /// Reads the schedule of a class with its own defaults.
    pub(super) fn with_defaults(options: &mut SchedulerOptions<'_>, defaults: Defaults) -> Result<Self> {
        let zero_terminal_snr = defaults.rescales && options.flag("rescale_betas_zero_snr", false)?;
        let timesteps = options.count("num_train_timesteps", 1000)?;
        let beta_start = options.number("beta_start", defaults.beta_start)?;
        let beta_end = options.number("beta_end", defaults.beta_end)?;
        let beta_schedule = options.choice(
            "beta_schedule",
            defaults.beta_schedule,
            &[
                ("linear", BetaSchedule::Linear),
                ("scaled_linear", BetaSchedule::ScaledLinear),
                ("squaredcos_cap_v2", BetaSchedule::Cosine),
            ],
        )?;
        let trained_betas = options.numbers("trained_betas")?;
        if !(2..=MAX_TIMESTEPS).contains(&timesteps) {
            return Err(Error::usage(format!("option `num_train_timesteps` is `{timesteps}`"))
                .hint(format!("a noise schedule needs at least two timesteps and at most {MAX_TIMESTEPS}")));
        }

        let mut betas = match (trained_betas, beta_schedule) {
            (Some(betas), _) if betas.len() != timesteps => {
                let found = betas.len();
                return Err(Error::usage(format!("option `trained_betas` has `{found}` values")).hint(
                    format!("give one for each of the `{timesteps}` timesteps of `num_train_timesteps`"),
                ));
            }
            (Some(betas), _) => betas.into_iter().map(|beta| beta as f32).collect(),
            (None, BetaSchedule::Linear) => linspace_f32(beta_start as f32, beta_end as f32, timesteps),
            (None, BetaSchedule::ScaledLinear) => {
                let roots = linspace_f32(beta_start.sqrt() as f32, beta_end.sqrt() as f32, timesteps);
                roots.into_iter().map(|root| root * root).collect()
            }
            (None, BetaSchedule::Cosine) => cosine_betas(timesteps),
        };
        // Outside, the signal would grow, or change its sign.
        if let Some(beta) = betas.iter().find(|beta| !(0.0..=1.0).contains(*beta)) {
            return Err(Error::usage(format!("the noise schedule has a beta of `{beta}`")).hint(
                "correct `beta_start`, `beta_end` or `trained_betas` in the scheduler config: from 0 to 1",
            ));
        }
        if zero_terminal_snr {
            betas = rescale_to_zero_terminal_snr(&betas);
        }
        let alphas_cumprod = cumulative_product(betas.iter().map(|beta| 1.0 - beta));
        Ok(Self { alphas_cumprod, zero_terminal_snr, is_cosine: beta_schedule == BetaSchedule::Cosine })
    }

    /// ᾱ at one of the timesteps of `steps` inference steps.
    pub(super) fn level(&self, timestep: f32, steps: usize) -> Result<f32> {
        let level = self.alphas_cumprod.get(timestep as usize).filter(|_| timestep >= 0.0);
        level.copied().ok_or_else(|| {
            Error::usage(format!(
                "`{steps}` steps include timestep `{timestep}`, which the model was not trained on"
            ))
            .hint("use another number of inference steps, or a smaller `steps_offset`")
        })
    }

    /// The number of training timesteps.
    pub(super) fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// The same schedule with a finite σ at a terminal timestep of pure noise.
    pub(super) fn with_finite_sigmas(mut self) -> Self {
        if self.zero_terminal_snr {
            let last = self.len() - 1;
            self.alphas_cumprod[last] = 1.0 / (1 << 24) as f32;
        }
        self
    }

    /// σ of each timestep: the standard deviation of the noise relative to the signal's.
    pub(super) fn sigmas(&self) -> Vec<f32> {
        self.alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
    }
}

/// The betas of a squared-cosine ᾱ, capped where ᾱ approaches zero.
fn cosine_betas(timesteps: usize) -> Vec<f32> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
    let at = |i: usize| alpha_bar(i as f64 / timesteps as f64);
    (0..timesteps).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
}

/// Shifts and scales √ᾱ so that the last timestep has no signal and the first is unchanged.
///
/// # Source
/// "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), algorithm 1.
fn rescale_to_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> =
        cumulative_product(betas.iter().map(|beta| 1.0 - beta)).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let alphas_cumprod: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let alphas = alphas_cumprod.windows(2).map(|pair| pair[1] / pair[0]);
    std::iter::once(alphas_cumprod[0]).chain(alphas).map(|alpha| 1.0 - alpha).collect()
}

/// `torch.cumprod` of f32 values, which accumulates in f64.
fn cumulative_product(values: impl Iterator<Item = f32>) -> Vec<f32> {
    values
        .scan(1.0, |product: &mut f64, value| {
            *product *= f64::from(value);
            Some(*product as f32)
        })
        .collect()
}
