//! Noise schedulers: the timesteps that the model sees, and the update of the sample from one to the next.
//!
//! A scheduler is an immutable value. Its changing state is a [`History`] owned by the caller, because a sample may
//! be denoised patch by patch: each patch has its own history, all patches share the scheduler, and the caller
//! passes the step index and the noise of a step. A step is element-wise, so a patch may be any range of tokens.
//!
//! The arithmetic follows diffusers operation by operation in f32, and its tables dtype by dtype. Square roots,
//! logarithms and exponentials are correctly rounded here, whereas PyTorch's vector library is off by up to 0.9
//! units in the last place. If these three functions are correctly rounded in PyTorch too, latents are equal bit
//! for bit. Otherwise they agree to 1e-6, except with `rescale_betas_zero_snr`, where the noisiest levels are
//! differences of nearly equal roots.
//!
//! Dynamic thresholding is refused, because it needs a quantile of the whole sample.

mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod euler_discrete;
mod flow_match_euler_discrete;
mod grid;
mod history;
mod noise_schedule;
mod options;
mod prediction;
mod sigmas;
mod steps;
mod timesteps;

use burn::tensor::Tensor;
use serde_json::Value;

use crate::{Error, Result};

pub use history::History;
pub use steps::Steps;

use ddim::Ddim;
use ddpm::Ddpm;
use dpm_solver_multistep::DpmSolverMultistep;
use euler_discrete::EulerDiscrete;
use flow_match_euler_discrete::FlowMatchEulerDiscrete;
use options::SchedulerOptions;

/// A noise schedule and the solver that follows it.
///
/// # Shapes
/// - samples, model outputs and results: `[batch, tokens, features]`, all of the same shape; results in f32
pub trait Scheduler: Send + Sync {
    /// The timesteps passed to the model, one for each step. There may be one more than requested, where diffusers'
    /// grid has one more.
    fn timesteps(&self) -> &[f32];

    /// The standard deviation of the initial latents.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Scales the sample to the form that the model expects at a step.
    fn scale_model_input(&self, sample: Tensor<3>, _step: usize) -> Tensor<3> {
        sample
    }

    /// Whether `step` adds noise to the sample.
    fn adds_noise(&self, _step: usize) -> bool {
        false
    }

    /// Returns the sample at the end of `step`, given the sample at its beginning and the model's output. `noise` is
    /// standard normal, and present if the step [adds noise](Self::adds_noise).
    ///
    /// `history` belongs to these tokens: it is empty before their first step, and is passed to each of their steps
    /// in order.
    ///
    /// # Panics
    /// If `step` is not a step of the schedule, or does not follow the last step in `history`.
    fn step(
        &self,
        step: usize,
        history: &mut History,
        model_output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3>;
}

/// Builds a scheduler from its options and the requested steps.
type Build = fn(&mut SchedulerOptions<'_>, &Steps) -> Result<Box<dyn Scheduler>>;

/// The schedulers, by their class names in diffusers (`_class_name`).
const SCHEDULERS: [(&str, Build); 5] = [
    ("DDIMScheduler", |options, steps| {
        let steps = steps.without_sigmas("DDIMScheduler")?;
        Ok(Box::new(Ddim::new(options, steps)?))
    }),
    ("DDPMScheduler", |options, steps| {
        let steps = steps.without_sigmas("DDPMScheduler")?;
        Ok(Box::new(Ddpm::new(options, steps)?))
    }),
    ("DPMSolverMultistepScheduler", |options, steps| {
        let steps = steps.without_sigmas("DPMSolverMultistepScheduler")?;
        Ok(Box::new(DpmSolverMultistep::new(options, steps)?))
    }),
    ("EulerDiscreteScheduler", |options, steps| {
        let steps = steps.without_sigmas("EulerDiscreteScheduler")?;
        Ok(Box::new(EulerDiscrete::new(options, steps)?))
    }),
    ("FlowMatchEulerDiscreteScheduler", |options, steps| {
        Ok(Box::new(FlowMatchEulerDiscrete::new(options, steps)?))
    }),
];

/// Builds the scheduler described by a `scheduler_config.json` for `steps`: a number of steps, or [`Steps`].
///
/// Every option that would change the result is honoured or refused.
///
/// # Errors
/// A usage error if the class, an option or its value is unknown or not supported, or if no schedule with this
/// number of steps exists.
///
/// ```
/// use xdit_core::scheduler::scheduler;
///
/// let config = serde_json::json!({"_class_name": "DDIMScheduler", "steps_offset": 1});
/// assert_eq!(scheduler(&config, 4)?.timesteps(), [751.0, 501.0, 251.0, 1.0]);
/// # Ok::<(), xdit_core::Error>(())
/// ```
pub fn scheduler(config: &Value, steps: impl Into<Steps>) -> Result<Box<dyn Scheduler>> {
    let steps = steps.into();
    let names = || SCHEDULERS.map(|(name, _)| format!("`{name}`")).join(", ");
    let class = config.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
        Error::usage("the scheduler config has no `_class_name`")
            .hint(format!("set it to one of {}", names()))
    })?;
    let (class, build) = SCHEDULERS.iter().find(|(name, _)| *name == class).ok_or_else(|| {
        Error::usage(format!("the scheduler `{class}` is not supported"))
            .hint(format!("choose one of {}", names()))
    })?;
    if steps.count == 0 {
        return Err(Error::usage("the number of inference steps is `0`").hint("ask for at least one step"));
    }
    let mut options = SchedulerOptions::new(class, config);
    let scheduler = build(&mut options, &steps)?;
    options.finish()?;
    Ok(scheduler)
}
