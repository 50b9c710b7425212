//! Requests to a pipeline, and the checks that all pipelines have in common.

#[cfg(test)]
mod tests;

use std::ops::{Range, RangeInclusive};

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::ParallelConfig;

/// The most steps of a run. A larger number is surely a typing error: models are trained on a thousand timesteps.
const MAX_STEPS: usize = 10_000;
/// The most bytes of a prompt. The longest that a model reads, 512 tokens, has a few thousand.
const MAX_TEXT_BYTES: usize = 1 << 16;
/// The rates at which a clip can be shown, in frames per second. Files of clips count time in units, which have limits, too.
const RATES: RangeInclusive<f32> = 0.01..=1000.0;

/// The parameters of one run, which makes pictures of some prompts.
///
/// A `None` stands for the pipeline's default.
#[derive(Clone, Debug)]
pub struct Request {
    /// Descriptions of the pictures.
    pub prompts: Vec<String>,
    /// Texts for the second text encoder, if they differ from the prompts: one for all prompts, or one for each.
    pub prompts_2: Vec<String>,
    /// Texts for the third text encoder, if they differ from the prompts: one for all prompts, or one for each.
    pub prompts_3: Vec<String>,
    /// Descriptions of things to avoid: one for all prompts, or one for each. None is the same as an empty one, except in
    /// FLUX, which is guided by a negative prompt only if there is one.
    pub negative_prompts: Vec<String>,
    /// Texts for the second text encoder, if they differ from the negative prompts: one for all prompts, or one for each.
    pub negative_prompts_2: Vec<String>,
    /// Texts for the third text encoder, if they differ from the negative prompts: one for all prompts, or one for each.
    pub negative_prompts_3: Vec<String>,
    /// Height in pixels.
    pub height: Option<usize>,
    /// Width in pixels.
    pub width: Option<usize>,
    /// The number of steps of the noise scheduler.
    pub num_inference_steps: Option<usize>,
    /// The strength of classifier-free guidance; values up to 1 turn it off.
    pub guidance_scale: Option<f32>,
    /// The strength of classifier-free guidance in models that take the guidance scale as an input; values up to 1 turn
    /// it off.
    pub true_cfg_scale: Option<f32>,
    /// Guidance away from the model's prediction without some of its blocks.
    pub skip_layer_guidance: Option<SkipLayerGuidance>,
    /// The share, from 0 to 1, of the prediction that is rescaled to the deviation of the positive branch's.
    pub guidance_rescale: f32,
    /// Sizes and places that some models take as inputs.
    pub micro_conditions: MicroConditions,
    /// The seed of the first picture; picture `i` of the run has `seed + i`, unless there are [`seeds`](Self::seeds).
    pub seed: u64,
    /// The seeds of the pictures of each prompt, if they are not consecutive: none, or `images_per_prompt`.
    pub seeds: Vec<u64>,
    /// The number of pictures of each prompt.
    pub images_per_prompt: usize,
    /// The largest number of text tokens, including the end of the text.
    pub max_sequence_length: Option<usize>,
    /// The number of final layers of CLIP to skip, besides the one that is always skipped.
    pub clip_skip: Option<usize>,
    /// Whether to remove from the prompts all that the model's training captions did not contain.
    pub clean_caption: Option<bool>,
    /// Whether to generate at the nearest size that the model was trained for, and then resize and crop.
    pub use_resolution_binning: bool,
    /// Whether to decode large pictures tile by tile, which takes less memory and blends tiles where they overlap.
    pub vae_tiling: bool,
    /// Initial latents `[n, c, y, x]`, or `[n, c, frames, y, x]` for clips, in f32: one for each picture, in place of noise
    /// from the seed.
    pub init_latents: Option<TensorData>,
    /// The number of frames of a clip.
    pub num_frames: Option<usize>,
    /// The frames per second at which a clip is shown, which does not change the frames.
    pub fps: Option<f32>,
    /// Whether frames of a clip attend to each other. Without it, each is a picture by itself.
    pub enable_temporal_attentions: bool,
    /// The number of frames that are decoded together.
    pub decode_chunk_size: Option<usize>,
    /// Whether to decode latents into pictures.
    pub decode: bool,
    /// The number of steps from one [preview](super::Preview) to the next. Without it there are none, and they cost nothing.
    pub preview_every: Option<usize>,
    /// The parallelism of the run.
    pub parallel: ParallelConfig,
}

impl Request {
    /// One picture of `prompt` with the pipeline's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompts: vec![prompt.into()],
            prompts_2: Vec::new(),
            prompts_3: Vec::new(),
            negative_prompts: Vec::new(),
            negative_prompts_2: Vec::new(),
            negative_prompts_3: Vec::new(),
            height: None,
            width: None,
            num_inference_steps: None,
            guidance_scale: None,
            true_cfg_scale: None,
            skip_layer_guidance: None,
            guidance_rescale: 0.0,
            micro_conditions: MicroConditions::default(),
            seed: 0,
            seeds: Vec::new(),
            images_per_prompt: 1,
            max_sequence_length: None,
            clip_skip: None,
            clean_caption: None,
            use_resolution_binning: true,
            vae_tiling: false,
            init_latents: None,
            num_frames: None,
            fps: None,
            enable_temporal_attentions: true,
            decode_chunk_size: None,
            decode: true,
            preview_every: None,
            parallel: ParallelConfig::default(),
        }
    }

    /// The number of pictures.
    pub fn images(&self) -> usize {
        self.prompts.len().saturating_mul(self.images_per_prompt)
    }

    /// The seed of picture `image`.
    pub fn seed_of(&self, image: usize) -> u64 {
        match &self.seeds[..] {
            [] => self.seed.wrapping_add(image as u64),
            seeds => seeds[image % seeds.len()],
        }
    }

    /// The texts of prompt `index` for the first, second and third text encoder.
    ///
    /// # Panics
    /// If there is no such prompt, or [`check`] would refuse the request.
    pub fn texts<'a>(&'a self, index: usize) -> [&'a str; 3] {
        let prompt: &'a str = &self.prompts[index];
        [prompt, further(&self.prompts_2, index, prompt), further(&self.prompts_3, index, prompt)]
    }

    /// The number of different negative prompts, at least 1: a missing one counts as an empty one.
    pub fn negatives(&self) -> usize {
        let texts = [&self.negative_prompts, &self.negative_prompts_2, &self.negative_prompts_3];
        texts.into_iter().map(Vec::len).fold(1, usize::max)
    }

    /// The index of the negative prompt of prompt `index`.
    pub fn negative_of(&self, index: usize) -> usize {
        index.min(self.negatives() - 1)
    }

    /// The texts of negative prompt `index` for the first, second and third text encoder.
    ///
    /// # Panics
    /// If there is no such negative prompt, or [`check`] would refuse the request.
    pub fn negative_texts(&self, index: usize) -> [&str; 3] {
        let negative = one_of(&self.negative_prompts, index).unwrap_or_default();
        [
            negative,
            further(&self.negative_prompts_2, index, negative),
            further(&self.negative_prompts_3, index, negative),
        ]
    }
}

/// The text at `index` of one for each, or of one for all; `None` if there is no text.
fn one_of(texts: &[String], index: usize) -> Option<&str> {
    match texts {
        [] => None,
        [all] => Some(all),
        each => Some(&each[index]),
    }
}

/// The text of a further text encoder, or `first`, that of the first, if there is none. As in diffusers, a single empty text is
/// none, but an empty text among several is kept.
fn further<'a>(texts: &'a [String], index: usize, first: &'a str) -> &'a str {
    one_of(texts, index).filter(|text| texts.len() > 1 || !text.is_empty()).unwrap_or(first)
}

/// Skip-layer guidance: in some steps, the prediction is moved away from one that skips some blocks.
///
/// # Source
/// Stable Diffusion 3.5; diffusers' `StableDiffusion3Pipeline`, `skip_guidance_layers` and `skip_layer_guidance_*`.
#[derive(Clone, Debug, PartialEq)]
pub struct SkipLayerGuidance {
    /// The skipped blocks, counted from 0.
    pub layers: Vec<usize>,
    /// The strength; 0 turns it off.
    pub scale: f32,
    /// The fraction of the steps after which it starts.
    pub start: f64,
    /// The fraction of the steps before which it ends.
    pub stop: f64,
}

impl SkipLayerGuidance {
    /// Skips `layers` with the default scale, start and stop of diffusers.
    pub fn new(layers: Vec<usize>) -> Self {
        Self { layers, scale: 2.8, start: 0.01, stop: 0.2 }
    }

    /// The steps, out of `steps`, in which it takes part. Both ends are exclusive: step 0 is not after a fraction of 0.
    pub fn window(&self, steps: usize) -> Range<usize> {
        let end = |share: f64| steps as f64 * share;
        let inside = |step: &usize| *step as f64 > end(self.start) && (*step as f64) < end(self.stop);
        let first = (0..steps).find(inside).unwrap_or(0);
        first..first + (0..steps).filter(inside).count()
    }
}

/// Sizes and places that some models take as inputs: pictures of all sizes were scaled and cropped for training, and the
/// model learned what it was given of each. All are `[height, width]` or `[top, left]` in pixels.
///
/// # Source
/// SDXL (Podell et al. 2023) §2.2; diffusers' `StableDiffusionXLPipeline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicroConditions {
    /// The size of the original picture; by default that of the picture to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_size: Option<[usize; 2]>,
    /// The corner of the crop; by default `[0, 0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops_coords_top_left: Option<[usize; 2]>,
    /// The size after cropping; by default that of the picture to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_size: Option<[usize; 2]>,
    /// The original size for the negative branch. The negative branch has its own conditions only if both of its sizes are
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_original_size: Option<[usize; 2]>,
    /// The corner of the crop for the negative branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_crops_coords_top_left: Option<[usize; 2]>,
    /// The size after cropping for the negative branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_target_size: Option<[usize; 2]>,
}

impl MicroConditions {
    /// The conditions of a picture of `size`: original size, corner of the crop, and target size.
    pub fn positive(&self, size: [usize; 2]) -> [[usize; 2]; 3] {
        [
            self.original_size.unwrap_or(size),
            self.crops_coords_top_left.unwrap_or_default(),
            self.target_size.unwrap_or(size),
        ]
    }

    /// The conditions of the negative branch, which are those of the picture unless it has sizes of its own.
    pub fn negative(&self, size: [usize; 2]) -> [[usize; 2]; 3] {
        match (self.negative_original_size, self.negative_target_size) {
            (Some(original), Some(target)) => {
                [original, self.negative_crops_coords_top_left.unwrap_or_default(), target]
            }
            _ => self.positive(size),
        }
    }
}

/// An option of a [`Request`] that only some pipelines support, named as in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// [`Request::negative_prompts`]
    NegativePrompt,
    /// [`Request::max_sequence_length`]
    MaxSequenceLength,
    /// [`Request::prompts_2`]
    Prompt2,
    /// [`Request::prompts_3`]
    Prompt3,
    /// [`Request::negative_prompts_2`]
    NegativePrompt2,
    /// [`Request::negative_prompts_3`]
    NegativePrompt3,
    /// [`Request::true_cfg_scale`]
    TrueCfgScale,
    /// [`Request::skip_layer_guidance`]
    SkipGuidanceLayers,
    /// [`Request::clip_skip`]
    ClipSkip,
    /// [`Request::clean_caption`]
    CleanCaption,
    /// [`Request::num_frames`]
    NumFrames,
    /// [`Request::fps`]
    Fps,
    /// [`Request::enable_temporal_attentions`]
    EnableTemporalAttentions,
    /// [`Request::decode_chunk_size`]
    DecodeChunkSize,
    /// [`Request::guidance_rescale`]
    GuidanceRescale,
    /// [`MicroConditions::original_size`]
    OriginalSize,
    /// [`MicroConditions::crops_coords_top_left`]
    CropsCoordsTopLeft,
    /// [`MicroConditions::target_size`]
    TargetSize,
    /// [`MicroConditions::negative_original_size`]
    NegativeOriginalSize,
    /// [`MicroConditions::negative_crops_coords_top_left`]
    NegativeCropsCoordsTopLeft,
    /// [`MicroConditions::negative_target_size`]
    NegativeTargetSize,
}

impl Extra {
    /// All of them, in the order in which they are checked.
    pub const ALL: [Self; 21] = [
        Self::NegativePrompt,
        Self::MaxSequenceLength,
        Self::Prompt2,
        Self::Prompt3,
        Self::NegativePrompt2,
        Self::NegativePrompt3,
        Self::TrueCfgScale,
        Self::SkipGuidanceLayers,
        Self::ClipSkip,
        Self::CleanCaption,
        Self::NumFrames,
        Self::Fps,
        Self::EnableTemporalAttentions,
        Self::DecodeChunkSize,
        Self::GuidanceRescale,
        Self::OriginalSize,
        Self::CropsCoordsTopLeft,
        Self::TargetSize,
        Self::NegativeOriginalSize,
        Self::NegativeCropsCoordsTopLeft,
        Self::NegativeTargetSize,
    ];

    /// The name of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::NegativePrompt => "negative_prompt",
            Self::MaxSequenceLength => "max_sequence_length",
            Self::Prompt2 => "prompt_2",
            Self::Prompt3 => "prompt_3",
            Self::NegativePrompt2 => "negative_prompt_2",
            Self::NegativePrompt3 => "negative_prompt_3",
            Self::TrueCfgScale => "true_cfg_scale",
            Self::SkipGuidanceLayers => "skip_guidance_layers",
            Self::ClipSkip => "clip_skip",
            Self::CleanCaption => "clean_caption",
            Self::NumFrames => "num_frames",
            Self::Fps => "fps",
            Self::EnableTemporalAttentions => "no_enable_temporal_attentions",
            Self::DecodeChunkSize => "decode_chunk_size",
            Self::GuidanceRescale => "guidance_rescale",
            Self::OriginalSize => "original_size",
            Self::CropsCoordsTopLeft => "crops_coords_top_left",
            Self::TargetSize => "target_size",
            Self::NegativeOriginalSize => "negative_original_size",
            Self::NegativeCropsCoordsTopLeft => "negative_crops_coords_top_left",
            Self::NegativeTargetSize => "negative_target_size",
        }
    }

    /// Whether `request` has the option. A neutral value, or an empty text, which stands for the prompt, counts as
    /// absent.
    fn is_in(self, request: &Request) -> bool {
        let micro = &request.micro_conditions;
        match self {
            Self::NegativePrompt => request.negative_prompts.iter().any(|text| !text.is_empty()),
            Self::MaxSequenceLength => request.max_sequence_length.is_some_and(|length| length != 0),
            Self::Prompt2 => !request.prompts_2.is_empty() && request.prompts_2 != [""],
            Self::Prompt3 => !request.prompts_3.is_empty() && request.prompts_3 != [""],
            Self::NegativePrompt2 => {
                !request.negative_prompts_2.is_empty() && request.negative_prompts_2 != [""]
            }
            Self::NegativePrompt3 => {
                !request.negative_prompts_3.is_empty() && request.negative_prompts_3 != [""]
            }
            Self::TrueCfgScale => request.true_cfg_scale.is_some_and(|scale| scale != 1.0),
            Self::SkipGuidanceLayers => {
                request.skip_layer_guidance.as_ref().is_some_and(|skip| skip.scale != 0.0)
            }
            Self::ClipSkip => request.clip_skip.is_some_and(|layers| layers != 0),
            Self::CleanCaption => request.clean_caption == Some(true),
            Self::NumFrames => request.num_frames.is_some(),
            Self::Fps => request.fps.is_some(),
            Self::EnableTemporalAttentions => !request.enable_temporal_attentions,
            Self::DecodeChunkSize => request.decode_chunk_size.is_some(),
            Self::GuidanceRescale => request.guidance_rescale != 0.0,
            Self::OriginalSize => micro.original_size.is_some(),
            Self::CropsCoordsTopLeft => micro.crops_coords_top_left.is_some(),
            Self::TargetSize => micro.target_size.is_some(),
            Self::NegativeOriginalSize => micro.negative_original_size.is_some(),
            Self::NegativeCropsCoordsTopLeft => micro.negative_crops_coords_top_left.is_some(),
            Self::NegativeTargetSize => micro.negative_target_size.is_some(),
        }
    }
}

/// Checks the options that all pipelines have in common.
///
/// # Errors
/// If a value is out of its range.
pub fn check(request: &Request) -> Result<()> {
    if request.prompts.is_empty() {
        return Err(Error::usage("there is no prompt").hint("give at least one, which may be empty"));
    }
    if request.images_per_prompt == 0 {
        return Err(Error::usage("`0` images of each prompt leave nothing to do").hint("ask for at least 1"));
    }
    if !request.seeds.is_empty() && request.seeds.len() != request.images_per_prompt {
        let (seeds, images) = (request.seeds.len(), request.images_per_prompt);
        return Err(Error::usage(format!("`{seeds}` seeds are given for `{images}` images of each prompt"))
            .hint("several seeds give one image of each prompt with each seed"));
    }
    let texts = [&request.prompts, &request.prompts_2, &request.prompts_3];
    let negative = [&request.negative_prompts, &request.negative_prompts_2, &request.negative_prompts_3];
    if let Some(text) = texts.into_iter().chain(negative).flatten().find(|text| text.len() > MAX_TEXT_BYTES) {
        let (bytes, start) = (text.len(), text.chars().take(40).collect::<String>());
        return Err(Error::usage(format!(
            "the prompt `{start}…` has {bytes} bytes, more than the {MAX_TEXT_BYTES} of a prompt"
        ))
        .hint("models read a few hundred words at most: shorten it, or write one prompt a line with `--prompt-file`"));
    }
    if request.preview_every == Some(0) {
        return Err(Error::usage("a preview every `0` steps is none").hint("leave it out for no previews"));
    }
    if request.num_inference_steps == Some(0) {
        return Err(Error::usage("`0` inference steps leave nothing to do").hint("20 is a good start"));
    }
    if let Some(steps) = request.num_inference_steps.filter(|steps| *steps > MAX_STEPS) {
        return Err(Error::usage(format!("`{steps}` inference steps are more than {MAX_STEPS}"))
            .hint("20 is a good start"));
    }
    if request.decode_chunk_size == Some(0) {
        return Err(Error::usage("`0` frames decoded together leave nothing to do").hint("decode at least 1"));
    }
    if let Some(fps) = request.fps.filter(|fps| !RATES.contains(fps)) {
        let (least, most) = (RATES.start(), RATES.end());
        return Err(Error::usage(format!("`{fps}` frames per second are not between {least} and {most}"))
            .hint("models make clips for about 8 frames per second"));
    }
    if let Some(scale) = request.guidance_scale.filter(|scale| !scale.is_finite()) {
        return Err(Error::usage(format!("guidance scale `{scale}` is not a finite number"))
            .hint("usual scales are 1 to 10"));
    }
    if let Some(scale) = request.true_cfg_scale.filter(|scale| !scale.is_finite()) {
        return Err(Error::usage(format!("true guidance scale `{scale}` is not a finite number"))
            .hint("usual scales are 1 to 10"));
    }
    if let Some(skip) = &request.skip_layer_guidance {
        if skip.layers.is_empty() {
            return Err(Error::usage("skip-layer guidance has no layers to skip")
                .hint("name at least one, or leave it out"));
        }
        for (name, value) in [("scale", skip.scale.into()), ("start", skip.start), ("stop", skip.stop)] {
            if !value.is_finite() {
                return Err(Error::usage(format!(
                    "skip-layer guidance {name} `{value}` is not a finite number"
                ))
                .hint("leave it out for the default"));
            }
        }
    }
    if !(0.0..=1.0).contains(&request.guidance_rescale) {
        return Err(Error::usage(format!(
            "guidance rescale `{}` is not between 0 and 1",
            request.guidance_rescale
        ))
        .hint("0 turns it off, and 0.7 is usual"));
    }
    let prompts = request.prompts.len();
    for (extra, texts) in [
        (Extra::Prompt2, &request.prompts_2),
        (Extra::Prompt3, &request.prompts_3),
        (Extra::NegativePrompt, &request.negative_prompts),
        (Extra::NegativePrompt2, &request.negative_prompts_2),
        (Extra::NegativePrompt3, &request.negative_prompts_3),
    ] {
        if texts.len() > 1 && texts.len() != prompts {
            let (name, texts) = (extra.name(), texts.len());
            return Err(Error::usage(format!("`{name}` is given {texts} times for {prompts} prompts"))
                .hint("give it once for all prompts, or once for each"));
        }
    }
    Ok(())
}

/// Checks that `request` has only [`Extra`]s that the pipeline `takes`. Errors name it as `pipeline`.
///
/// # Errors
/// If it has any other, which would be ignored.
pub fn check_extras(request: &Request, pipeline: &str, takes: &[Extra]) -> Result<()> {
    let unknown = |extra: &Extra| !takes.contains(extra) && extra.is_in(request);
    let Some(extra) = Extra::ALL.into_iter().find(unknown) else { return Ok(()) };
    let takes: Vec<_> = takes.iter().map(|extra| format!("`{}`", extra.name())).collect();
    let hint = match takes.is_empty() {
        true => "leave it out".to_owned(),
        false => {
            format!("leave it out; of the options that not all models have, it takes {}", takes.join(", "))
        }
    };
    Err(Error::usage(format!("{pipeline} does not take `{}`", extra.name())).hint(hint))
}
