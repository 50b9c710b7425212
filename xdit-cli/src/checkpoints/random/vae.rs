//! An autoencoder with few channels.

use serde_json::{Value, json};

use super::configs::DIFFUSERS;
use super::tensors::Tensors;

/// The number of channels of each level, from the picture inwards.
const LEVELS: [usize; 4] = [8, 16, 16, 32];
const GROUPS: usize = 8;
const LATENT: usize = 4;
const LAYERS: usize = 1;
/// The gain of the last layer, whose input is normalised: pictures have values from about -1 to 1.
const CONTRAST: f32 = 0.9;

/// `vae/config.json`
pub fn config() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": LEVELS,
        "down_block_types": vec!["DownEncoderBlock2D"; LEVELS.len()],
        "force_upcast": false,
        "in_channels": 3,
        "latent_channels": LATENT,
        "layers_per_block": LAYERS,
        "norm_num_groups": GROUPS,
        "out_channels": 3,
        "sample_size": 256,
        "scaling_factor": 0.18215,
        "up_block_types": vec!["UpDecoderBlock2D"; LEVELS.len()],
    })
}

/// Adds the weights.
pub fn fill(tensors: &mut Tensors) {
    encoder(tensors);
    tensors.patch_conv("quant_conv", 2 * LATENT, 2 * LATENT, 1, 1.0);
    tensors.patch_conv("post_quant_conv", LATENT, LATENT, 1, 1.0);
    decoder(tensors);
}

fn encoder(tensors: &mut Tensors) {
    let mut c = LEVELS[0];
    tensors.soft_conv("encoder.conv_in", 3, c, 1.0);
    for (level, c_out) in LEVELS.into_iter().enumerate() {
        let block = format!("encoder.down_blocks.{level}");
        for index in 0..LAYERS {
            resnet(tensors, &format!("{block}.resnets.{index}"), c, c_out);
            c = c_out;
        }
        if level + 1 < LEVELS.len() {
            tensors.soft_conv(&format!("{block}.downsamplers.0.conv"), c, c, 1.0);
        }
    }
    middle(tensors, "encoder.mid_block", c);
    tensors.norm("encoder.conv_norm_out", c);
    tensors.soft_conv("encoder.conv_out", c, 2 * LATENT, 1.0);
}

fn decoder(tensors: &mut Tensors) {
    let mut c = LEVELS[LEVELS.len() - 1];
    tensors.soft_conv("decoder.conv_in", LATENT, c, 1.0);
    middle(tensors, "decoder.mid_block", c);
    for (level, c_out) in LEVELS.into_iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        for index in 0..LAYERS + 1 {
            resnet(tensors, &format!("{block}.resnets.{index}"), c, c_out);
            c = c_out;
        }
        if level + 1 < LEVELS.len() {
            tensors.soft_conv(&format!("{block}.upsamplers.0.conv"), c, c, 1.0);
        }
    }
    tensors.norm("decoder.conv_norm_out", c);
    tensors.soft_conv("decoder.conv_out", c, 3, CONTRAST);
}

fn middle(tensors: &mut Tensors, name: &str, c: usize) {
    resnet(tensors, &format!("{name}.resnets.0"), c, c);
    let attention = format!("{name}.attentions.0");
    tensors.norm(&format!("{attention}.group_norm"), c);
    for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
        tensors.linear(&format!("{attention}.{projection}"), c, c, 1.0);
    }
    resnet(tensors, &format!("{name}.resnets.1"), c, c);
}

fn resnet(tensors: &mut Tensors, name: &str, c_in: usize, c_out: usize) {
    tensors.norm(&format!("{name}.norm1"), c_in);
    tensors.soft_conv(&format!("{name}.conv1"), c_in, c_out, 1.0);
    tensors.norm(&format!("{name}.norm2"), c_out);
    tensors.soft_conv(&format!("{name}.conv2"), c_out, c_out, 1.0);
    if c_in != c_out {
        tensors.patch_conv(&format!("{name}.conv_shortcut"), c_in, c_out, 1, 1.0);
    }
}
