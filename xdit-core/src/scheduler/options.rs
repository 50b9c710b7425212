//! Reads the options of a `scheduler_config.json` and reports those that were not read.

use serde_json::Value;

use crate::json::number;
use crate::{Error, Result};

/// Options of other schedulers in diffusers. There, configs are passed from one scheduler to another, and each
/// ignores the options that it does not use.
const OF_OTHER_SCHEDULERS: [&str; 44] = [
    "algorithm_type",
    "base_image_seq_len",
    "base_shift",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "invert_sigmas",
    "lambda_min_clipped",
    "lower_order_final",
    "max_image_seq_len",
    "max_shift",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "shift",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "stochastic_sampling",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// The options of one scheduler. A missing option and `null` both mean the default.
pub(super) struct SchedulerOptions<'a> {
    class: &'a str,
    config: &'a Value,
    known: Vec<&'static str>,
}

impl<'a> SchedulerOptions<'a> {
    pub(super) fn new(class: &'a str, config: &'a Value) -> Self {
        Self { class, config, known: Vec::new() }
    }

    pub(super) fn number(&mut self, name: &'static str, default: f64) -> Result<f64> {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&mut self, name: &'static str) -> Result<Option<f64>> {
        self.get(name).map(|value| number(value).ok_or_else(|| self.unexpected(name, "a number"))).transpose()
    }

    /// A list of numbers.
    pub(super) fn numbers(&mut self, name: &'static str) -> Result<Option<Vec<f64>>> {
        self.get(name)
            .map(|value| {
                let numbers = value.as_array().and_then(|values| values.iter().map(number).collect());
                numbers.ok_or_else(|| self.unexpected(name, "a list of numbers"))
            })
            .transpose()
    }

    pub(super) fn count(&mut self, name: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| self.unexpected(name, "a whole number, at least 0"))
    }

    /// A list of whole numbers.
    pub(super) fn counts(&mut self, name: &'static str) -> Result<Option<Vec<usize>>> {
        self.get(name)
            .map(|value| {
                let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
                let counts = value.as_array().and_then(|values| values.iter().map(count).collect());
                counts.ok_or_else(|| self.unexpected(name, "a list of whole numbers, at least 0"))
            })
            .transpose()
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.unexpected(name, "`true` or `false`"))
    }

    /// The value of one of the named `choices`.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T> {
        let Some(value) = self.get(name) else { return Ok(default) };
        choices.iter().find(|(choice, _)| value == choice).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(choice, _)| format!("`{choice}`")).collect();
            self.unexpected(name, &format!("one of {}", names.join(", ")))
        })
    }

    /// Refuses the value `true` and gives `reason`.
    pub(super) fn refuse_flag(&mut self, name: &'static str, reason: &str) -> Result<()> {
        if self.flag(name, false)? {
            return Err(Error::usage(format!("option `{name}` of `{}` is `true`: {reason}", self.class))
                .hint(format!("set `{name}` to `false` in the scheduler config")));
        }
        Ok(())
    }

    /// Refuses any value and gives `reason`.
    pub(super) fn refuse(&mut self, name: &'static str, reason: &str) -> Result<()> {
        match self.get(name) {
            None => Ok(()),
            Some(_) => Err(Error::usage(format!("option `{name}` of `{}` is set: {reason}", self.class))
                .hint(format!("set `{name}` to `null` in the scheduler config"))),
        }
    }

    /// Whether the option `name` was read.
    pub(super) fn has_read(&self, name: &str) -> bool {
        self.known.contains(&name)
    }

    /// Refuses options that were not read and belong to no other scheduler.
    pub(super) fn finish(mut self) -> Result<()> {
        let Some(config) = self.config.as_object() else { return Ok(()) };
        // Names with an underscore are notes that diffusers writes for itself, such as its version.
        let unknown: Vec<_> = config
            .keys()
            .filter(|name| !name.starts_with('_'))
            .filter(|name| {
                !self.known.contains(&name.as_str()) && !OF_OTHER_SCHEDULERS.contains(&name.as_str())
            })
            .map(|name| format!("`{name}`"))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.known.sort_unstable();
        let known: Vec<_> = self.known.iter().map(|name| format!("`{name}`")).collect();
        let noun = if unknown.len() == 1 { "an unknown option" } else { "unknown options" };
        Err(Error::usage(format!("the config of `{}` has {noun}: {}", self.class, unknown.join(", ")))
            .hint(format!("known options: {}", known.join(", "))))
    }

    fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.config.get(name).filter(|value| !value.is_null())
    }

    fn unexpected(&self, name: &str, expected: &str) -> Error {
        let value = self.config.get(name).map(Value::to_string).unwrap_or_default();
        let value = value.trim_matches('"');
        Error::usage(format!("option `{name}` of `{}` is `{value}`", self.class))
            .hint(format!("expected {expected}"))
    }
}
