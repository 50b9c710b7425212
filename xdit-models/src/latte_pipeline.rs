//! Latte, from a prompt to a clip.
//!
//! Source: diffusers' `LattePipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::{PLAIN, TEMPORAL};
use crate::caption::caption;
use crate::component::ModelIndex;
use crate::latent_diffusion::{Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit};
use crate::latte::Latte;
use crate::text_encoder::{Desk, Folders, Padding, T5Text};

/// The number of tokens to which texts are cut.
const TEXT_TOKENS: usize = 120;

/// The recipe of Latte.
pub struct LatteRecipe {
    text_encoder: T5Text,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model: &LatentModel<Latte>| {
        let text_encoder = T5Text::open(index, options, Folders::ALL[0])?;
        let wanted = model.transformer.config.caption_channels;
        must_fit("text encoder's and transformer's text features", text_encoder.features(), wanted)?;
        Ok(LatteRecipe { text_encoder })
    })
}

impl Recipe for LatteRecipe {
    type Transformer = Latte;

    const FAMILY: Family = Family {
        name: "Latte",
        transformer: &["LatteTransformer3DModel"],
        vae: &[PLAIN, TEMPORAL],
        path: Path::Diffusion,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        vec![
            Extra::NegativePrompt,
            Extra::CleanCaption,
            Extra::NumFrames,
            Extra::Fps,
            Extra::EnableTemporalAttentions,
            Extra::DecodeChunkSize,
        ]
    }

    fn choose(&self, request: &Request, model: &LatentModel<Latte>) -> Result<Choices> {
        let config = &model.transformer.config;
        let size = model.size(request, config.sample_size);
        check_size(size, model.pixels_per_token(), "")?;
        let frames = request.num_frames.unwrap_or(config.video_length);
        if !(1..=config.video_length).contains(&frames) {
            return Err(Error::usage(format!(
                "`{frames}` frames are not between 1 and {}",
                config.video_length
            ))
            .hint("the model was trained on clips of that length"));
        }
        let guidance_scale = request.guidance_scale.unwrap_or(7.5);
        let mut branches = Branch::classifier_free(guidance_scale > 1.0);
        if !request.enable_temporal_attentions {
            branches.iter_mut().for_each(|branch| branch.skip_layers = config.temporal_blocks());
        }
        Ok(Choices {
            size,
            generated_size: size,
            num_inference_steps: request.num_inference_steps.unwrap_or(50),
            guidance_scale,
            // The length is fixed, and not an option.
            max_sequence_length: 0,
            branches,
            frames: Some(frames),
        })
    }

    /// Image tokens attend to the text, which stays unchanged.
    fn changed_text_tokens(&self, _: &Resolved) -> usize {
        0
    }

    /// The texts of the prompts, followed by the negative text of each prompt: the reference cuts it to the length of the
    /// prompt, or extends it to that length by the states of masked padding. (With several prompts in one call, it
    /// replaces the padding of prompts by zeros that are attended to. Here, as in calls with a single prompt, a clip
    /// does not depend on the others.)
    fn encode(
        &mut self,
        resolved: &Resolved,
        _: &LatentModel<Latte>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Tensor<3>>> {
        let request = &resolved.request;
        let caption = |text: &str| caption(text, request.clean_caption);
        let prompts: Vec<String> = request.prompts.iter().map(|prompt| caption(prompt)).collect();
        let mut texts: Vec<_> = prompts.iter().map(|prompt| (prompt.as_str(), Padding::None)).collect();
        let negative = |prompt| caption(request.negative_texts(request.negative_of(prompt))[0]);
        let negatives: Vec<String> = (0..prompts.len()).map(negative).collect();
        let lengths: Vec<usize> =
            prompts.iter().map(|prompt| self.text_encoder.tokens(prompt, TEXT_TOKENS)).collect();
        if resolved.guidance_scale > 1.0 {
            for (negative, &tokens) in negatives.iter().zip(&lengths) {
                texts.push((negative, Padding::Masked { tokens }));
            }
        }
        let states = self.text_encoder.encode_each(&texts, TEXT_TOKENS, desk)?;
        let cut = |(states, length): (Tensor<3>, &usize)| states.narrow(1, 0, *length);
        Ok(states.into_iter().zip(lengths.iter().cycle()).map(cut).collect())
    }

    fn guidance(&self, resolved: &Resolved, prompt: usize, _: usize) -> Guidance<usize> {
        // Each prompt has a negative text of its own, as long as the prompt.
        let negative = resolved.request.prompts.len() + prompt;
        Guidance::of_scale(negative, prompt, resolved.guidance_scale)
    }
}
