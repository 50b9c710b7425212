//! DDIM without added noise.

use burn::tensor::Tensor;

use super::clip::{Clip, clip};
use super::noise_schedule::NoiseSchedule;
use super::options::SchedulerOptions;
use super::prediction::Prediction;
use super::timesteps::{Spacing, Timesteps};
use super::{History, Scheduler};
use crate::Result;

/// Denoising diffusion implicit models (arXiv 2010.02502) with η = 0: no step adds noise.
///
/// # Source
/// diffusers 0.42.1, `DDIMScheduler`.
#[derive(Debug)]
pub(super) struct Ddim {
    timesteps: Vec<f32>,
    /// ᾱ at the beginning and at the end of each step.
    alphas_cumprod: Vec<(f32, f32)>,
    prediction: Prediction,
    clip: Option<Clip>,
}

impl Ddim {
    pub(super) fn new(options: &mut SchedulerOptions<'_>, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::new(options)?;
        let grid = Timesteps::new(options, Spacing::Leading, schedule.len(), steps)?;
        let prediction = options.choice("prediction_type", Prediction::Epsilon, &Prediction::NAMES)?;
        let clip = Clip::new(options, true)?;
        let final_alpha =
            if options.flag("set_alpha_to_one", true)? { 1.0 } else { schedule.alphas_cumprod[0] };

        let timesteps: Vec<f32> = grid.below(schedule.len(), steps).into_iter().map(|t| t as f32).collect();
        // A step always ends a fixed distance away, even if the next timestep is elsewhere.
        let stride = schedule.len() / steps;
        let alphas_cumprod = timesteps.iter().map(|timestep| {
            let start = schedule.level(*timestep, steps)?;
            let end = (*timestep as usize).checked_sub(stride).map(|end| schedule.alphas_cumprod[end]);
            Ok((start, end.unwrap_or(final_alpha)))
        });
        let alphas_cumprod = alphas_cumprod.collect::<Result<_>>()?;
        Ok(Self { timesteps, alphas_cumprod, prediction, clip })
    }
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn data(&self, step: usize, output: Tensor<3>, sample: Tensor<3>) -> Tensor<3> {
        let (start, _) = self.alphas_cumprod[step];
        clip(self.clip, self.prediction.data(sample, output, start.sqrt(), (1.0 - start).sqrt()))
    }

    fn step_in_f32(
        &self,
        step: usize,
        _: &mut History,
        output: Tensor<3>,
        sample: Tensor<3>,
        _: Option<Tensor<3>>,
    ) -> Tensor<3> {
        let (start, end) = self.alphas_cumprod[step];
        let (alpha, sigma) = (start.sqrt(), (1.0 - start).sqrt());

        let data = self.data(step, output.clone(), sample.clone());
        let noise = self.prediction.noise(sample, output, alpha, sigma);
        data * end.sqrt() + noise * (1.0 - end).sqrt()
    }
}
