//! The configs that do not depend on the size of the model.

use serde_json::{Value, json};

/// The version of diffusers that the layout follows.
pub const DIFFUSERS: &str = "0.22.0";

/// `model_index.json`
pub fn model_index() -> Value {
    json!({
        "_class_name": "PixArtAlphaPipeline",
        "_diffusers_version": DIFFUSERS,
        "_note": "random weights, made by xdit random-checkpoint",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// `scheduler/scheduler_config.json`
pub fn scheduler() -> Value {
    json!({
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": DIFFUSERS,
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "lower_order_final": true,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 0,
        "timestep_spacing": "linspace",
    })
}
