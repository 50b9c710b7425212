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
//! Dynamic thresholding needs a quantile of the whole sample, so it is refused unless its limits leave no choice.

mod beta;
mod clip;
mod ddim;
mod ddpm;
mod dpm_solver;
mod dpm_solver_multistep;
mod dpm_solver_sde;
mod dpm_solver_singlestep;
mod euler_ancestral_discrete;
mod euler_discrete;
mod flow_match_euler_discrete;
mod grid;
mod heun;
mod history;
mod k_dpm_2;
mod lcm;
mod level;
mod noise_schedule;
mod options;
mod prediction;
mod replace;
mod sigmas;
mod steps;
mod timesteps;
mod unipc_multistep;

use burn::tensor::{DType, Tensor};
use serde_json::Value;

use crate::{Error, Result};

pub use history::History;
pub use replace::{SHORT_NAMES, replaced};
pub use steps::Steps;

use ddim::Ddim;
use ddpm::Ddpm;
use dpm_solver_multistep::DpmSolverMultistep;
use dpm_solver_sde::DpmSolverSde;
use dpm_solver_singlestep::DpmSolverSinglestep;
use euler_ancestral_discrete::EulerAncestralDiscrete;
use euler_discrete::EulerDiscrete;
use flow_match_euler_discrete::FlowMatchEulerDiscrete;
use heun::Heun;
use k_dpm_2::KDpm2;
use lcm::Lcm;
use options::SchedulerOptions;
use unipc_multistep::UniPcMultistep;

/// A noise schedule and the solver that follows it.
///
/// # Shapes
/// - samples, model outputs and results: `[batch, tokens, features]`, all of the same shape; results in f32
pub trait Scheduler: Send + Sync {
    /// The timesteps passed to the model, one for each step, which is one evaluation of the model. There may be more than
    /// requested: one more where diffusers' grid has one more, and twice as many in a method of second order.
    fn timesteps(&self) -> &[f32];

    /// The standard deviation of the initial latents.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Scales the sample to the form that the model expects at a step.
    fn scale_model_input(&self, sample: Tensor<3>, _step: usize) -> Tensor<3> {
        sample
    }

    /// The data that the model predicts at `step`, given the sample at its beginning and the model's output, both in f32.
    ///
    /// # Panics
    /// If `step` is not a step of the schedule.
    fn data(&self, step: usize, model_output: Tensor<3>, sample: Tensor<3>) -> Tensor<3>;

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
    ) -> Tensor<3> {
        let wide = |x: Tensor<3>| x.cast(DType::F32);
        self.step_in_f32(step, history, wide(model_output), wide(sample), noise.map(wide))
    }

    /// As [`step`](Self::step), of tensors in f32.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    fn step_in_f32(
        &self,
        step: usize,
        history: &mut History,
        model_output: Tensor<3>,
        sample: Tensor<3>,
        noise: Option<Tensor<3>>,
    ) -> Tensor<3>;
}

/// `mean` with noise of standard deviation `deviation`, if the step adds noise.
fn with_noise(mean: Tensor<3>, noise: Option<Tensor<3>>, deviation: f32) -> Tensor<3> {
    match noise {
        Some(noise) => mean + noise * deviation,
        None => mean,
    }
}

/// The path from data to noise that a model was trained on, which decides the schedulers that fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Noise is added to the data; the model predicts the noise, the data or a velocity.
    Diffusion,
    /// The straight path from data to noise; the model predicts the flow along it.
    Flow,
}

/// A class of schedulers.
struct Class {
    /// Its name in diffusers (`_class_name`).
    name: &'static str,
    /// The path that it follows, unless its options select another.
    path: Path,
    /// Whether a model may set the noise levels.
    accepts_sigmas: bool,
    /// Builds a scheduler from its options and the requested steps.
    build: fn(&mut SchedulerOptions<'_>, &Steps) -> Result<Box<dyn Scheduler>>,
}

const CLASSES: [Class; 14] = [
    Class {
        name: "DDIMScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(Ddim::new(options, steps.count)?)),
    },
    Class {
        name: "DDPMScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(Ddpm::new(options, steps.count)?)),
    },
    Class {
        name: "DPMSolverMultistepScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(DpmSolverMultistep::new(options, steps)?)),
    },
    Class {
        name: "DPMSolverSDEScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(DpmSolverSde::new(options, steps.count)?)),
    },
    Class {
        name: "DPMSolverSinglestepScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(DpmSolverSinglestep::new(options, steps)?)),
    },
    Class {
        name: "EulerAncestralDiscreteScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(EulerAncestralDiscrete::new(options, steps.count)?)),
    },
    Class {
        name: "EulerDiscreteScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(EulerDiscrete::new(options, steps.count)?)),
    },
    Class {
        name: "FlowMatchEulerDiscreteScheduler",
        path: Path::Flow,
        accepts_sigmas: true,
        build: |options, steps| Ok(Box::new(FlowMatchEulerDiscrete::new(options, steps)?)),
    },
    Class {
        name: "FlowMatchHeunDiscreteScheduler",
        path: Path::Flow,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(Heun::flow_match(options, steps.count)?)),
    },
    Class {
        name: "HeunDiscreteScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(Heun::discrete(options, steps.count)?)),
    },
    Class {
        name: "KDPM2AncestralDiscreteScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(KDpm2::new(options, steps.count, true)?)),
    },
    Class {
        name: "KDPM2DiscreteScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(KDpm2::new(options, steps.count, false)?)),
    },
    Class {
        name: "LCMScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(Lcm::new(options, steps.count)?)),
    },
    Class {
        name: "UniPCMultistepScheduler",
        path: Path::Diffusion,
        accepts_sigmas: false,
        build: |options, steps| Ok(Box::new(UniPcMultistep::new(options, steps)?)),
    },
];

/// The names of all classes.
pub fn class_names() -> Vec<&'static str> {
    CLASSES.iter().map(|class| class.name).collect()
}

/// The class of a `scheduler_config.json`.
fn class_of(config: &Value) -> Result<&'static Class> {
    let names = || class_names().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let class = config.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
        Error::usage("the scheduler config has no `_class_name`")
            .hint(format!("set it to one of {}", names()))
    })?;
    CLASSES.iter().find(|candidate| candidate.name == class).ok_or_else(|| {
        Error::usage(format!("the scheduler `{class}` is not supported"))
            .hint(format!("choose one of {}", names()))
    })
}

/// The path that the scheduler described by a `scheduler_config.json` follows.
fn path_of(config: &Value) -> Result<Path> {
    let class = class_of(config)?;
    Ok(if config["prediction_type"] == "flow_prediction" { Path::Flow } else { class.path })
}

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
    let (steps, class) = (steps.into(), class_of(config)?);
    if steps.count == 0 {
        return Err(Error::usage("the number of inference steps is `0`").hint("ask for at least one step"));
    }
    // As in diffusers' pipelines, a solver for diffusion that follows a flow has levels of its own.
    let has_own = config["use_flow_sigmas"] == true;
    if steps.sigmas.is_some() && !class.accepts_sigmas && !has_own {
        return Err(Error::usage(format!("`{}` does not accept noise levels from the model", class.name))
            .hint("use `flow-euler`, `unipc` or `dpm++2m` with a model that sets its own noise levels"));
    }
    let mut options = SchedulerOptions::new(class.name, config);
    let scheduler = (class.build)(&mut options, &steps)?;
    options.finish()?;
    Ok(scheduler)
}

/// Checks a `scheduler_config.json` for a model that was trained on `path`, before the number of steps is known.
/// `steps` turns a number into [`Steps`].
///
/// # Errors
/// As [`scheduler`], if there is no schedule for any of some small numbers of steps. If the scheduler does not fit.
pub fn check(config: &Value, path: Path, steps: impl Fn(usize) -> Steps) -> Result<()> {
    if path_of(config)? != path {
        return Err(replace::does_not_fit(class_of(config)?.name, path));
    }
    // A single step is impossible for some options, and more than a few for others.
    let results = [2, 1, 4, 20].into_iter().map(|count| scheduler(config, steps(count)).map(drop));
    results.reduce(|first, next| if first.is_ok() { first } else { next.or(first) }).expect("not empty")
}
