//! HunyuanDiT, from a prompt in Chinese or English to a picture.
//!
//! Source: diffusers' `HunyuanDiTPipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::PLAIN;
use crate::component::ModelIndex;
use crate::hunyuan::{Conditions, Hunyuan};
use crate::latent_diffusion::{Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit};
use crate::resolution::standard_size;
use crate::text_encoder::{BertText, Desk, Folders, Padding, T5Text};

/// The default height and width of the original picture, where it is a condition.
const ORIGINAL_SIZE: [usize; 2] = [1024, 1024];

/// The recipe of HunyuanDiT.
pub struct HunyuanRecipe {
    bert: BertText,
    t5: T5Text,
    /// Whether sizes are conditions.
    micro_conditions: bool,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model: &LatentModel<Hunyuan>| {
        let [first, second, _] = Folders::ALL;
        let config = &model.transformer.config;
        let bert = BertText::open(index, options, first, config.text_len)?;
        let t5 = T5Text::open(index, options, second)?;
        let (found, wanted) = (bert.config().hidden_size, config.cross_attention_dim);
        must_fit("text encoder's and transformer's text features", found, wanted)?;
        let wanted = config.cross_attention_dim_t5;
        must_fit("second text encoder's and transformer's text features", t5.features(), wanted)?;
        Ok(HunyuanRecipe { bert, t5, micro_conditions: config.micro_conditions })
    })
}

impl Recipe for HunyuanRecipe {
    type Transformer = Hunyuan;

    const FAMILY: Family = Family {
        name: "HunyuanDiT",
        transformer: &["HunyuanDiT2DModel"],
        vae: &[PLAIN],
        path: Path::Diffusion,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        let mut extras = vec![Extra::NegativePrompt, Extra::GuidanceRescale];
        if self.micro_conditions {
            extras.extend([Extra::OriginalSize, Extra::TargetSize, Extra::CropsCoordsTopLeft]);
        }
        extras
    }

    fn choose(&self, request: &Request, model: &LatentModel<Hunyuan>) -> Result<Choices> {
        let asked = model.size(request, model.transformer.config.sample_size);
        let unit = model.pixels_per_token();
        let size = match request.use_resolution_binning {
            true => {
                check_size(asked, 1, "")?;
                if let Some(side) = asked.into_iter().find(|side| *side < unit) {
                    return Err(Error::usage(format!("`{side}` pixels are less than one token of {unit}"))
                        .hint("1024 × 1024 is the usual size"));
                }
                standard_size(asked.map(|side| side / unit * unit))
            }
            false => {
                check_size(asked, unit, ", or leave resolution binning on")?;
                asked
            }
        };
        let guidance_scale = request.guidance_scale.unwrap_or(5.0);
        Ok(Choices {
            size,
            generated_size: size,
            num_inference_steps: request.num_inference_steps.unwrap_or(50),
            guidance_scale,
            max_sequence_length: model.transformer.config.text_len_t5,
            branches: Branch::classifier_free(guidance_scale > 1.0),
            frames: None,
        })
    }

    /// Image tokens attend to the text, which stays unchanged.
    fn changed_text_tokens(&self, _: &Resolved) -> usize {
        0
    }

    fn warnings(&self, resolved: &Resolved, model: &LatentModel<Hunyuan>) -> Vec<String> {
        let Resolved { request, guidance_scale, size: [height, width], .. } = resolved;
        let mut warnings = Vec::new();
        let asked = model.size(request, model.transformer.config.sample_size);
        if asked != [*height, *width] {
            warnings.push(format!(
                "the picture is {height} × {width} pixels, the nearest size that the model was trained for, and not {} × {}: \
                 turn resolution binning off to keep its size",
                asked[0], asked[1]
            ));
        }
        if *guidance_scale <= 1.0 && request.guidance_rescale != 0.0 {
            warnings.push("`guidance_rescale` changes nothing without a `guidance_scale` above 1".to_owned());
        }
        warnings
    }

    fn encode(
        &mut self,
        resolved: &Resolved,
        model: &LatentModel<Hunyuan>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let request = &resolved.request;
        let config = &model.transformer.config;
        let negatives = if resolved.guidance_scale > 1.0 { request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|index| request.negative_texts(index)[0]);
        let texts: Vec<&str> = request.prompts.iter().map(String::as_str).chain(negatives).collect();
        let bert = self.bert.encode(&texts, config.text_len, desk)?;
        // The pooled text is that of all tokens, padding included.
        let tokens = config.text_len_t5;
        let t5 = self.t5.encode(&texts, (tokens, Padding::Masked { tokens }), desk)?;
        let micro = &request.micro_conditions;
        let [original, target] = [(micro.original_size, ORIGINAL_SIZE), (micro.target_size, resolved.size)]
            .map(|(given, default)| given.unwrap_or(default));
        let corner = micro.crops_coords_top_left.unwrap_or_default();
        let sizes = [original[0], original[1], target[0], target[1], corner[0], corner[1]];
        let conditions = |(text, (bert, t5)): (&&str, (Tensor<3>, Tensor<3>))| Conditions {
            bert,
            t5,
            t5_tokens: self.t5.tokens(text, tokens),
            sizes: self.micro_conditions.then_some(sizes),
        };
        Ok(texts.iter().zip(bert.into_iter().zip(t5)).map(conditions).collect())
    }

    fn guidance(&self, resolved: &Resolved, prompt: usize, negative: usize) -> Guidance<usize> {
        let guidance = Guidance::of_scale(negative, prompt, resolved.guidance_scale);
        guidance.rescaled(resolved.request.guidance_rescale)
    }
}
