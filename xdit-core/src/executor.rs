//! Walks the steps of a denoising run.

use burn::tensor::Tensor;

use crate::attention::Attention;
use crate::pipeline::Observer;
use crate::scheduler::{History, Scheduler};
use crate::tokens::Tokens;
use crate::transformer::Transformer;

/// What a picture is conditioned on, with and without the prompt.
#[derive(Clone, Debug)]
pub struct Guidance<C> {
    /// With the prompt.
    pub positive: C,
    /// With the negative prompt, and how far to go from there towards and beyond `positive`. `None` runs the
    /// model once a step.
    ///
    /// # Source
    /// Classifier-free guidance (Ho & Salimans 2022), with the weight as in Imagen.
    pub negative: Option<(C, f32)>,
}

/// From noise to latents: every step runs the transformer on each guidance branch, one after the other, which
/// needs half the memory of running them as a batch.
///
/// # Shapes
/// `latents`: packed, `[b, n, c]`; the result has the same shape.
pub fn denoise<T: Transformer>(
    transformer: &T,
    scheduler: &dyn Scheduler,
    guidance: &Guidance<T::Conditions>,
    latents: Tokens,
    attention: &mut dyn Attention,
    observer: &mut dyn Observer,
) -> Tokens {
    let mut history = History::default();
    let Tokens { x: mut sample, positions } = latents;
    let steps = scheduler.timesteps().len();
    for (step, &timestep) in scheduler.timesteps().iter().enumerate() {
        let input = Tokens { x: scheduler.scale_model_input(sample.clone(), step), positions: positions.clone() };
        let mut predict = |conditions: &T::Conditions| -> Tensor<3> {
            transformer.forward(input.clone(), conditions, timestep as f32, attention)
        };
        let positive = predict(&guidance.positive);
        let prediction = match &guidance.negative {
            Some((conditions, scale)) => {
                let negative = predict(conditions);
                negative.clone() + (positive - negative).mul_scalar(*scale)
            }
            None => positive,
        };
        sample = scheduler.step(step, &mut history, prediction, sample);
        observer.step(step + 1, steps);
    }
    Tokens { x: sample, positions }
}
