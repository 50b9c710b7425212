//! What a picture was made with: kept inside it, so that it can be made again.

use serde::{Deserialize, Serialize};

use crate::args::Dtype;

/// Everything that one picture depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// What was drawn.
    pub prompt: String,
    /// What the second text encoder was told instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// What the third text encoder was told instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_3: Option<String>,
    /// Of this picture's noise.
    pub seed: u64,
    /// What all pictures of the run share.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What all pictures of a run share, with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// As it was called on the command line.
    pub model: String,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// Of the weight files.
    pub variant: Option<String>,
    /// Of weights and activations.
    pub dtype: Dtype,
    /// What not to draw.
    pub negative_prompt: String,
    /// What the second text encoder was told instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt_2: Option<String>,
    /// What the third text encoder was told instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_prompt_3: Option<String>,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Of the noise scheduler.
    pub num_inference_steps: usize,
    /// Of classifier-free guidance.
    pub guidance_scale: f32,
    /// Of classifier-free guidance, where the guidance scale is the model's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<f32>,
    /// Blocks that were left out in a branch of guidance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_guidance_layers: Vec<usize>,
    /// Of that guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_scale: Option<f32>,
    /// After which share of the steps it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_start: Option<f64>,
    /// Before which share of the steps it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_layer_guidance_stop: Option<f64>,
    /// Tokens.
    pub max_sequence_length: usize,
    /// Layers of CLIP that were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// Whether prompts were cleaned.
    pub clean_caption: bool,
    /// Whether it was generated at a size the model was trained for.
    pub use_resolution_binning: bool,
    /// Whether it was decoded tile by tile.
    pub vae_tiling: bool,
    /// The file it started from, in place of noise.
    pub init_latents: Option<String>,
    /// Patches that followed each other through the pipeline, if the picture shows it.
    #[serde(default)]
    pub num_pipeline_patch: Option<usize>,
    /// Steps of warm-up before that.
    #[serde(default)]
    pub warmup_steps: Option<usize>,
    /// Whether the patches were those of DistriFusion.
    #[serde(default)]
    pub distrifusion: bool,
    /// The version of this program.
    pub version: String,
}

impl Parameters {
    /// The text that picture viewers and web interfaces read from the PNG chunk `parameters`.
    ///
    /// # Source
    /// `create_infotext` of AUTOMATIC1111's stable-diffusion-webui.
    pub fn infotext(&self) -> String {
        let Self { prompt, seed, settings, .. } = self;
        let mut text = format!("{prompt}\n");
        if !settings.negative_prompt.is_empty() {
            text += &format!("Negative prompt: {}\n", settings.negative_prompt);
        }
        text + &format!(
            "Steps: {}, CFG scale: {}, Seed: {seed}, Size: {}x{}, Model: {}, Version: xdit {}",
            settings.num_inference_steps,
            settings.guidance_scale,
            settings.width,
            settings.height,
            quoted(&settings.model),
            settings.version,
        )
    }
}

/// As a field of the last line: in quotes where it holds what separates fields.
fn quoted(text: &str) -> String {
    if text.contains([',', ':', '\n', '"']) { format!("{text:?}") } else { text.to_owned() }
}
