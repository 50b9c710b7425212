//! DiT, from a class to a picture.
//!
//! Source: diffusers' `DiTPipeline`.

use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::Branch;
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::PLAIN;
use crate::component::ModelIndex;
use crate::dit::{Conditions, Dit};
use crate::labels::Labels;
use crate::latent_diffusion::{Choices, Family, LatentModel, LatentPipeline, Recipe, check_size};
use crate::text_encoder::Desk;

/// The recipe of DiT. Its prompts are classes, and there is no text.
pub struct DitRecipe {
    labels: Labels,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model: &LatentModel<Dit>| {
        Ok(DitRecipe { labels: Labels::new(&index.id2label, model.transformer.config.classes)? })
    })
}

impl Recipe for DitRecipe {
    type Transformer = Dit;

    const FAMILY: Family = Family {
        name: "DiT",
        transformer: &["Transformer2DModel", "DiTTransformer2DModel"],
        vae: &[PLAIN],
        path: Path::Diffusion,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        Vec::new()
    }

    fn choose(&self, request: &Request, model: &LatentModel<Dit>) -> Result<Choices> {
        for label in &request.prompts {
            self.labels.class(label)?;
        }
        let trained = model.size(&Request::new(""), model.transformer.config.sample_size);
        check_size(trained, model.pixels_per_token(), "").map_err(Error::into_failure)?;
        let size = model.size(request, model.transformer.config.sample_size);
        for (name, side, trained) in [("height", size[0], trained[0]), ("width", size[1], trained[1])] {
            if side != trained {
                return Err(Error::usage(format!("{name} `{side}` is not the model's {name}")).hint(
                    format!("DiT generates at the size it was trained for: leave it out, or use `{trained}`"),
                ));
            }
        }
        let guidance_scale = request.guidance_scale.unwrap_or(4.0);
        Ok(Choices {
            size,
            generated_size: size,
            num_inference_steps: request.num_inference_steps.unwrap_or(50),
            guidance_scale,
            max_sequence_length: 0,
            branches: Branch::classifier_free(guidance_scale > 1.0),
            frames: None,
        })
    }

    /// There is no text.
    fn changed_text_tokens(&self, _: &Resolved) -> usize {
        0
    }

    /// The classes of the prompts and, for guidance, no class.
    fn encode(
        &mut self,
        resolved: &Resolved,
        _: &LatentModel<Dit>,
        _: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let prompts = resolved.request.prompts.iter().map(|label| self.labels.class(label));
        let negatives = if resolved.guidance_scale > 1.0 { resolved.request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|_| Ok(self.labels.none()));
        prompts.chain(negatives).map(|class| Ok(Conditions { class: class? })).collect()
    }
}
