//! Noise schedulers: which timesteps the model sees, and how its output moves the sample from one to the next.
//!
//! A scheduler is an immutable value. What changes over the steps is a [`History`] that the caller owns, because a
//! sample may be stepped in patches that take their turns: each patch has its own history, all share the scheduler,
//! and the step index comes from outside. A step is element-wise, so a patch may be any run of tokens.
//!
//! The arithmetic follows diffusers operation by operation in f32, and its tables dtype by dtype. Square roots,
//! logarithms and exponentials are rounded correctly here, where PyTorch's vector library is off by up to 0.9 units in
//! the last place: with these three functions rounded in PyTorch too, latents are equal bit for bit. As it is they agree
//! to 1e-6, except with `rescale_betas_zero_snr`, whose noisiest levels are differences of nearly equal roots.
//!
//! Refused are the options that need more than a patch and its history: stochastic solvers (`sde-…`), which draw noise
//! in every step, and dynamic thresholding, which needs a quantile of the whole sample.

mod ddim;
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
use dpm_solver_multistep::DpmSolverMultistep;
use euler_discrete::EulerDiscrete;
use flow_match_euler_discrete::FlowMatchEulerDiscrete;
use options::Options;

/// A noise schedule and the solver that walks it.
///
/// # Shapes
/// - samples and model outputs: `[batch, tokens, features]`, of the same shape; the result too, in f32
pub trait Scheduler: Send + Sync {
    /// The timesteps as the model is given them, one a step. Their number may differ from the one asked for by one,
    /// where diffusers' grid has one more.
    fn timesteps(&self) -> &[f32];

    /// The standard deviation that initial latents are to have.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// The sample as the model wants to see it at a step.
    fn scale_model_input(&self, sample: Tensor<3>, _step: usize) -> Tensor<3> {
        sample
    }

    /// The sample at the end of `step`, from that at its beginning and the model's output.
    ///
    /// `history` is that of these tokens: empty before their first step, and handed to each of their steps in order.
    ///
    /// # Panics
    /// If `step` is not a step of the schedule, or does not follow the one that `history` has seen last.
    fn step(
        &self,
        step: usize,
        history: &mut History,
        model_output: Tensor<3>,
        sample: Tensor<3>,
    ) -> Tensor<3>;
}

/// Builds a scheduler from its options and the steps asked for.
type Build = fn(&mut Options<'_>, &Steps) -> Result<Box<dyn Scheduler>>;

/// The schedulers, by the names that diffusers gives them in `_class_name`.
const SCHEDULERS: [(&str, Build); 4] = [
    ("DDIMScheduler", |options, steps| {
        let steps = steps.without_sigmas("DDIMScheduler")?;
        Ok(Box::new(Ddim::new(options, steps)?))
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

/// The scheduler that a `scheduler_config.json` describes, set up for `steps`: their number, or [`Steps`].
///
/// Every option that would change the numbers is honoured or refused.
///
/// # Errors
/// A usage error if the class, an option or its value is not supported or unknown, or if no schedule with so many
/// steps exists.
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
        Error::usage("the scheduler config has no `_class_name`").hint(format!("it is one of {}", names()))
    })?;
    let (class, build) = SCHEDULERS.iter().find(|(name, _)| *name == class).ok_or_else(|| {
        Error::usage(format!("the scheduler `{class}` is not supported"))
            .hint(format!("supported are {}", names()))
    })?;
    if steps.count == 0 {
        return Err(Error::usage("the number of inference steps is `0`").hint("ask for at least one step"));
    }
    let mut options = Options::new(class, config);
    let scheduler = build(&mut options, &steps)?;
    options.finish()?;
    Ok(scheduler)
}
