//! PixArt-α and PixArt-Σ, from a prompt to a picture.
//!
//! Source: diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::Branch;
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::PLAIN;
use crate::caption::caption;
use crate::component::ModelIndex;
use crate::latent_diffusion::{
    Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit, sequence_length,
};
use crate::pixart::{Conditions, PixArt};
use crate::resolution::nearest_size;
use crate::text_encoder::{Desk, Folders, Padding, T5Text};

/// The recipe of PixArt.
pub struct PixArtRecipe {
    default_sequence_length: usize,
    text_encoder: T5Text,
}

/// Opens an α checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open_alpha(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    open(index, options, 120)
}

/// Opens a Σ checkpoint.
///
/// # Errors
/// As [`open_alpha`].
pub fn open_sigma(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    open(index, options, 300)
}

fn open(
    index: &ModelIndex,
    options: &LoadOptions,
    default_sequence_length: usize,
) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model: &LatentModel<PixArt>| {
        let text_encoder = T5Text::open(index, options, Folders::ALL[0])?;
        let wanted = model.transformer.config.caption_channels;
        must_fit("text encoder's and transformer's text features", text_encoder.features(), wanted)?;
        Ok(PixArtRecipe { default_sequence_length, text_encoder })
    })
}

impl Recipe for PixArtRecipe {
    type Transformer = PixArt;

    const FAMILY: Family = Family {
        name: "PixArt",
        transformer: &["Transformer2DModel", "PixArtTransformer2DModel"],
        vae: &[PLAIN],
        path: Path::Diffusion,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        vec![Extra::NegativePrompt, Extra::MaxSequenceLength, Extra::CleanCaption]
    }

    fn choose(&self, request: &Request, model: &LatentModel<PixArt>) -> Result<Choices> {
        let sample_size = model.transformer.config.sample_size;
        let size = model.size(request, sample_size);
        let generated_size = if request.use_resolution_binning {
            check_size(size, 1, "")?;
            nearest_size(sample_size, size[0], size[1]).ok_or_else(|| {
                Error::usage(format!("there is no table of sizes for `sample_size` {sample_size}"))
                    .hint("turn resolution binning off")
            })?
        } else {
            check_size(size, model.pixels_per_token(), ", or leave resolution binning on")?;
            size
        };
        let guidance_scale = request.guidance_scale.unwrap_or(4.5);
        Ok(Choices {
            size,
            generated_size,
            num_inference_steps: request.num_inference_steps.unwrap_or(20),
            guidance_scale,
            max_sequence_length: sequence_length(request, self.default_sequence_length, None)?,
            branches: Branch::classifier_free(guidance_scale > 1.0),
            frames: None,
        })
    }

    /// Image tokens attend to the text, which stays unchanged.
    fn changed_text_tokens(&self, _: &Resolved) -> usize {
        0
    }

    fn encode(
        &mut self,
        resolved: &Resolved,
        model: &LatentModel<PixArt>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let request = &resolved.request;
        let guided = resolved.guidance_scale > 1.0;
        let negatives = if guided { request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|index| request.negative_texts(index)[0]);
        let prompts = request.prompts.iter().map(String::as_str);
        let captions: Vec<String> =
            prompts.chain(negatives).map(|text| caption(text, request.clean_caption)).collect();
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let length = (resolved.max_sequence_length, Padding::None);
        let embeddings = self.text_encoder.encode(&captions, length, desk)?;
        let micro_conditions = model.transformer.config.micro_conditions;
        let conditions = |text: Tensor<3>| Conditions {
            text,
            bias: None,
            size: micro_conditions.then_some(resolved.generated_size),
        };
        Ok(embeddings.into_iter().map(conditions).collect())
    }
}
