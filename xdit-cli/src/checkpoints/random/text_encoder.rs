//! A T5 encoder with two layers.

use serde_json::{Value, json};

use super::tensors::Tensors;

/// The number of features of a token.
pub const D_MODEL: usize = 64;
const D_KV: usize = 16;
const D_FF: usize = 128;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const BUCKETS: usize = 32;

/// `text_encoder/config.json`
pub fn config(vocab_size: usize) -> Value {
    json!({
        "architectures": ["T5EncoderModel"],
        "d_ff": D_FF,
        "d_kv": D_KV,
        "d_model": D_MODEL,
        "dense_act_fn": "gelu_new",
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": true,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": HEADS,
        "num_layers": LAYERS,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": BUCKETS,
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
    })
}

/// Adds the weights.
pub fn fill(tensors: &mut Tensors, vocab_size: usize) {
    tensors.normal("shared.weight", &[vocab_size, D_MODEL], 0.0, 1.0);
    for layer in 0..LAYERS {
        let attention = format!("encoder.block.{layer}.layer.0");
        tensors.normal(format!("{attention}.layer_norm.weight"), &[D_MODEL], 1.0, 0.1);
        for projection in ["q", "k", "v", "o"] {
            // T5 does not scale its scores, so the queries must be small.
            let gain = if projection == "q" { 0.25 } else { 1.0 };
            tensors.weight(&format!("{attention}.SelfAttention.{projection}"), D_MODEL, HEADS * D_KV, gain);
        }
        if layer == 0 {
            let bias = format!("{attention}.SelfAttention.relative_attention_bias.weight");
            tensors.normal(bias, &[BUCKETS, HEADS], 0.0, 0.5);
        }
        let ff = format!("encoder.block.{layer}.layer.1");
        tensors.normal(format!("{ff}.layer_norm.weight"), &[D_MODEL], 1.0, 0.1);
        tensors.weight(&format!("{ff}.DenseReluDense.wi_0"), D_MODEL, D_FF, 1.0);
        tensors.weight(&format!("{ff}.DenseReluDense.wi_1"), D_MODEL, D_FF, 1.0);
        tensors.weight(&format!("{ff}.DenseReluDense.wo"), D_FF, D_MODEL, 1.0);
    }
    tensors.normal("encoder.final_layer_norm.weight", &[D_MODEL], 1.0, 0.1);
}
