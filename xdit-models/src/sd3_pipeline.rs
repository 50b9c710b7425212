//! Stable Diffusion 3 and 3.5, from a prompt to a picture.
//!
//! Source: diffusers' `StableDiffusion3Pipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::check_skipped_layers;
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::PLAIN;
use crate::clip::ClipOutput;
use crate::component::ModelIndex;
use crate::latent_diffusion::{
    Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit, sequence_length,
};
use crate::sd3::{Conditions, Sd3};
use crate::text_encoder::{ClipText, Desk, Folders, Padding, T5Text};

/// The number of T5 tokens: the default, and the maximum that diffusers accepts.
const DEFAULT_SEQUENCE_LENGTH: usize = 256;
const MAX_SEQUENCE_LENGTH: usize = 512;

/// The recipe of Stable Diffusion 3 and 3.5.
pub struct Sd3Recipe {
    clips: [ClipText; 2],
    /// Optional in a checkpoint.
    t5: Option<T5Text>,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model| Sd3Recipe::open(index, options, model))
}

impl Sd3Recipe {
    fn open(index: &ModelIndex, options: &LoadOptions, model: &LatentModel<Sd3>) -> Result<Self> {
        let [first, second, third] = Folders::ALL;
        let clips =
            [ClipText::open(index, options, first, true)?, ClipText::open(index, options, second, true)?];
        let has_t5 = index.components.contains_key(third.encoder);
        let t5 = has_t5.then(|| T5Text::open(index, options, third)).transpose()?;

        let config = &model.transformer.config;
        let pooled = clips.iter().map(|clip| clip.config().projection_dim).sum();
        must_fit("text encoders' and transformer's pooled features", pooled, config.pooled_projection_dim)?;
        let [first, second] = [&clips[0], &clips[1]].map(ClipText::text_tokens);
        must_fit("lengths of CLIP's texts in `tokenizer` and `tokenizer_2`", first, second)?;
        if let Some(t5) = &t5 {
            let (found, wanted) = (t5.features(), config.joint_attention_dim);
            must_fit("third text encoder's and transformer's text features", found, wanted)?;
        }
        // CLIP's states are concatenated along the features and padded with zeros to the width of T5's.
        let side_by_side = clips.iter().map(|clip| clip.config().hidden_size).sum::<usize>();
        if side_by_side > config.joint_attention_dim {
            return Err(Error::failure(format!(
                "text encoders have {side_by_side} features, the transformer takes {} only",
                config.joint_attention_dim
            ))
            .hint("the components of this checkpoint come from different models"));
        }
        Ok(Self { clips, t5 })
    }
}

/// Joins the outputs of the text encoders for one text: CLIP's tokens, with the features of both models concatenated
/// and padded with zeros to T5's width, followed by T5's tokens.
fn conditions([clip_l, clip_g]: [ClipOutput; 2], t5: Tensor<3>) -> Conditions {
    let clip = Tensor::cat(vec![clip_l.hidden, clip_g.hidden], 2);
    let ([b, n, features], width) = (clip.dims(), t5.dims()[2]);
    let zeros = |missing| Tensor::zeros([b, n, missing], (&clip.device(), clip.dtype()));
    let clip = match width - features {
        0 => clip,
        missing => Tensor::cat(vec![clip.clone(), zeros(missing)], 2),
    };
    Conditions {
        text: Tensor::cat(vec![clip, t5], 1),
        pooled: Tensor::cat(vec![clip_l.pooled, clip_g.pooled], 1),
    }
}

/// The guidance branches: with guidance, the negative prompt's; the prompt's; and, if guidance is on for some step,
/// the branch that skips layers. As in diffusers, no layers are skipped without guidance.
fn branches(request: &Request, steps: usize, guidance_scale: f32) -> Vec<Branch> {
    let guided = guidance_scale > 1.0;
    let mut branches = Branch::classifier_free(guided);
    if let Some(skip) = request.skip_layer_guidance.as_ref().filter(|skip| guided && skip.scale != 0.0) {
        let skipping = Branch { steps: skip.window(steps), skip_layers: skip.layers.clone() };
        branches.extend(Some(skipping).filter(|branch| !branch.steps.is_empty()));
    }
    branches
}

/// Whether one of the [`branches`] skips layers.
fn skips_layers(resolved: &Resolved) -> bool {
    resolved.plan.branches.len() > 2
}

impl Recipe for Sd3Recipe {
    type Transformer = Sd3;

    const FAMILY: Family = Family {
        name: "Stable Diffusion 3",
        transformer: &["SD3Transformer2DModel"],
        vae: &[PLAIN],
        path: Path::Flow,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        let extras = [
            Extra::NegativePrompt,
            Extra::MaxSequenceLength,
            Extra::Prompt2,
            Extra::Prompt3,
            Extra::NegativePrompt2,
            Extra::NegativePrompt3,
            Extra::SkipGuidanceLayers,
            Extra::ClipSkip,
        ];
        let of_t5 = [Extra::Prompt3, Extra::NegativePrompt3];
        extras.into_iter().filter(|extra| self.t5.is_some() || !of_t5.contains(extra)).collect()
    }

    fn choose(&self, request: &Request, model: &LatentModel<Sd3>) -> Result<Choices> {
        if let Some(clip_skip) = request.clip_skip {
            self.clips.iter().try_for_each(|clip| clip.config().check_clip_skip(clip_skip))?;
        }
        let config = &model.transformer.config;
        if let Some(skip) = request.skip_layer_guidance.as_ref().filter(|skip| skip.scale != 0.0) {
            // Checked even if no step skips them.
            check_skipped_layers(&skip.layers, &config.spec)?;
        }
        let size = model.size(request, config.sample_size);
        let unit = model.pixels_per_token();
        check_size(size, unit, "")?;
        let largest = config.pos_embed_max_size * unit;
        for (name, side) in [("height", size[0]), ("width", size[1])] {
            if side > largest {
                return Err(Error::usage(format!("{name} `{side}` is larger than {largest}"))
                    .hint("the model has no positions for larger pictures"));
            }
        }
        let num_inference_steps = request.num_inference_steps.unwrap_or(28);
        let guidance_scale = request.guidance_scale.unwrap_or(7.0);
        Ok(Choices {
            size,
            generated_size: size,
            num_inference_steps,
            guidance_scale,
            max_sequence_length: sequence_length(
                request,
                DEFAULT_SEQUENCE_LENGTH,
                Some(MAX_SEQUENCE_LENGTH),
            )?,
            branches: branches(request, num_inference_steps, guidance_scale),
            frames: None,
        })
    }

    fn changed_text_tokens(&self, resolved: &Resolved) -> usize {
        self.clips[0].text_tokens() + resolved.max_sequence_length
    }

    fn warnings(&self, resolved: &Resolved, _: &LatentModel<Sd3>) -> Vec<String> {
        let skip = resolved.request.skip_layer_guidance.as_ref().filter(|skip| skip.scale != 0.0);
        match skip {
            Some(_) if resolved.guidance_scale <= 1.0 => {
                vec!["the layers to skip change nothing without a `guidance_scale` above 1".to_owned()]
            }
            Some(skip) if !skips_layers(resolved) => vec![format!(
                "the layers to skip change nothing: of {} steps none lies between start `{}` and stop `{}`",
                resolved.num_inference_steps, skip.start, skip.stop
            )],
            _ => Vec::new(),
        }
    }

    fn encode(
        &mut self,
        resolved: &Resolved,
        model: &LatentModel<Sd3>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let request = &resolved.request;
        let clip_skip = request.clip_skip.unwrap_or(0);
        let prompts = (0..request.prompts.len()).map(|prompt| (request.texts(prompt), clip_skip));
        // As in diffusers, the negative prompt uses all layers.
        let negatives = if resolved.guidance_scale > 1.0 { request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|index| (request.negative_texts(index), 0));
        let texts: Vec<_> = prompts.chain(negatives).collect();
        let of_clip =
            |place: usize| -> Vec<_> { texts.iter().map(|(texts, skip)| (texts[place], *skip)).collect() };
        let clip_l = self.clips[0].encode(&of_clip(0), desk)?;
        let clip_g = self.clips[1].encode(&of_clip(1), desk)?;
        let length = resolved.max_sequence_length;
        // The model was trained without a mask, so the padding is part of the text.
        let t5 = match &mut self.t5 {
            Some(t5) => {
                let texts: Vec<_> = texts.iter().map(|(texts, _)| texts[2]).collect();
                t5.encode(&texts, (length, Padding::Seen), desk)?
            }
            None => {
                let shape = [1, length, model.transformer.config.joint_attention_dim];
                vec![Tensor::zeros(shape, (desk.device, model.transformer.dtype)); texts.len()]
            }
        };
        let joined = clip_l.into_iter().zip(clip_g).zip(t5);
        Ok(joined.map(|((clip_l, clip_g), t5)| conditions([clip_l, clip_g], t5)).collect())
    }

    fn guidance(&self, resolved: &Resolved, prompt: usize, negative: usize) -> Guidance<usize> {
        let guidance = Guidance::of_scale(negative, prompt, resolved.guidance_scale);
        match &resolved.request.skip_layer_guidance {
            Some(skip) if skips_layers(resolved) => guidance.skip_layers(skip.scale),
            _ => guidance,
        }
    }
}
