//! Pictures from a checkpoint, inside a program that works with Burn's tensors.
//!
//! ```text
//! cargo run --release -p xdit-cli -- demo-checkpoint demo
//! cargo run --release -p xdit-models --example generate -- demo
//! ```

use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use xdit_core::pipeline::Step;
use xdit_core::{LoadOptions, Observer, Request, Result};

/// Prints each step.
struct Steps;

impl Observer for Steps {
    fn step(&mut self, step: Step, _: Instant) {
        eprintln!("{:?}: step {} of {}", step.phase, step.done, step.of);
    }
}

/// The final latents `[1, c, y, x]` of a picture, and the picture as a tensor `[y, x, 3]` with values from 0 to 255.
pub fn run(checkpoint: &Path) -> Result<(Tensor<4>, Tensor<3>)> {
    let device = Device::flex();
    let options = LoadOptions::new(device.clone(), DType::F32);
    // Everything is checked here; weights are read when they are needed.
    let mut pipeline = xdit_models::open(checkpoint, &options)?;

    let request = Request { seed: 7, num_inference_steps: Some(4), ..Request::new("a small cactus") };
    let resolved = pipeline.resolve(&request)?;
    eprintln!("{} x {} pixels", resolved.size[1], resolved.size[0]);

    let generated = pipeline.generate(&request, &mut Steps)?;
    let picture = &generated.pictures[0];
    let values: Vec<f32> = picture.rgb.iter().map(|&byte| f32::from(byte)).collect();
    let pixels = Tensor::<1>::from_floats(values.as_slice(), &device);
    Ok((generated.latents(), pixels.reshape([picture.height, picture.width, 3])))
}

fn main() -> Result<()> {
    let checkpoint = std::env::args().nth(1).unwrap_or_else(|| "demo".to_owned());
    let (latents, pixels) = run(Path::new(&checkpoint))?;
    println!("latents {:?}, pixels {:?}, mean {}", latents.dims(), pixels.dims(), pixels.mean());
    Ok(())
}
