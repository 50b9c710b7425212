//! Diffusion transformers, text encoders, autoencoders and tokenizers, each one file.
#![forbid(unsafe_code)]

pub mod autoencoder_kl;
pub mod pixart;
pub mod position;
pub mod t5;
pub mod timestep;
pub mod tokenizer;
