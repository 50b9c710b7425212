//! FLUX.1 schnell and dev, from a prompt to a picture.
//!
//! Source: diffusers' `FluxPipeline`.

use xdit_core::pipeline::{
    Extra, Generated, LoadOptions, Observer, Pipeline, Request, Resolved, check, check_extras,
};
use xdit_core::plan::cost::Cost;
use xdit_core::plan::guidance::Branch;
use xdit_core::scheduler::Steps;
use xdit_core::{Error, Result};

use crate::component::ModelIndex;
use crate::flux::{Conditions, Flux};
use crate::latent_diffusion::{Family, LatentDiffusion, check_size, guidance, must_fit};
use crate::text_encoder::{ClipText, Folders, Padding, T5Text};

/// Steps of the noise scheduler where none are asked for.
const DEFAULT_STEPS: usize = 28;

/// The distilled guidance where none is asked for.
const DEFAULT_GUIDANCE: f32 = 3.5;

/// Latent pixels a side where no size is asked for.
const DEFAULT_SIDE: usize = 128;

/// Tokens of T5's text, padding included: the default and the most that the model was trained with.
const MAX_SEQUENCE_LENGTH: usize = 512;

const FAMILY: Family = Family {
    transformer: &["FluxTransformer2DModel"],
    scheduler: &["FlowMatchEulerDiscreteScheduler"],
    steps: |count| Steps::new(count).with_even_sigmas(),
};

/// A FLUX checkpoint, ready to run.
///
/// Opening it checks all components; their weights are loaded when their phase of a run begins and released when it
/// ends, so that no two of CLIP, T5 and the transformer are in memory together.
pub struct FluxPipeline {
    clip: ClipText,
    t5: T5Text,
    diffusion: LatentDiffusion<Flux>,
}

impl FluxPipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// If anything in it is missing, malformed, unknown, or does not fit together.
    pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        let [first, second, _] = Folders::ALL;
        let this = Self {
            clip: ClipText::open(index, options, first, false)?,
            t5: T5Text::open(index, options, second)?,
            diffusion: LatentDiffusion::open(index, options, FAMILY)?,
        };
        let flux = &this.diffusion.transformer.config;
        let pooled = this.clip.config().hidden_size;
        must_fit("CLIP's and the transformer's pooled features", pooled, flux.pooled_projection_dim)?;
        must_fit("T5's and the transformer's text features", this.t5.features(), flux.joint_attention_dim)?;
        Ok(Box::new(this))
    }

    /// What each prompt and, where there is `true_cfg`, the negative prompt stand for: CLIP's pooled output of the
    /// first text, T5's embeddings of the second.
    fn encode(
        &self,
        request: &Request,
        resolved: &Resolved,
        true_cfg: bool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Conditions>> {
        let prompts = (0..request.prompts.len()).map(|index| request.texts(index));
        let texts: Vec<_> = prompts.chain(true_cfg.then(|| request.negative_texts())).collect();
        let first: Vec<_> = texts.iter().map(|texts| (texts[0], 0)).collect();
        let second: Vec<_> = texts.iter().map(|texts| texts[1]).collect();
        let options = &self.diffusion.options;
        let clip = self.clip.encode(&first, options, observer)?;
        let t5 = self.t5.encode(&second, (resolved.max_sequence_length, Padding::Seen), options, observer)?;
        let guidance = resolved.guidance_scale;
        let pairs = clip.into_iter().zip(t5);
        Ok(pairs.map(|(clip, text)| Conditions { text, pooled: clip.pooled, guidance }).collect())
    }
}

/// The scale of classifier-free guidance, if it is on. Without a negative prompt the empty one is meant.
fn true_cfg(request: &Request) -> Option<f32> {
    request.true_cfg_scale.filter(|&scale| scale > 1.0)
}

impl Pipeline for FluxPipeline {
    fn resolve(&self, request: &Request) -> Result<Resolved> {
        check(request)?;
        check_extras(request, "FLUX", &[Extra::Prompt2, Extra::NegativePrompt2, Extra::TrueCfgScale])?;
        let default = DEFAULT_SIDE * self.diffusion.vae.config.scale();
        let size = [request.height.unwrap_or(default), request.width.unwrap_or(default)];
        // diffusers rounds down and warns. Who asks for a size wants that size, so we ask back.
        check_size(size, self.diffusion.pixels_per_token(), "")?;
        let max_sequence_length = request.max_sequence_length.unwrap_or(MAX_SEQUENCE_LENGTH);
        if !(1..=MAX_SEQUENCE_LENGTH).contains(&max_sequence_length) {
            return Err(Error::usage(format!(
                "a maximum sequence length of `{max_sequence_length}` is not between 1 and {MAX_SEQUENCE_LENGTH}"
            ))
            .hint("FLUX was trained with 512 text tokens, schnell with 256"));
        }
        let num_inference_steps = request.num_inference_steps.unwrap_or(DEFAULT_STEPS);
        let guided = self.diffusion.transformer.config.guidance_embeds;
        let default = if guided { DEFAULT_GUIDANCE } else { 0.0 };
        let branches = Branch::classifier_free(true_cfg(request).is_some());
        let plan = self.diffusion.plan(request, size, num_inference_steps, branches)?;
        Ok(Resolved {
            size,
            generated_size: size,
            num_inference_steps,
            guidance_scale: request.guidance_scale.unwrap_or(default),
            max_sequence_length,
            plan,
        })
    }

    fn costs(&self, resolved: &Resolved) -> Result<Vec<Cost>> {
        self.diffusion.costs(resolved, resolved.max_sequence_length)
    }

    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        if !self.diffusion.transformer.config.guidance_embeds && resolved.guidance_scale != 0.0 {
            observer.warn(&format!(
                "this FLUX model was not made for guidance: the guidance scale `{}` changes nothing",
                resolved.guidance_scale
            ));
        }
        let true_cfg = true_cfg(request);
        if true_cfg.is_none() && request.negative_texts().iter().any(|text| !text.is_empty()) {
            observer.warn(
                "the negative prompt changes nothing: FLUX has one only with a `true_cfg_scale` above 1",
            );
        }
        let conditions = self.encode(request, &resolved, true_cfg.is_some(), observer)?;
        let guidance = guidance(request, true_cfg.unwrap_or(1.0), &conditions);
        self.diffusion.generate(request, &resolved, guidance, observer)
    }
}
