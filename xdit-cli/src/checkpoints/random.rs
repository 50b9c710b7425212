//! `xdit random-checkpoint`: a small PixArt-α with random weights, in the layout of a published checkpoint.

mod configs;
mod tensors;
mod text_encoder;
mod tokenizer;
mod transformer;
mod vae;

use tensors::Tensors;

/// The paths and contents of the checkpoint's files. Equal seeds give equal files.
pub fn files(seed: u64) -> Vec<(&'static str, Vec<u8>)> {
    let vocabulary = tokenizer::vocabulary();
    let vocab_size = vocabulary.len() + tokenizer::EXTRA_IDS;
    let json = |value: serde_json::Value| format!("{value:#}\n").into_bytes();
    // Each component has its own seed, so that a change to one leaves the others unchanged.
    let tensors = |component: u64, fill: &dyn Fn(&mut Tensors)| {
        let mut tensors = Tensors::new(seed.wrapping_mul(3).wrapping_add(component));
        fill(&mut tensors);
        tensors.serialize()
    };
    vec![
        ("model_index.json", json(configs::model_index())),
        ("scheduler/scheduler_config.json", json(configs::scheduler())),
        ("tokenizer/spiece.model", tokenizer::sentencepiece(&vocabulary)),
        ("tokenizer/tokenizer_config.json", json(tokenizer::config())),
        ("text_encoder/config.json", json(text_encoder::config(vocab_size))),
        ("text_encoder/model.safetensors", tensors(0, &|t| text_encoder::fill(t, vocab_size))),
        ("transformer/config.json", json(transformer::config())),
        ("transformer/diffusion_pytorch_model.safetensors", tensors(1, &transformer::fill)),
        ("vae/config.json", json(vae::config())),
        ("vae/diffusion_pytorch_model.safetensors", tensors(2, &vae::fill)),
    ]
}
