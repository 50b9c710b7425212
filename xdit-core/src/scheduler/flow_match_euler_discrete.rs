//! Euler's method along the straight path from noise to data.

use burn::tensor::Tensor;

use super::grid::linspace;
use super::options::SchedulerOptions;
use super::sigmas::{Spread, beta, exponential, karras};
use super::steps::Steps;
use super::{History, Scheduler};
use crate::{Error, Result};

/// Euler's method for rectified flow (arXiv 2403.03206): the model predicts the flow from data to noise, and σ is
/// the share of noise in the sample.
///
/// # Source
/// diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler`.
#[derive(Debug)]
pub(super) struct FlowMatchEulerDiscrete {
    timesteps: Vec<f32>,
    /// The noise level at the beginning of each step, and at the end of the last.
    sigmas: Vec<f32>,
    /// Whether each step predicts the data and adds noise again.
    stochastic: bool,
}

/// How noise levels are shifted upwards: a larger image needs more noise to hide its contents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shift {
    /// s σ / (1 + (s - 1) σ).
    Fixed(f64),
    /// a / (a + 1 / σ - 1), where a depends on the size of the image.
    BySize(f64),
}

impl Shift {
    /// Reads the shift from the options; `fixed` is the name of a fixed one.
    ///
    /// # Source
    /// diffusers 0.42.1, `calculate_shift` of the pipelines that shift by size, for [`Self::BySize`].
    fn new(
        options: &mut SchedulerOptions<'_>,
        fixed: &'static str,
        image_tokens: Option<usize>,
    ) -> Result<Self> {
        let fixed = options.number(fixed, 1.0)?;
        let by_size = options.flag("use_dynamic_shifting", false)?;
        let (base, max) = (options.number("base_shift", 0.5)?, options.number("max_shift", 1.15)?);
        let base_tokens = options.count("base_image_seq_len", 256)? as f64;
        let max_tokens = options.count("max_image_seq_len", 4096)? as f64;
        let exponential =
            options.choice("time_shift_type", true, &[("exponential", true), ("linear", false)])?;
        if !by_size {
            return Ok(Self::Fixed(fixed));
        }
        let tokens = image_tokens.ok_or_else(|| {
            Error::usage("option `use_dynamic_shifting` is `true`, but the size of the image is unknown")
                .hint("set `use_dynamic_shifting` to `false` in the scheduler config")
        })?;
        let slope = (max - base) / (max_tokens - base_tokens);
        let mu = tokens as f64 * slope + (base - slope * base_tokens);
        Ok(Self::BySize(if exponential { mu.exp() } else { mu }))
    }

    /// The shift of a solver for diffusion that follows a flow, if its options say so.
    pub(super) fn of_flow(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Self> {
        if !options.flag("use_flow_sigmas", false)? {
            options.refuse_flag("use_dynamic_shifting", "the shift would depend on the size of the image")?;
        }
        Self::new(options, "flow_shift", steps.image_tokens)
    }

    /// The same shift, by the formula of a fixed one.
    pub(super) fn as_fixed(self) -> Self {
        match self {
            Self::Fixed(shift) | Self::BySize(shift) => Self::Fixed(shift),
        }
    }

    /// The shifted noise level.
    pub(super) fn level(self, sigma: f64) -> f64 {
        self.of(sigma, |x| x)
    }

    /// The shifted noise level; `round` is applied after every operation.
    fn of(self, sigma: f64, round: impl Fn(f64) -> f64) -> f64 {
        match self {
            Self::Fixed(shift) => {
                let (shift, above_one) = (round(shift), round(shift - 1.0));
                round(round(shift * sigma) / round(1.0 + round(above_one * sigma)))
            }
            Self::BySize(a) => {
                let a = round(a);
                round(a / round(a + round(round(1.0 / sigma) - 1.0)))
            }
        }
    }
}

fn to_f32(x: f64) -> f64 {
    f64::from(x as f32)
}

/// Levels evenly between the ends of the training table, to which a fixed shift has already been applied.
fn own_levels(shift: Shift, trained: f64, steps: usize) -> Vec<f64> {
    let end = |sigma: f64| match shift {
        Shift::Fixed(_) => shift.of(to_f32(sigma), to_f32),
        Shift::BySize(_) => to_f32(sigma),
    };
    let grid = linspace(end(1.0) * trained, end(1.0 / trained) * trained, steps);
    grid.into_iter().map(|timestep| timestep / trained).collect()
}

/// The noise levels of a run of `steps` with the fixed shift `shift`.
pub(super) fn fixed_levels(shift: f64, trained: f64, steps: usize) -> Vec<f64> {
    let own = own_levels(Shift::Fixed(shift), trained, steps);
    own.into_iter().map(|sigma| Shift::Fixed(shift).level(sigma)).collect()
}

impl FlowMatchEulerDiscrete {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: &Steps) -> Result<Self> {
        let trained = options.count("num_train_timesteps", 1000)? as f64;
        let shift = Shift::new(options, "shift", steps.image_tokens)?;
        let terminal = options.optional_number("shift_terminal")?.filter(|terminal| *terminal != 0.0);
        let spread = Spread::chosen(
            options,
            &[
                ("use_karras_sigmas", Spread::Karras),
                ("use_exponential_sigmas", Spread::Exponential),
                ("use_beta_sigmas", Spread::Beta),
            ],
        )?;
        let (own_min, own_max) =
            (options.optional_number("sigma_min")?, options.optional_number("sigma_max")?);
        let inverted = options.flag("invert_sigmas", false)?;
        let stochastic = options.flag("stochastic_sampling", false)?;

        // Levels passed in by the model are computed in f32; diffusers' own are computed in f64.
        let in_f32 = steps.sigmas.is_some();
        let round = |x: f64| if in_f32 { to_f32(x) } else { x };
        let levels: Vec<f64> = match &steps.sigmas {
            Some(sigmas) => sigmas.iter().copied().map(to_f32).collect(),
            None => own_levels(shift, trained, steps.count),
        };
        let mut levels: Vec<f64> = levels.into_iter().map(|sigma| shift.of(sigma, round)).collect();
        let last = levels.len() - 1;
        if let Some(terminal) = terminal {
            let stretch = round(round(1.0 - levels[last]) / round(1.0 - terminal));
            for sigma in &mut levels {
                *sigma = round(1.0 - round(round(1.0 - *sigma) / stretch));
            }
        }
        let (max, min) = (own_max.unwrap_or(levels[0]), own_min.unwrap_or(levels[last]));
        let levels = match spread {
            Spread::Karras => karras(max, min, steps.count),
            Spread::Exponential => exponential(max, min, steps.count),
            Spread::Beta => beta(max, min, steps.count),
            _ => levels,
        };
        let mut sigmas: Vec<f32> = levels.iter().map(|sigma| *sigma as f32).collect();
        if inverted {
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - *sigma);
        }
        let timesteps: Vec<f32> = sigmas.iter().map(|sigma| sigma * trained as f32).collect();
        sigmas.push(if inverted { 1.0 } else { 0.0 });
        if sigmas.iter().any(|sigma| !sigma.is_finite()) {
            return Err(Error::usage(format!(
                "the noise levels of `{}` steps are not all finite: {sigmas:?}",
                steps.count
            ))
            .hint("use more inference steps, or correct the shifts in the scheduler config"));
        }
        Ok(Self { timesteps, sigmas, stochastic })
    }
}

impl Scheduler for FlowMatchEulerDiscrete {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn adds_noise(&self, _step: usize) -> bool {
        self.stochastic
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        sample - output * self.sigmas[step]
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
        match noise {
            None => sample + output * (next - sigma),
            Some(noise) => {
                let data = self.data(step, output, sample);
                data * (1.0 - next) + noise * next
            }
        }
    }
}
