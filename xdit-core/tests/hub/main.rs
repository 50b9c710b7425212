//! Tests of models given as folders or hub ids, against a loopback hub.

mod download;
mod outline;
mod refusal;
mod select;
mod server;
mod vars;

use server::{Files, MODEL, Server};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use xdit_core::Result;
use xdit_core::hub::{HubOptions, resolve};

/// Longer than one buffer, so that a connection can be cut in the middle.
static WEIGHTS: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..1_000_003_u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect());
const WEIGHT_FILE: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A small model with one component of each kind, and files that no pipeline reads.
fn files() -> Files {
    Files::new(&[
        (
            "model_index.json",
            br#"{"_class_name": "P", "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "T"]}"#,
        ),
        ("README.md", b"read me"),
        ("tokenizer/spiece.model", b"pieces"),
        ("transformer/config.json", b"{}"),
        ("transformer/diffusion_pytorch_model.bin", b"pickle"),
        (WEIGHT_FILE, &WEIGHTS),
        ("transformer/diffusion_pytorch_model.fp16.safetensors", b"half"),
        ("single.safetensors", b"all in one"),
    ])
}

fn hub() -> Server {
    let files = files();
    Server::start(move |request| files.answer(request))
}

/// A hub that gives a different reply to some requests.
fn hub_but(answer: impl Fn(&server::Request) -> Option<server::Reply> + Send + Sync + 'static) -> Server {
    let files = files();
    Server::start(move |request| answer(request).unwrap_or_else(|| files.answer(request)))
}

fn options(cache: &Path, server: &Server) -> HubOptions {
    HubOptions { endpoint: server.url.clone(), patience: Duration::ZERO, ..HubOptions::new(cache) }
}

fn get(options: &HubOptions) -> Result<PathBuf> {
    resolve(MODEL, options, &mut |_| {})
}

/// The folder of the model in a cache.
fn repo(cache: &Path) -> PathBuf {
    cache.join("models--someone--some-model")
}
