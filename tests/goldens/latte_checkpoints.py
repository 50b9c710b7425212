"""Small random checkpoints in the layout of the published Latte model (`maxin-cn/Latte-1`)."""

import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, LatteTransformer3DModel
from transformers import T5Config, T5EncoderModel

from checkpoints import randomize, t5_config, vae_config, write_json, write_weights
from vocabulary import write_tokenizer

LATTE = {"_diffusers_version": "0.27.0.dev0"}


def transformer_config(**changes) -> dict:
    """The published `transformer/config.json` with smaller numbers."""
    config = {
        "_class_name": "LatteTransformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 12,
        "caption_channels": 32,
        "cross_attention_dim": 48,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 4,
        "num_embeds_ada_norm": 1000,
        "num_layers": 2,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 64,
        "video_length": 4,
    }
    return config | LATTE | changes


def temporal_vae_config() -> dict:
    """The published `vae_temporal_decoder/config.json` with smaller numbers. The norms have 32 groups, whatever the number of
    channels."""
    return {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "_diffusers_version": "0.24.0.dev0",
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "out_channels": 3,
        "sample_size": 768,
        "scaling_factor": 0.18215,
    }


def scheduler_config() -> dict:
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
        "trained_betas": None,
    } | LATTE


def model_index(vae: str) -> dict:
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "LatteTransformer3DModel"],
        "vae": ["diffusers", vae],
    }
    return {"_class_name": "LattePipeline"} | LATTE | parts


def write_temporal(folder: Path, plain: Path, *, seed: int) -> None:
    """Writes a pipeline folder whose autoencoder decodes frames together. All else are links to `plain`."""
    write_json(folder / "model_index.json", model_index("AutoencoderKLTemporalDecoder"))
    for name in ["scheduler", "text_encoder", "tokenizer", "transformer"]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(os.path.relpath(plain / name, folder))
    vae = temporal_vae_config()
    write_json(folder / "vae/config.json", vae)
    # Residual blocks add about as much as they are given, although latents grow to hundreds.
    gains = {"decoder.conv_in": 0.01, "temporal_res_block.conv2": 2.0, "decoder.time_conv_out": 1.2}
    state = randomize(AutoencoderKLTemporalDecoder.from_config(vae).state_dict(), seed, gains)
    state = {name: tensor.to(torch.float16) for name, tensor in state.items()}
    write_weights(folder / "vae", "diffusion_pytorch_model", state, variant=None, shards=1)


def write_checkpoint(folder: Path, transformer: dict, vae: dict, *, seed: int) -> None:
    """Writes one pipeline folder."""
    write_json(folder / "model_index.json", model_index("AutoencoderKL"))
    write_json(folder / "scheduler/scheduler_config.json", scheduler_config())

    # As for PixArt: the contributions of attention and MLP stay comparable to the embedded latents.
    gains = {
        "pos_embed.proj": 0.2,
        "to_q": 1.5,
        "to_k": 1.5,
        "to_out": 6.0,
        "ff.net.2": 6.0,
        "adaln_single.linear": 0.5,
    }
    write_json(folder / "vae/config.json", vae)
    state = randomize(AutoencoderKL.from_config(vae).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_weights(folder / "vae", "diffusion_pytorch_model", state, variant=None, shards=1)

    write_tokenizer(folder / "tokenizer")
    state = randomize(LatteTransformer3DModel.from_config(transformer).state_dict(), seed, gains)
    write_json(folder / "transformer/config.json", transformer)
    write_weights(folder / "transformer", "diffusion_pytorch_model", state, variant=None, shards=1)
    text_encoder = t5_config(torch_dtype="float32", transformers_version="4.40.0.dev0")
    state = T5EncoderModel(T5Config(**text_encoder)).state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    # T5 does not divide its scores by sqrt(d_kv), so the queries are small instead.
    gains = {"SelfAttention.q": text_encoder["d_kv"] ** -0.5, "relative_attention_bias": 0.5}
    write_json(folder / "text_encoder/config.json", text_encoder)
    write_weights(folder / "text_encoder", "model", randomize(state, seed, gains), variant=None, shards=1)


def write_all(root: Path) -> None:
    write_checkpoint(root / "latte", transformer_config(), vae_config(**LATTE), seed=31)
    write_temporal(root / "latte-temporal", root / "latte", seed=33)
