//! FLUX.1 schnell and dev, from a prompt to a picture.
//!
//! Source: diffusers' `FluxPipeline`.

use xdit_core::Result;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::scheduler::{Path, Steps};

use crate::autoencoder_kl::PLAIN;
use crate::component::ModelIndex;
use crate::flux::{Conditions, Flux};
use crate::latent_diffusion::{
    Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit, sequence_length,
};
use crate::text_encoder::{ClipText, Desk, Folders, Padding, T5Text};

/// The default distilled guidance.
const DEFAULT_GUIDANCE: f32 = 3.5;

/// The number of steps of models distilled for few steps, FLUX.1-schnell, if the request has none. (diffusers takes 28 for
/// all models.)
const DISTILLED_STEPS: usize = 4;

/// The default side in latent pixels.
const DEFAULT_SIDE: usize = 128;

/// The number of T5 tokens, padding included: the default, and the maximum that the model was trained with.
const MAX_SEQUENCE_LENGTH: usize = 512;

/// The recipe of FLUX.
pub struct FluxRecipe {
    clip: ClipText,
    t5: T5Text,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model: &LatentModel<Flux>| {
        let [first, second, _] = Folders::ALL;
        let clip = ClipText::open(index, options, first, false)?;
        let t5 = T5Text::open(index, options, second)?;
        let flux = &model.transformer.config;
        let pooled = clip.config().hidden_size;
        must_fit("CLIP's and the transformer's pooled features", pooled, flux.pooled_projection_dim)?;
        must_fit("T5's and the transformer's text features", t5.features(), flux.joint_attention_dim)?;
        Ok(FluxRecipe { clip, t5 })
    })
}

/// The scale of classifier-free guidance, if it is on. As in diffusers, this takes a negative prompt, which may be empty.
fn true_cfg(request: &Request) -> Option<f32> {
    request.true_cfg_scale.filter(|&scale| scale > 1.0 && !request.negative_prompts.is_empty())
}

/// Whether there is a negative prompt that is not empty.
fn has_negative(request: &Request) -> bool {
    (0..request.negatives()).any(|index| request.negative_texts(index).iter().any(|text| !text.is_empty()))
}

impl Recipe for FluxRecipe {
    type Transformer = Flux;

    const FAMILY: Family = Family {
        name: "FLUX",
        transformer: &["FluxTransformer2DModel"],
        vae: &[PLAIN],
        path: Path::Flow,
        steps: |count| Steps::new(count).with_even_sigmas(),
    };

    fn extras(&self) -> Vec<Extra> {
        vec![
            Extra::NegativePrompt,
            Extra::MaxSequenceLength,
            Extra::Prompt2,
            Extra::NegativePrompt2,
            Extra::TrueCfgScale,
        ]
    }

    fn choose(&self, request: &Request, model: &LatentModel<Flux>) -> Result<Choices> {
        let size = model.size(request, DEFAULT_SIDE);
        // diffusers rounds down and warns. An explicit size should not change silently, so this is an error instead.
        check_size(size, model.pixels_per_token(), "")?;
        let max_sequence_length = sequence_length(request, MAX_SEQUENCE_LENGTH, Some(MAX_SEQUENCE_LENGTH))
            .map_err(|error| error.hint("FLUX was trained with 512 text tokens, schnell with 256"))?;
        let guided = model.transformer.config.guidance_embeds;
        let default = if guided { DEFAULT_GUIDANCE } else { 0.0 };
        Ok(Choices {
            size,
            generated_size: size,
            num_inference_steps: request.num_inference_steps.unwrap_or(if guided {
                28
            } else {
                DISTILLED_STEPS
            }),
            guidance_scale: request.guidance_scale.unwrap_or(default),
            max_sequence_length,
            branches: Branch::classifier_free(true_cfg(request).is_some()),
            frames: None,
        })
    }

    fn changed_text_tokens(&self, resolved: &Resolved) -> usize {
        resolved.max_sequence_length
    }

    fn warnings(&self, resolved: &Resolved, model: &LatentModel<Flux>) -> Vec<String> {
        let (request, mut warnings) = (&resolved.request, Vec::new());
        if !model.transformer.config.guidance_embeds && request.num_inference_steps.is_none() {
            warnings.push(format!(
                "this FLUX model was distilled for few steps: {DISTILLED_STEPS} are taken, and `num_inference_steps` sets another number"
            ));
        }
        if !model.transformer.config.guidance_embeds && resolved.guidance_scale != 0.0 {
            warnings.push(format!(
                "this FLUX model was not made for guidance: the guidance scale `{}` changes nothing",
                resolved.guidance_scale
            ));
        }
        if request.true_cfg_scale.is_some_and(|scale| scale > 1.0) && request.negative_prompts.is_empty() {
            warnings.push(
                "the `true_cfg_scale` changes nothing without a `negative_prompt`, which may be empty"
                    .to_owned(),
            );
        } else if true_cfg(request).is_none() && has_negative(request) {
            warnings.push(
                "the negative prompt changes nothing: FLUX uses it only with a `true_cfg_scale` above 1"
                    .to_owned(),
            );
        }
        warnings
    }

    /// CLIP's pooled output for the first text, and T5's embeddings of the second.
    fn encode(
        &mut self,
        resolved: &Resolved,
        _: &LatentModel<Flux>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let request = &resolved.request;
        let prompts = (0..request.prompts.len()).map(|index| request.texts(index));
        let negatives = if true_cfg(request).is_some() { request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|index| request.negative_texts(index));
        let texts: Vec<_> = prompts.chain(negatives).collect();
        let first: Vec<_> = texts.iter().map(|texts| (texts[0], 0)).collect();
        let second: Vec<_> = texts.iter().map(|texts| texts[1]).collect();
        let clip = self.clip.encode(&first, desk)?;
        let t5 = self.t5.encode(&second, (resolved.max_sequence_length, Padding::Seen), desk)?;
        let guidance = resolved.guidance_scale;
        let pairs = clip.into_iter().zip(t5);
        Ok(pairs.map(|(clip, text)| Conditions { text, pooled: clip.pooled, guidance }).collect())
    }

    fn guidance(&self, resolved: &Resolved, prompt: usize, negative: usize) -> Guidance<usize> {
        match true_cfg(&resolved.request) {
            Some(scale) => Guidance::classifier_free(negative, prompt, scale),
            None => Guidance::none(prompt),
        }
    }
}
