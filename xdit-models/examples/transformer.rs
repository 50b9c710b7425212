//! The PixArt transformer by itself, on tensors of one's own: no prompt, no tokenizer, no pipeline.
//!
//! ```text
//! cargo run --release -p xdit-cli -- demo-checkpoint demo
//! cargo run --release -p xdit-models --example transformer -- demo
//! ```

use std::path::Path;

use burn::tensor::{DType, Device, Distribution, Tensor};
use xdit_core::Result;
use xdit_core::attention::Local;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::tokens::{Tokens, pack, unpack};
use xdit_core::transformer::Transformer;
use xdit_core::weights::Weights;
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::pixart::{Conditions, PixArt, PixArtConfig};

/// The noise `[1, c, y, x]` that the transformer of `checkpoint` sees in random latents at timestep 500.
pub fn run(checkpoint: &Path) -> Result<Tensor<4>> {
    let folder = checkpoint.join("transformer");
    let config = PixArtConfig::read(Config::read(&folder.join("config.json"))?)?;
    let files = Checkpoint::open(&folder, "diffusion_pytorch_model", None)?;
    let device = Device::flex();
    let model = PixArt::load(&config, &Weights::new(files, &device, DType::F32))?;

    // Any size will do, square or not.
    let (height, width) = (24, 40);
    let normal = Distribution::Normal(0.0, 1.0);
    let options = (&device, DType::F32);
    let latents = Tensor::<4>::random([1, config.spec.channels, height, width], normal, options);
    let text = Tensor::<3>::random([1, 12, config.caption_channels], normal, options);
    let conditions = Conditions { text, bias: None, size: config.micro_conditions.then_some([192, 320]) };

    let tokens = pack(latents, config.spec.patch);
    let positions = tokens.positions.clone();
    let noise = model.forward(tokens, &conditions, 500.0, &mut Local);
    Ok(unpack(Tokens { x: noise, positions }, config.spec.patch))
}

fn main() -> Result<()> {
    let checkpoint = std::env::args().nth(1).unwrap_or_else(|| "demo".to_owned());
    let noise = run(Path::new(&checkpoint))?;
    println!("noise {:?}, mean {}", noise.dims(), noise.mean());
    Ok(())
}
