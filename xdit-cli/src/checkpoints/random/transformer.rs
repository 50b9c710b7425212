//! A PixArt transformer with two blocks.

use serde_json::{Value, json};

use super::configs::DIFFUSERS;
use super::tensors::Tensors;
use super::text_encoder::D_MODEL;

const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const DIM: usize = HEADS * HEAD_DIM;
const BLOCKS: usize = 2;
const PATCH: usize = 2;
const CHANNELS: usize = 4;
const SINUSOIDS: usize = 256;

/// `transformer/config.json`
pub fn config() -> Value {
    json!({
        "_class_name": "Transformer2DModel",
        "_diffusers_version": DIFFUSERS,
        "activation_fn": "gelu-approximate",
        "attention_bias": true,
        "attention_head_dim": HEAD_DIM,
        "attention_type": "default",
        "caption_channels": D_MODEL,
        "cross_attention_dim": DIM,
        "in_channels": CHANNELS,
        "norm_elementwise_affine": false,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": HEADS,
        "num_embeds_ada_norm": 1000,
        "num_layers": BLOCKS,
        "out_channels": 2 * CHANNELS,
        "patch_size": PATCH,
        "sample_size": 32,
    })
}

/// Adds the weights.
pub fn fill(tensors: &mut Tensors) {
    tensors.patch_conv("pos_embed.proj", CHANNELS, DIM, PATCH, 0.5);
    let embedder = "adaln_single.emb.timestep_embedder";
    tensors.linear(&format!("{embedder}.linear_1"), SINUSOIDS, DIM, 1.0);
    tensors.linear(&format!("{embedder}.linear_2"), DIM, DIM, 1.0);
    tensors.linear("adaln_single.linear", DIM, 6 * DIM, 0.5);
    tensors.linear("caption_projection.linear_1", D_MODEL, DIM, 1.0);
    tensors.linear("caption_projection.linear_2", DIM, DIM, 1.0);
    for block in 0..BLOCKS {
        let block = format!("transformer_blocks.{block}");
        for attention in ["attn1", "attn2"] {
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                tensors.linear(&format!("{block}.{attention}.{projection}"), DIM, DIM, 1.0);
            }
        }
        tensors.linear(&format!("{block}.ff.net.0.proj"), DIM, 4 * DIM, 1.0);
        tensors.linear(&format!("{block}.ff.net.2"), 4 * DIM, DIM, 1.0);
        tensors.normal(format!("{block}.scale_shift_table"), &[6, DIM], 0.0, 0.5);
    }
    tensors.normal("scale_shift_table", &[2, DIM], 0.0, 0.1);
    // Larger than the noise, so that the effects of positions and prompts are visible in it.
    tensors.linear("proj_out", DIM, PATCH * PATCH * 2 * CHANNELS, 3.0);
}
