//! Diffusion transformers, text encoders, autoencoders and tokenizers, each in its own file.
#![forbid(unsafe_code)]

pub mod adaln_single;
pub mod autoencoder_kl;
pub mod bert;
pub mod caption;
pub mod clip;
pub mod component;
mod conditions;
pub mod convolution;
pub mod dit;
pub mod dit_pipeline;
pub mod flux;
pub mod flux_pipeline;
pub mod hunyuan;
pub mod hunyuan_pipeline;
pub mod labels;
pub mod latent_diffusion;
pub mod latte;
pub mod latte_pipeline;
pub mod layers;
pub mod memory;
pub mod pixart;
pub mod pixart_pipeline;
pub mod position;
mod preview;
pub mod resolution;
pub mod rotary;
pub mod sd3;
pub mod sd3_pipeline;
pub mod sdxl_pipeline;
pub mod sharding;
pub mod t5;
pub mod temporal_decoder;
pub mod text_encoder;
pub mod tiling;
pub mod timestep;
pub mod tokenizer;
pub mod unet;

use std::path::Path;

use xdit_core::pipeline::{LoadOptions, Pipeline};
use xdit_core::{Error, Result};

use component::ModelIndex;
use text_encoder::Folders;

/// A supported kind of checkpoint.
pub struct Model {
    /// The common name, with the variants that the same code covers.
    pub name: &'static str,
    /// The class of the pipeline in `model_index.json`.
    pub class_name: &'static str,
    /// Checks a checkpoint of this kind and returns its pipeline.
    pub open: fn(&ModelIndex, &LoadOptions) -> Result<Box<dyn Pipeline>>,
}

/// A method that does not apply to a model.
pub struct Gap {
    /// The name of the [model](Model::name).
    pub model: &'static str,
    /// The name of the method.
    pub method: &'static str,
    /// The reason, which follows a colon.
    pub reason: &'static str,
}

/// The methods that do not apply to some model. Requests for them are refused with the reason.
pub const GAPS: &[Gap] = sdxl_pipeline::GAPS;

/// All supported kinds of checkpoints.
pub const MODELS: &[Model] = &[
    Model {
        name: "PixArt-α (256, 512, 1024)",
        class_name: "PixArtAlphaPipeline",
        open: pixart_pipeline::open_alpha,
    },
    Model {
        name: "PixArt-Σ (256, 512, 1024, 2K)",
        class_name: "PixArtSigmaPipeline",
        open: pixart_pipeline::open_sigma,
    },
    Model {
        name: "Stable Diffusion 3 medium, 3.5 medium, 3.5 large",
        class_name: "StableDiffusion3Pipeline",
        open: sd3_pipeline::open,
    },
    Model { name: "HunyuanDiT 1.1, 1.2", class_name: "HunyuanDiTPipeline", open: hunyuan_pipeline::open },
    Model { name: "Latte", class_name: "LattePipeline", open: latte_pipeline::open },
    Model { name: "FLUX.1 schnell, dev", class_name: "FluxPipeline", open: flux_pipeline::open },
    Model { name: "DiT-XL/2 (256, 512)", class_name: "DiTPipeline", open: dit_pipeline::open },
    Model { name: sdxl_pipeline::NAME, class_name: "StableDiffusionXLPipeline", open: sdxl_pipeline::open },
];

/// A kind of checkpoint that is not supported although models of its family are.
struct Other {
    class_name: &'static str,
    /// The reason, which follows a colon.
    reason: &'static str,
    /// What to do instead.
    hint: &'static str,
}

/// All such kinds that users of the family meet.
const OTHERS: &[Other] = &[Other {
    class_name: "StableDiffusionXLImg2ImgPipeline",
    reason: "it refines another model's picture, and pictures begin with noise here",
    hint: "use Stable Diffusion XL base alone, with all of its steps: its pictures are complete without the refiner",
}];

/// Opens the checkpoint in `dir`, in the diffusers layout.
///
/// ```no_run
/// use burn::tensor::{DType, Device};
/// use xdit_core::{LoadOptions, Request};
///
/// let options = LoadOptions::new(Device::flex(), DType::F32);
/// let mut pipeline = xdit_models::open("pixart".as_ref(), &options)?;
/// let request = Request { seed: 7, num_inference_steps: Some(14), ..Request::new("a small cactus") };
/// let generated = pipeline.generate(&request, &mut ())?;
/// println!("{:?}, {} pixels", generated.latents::<4>().dims(), generated.pictures[0].rgb.len() / 3);
/// # Ok::<(), xdit_core::Error>(())
/// ```
///
/// # Errors
/// If its kind is not supported, or anything in it is missing, malformed or inconsistent.
pub fn open(dir: &Path, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    let mut index = ModelIndex::read(dir)?;
    if options.no_text_encoder_3 {
        let removed = index.components.remove(Folders::ALL[2].encoder);
        if index.class_name != "StableDiffusion3Pipeline" {
            return Err(Error::usage(format!(
                "`{}` has no third text encoder to leave out",
                index.class_name
            ))
            .hint("leave out `--text-encoder-3`"));
        }
        // A checkpoint without it stays as it is.
        drop(removed);
        index.components.remove(Folders::ALL[2].tokenizer);
    }
    if options.temporal_decoder {
        index.use_temporal_decoder()?;
    }
    match MODELS.iter().find(|model| model.class_name == index.class_name) {
        Some(model) => (model.open)(&index, options),
        None => {
            if let Some(other) = OTHERS.iter().find(|other| other.class_name == index.class_name) {
                let Other { class_name, reason, hint } = other;
                return Err(Error::failure(format!("`{class_name}` is not supported: {reason}")).hint(*hint));
            }
            let names: Vec<_> = MODELS.iter().map(|model| format!("`{}`", model.class_name)).collect();
            Err(Error::failure(format!("pipelines of class `{}` are not supported", index.class_name))
                .hint(format!("supported: {}", names.join(", "))))
        }
    }
}
