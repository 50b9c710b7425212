//! Limits of the predicted data.

use burn::tensor::Tensor;

use super::options::SchedulerOptions;
use crate::{Error, Result};

/// Clamps the predicted data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clip {
    /// The data is clamped to ± this value.
    limit: f32,
    /// The clamped data is divided by this value.
    divisor: f32,
}

impl Clip {
    /// Reads `clip_sample`.
    pub(super) fn sample(options: &mut SchedulerOptions<'_>, default: bool) -> Result<Option<Self>> {
        let limit = options.number("clip_sample_range", 1.0)? as f32;
        Ok(options.flag("clip_sample", default)?.then_some(Self { limit, divisor: 1.0 }))
    }

    /// Reads `thresholding`. The threshold is a quantile of the whole sample, at least 1 and at most
    /// `sample_max_value`. A patch cannot compute that quantile, and need not if the maximum is 1 or less.
    pub(super) fn threshold(options: &mut SchedulerOptions<'_>) -> Result<Option<Self>> {
        let limit = options.number("sample_max_value", 1.0)?;
        options.number("dynamic_thresholding_ratio", 0.995)?;
        if !options.flag("thresholding", false)? {
            return Ok(None);
        }
        if !(0.0 < limit && limit <= 1.0) {
            return Err(Error::usage(format!(
                "option `thresholding` is `true` with a `sample_max_value` of `{limit}`: a patch cannot compute a \
                 quantile of the whole sample"
            ))
            .hint("set `thresholding` to `false` in the scheduler config, or `sample_max_value` to 1"));
        }
        Ok(Some(Self { limit: limit as f32, divisor: limit as f32 }))
    }

    /// Reads both options; `thresholding` comes first.
    pub(super) fn new(options: &mut SchedulerOptions<'_>, default: bool) -> Result<Option<Self>> {
        let (threshold, sample) = (Self::threshold(options)?, Self::sample(options, default)?);
        Ok(threshold.or(sample))
    }
}

/// Clamps `data`, if there is a limit.
pub(super) fn clip(limit: Option<Clip>, data: Tensor<3>) -> Tensor<3> {
    match limit {
        None => data,
        Some(Clip { limit, divisor: 1.0 }) => data.clamp(-limit, limit),
        Some(Clip { limit, divisor }) => data.clamp(-limit, limit) / divisor,
    }
}
