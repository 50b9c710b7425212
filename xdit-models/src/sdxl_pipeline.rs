//! Stable Diffusion XL, from a prompt to a picture.
//!
//! Source: SDXL (Podell et al. 2023); diffusers' `StableDiffusionXLPipeline`.

use burn::tensor::Tensor;
use xdit_core::pipeline::{Extra, LoadOptions, Pipeline, Request, Resolved};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::mesh::Axis;
use xdit_core::scheduler::{Path, Steps};
use xdit_core::{Error, Result};

use crate::Gap;
use crate::autoencoder_kl::PLAIN;
use crate::clip::ClipOutput;
use crate::component::ModelIndex;
use crate::latent_diffusion::{Choices, Family, LatentModel, LatentPipeline, Recipe, check_size, must_fit};
use crate::text_encoder::{ClipText, Desk, Folders};
use crate::unet::{Conditions, MICRO_CONDITIONS, UNet};

/// The recipe of Stable Diffusion XL.
pub struct SdxlRecipe {
    clips: [ClipText; 2],
    /// Whether an absent negative prompt is encoded as zeros.
    zeros_for_no_negative: bool,
}

/// Opens a checkpoint.
///
/// # Errors
/// If anything in it is missing, malformed, unknown or inconsistent.
pub fn open(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    LatentPipeline::open(index, options, |model| SdxlRecipe::open(index, options, model))
}

impl SdxlRecipe {
    fn open(index: &ModelIndex, options: &LoadOptions, model: &LatentModel<UNet>) -> Result<Self> {
        let [first, second, _] = Folders::ALL;
        let clips =
            [ClipText::open(index, options, first, false)?, ClipText::open(index, options, second, true)?];
        let config = &model.transformer.config;
        let side_by_side = clips.iter().map(|clip| clip.config().hidden_size).sum();
        must_fit("text encoders' and UNet's text features", side_by_side, config.cross_attention_dim)?;
        let pooled = clips[1].config().projection_dim;
        must_fit("second text encoder's and UNet's pooled features", pooled, config.pooled_dim())?;
        let [first, second] = [&clips[0], &clips[1]].map(ClipText::text_tokens);
        must_fit("lengths of texts in `tokenizer` and `tokenizer_2`", first, second)?;
        Ok(Self { clips, zeros_for_no_negative: index.force_zeros_for_empty_prompt })
    }

    /// Whether the negative branch has zeros in place of a text. As in diffusers, an empty text is one, and a second
    /// negative prompt alone is not.
    fn has_zeros(&self, request: &Request) -> bool {
        self.zeros_for_no_negative && request.negative_prompts.is_empty()
    }
}

/// The model's name in the list of models.
pub const NAME: &str = "Stable Diffusion XL base";

/// The methods that do not apply to the model.
pub const GAPS: &[Gap] = &[Gap {
    model: NAME,
    method: "PipeFusion",
    reason: "all layers of a UNet need rows of other patches, for their convolutions, and its skips tie the last stage to \
             the first",
}];

/// Refuses PipeFusion, and strips of several ranks.
fn check_methods(request: &Request) -> Result<()> {
    let parallel = &request.parallel;
    let staged = parallel.mesh.degree(Axis::Pipeline) > 1 || parallel.stage_blocks.is_some();
    let patches = !parallel.distrifusion && parallel.patches.is_some_and(|patches| patches > 1);
    if let (true, Gap { model, method, reason }) = (staged || patches, &GAPS[0]) {
        return Err(Error::usage(format!("{method} does not apply to {model}: {reason}"))
            .hint("use the ring or the Ulysses degree, which split its rows"));
    }
    let ulysses = parallel.mesh.degree(Axis::Ulysses);
    if parallel.distrifusion && ulysses > 1 {
        return Err(Error::usage(format!(
            "in DistriFusion, each rank has a strip of the UNet's rows, which Ulysses degree `{ulysses}` cannot cut"
        ))
        .hint("use the ring degree for the number of strips"));
    }
    Ok(())
}

/// `[[height, width], [top, left], [height, width]]` in the order of the reference.
fn numbers(micro: [[usize; 2]; 3]) -> [f32; MICRO_CONDITIONS] {
    let [[height, width], [top, left], [target_height, target_width]] = micro;
    [height, width, top, left, target_height, target_width].map(|number| number as f32)
}

impl Recipe for SdxlRecipe {
    type Transformer = UNet;

    const FAMILY: Family = Family {
        name: "Stable Diffusion XL",
        transformer: &["UNet2DConditionModel"],
        vae: &[PLAIN],
        path: Path::Diffusion,
        steps: Steps::new,
    };

    fn extras(&self) -> Vec<Extra> {
        vec![
            Extra::NegativePrompt,
            Extra::Prompt2,
            Extra::NegativePrompt2,
            Extra::ClipSkip,
            Extra::GuidanceRescale,
            Extra::OriginalSize,
            Extra::CropsCoordsTopLeft,
            Extra::TargetSize,
            Extra::NegativeOriginalSize,
            Extra::NegativeCropsCoordsTopLeft,
            Extra::NegativeTargetSize,
        ]
    }

    fn choose(&self, request: &Request, model: &LatentModel<UNet>) -> Result<Choices> {
        check_methods(request)?;
        if let Some(clip_skip) = request.clip_skip {
            self.clips.iter().try_for_each(|clip| clip.config().check_clip_skip(clip_skip))?;
        }
        let config = &model.transformer.config;
        let size = model.size(request, config.sample_size);
        check_size(size, model.pixels_per_token(), "")?;
        let unit = model.pixels_per_token() * config.row_grain();
        let patches = if request.parallel.distrifusion { request.parallel.patches } else { None };
        let sequence = request.parallel.mesh.sequence_degree().max(patches.unwrap_or(1));
        if sequence > 1 {
            let [height, _] = size;
            if height % unit != 0 {
                return Err(Error::usage(format!(
                    "height `{height}` is not a multiple of {unit}, so its rows cannot be split"
                ))
                .hint(format!("use `{}`, or leave the picture whole", height.div_ceil(unit) * unit)));
            }
            if sequence > height / unit {
                return Err(Error::usage(format!(
                    "a height of `{height}` cannot be split into {sequence} parts"
                ))
                .hint(format!("use at most `{}`: each needs {unit} pixels", height / unit)));
            }
        }
        let guidance_scale = request.guidance_scale.unwrap_or(5.0);
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

    /// Image tokens attend to the text, which stays unchanged.
    fn changed_text_tokens(&self, _: &Resolved) -> usize {
        0
    }

    fn warnings(&self, resolved: &Resolved, _: &LatentModel<UNet>) -> Vec<String> {
        let Resolved { request, guidance_scale, .. } = resolved;
        let micro = &request.micro_conditions;
        let mut warnings = Vec::new();
        if self.has_zeros(request) && request.negative_prompts_2.iter().any(|text| !text.is_empty()) {
            warnings.push("`negative_prompt_2` changes nothing without `negative_prompt`".to_owned());
        }
        if *guidance_scale <= 1.0 && request.guidance_rescale != 0.0 {
            warnings.push("`guidance_rescale` changes nothing without a `guidance_scale` above 1".to_owned());
        }
        let of_negative =
            [micro.negative_original_size, micro.negative_crops_coords_top_left, micro.negative_target_size];
        if *guidance_scale <= 1.0 && of_negative.iter().any(Option::is_some) {
            warnings.push("negative sizes change nothing without a `guidance_scale` above 1".to_owned());
        } else if of_negative.iter().any(Option::is_some)
            && (of_negative[0].is_none() || of_negative[2].is_none())
        {
            warnings.push(
                "`negative_original_size` and `negative_target_size` are used only if both are given"
                    .to_owned(),
            );
        }
        warnings
    }

    fn encode(
        &mut self,
        resolved: &Resolved,
        _: &LatentModel<UNet>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Conditions>> {
        let Resolved { request, size, .. } = resolved;
        let clip_skip = request.clip_skip.unwrap_or(0);
        let guided = resolved.guidance_scale > 1.0;
        let zeros = guided && self.has_zeros(request);
        let prompts = (0..request.prompts.len()).map(|prompt| (request.texts(prompt), clip_skip));
        // As in diffusers, the negative prompt uses all layers.
        let negatives = if guided && !zeros { request.negatives() } else { 0 };
        let negatives = (0..negatives).map(|index| (request.negative_texts(index), 0));
        let texts: Vec<_> = prompts.chain(negatives).collect();
        let of_clip =
            |place: usize| -> Vec<_> { texts.iter().map(|(texts, skip)| (texts[place], *skip)).collect() };
        let clip_l = self.clips[0].encode(&of_clip(0), desk)?;
        let clip_g = self.clips[1].encode(&of_clip(1), desk)?;
        let conditions = |(index, (clip_l, clip_g)): (usize, (ClipOutput, ClipOutput))| Conditions {
            text: Tensor::cat(vec![clip_l.hidden, clip_g.hidden], 2),
            pooled: clip_g.pooled,
            micro: numbers(match index < request.prompts.len() {
                true => request.micro_conditions.positive(*size),
                false => request.micro_conditions.negative(*size),
            }),
        };
        let mut all: Vec<_> = clip_l.into_iter().zip(clip_g).enumerate().map(conditions).collect();
        if zeros {
            all.push(Conditions {
                text: all[0].text.zeros_like(),
                pooled: all[0].pooled.zeros_like(),
                micro: numbers(request.micro_conditions.negative(*size)),
            });
        }
        Ok(all)
    }

    fn guidance(&self, resolved: &Resolved, prompt: usize, negative: usize) -> Guidance<usize> {
        match resolved.guidance_scale {
            scale if scale > 1.0 => {
                Guidance::classifier_free(negative, prompt, scale).rescaled(resolved.request.guidance_rescale)
            }
            _ => Guidance::none(prompt),
        }
    }
}
