//! Initial latents: the values of `torch.randn` with PyTorch's CPU generator, bit for bit.
//!
//! A seed gives the same picture as in diffusers only if the noise is the same, so this code follows PyTorch's
//! generator in every visible detail: the Mersenne Twister, the switch of algorithm at 16 values, the last block
//! that is drawn again, and the rounding of the vectorised logarithm, sine and cosine. The code is portable and
//! scalar, so every machine reproduces the values of PyTorch on x86 with AVX2. (PyTorch's AVX-512 dispatch uses the
//! same kernel; its fallback without AVX2 differs in the last bits.)

mod box_muller;
mod mersenne_twister;

use std::f64::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};

use box_muller::{BLOCK, normal_block};
use mersenne_twister::MersenneTwister;
use rayon::prelude::*;

/// Fewer blocks are transformed sooner than another thread wakes up.
const BLOCKS_OF_TASK: usize = 128;

/// A stream of random numbers, equal to `torch.Generator("cpu").manual_seed(seed)`.
///
/// Consecutive draws continue the stream, exactly as with one `torch.Generator`.
///
/// ```
/// use xdit_core::noise::Generator;
///
/// let mut generator = Generator::from_seed(0);
/// assert_eq!(generator.randn(2), [1.5409961, -0.2934289]);
/// assert_eq!(generator.randn(1), [-2.1787894]);
/// ```
///
/// # Source
/// PyTorch 2.15, `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_kernel`, `normal_fill`) and
/// `aten/src/ATen/core/DistributionsHelper.h` (`normal_distribution`).
#[derive(Clone, Debug)]
pub struct Generator {
    engine: MersenneTwister,
    /// The sine value of the last pair, if only its cosine value has been returned. Blocks of 16 do not change it.
    next_normal: Option<f64>,
}

impl Generator {
    /// The stream of `torch.Generator("cpu").manual_seed(seed)`. As in PyTorch, only the low 32 bits of the seed
    /// matter.
    pub fn from_seed(seed: u64) -> Self {
        Self { engine: MersenneTwister::from_seed(seed as u32), next_normal: None }
    }

    /// The next `count` standard normal values: `torch.randn(count, generator=…)` in f32.
    ///
    /// A tensor of any shape is filled in memory order, so `count` is the product of its dims.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        values.as_chunks_mut().0.par_iter_mut().with_min_len(BLOCKS_OF_TASK).for_each(normal_block);
        if !count.is_multiple_of(BLOCK) {
            // The remainder is too short for a block: the last 16 values are drawn again and overwrite earlier
            // ones.
            let last = values.last_chunk_mut().expect("count is at least a block here");
            last.fill_with(|| self.uniform_f32());
            normal_block(last);
        }
        values
    }

    /// One normal value by the scalar Box-Muller transform in f64. Values come in pairs; the second one is kept for
    /// the next call.
    fn normal(&mut self) -> f64 {
        if let Some(sample) = self.next_normal.take() {
            return sample;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * PI * u1;
        self.next_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// Uniform in [0, 1) with the 24 bits that an f32 can hold.
    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next_u32() & 0x00ff_ffff) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [0, 1) with the 53 bits that an f64 can hold; the first word drawn is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let word = u64::from(self.engine.next_u32()) << 32 | u64::from(self.engine.next_u32());
        (word & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// Initial latents of the pictures with seeds `seed`, `seed + 1`, …. Each picture has its own generator and does
/// not depend on the others.
///
/// # Shapes
/// - `shape`, and the result: `[images, channels, height, width]`, with height and width in latent pixels, or with
///   further dimensions between them for clips
///
/// # Source
/// `randn_tensor` of diffusers with a list of generators.
pub fn latents<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let count = shape[1..].iter().product();
    let values: Vec<f32> = (0..shape[0] as u64)
        .flat_map(|image| Generator::from_seed(seed.wrapping_add(image)).randn(count))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}
