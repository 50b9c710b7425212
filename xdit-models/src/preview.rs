//! Previews of pictures before their last step: colours of latents by a linear map, which is fitted to the checkpoint's own
//! autoencoder.
//!
//! A latent pixel says mostly which colour its square of the picture has, so a linear map from its channels to red, green
//! and blue gives a small picture without the decoder. The map differs between autoencoders, and no numbers are stored here:
//! before the first preview, some random pictures of flat shapes are encoded, and the map is the least-squares fit from their
//! latents to the mean colours of their squares. That encodes as many pixels as a picture of 512×512 has.
//!
//! How good a linear map can be depends on the autoencoder. For five pictures of the small model of `xdit-cli/demo`, previews
//! after 19 of 20 steps are off by 20 to 24 levels of 255 in the mean colours of squares of a latent pixel (root of the mean
//! square).

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::Result;
use xdit_core::noise::Generator;

use crate::autoencoder_kl::AutoencoderKl;

/// The number of encoded pictures, and the side of each in latent pixels. Flat shapes on flat grounds are nearer to pictures than
/// textures are, and many small pictures have more colours than a large one.
const PICTURES: usize = 16;
const SIDE: usize = 16;
/// The number of shapes in a picture.
const SHAPES: usize = 3;
/// The weight of small coefficients, relative to the mean square of the latents. It matters only if channels of latents are
/// nearly the same.
const RIDGE: f64 = 1e-4;

/// The colours of a checkpoint's latents, once they are needed.
#[derive(Debug, Default)]
pub struct OnceColours(OnceLock<Colours>);

impl OnceColours {
    /// The colours, fitted on `device` to the autoencoder that `load` loads if they are needed for the first time.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn fitted(
        &self,
        device: &Device,
        load: impl FnOnce() -> Result<Arc<AutoencoderKl>>,
    ) -> Result<&Colours> {
        if let Some(colours) = self.0.get() {
            return Ok(colours);
        }
        let vae = load()?;
        Ok(self.0.get_or_init(|| Colours::fit(&vae, device)))
    }
}

/// A linear map from the channels of a latent pixel to a colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Colours {
    /// For each channel, and last for the constant 1, the weights of red, green and blue from -1 to 1.
    weights: Vec<[f64; 3]>,
}

impl Colours {
    /// The map for `vae`.
    pub fn fit(vae: &AutoencoderKl, device: &Device) -> Self {
        let (scale, side) = (vae.scale(), SIDE * vae.scale());
        let mut generator = Generator::from_seed(0);
        let (mut latents, mut colours) = (Vec::new(), Vec::new());
        // One by one, since activations are large.
        for _ in 0..PICTURES {
            let picture = TensorData::new(random_picture(&mut generator, side), [1, 3, side, side]);
            let picture = Tensor::<4>::from_data(picture, (device, DType::F32));
            let squares = picture.clone().reshape([3, SIDE, scale, SIDE, scale]);
            let means = squares.mean_dim(4).mean_dim(2);
            latents.push(values(vae.encode_scaled(picture).into_data()));
            colours.push(values(means.into_data()));
        }
        // From pictures of channels to channels of pictures.
        let joined = |parts: &[Vec<f32>]| -> Vec<f32> {
            let channels = parts[0].len() / (SIDE * SIDE);
            let channel = |channel: usize| {
                parts.iter().flat_map(move |part| &part[channel * SIDE * SIDE..][..SIDE * SIDE])
            };
            (0..channels).flat_map(channel).copied().collect()
        };
        Self::least_squares(&joined(&latents), &joined(&colours), PICTURES * SIDE * SIDE)
    }

    /// The map from `latents`, channels of `pixels` values, that is nearest to `colours`, three channels of as many.
    fn least_squares(latents: &[f32], colours: &[f32], pixels: usize) -> Self {
        let unknowns = latents.len() / pixels + 1;
        let input = |unknown: usize, pixel: usize| {
            latents.get(unknown * pixels + pixel).map_or(1.0, |&z| f64::from(z))
        };
        let product = |f: &dyn Fn(usize) -> f64, unknown: usize| -> f64 {
            (0..pixels).map(|pixel| input(unknown, pixel) * f(pixel)).sum()
        };
        // The normal equations, with the three right sides behind them.
        let mut rows: Vec<Vec<f64>> = (0..unknowns)
            .map(|row| {
                let left = (0..unknowns).map(|column| product(&|pixel| input(column, pixel), row));
                let right =
                    (0..3).map(|colour| product(&|pixel| f64::from(colours[colour * pixels + pixel]), row));
                left.chain(right).collect()
            })
            .collect();
        let channels = unknowns - 1;
        let trace: f64 = (0..channels).map(|channel| rows[channel][channel]).sum();
        (0..channels).for_each(|channel| rows[channel][channel] += RIDGE * trace / channels as f64);
        // Elimination. The matrix is positive definite, so pivots need no search.
        for pivot in 0..unknowns {
            let reduced: Vec<f64> = rows[pivot].iter().map(|value| value / rows[pivot][pivot]).collect();
            for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
                let factor = row[pivot];
                row.iter_mut().zip(&reduced).for_each(|(value, reduced)| *value -= factor * reduced);
            }
            rows[pivot] = reduced;
        }
        Self {
            weights: rows.iter().map(|row| [row[unknowns], row[unknowns + 1], row[unknowns + 2]]).collect(),
        }
    }

    /// The colours of `latents`.
    ///
    /// # Shapes
    /// `[1, c, frames, y, x]`, scaled as in the diffusion model, to `[frames, 3, y, x]`, values about -1 to 1.
    pub fn of(&self, latents: Tensor<5>) -> Tensor<4> {
        let [_, c, frames, y, x] = latents.dims();
        let (device, pixels) = (latents.device(), y * x);
        let values = latents.into_data().try_to_vec::<f32>().expect("latents are f32");
        let mut colours = Vec::with_capacity(frames * 3 * pixels);
        for frame in 0..frames {
            for colour in 0..3 {
                let mut plane = vec![self.weights[c][colour] as f32; pixels];
                for channel in 0..c {
                    let weight = self.weights[channel][colour] as f32;
                    let source = &values[(channel * frames + frame) * pixels..][..pixels];
                    plane.iter_mut().zip(source).for_each(|(value, latent)| *value += weight * latent);
                }
                colours.extend(plane);
            }
        }
        Tensor::from_data(TensorData::new(colours, [frames, 3, y, x]), (&device, DType::F32))
    }
}

fn values(data: TensorData) -> Vec<f32> {
    data.try_to_vec().expect("values are f32")
}

/// A picture of ellipses in random colours on a ground of another, `[3, side, side]`, values from -1 to 1.
fn random_picture(generator: &mut Generator, side: usize) -> Vec<f32> {
    // The digits behind the point of a wide distribution are evenly distributed.
    let mut from_0_to_1 = || (10.0 * generator.randn(1)[0]).abs().fract();
    let mut picture = vec![0.0; 3 * side * side];
    for shape in 0..=SHAPES {
        let colour = [(); 3].map(|()| 2.0 * from_0_to_1() - 1.0);
        let centre = [(); 2].map(|()| from_0_to_1());
        let radius = [(); 2].map(|()| 0.05 + 0.25 * from_0_to_1());
        for (index, value) in picture.iter_mut().enumerate() {
            let place = [index / side % side, index % side].map(|at| at as f32 / side as f32);
            let distance = |axis: usize| ((place[axis] - centre[axis]) / radius[axis]).powi(2);
            // The first one is the ground.
            if shape == 0 || distance(0) + distance(1) < 1.0 {
                *value = colour[index / (side * side)];
            }
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Colours that are a linear map of the latents are found, and noise around them averages out.
    #[test]
    fn a_linear_map_is_found() {
        let (pixels, channels) = (400, 4);
        let mut generator = Generator::from_seed(1);
        let latents = generator.randn(channels * pixels);
        let truth =
            [[0.5, -0.25, 0.0], [0.0, 0.5, 0.25], [-0.5, 0.0, 0.125], [0.25, 0.25, 0.25], [0.1, 0.2, 0.3]];
        let noise = generator.randn(3 * pixels);
        let colour = |colour: usize, pixel: usize| {
            let sum: f64 =
                (0..channels).map(|c| truth[c][colour] * f64::from(latents[c * pixels + pixel])).sum();
            (sum + truth[channels][colour]) as f32 + 0.01 * noise[colour * pixels + pixel]
        };
        let colours: Vec<f32> = (0..3 * pixels).map(|index| colour(index / pixels, index % pixels)).collect();
        let found = Colours::least_squares(&latents, &colours, pixels);
        let apart = found.weights.iter().flatten().zip(truth.iter().flatten()).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0, f64::max);
        assert!(apart < 3e-3, "{apart}: {found:?}");
        // Two frames, of one pixel each: the constant, and the first channel.
        let latents = TensorData::new(vec![0.0f32, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 4, 2, 1, 1]);
        let latents = Tensor::<5>::from_data(latents, (&Device::flex(), DType::F32));
        let colours = found.of(latents).into_data().try_to_vec::<f32>().unwrap();
        for (index, colour) in colours.into_iter().enumerate() {
            let expected = truth[4][index % 3] + if index < 3 { 0.0 } else { truth[0][index % 3] };
            assert!((f64::from(colour) - expected).abs() < 5e-3, "{index}: {colour} for {expected}");
        }
    }

    #[test]
    fn random_pictures_have_all_colours() {
        let (side, mut generator) = (32, Generator::from_seed(0));
        let pictures: Vec<_> = (0..PICTURES).map(|_| random_picture(&mut generator, side)).collect();
        for colour in 0..3 {
            let values = pictures.iter().flat_map(|picture| &picture[colour * side * side..][..side * side]);
            let count = (PICTURES * side * side) as f32;
            let mean = values.clone().sum::<f32>() / count;
            let spread = values.map(|value| (value - mean).powi(2)).sum::<f32>() / count;
            assert!(mean.abs() < 0.4 && spread.sqrt() > 0.4, "{mean} {spread}");
        }
        assert!(pictures.iter().flatten().all(|value| value.abs() <= 1.0));
    }
}
