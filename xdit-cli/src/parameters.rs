//! The parameters of a picture. They are stored in the file, so that the picture can be generated again.

use serde::{Deserialize, Serialize};
use xdit_core::pipeline::MicroConditions;

use crate::args::Dtype;

/// All parameters of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// The prompt.
    pub prompt: String,
    /// The prompt of the second text encoder, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// The prompt of the third text encoder, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_3: Option<String>,
    /// The seed of this picture's noise.
    pub seed: u64,
    /// The parameters that all pictures of the run share.
    #[serde(flatten)]
    pub settings: Settings,
}

/// The parameters that all pictures of a run share, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The model: an id, or the name of its folder without the path.
    pub model: String,
    /// The branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// The variant of the weight files.
    pub variant: Option<String>,
    /// The scheduler, if it is not the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// `none` if the third text encoder was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_3: Option<String>,
    /// Whether the temporal decoder beside Latte's autoencoder decoded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub temporal_decoder: bool,
    /// The type of weights and activations.
    pub dtype: Dtype,
    /// The description of content to avoid, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The negative prompt of the second text encoder, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt_2: Option<String>,
    /// The negative prompt of the third text encoder, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt_3: Option<String>,
    /// The height in pixels.
    pub height: usize,
    /// The width in pixels.
    pub width: usize,
    /// The number of denoising steps.
    pub num_inference_steps: usize,
    /// The strength of guidance.
    pub guidance_scale: f32,
    /// Whether it is an input of the model.
    #[serde(default, skip_serializing_if = "is_false")]
    pub distilled_guidance: bool,
    /// The strength of classifier-free guidance, for models that take the guidance scale as an input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<f32>,
    /// The blocks that one branch of guidance skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_guidance_layers: Vec<usize>,
    /// The strength of skip-layer guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_scale: Option<f32>,
    /// The fraction of the steps after which skip-layer guidance started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_start: Option<f64>,
    /// The fraction of the steps at which skip-layer guidance stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_stop: Option<f64>,
    /// The share of the prediction that was rescaled.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance_rescale: f32,
    /// The sizes and places that the model took as inputs, if they were given.
    #[serde(flatten)]
    pub micro_conditions: MicroConditions,
    /// The maximum number of text tokens.
    pub max_sequence_length: usize,
    /// The number of CLIP layers that were skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// Whether prompts were cleaned, if this was not left to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_caption: Option<bool>,
    /// Whether the picture was generated at a size that the model was trained on.
    pub use_resolution_binning: bool,
    /// Whether the picture was decoded tile by tile.
    pub vae_tiling: bool,
    /// The number of frames of a clip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_frames: Option<usize>,
    /// The frames of a clip that are shown in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fps: Option<f32>,
    /// Whether each frame was made by itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_enable_temporal_attentions: bool,
    /// The number of frames that were decoded together, if it was not left to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_chunk_size: Option<usize>,
    /// The file with the initial latents, if it did not start from noise.
    pub init_latents: Option<String>,
    /// The number of PipeFusion or DistriFusion patches, if they affect the picture.
    #[serde(default)]
    pub num_pipeline_patch: Option<usize>,
    /// The number of warm-up steps before asynchronous steps.
    #[serde(default)]
    pub warmup_steps: Option<usize>,
    /// Whether the patches were those of DistriFusion.
    #[serde(default)]
    pub distrifusion: bool,
    /// The version of this program.
    pub version: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(share: &f32) -> bool {
    *share == 0.0
}

impl Parameters {
    /// The text that picture viewers and web interfaces read from the PNG chunk `parameters`.
    ///
    /// # Source
    /// `create_infotext` of AUTOMATIC1111's stable-diffusion-webui, and of Forge for the distilled scale.
    pub fn infotext(&self) -> String {
        let Self { prompt, seed, settings, .. } = self;
        let mut text = format!("{prompt}\n");
        if let Some(negative) = settings.negative_prompt.as_ref().filter(|negative| !negative.is_empty()) {
            text += &format!("Negative prompt: {negative}\n");
        }
        // Web interfaces for FLUX tell the two scales apart.
        let guidance = match settings.distilled_guidance {
            true => {
                let scale = settings.true_cfg_scale.unwrap_or(1.0);
                format!("CFG scale: {scale}, Distilled CFG Scale: {}", settings.guidance_scale)
            }
            false => format!("CFG scale: {}", settings.guidance_scale),
        };
        text + &format!(
            "Steps: {}, {guidance}, Seed: {seed}, Size: {}x{}, Model: {}, Version: xdit {}",
            settings.num_inference_steps,
            settings.width,
            settings.height,
            quoted(&settings.model),
            settings.version,
        )
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The text as a field of the last line: quoted if it contains a character that separates fields.
fn quoted(text: &str) -> String {
    if text.contains([',', ':', '\n', '"']) { format!("{text:?}") } else { text.to_owned() }
}
