"""Small random checkpoints in the layout of Stable Diffusion 3 and 3.5.

Components shared with another checkpoint are links to it, as in the cache of `huggingface_hub`.
"""

import math
import os
from pathlib import Path

from diffusers import AutoencoderKL, SD3Transformer2DModel

from checkpoints import randomize, vae_config, write_json, write_weights
from clip_checkpoints import make_clip_g, make_clip_l, write_clip_tokenizer


def transformer_config(**changes) -> dict:
    """The published `transformer/config.json` of SD3 medium with smaller numbers."""
    config = {
        "_class_name": "SD3Transformer2DModel",
        "_diffusers_version": "0.29.0.dev0",
        "attention_head_dim": 8,
        "caption_projection_dim": 32,
        "in_channels": 16,
        "joint_attention_dim": 32,
        "num_attention_heads": 4,
        "num_layers": 4,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 28,
        "pos_embed_max_size": 12,
        "sample_size": 16,
    }
    return config | changes


def scheduler_config() -> dict:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.29.0.dev0",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }


SD35 = {"_diffusers_version": "0.31.0.dev0", "qk_norm": "rms_norm"}

# name -> (transformer's config, seed, shards)
CHECKPOINTS = {
    "sd3-medium": (transformer_config(), 11, 1),
    # Two attentions in the first blocks, and more positions than in the other checkpoints.
    "sd35-medium": (
        transformer_config(
            num_attention_heads=6,
            attention_head_dim=4,
            caption_projection_dim=24,
            dual_attention_layers=[0, 1],
            pos_embed_max_size=14,
            **SD35,
        ),
        12,
        1,
    ),
    # A prime number of heads, and several files.
    "sd35-large": (
        transformer_config(
            num_attention_heads=5, attention_head_dim=4, caption_projection_dim=20, dual_attention_layers=[], **SD35
        ),
        13,
        2,
    ),
}


def write_transformer(folder: Path, config: dict, seed: int, shards: int) -> None:
    model = SD3Transformer2DModel.from_config(config)
    table = model.pos_embed.pos_embed[0].numel()
    # The contribution of attention must be visible beside the stream that it is added to; the position table has
    # the magnitude of the tokens.
    gains = {"pos_embed.pos_embed": 0.7 * math.sqrt(table), "to_out": 2.0, "to_add_out": 2.0, "net.2": 2.0}
    state = randomize(model.state_dict(), seed, gains)
    write_json(folder / "config.json", config)
    write_weights(folder, "diffusion_pytorch_model", state, variant=None, shards=shards)


def sd3_vae_config() -> dict:
    return vae_config(
        _diffusers_version="0.29.0.dev0",
        block_out_channels=[8, 8, 8, 16],
        force_upcast=True,
        latent_channels=16,
        latents_mean=None,
        latents_std=None,
        sample_size=1024,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_post_quant_conv=False,
        use_quant_conv=False,
    )


def write_vae(folder: Path, seed: int) -> None:
    config = sd3_vae_config()
    # A small last convolution keeps the picture inside [-1, 1], so that differences are visible.
    state = randomize(AutoencoderKL.from_config(config).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_json(folder / "config.json", config)
    write_weights(folder, "diffusion_pytorch_model", state, variant=None, shards=1)


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


def write_all(root: Path) -> None:
    first = root / "sd3-medium"
    for name, (config, seed, shards) in CHECKPOINTS.items():
        folder, version = root / name, config["_diffusers_version"]
        write_transformer(folder / "transformer", config, seed, shards)
        write_json(folder / "scheduler/scheduler_config.json", scheduler_config() | {"_diffusers_version": version})
        write_index(folder, version, has_t5=name != "sd35-large")
        if folder == first:
            write_vae(folder / "vae", seed)
            make_clip_l(
                folder / "text_encoder", seed=seed, projection=True, hidden_size=12, intermediate_size=24,
                num_attention_heads=3, projection_dim=12,
            )  # fmt: skip
            make_clip_g(
                folder / "text_encoder_2", seed=seed, hidden_size=16, intermediate_size=32,
                num_attention_heads=4, projection_dim=16,
            )  # fmt: skip
            write_clip_tokenizer(folder / "tokenizer")
            write_clip_tokenizer(folder / "tokenizer_2", pad_token="!")
            link(folder / "text_encoder_3", root / "pixart-alpha-256/text_encoder")
            link(folder / "tokenizer_3", root / "pixart-alpha-256/tokenizer")
        else:
            for part in ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]:
                link(folder / part, first / part)
            if name != "sd35-large":
                link(folder / "text_encoder_3", root / "pixart-alpha-256/text_encoder")
                link(folder / "tokenizer_3", root / "pixart-alpha-256/tokenizer")


def write_index(folder: Path, version: str, has_t5: bool) -> None:
    """`model_index.json`; a missing text encoder is a pair of nulls, as saved by diffusers."""
    t5 = ["transformers", "T5EncoderModel"], ["transformers", "T5TokenizerFast"]
    text_encoder_3, tokenizer_3 = t5 if has_t5 else ([None, None], [None, None])
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": version,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": text_encoder_3,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": tokenizer_3,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
