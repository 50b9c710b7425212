//! PixArt-α and PixArt-Σ, from a prompt to a picture.
//!
//! Source: diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{
    Extra, Generated, LoadOptions, Observer, Pipeline, Request, Resolved, check, check_extras,
};
use xdit_core::plan::cost::Cost;
use xdit_core::plan::guidance::Branch;
use xdit_core::scheduler::Steps;
use xdit_core::{Error, Result};

use crate::caption::{clean_caption, plain_caption};
use crate::component::ModelIndex;
use crate::latent_diffusion::{Family, LatentDiffusion, check_size, guidance, must_fit};
use crate::pixart::{Conditions, PixArt};
use crate::resolution::nearest_size;
use crate::text_encoder::{Folders, Padding, T5Text};

/// Steps of the noise scheduler where none are asked for.
const DEFAULT_STEPS: usize = 20;

const FAMILY: Family = Family {
    transformer: &["Transformer2DModel", "PixArtTransformer2DModel"],
    scheduler: &["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"],
    steps: Steps::new,
};

/// A PixArt checkpoint, ready to run.
///
/// Opening it checks all components; their weights are loaded when their phase of a run begins and released when
/// it ends, so that the text encoder and the transformer are never in memory together.
pub struct PixArtPipeline {
    default_sequence_length: usize,
    text_encoder: T5Text,
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
        let diffusion = LatentDiffusion::<PixArt>::open(index, options, FAMILY)?;
        let text_encoder = T5Text::open(index, options, Folders::ALL[0])?;
        let wanted = diffusion.transformer.config.caption_channels;
        must_fit("text encoder's and transformer's text features", text_encoder.features(), wanted)?;
        Ok(Self { default_sequence_length, text_encoder, diffusion })
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
        let branches = Branch::classifier_free(guidance_scale > 1.0);
        let plan = self.diffusion.plan(request, generated_size, num_inference_steps, branches)?;
        Ok(Resolved { size, generated_size, num_inference_steps, guidance_scale, max_sequence_length, plan })
    }

    fn costs(&self, resolved: &Resolved) -> Result<Vec<Cost>> {
        // Image tokens look at the text, which stays as it is.
        self.diffusion.costs(resolved, 0)
    }

    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        let guided = resolved.guidance_scale > 1.0;
        let negative = guided.then_some(&request.negative_prompt);
        let caption = |text: &String| match request.clean_caption {
            true => clean_caption(text),
            false => plain_caption(text),
        };
        let captions: Vec<String> = request.prompts.iter().chain(negative).map(caption).collect();
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let length = (resolved.max_sequence_length, Padding::None);
        let embeddings = self.text_encoder.encode(&captions, length, &self.diffusion.options, observer)?;
        let micro_conditions = self.diffusion.transformer.config.micro_conditions;
        let conditions = |text: Tensor<3>| Conditions {
            text,
            bias: None,
            size: micro_conditions.then_some(resolved.generated_size),
        };
        let conditions: Vec<_> = embeddings.into_iter().map(conditions).collect();
        let guidance = guidance(request, resolved.guidance_scale, &conditions);
        self.diffusion.generate(request, &resolved, guidance, observer)
    }
}
