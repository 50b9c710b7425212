//! PixArt-α and PixArt-Σ, from a prompt to a picture.
//!
//! Source: diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

use burn::tensor::Tensor;
use xdit_core::parallel::execute::Guidance;
use xdit_core::pipeline::{
    Extra, Generated, LoadOptions, Observer, Phase, Pipeline, Request, Resolved, check, check_extras,
};
use xdit_core::{Error, Result};

use crate::caption::{clean_caption, plain_caption};
use crate::component::{Component, ModelIndex};
use crate::latent_diffusion::{Classes, LatentDiffusion, check_size, encode_each, must_fit};
use crate::pixart::{Conditions, PixArt};
use crate::resolution::nearest_size;
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::T5Tokenizer;

/// Steps of the noise scheduler where none are asked for.
const DEFAULT_STEPS: usize = 20;

const CLASSES: Classes = Classes {
    transformer: &["Transformer2DModel", "PixArtTransformer2DModel"],
    scheduler: &["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"],
};

/// A PixArt checkpoint, ready to run.
///
/// Opening it checks all components; their weights are loaded when their phase of a run begins and released when
/// it ends, so that the text encoder and the transformer are never in memory together.
pub struct PixArtPipeline {
    default_sequence_length: usize,
    tokenizer: T5Tokenizer,
    text_encoder: Component<T5Config>,
    diffusion: LatentDiffusion<PixArt>,
}

impl PixArtPipeline {
    /// Opens an α checkpoint.
    ///
    /// # Errors
    /// If anything in it is missing, malformed, unknown, or does not fit together.
    pub fn open_alpha(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        Self::open(index, options, 120).map(|this| Box::new(this) as _)
    }

    /// Opens a Σ checkpoint.
    ///
    /// # Errors
    /// As [`open_alpha`](Self::open_alpha).
    pub fn open_sigma(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        Self::open(index, options, 300).map(|this| Box::new(this) as _)
    }

    fn open(index: &ModelIndex, options: &LoadOptions, default_sequence_length: usize) -> Result<Self> {
        let diffusion = LatentDiffusion::<PixArt>::open(index, options, CLASSES)?;
        let text_encoder = Component::open(
            &index.folder("text_encoder", &["T5EncoderModel"])?,
            "model",
            options,
            T5Config::read,
            |_| options.dtype,
            T5Encoder::load,
        )?;
        let tokenizer = T5Tokenizer::load(&index.folder("tokenizer", &["T5Tokenizer", "T5TokenizerFast"])?)?;
        let (t5, pixart) = (&text_encoder.config, &diffusion.transformer.config);
        must_fit("text encoder's and transformer's text features", t5.d_model, pixart.caption_channels)?;
        if tokenizer.vocab_size() > t5.vocab_size {
            must_fit("tokenizer's and text encoder's vocabulary", tokenizer.vocab_size(), t5.vocab_size)?;
        }
        Ok(Self { default_sequence_length, tokenizer, text_encoder, diffusion })
    }

    /// Embeddings `[1, n, d]` of each text, without padding.
    fn encode(
        &self,
        texts: &[&str],
        request: &Request,
        resolved: &Resolved,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Tensor<3>>> {
        observer.begin(Phase::Load("text_encoder"));
        let weights = self.text_encoder.weights(&self.diffusion.options);
        let encoder = T5Encoder::load(&self.text_encoder.config, &weights)?;
        observer.end(Phase::Load("text_encoder"));
        let embeddings = encode_each(texts, observer, |text, observer| {
            let caption = if request.clean_caption { clean_caption(text) } else { plain_caption(text) };
            let encoding = self.tokenizer.encode(&caption, resolved.max_sequence_length);
            if let Some(dropped) = encoding.dropped {
                observer.warn(&format!(
                    "the prompt is longer than {} tokens, this part was cut off: `{dropped}`",
                    resolved.max_sequence_length
                ));
            }
            encoder.forward(&encoding.ids)
        });
        Ok(embeddings)
    }
}

impl Pipeline for PixArtPipeline {
    fn resolve(&self, request: &Request) -> Result<Resolved> {
        check(request)?;
        check_extras(request, "PixArt", &[Extra::CleanCaption])?;
        let sample_size = self.diffusion.transformer.config.sample_size;
        let default = sample_size * self.diffusion.vae.config.scale();
        let size = [request.height.unwrap_or(default), request.width.unwrap_or(default)];
        let generated_size = if request.use_resolution_binning {
            check_size(size, 1, "")?;
            nearest_size(sample_size, size[0], size[1]).ok_or_else(|| {
                Error::usage(format!("there is no table of sizes for `sample_size` {sample_size}"))
                    .hint("turn resolution binning off")
            })?
        } else {
            check_size(size, self.diffusion.pixels_per_token(), ", or leave resolution binning on")?;
            size
        };
        let max_sequence_length = request.max_sequence_length.unwrap_or(self.default_sequence_length);
        if max_sequence_length == 0 {
            return Err(Error::usage("a maximum sequence length of `0` leaves no prompt"));
        }
        let num_inference_steps = request.num_inference_steps.unwrap_or(DEFAULT_STEPS);
        let guidance_scale = request.guidance_scale.unwrap_or(4.5);
        let plan = self.diffusion.plan(request, generated_size, num_inference_steps, guidance_scale > 1.0)?;
        Ok(Resolved { size, generated_size, num_inference_steps, guidance_scale, max_sequence_length, plan })
    }

    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        let guided = resolved.guidance_scale > 1.0;
        let mut texts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        if guided {
            texts.push(&request.negative_prompt);
        }
        let embeddings = self.encode(&texts, request, &resolved, observer)?;
        let micro_conditions = self.diffusion.transformer.config.micro_conditions;
        let conditions = |text: &Tensor<3>| Conditions {
            text: text.clone(),
            bias: None,
            size: micro_conditions.then_some(resolved.generated_size),
        };
        let guidance = |image: usize| {
            let prompt = &embeddings[image / request.images_per_prompt];
            let negative = guided.then(|| &embeddings[request.prompts.len()]);
            Guidance {
                branches: negative.into_iter().chain([prompt]).map(conditions).collect(),
                scale: resolved.guidance_scale,
            }
        };
        let guidance = (0..request.images()).map(guidance).collect();
        self.diffusion.generate(request, &resolved, guidance, observer)
    }
}
