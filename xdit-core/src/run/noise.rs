//! The random numbers of a picture: its initial latents, and the noise that some schedulers add in each step.

use std::fmt;
use std::ops::Range;

use burn::tensor::{Device, Tensor};

use crate::tokens::Tokens;

/// Starts the random numbers of a picture, on the device of the calling rank.
pub type Noise = Box<dyn Fn(usize, &Device) -> PictureNoise + Send + Sync>;

/// The random numbers of one picture.
///
/// They are drawn for the whole picture, in the order of diffusers: the initial latents, then the noise of each step
/// that adds some. Every rank draws the same numbers and uses those of its own tokens, so a picture does not depend on
/// the mesh.
pub struct PictureNoise {
    latents: Tokens,
    draw: Box<dyn FnMut() -> Tensor<3>>,
    /// The step of the last drawn noise, which the patches of a step share.
    drawn: Option<(usize, Tensor<3>)>,
}

impl PictureNoise {
    /// Starts from `latents`, which are whole and packed. Each call of `draw` returns the noise of the next step, packed
    /// like them.
    pub fn new(latents: Tokens, draw: impl FnMut() -> Tensor<3> + 'static) -> Self {
        Self { latents, draw: Box::new(draw), drawn: None }
    }

    /// The initial latents, whole and packed.
    pub fn latents(&self) -> &Tokens {
        &self.latents
    }

    /// The noise of `step` for `tokens`. Steps come in order.
    ///
    /// # Shapes
    /// Result `[b, n, c]`, for `n` tokens.
    ///
    /// # Panics
    /// If noise of a later step was drawn.
    pub fn of_step(&mut self, step: usize, tokens: &Range<usize>) -> Tensor<3> {
        let noise = match self.drawn.take() {
            Some((last, noise)) if last == step => noise,
            last => {
                assert!(last.is_none_or(|(last, _)| last < step), "the noise of step {step} is gone");
                (self.draw)()
            }
        };
        self.drawn = Some((step, noise.clone()));
        noise.narrow(1, tokens.start, tokens.len())
    }
}

impl fmt::Debug for PictureNoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PictureNoise").field("latents", &self.latents).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::tokens::Positions;

    #[test]
    fn patches_share_the_noise_of_a_step() {
        let device = Device::flex();
        let of = |value: f32| Tensor::<3>::full([1, 4, 1], value, (&device, DType::F32));
        let (latents, mut count) = (Tokens { x: of(0.0), positions: Positions::grid(2, 2) }, 0.0);
        let mut noise = PictureNoise::new(latents, {
            let device = device.clone();
            move || {
                count += 1.0;
                Tensor::full([1, 4, 1], count, (&device, DType::F32))
            }
        });
        let mut drawn = |step, tokens| {
            let values = noise.of_step(step, &tokens).into_data();
            values.try_to_vec::<f32>().expect("f32")
        };
        assert_eq!(drawn(0, 0..3), [1.0; 3]);
        assert_eq!(drawn(0, 3..4), [1.0]);
        // Step 1 adds no noise.
        assert_eq!(drawn(2, 1..3), [2.0; 2]);
    }
}
