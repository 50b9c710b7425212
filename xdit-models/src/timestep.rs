//! Sinusoidal embeddings of numbers, and the small network that processes them.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_core::weights::Weights;
use xdit_core::{Result, linear::Linear};
use xdit_kernels::{Activation, activate};

/// The width of the sinusoids in all transformers.
pub const SINUSOID_WIDTH: usize = 256;

/// For each width, the frequencies that PyTorch's exponential rounds up to the number above the nearest one. The
/// difference is visible: FLUX embeds a thousand times its guidance scale, and with angles in the thousands the last bit
/// of a frequency affects the fourth digit.
const ROUNDED_UP: [(usize, [usize; 2]); 2] = [(SINUSOID_WIDTH, [12, 106]), (320, [2, 55])];

/// Embeds each value as `[cos(v f₀) … cos(v f₁₂₇), sin(v f₀) … sin(v f₁₂₇)]`, with `f_i = 10000^(-i/128)`.
///
/// # Shapes
/// Result `[values, 256]`.
///
/// # Source
/// diffusers' `get_timestep_embedding` with `flip_sin_to_cos` and `downscale_freq_shift = 0`. Frequencies and
/// angles are rounded to f32 in the same places as in PyTorch, because the rounding is visible for angles near
/// 1000.
pub fn sinusoids(values: &[f32], device: &Device) -> Tensor<2> {
    sinusoids_of_width(values, SINUSOID_WIDTH, device)
}

/// As [`sinusoids`], with `width / 2` frequencies `f_i = 10000^(-2i/width)`.
///
/// # Shapes
/// Result `[values, width]`; `width` is even.
pub fn sinusoids_of_width(values: &[f32], width: usize, device: &Device) -> Tensor<2> {
    let rounded_up = |i| ROUNDED_UP.iter().any(|(of, places)| *of == width && places.contains(&i));
    let frequency = |i| {
        let frequency = frequency(i, width / 2);
        if rounded_up(i) { frequency.next_up() } else { frequency }
    };
    of_frequencies(values, width, frequency, device)
}

/// As [`sinusoids`], with frequencies that end at exactly 1/10000: `f_i = 10000^(-i/127)`.
///
/// # Source
/// diffusers' `get_timestep_embedding` with `flip_sin_to_cos` and `downscale_freq_shift = 1`.
pub fn sinusoids_inclusive(values: &[f32], device: &Device) -> Tensor<2> {
    of_frequencies(values, SINUSOID_WIDTH, |i| frequency(i, SINUSOID_WIDTH / 2 - 1), device)
}

/// `10000^(-i/steps)`
fn frequency(i: usize, steps: usize) -> f32 {
    let step = -(10000f64.ln()) as f32;
    ((step * i as f32 / steps as f32) as f64).exp() as f32
}

fn of_frequencies(
    values: &[f32],
    width: usize,
    frequency: impl Fn(usize) -> f32,
    device: &Device,
) -> Tensor<2> {
    let frequencies: Vec<f32> = (0..width / 2).map(frequency).collect();
    let mut data = Vec::with_capacity(values.len() * width);
    for value in values {
        let angles = || frequencies.iter().map(|frequency| (value * frequency) as f64);
        data.extend(angles().map(|angle| angle.cos() as f32));
        data.extend(angles().map(|angle| angle.sin() as f32));
    }
    Tensor::from_data(TensorData::new(data, [values.len(), width]), (device, DType::F32))
}

/// Two linear layers with SiLU between them.
///
/// # Source
/// diffusers' `TimestepEmbedding`.
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Loads the layers from `weights`.
    ///
    /// # Errors
    /// If a layer is missing or has the wrong shape.
    pub fn load(weights: &Weights, c_in: usize, c_out: usize) -> Result<Self> {
        Self::load_of(weights, [c_in, c_out, c_out])
    }

    /// As [`load`](Self::load), with `inner` features between the layers (diffusers' `PixArtAlphaTextProjection` with
    /// `silu_fp32`).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_of(weights: &Weights, [c_in, inner, c_out]: [usize; 3]) -> Result<Self> {
        Ok(Self {
            linear_1: weights.linear("linear_1", c_in, inner)?,
            linear_2: weights.linear("linear_2", inner, c_out)?,
        })
    }

    /// # Shapes
    /// `x`: `[values, c_in]`, result `[values, c_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(activate(Activation::Silu, self.linear_1.forward(x)))
    }
}
