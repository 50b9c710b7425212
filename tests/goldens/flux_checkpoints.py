"""Small random checkpoints in the layout of FLUX.1: bfloat16, with the large components in shards."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

from checkpoints import randomize, t5_config, vae_config, write_json, write_weights
from clip_checkpoints import make_clip_l, write_clip_tokenizer
from vocabulary import write_tokenizer

VERSION = {"_diffusers_version": "0.30.0.dev0"}


def transformer_config(**changes) -> dict:
    """The published `transformer/config.json` with smaller numbers. It does not contain `axes_dims_rope`, whose default
    fits heads of 128."""
    config = VERSION | {
        "_class_name": "FluxTransformer2DModel",
        "_name_or_path": "../checkpoints/flux-dev/transformer",
        "attention_head_dim": 16,
        "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 32,
        "num_attention_heads": 4,
        "num_layers": 2,
        "num_single_layers": 3,
        "patch_size": 1,
        "pooled_projection_dim": 32,
    }
    return config | changes


def flux_vae_config() -> dict:
    return vae_config(
        **VERSION,
        block_out_channels=[8, 8, 16, 16],
        force_upcast=True,
        latent_channels=16,
        latents_mean=None,
        latents_std=None,
        mid_block_add_attention=True,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_post_quant_conv=False,
        use_quant_conv=False,
    )


def scheduler_config(**changes) -> dict:
    config = VERSION | {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }
    return config | changes


def write_component(folder: Path, stem: str, config: dict, state: dict[str, torch.Tensor], shards: int) -> None:
    write_json(folder / "config.json", config)
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    write_weights(folder, stem, state, variant=None, shards=shards)


def write_checkpoint(folder: Path, transformer: dict, scheduler: dict, *, seed: int) -> None:
    parts = {
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", transformer["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"} | VERSION | parts)
    write_json(folder / "scheduler/scheduler_config.json", scheduler)

    # Attention is sharper and gates are open, so that the influence of other tokens is visible.
    gains = {"to_q": 1.5, "to_k": 1.5, "norm1.linear": 1.5, "norm.linear": 1.5}
    state = randomize(FluxTransformer2DModel.from_config(transformer).state_dict(), seed, gains)
    write_component(folder / "transformer", "diffusion_pytorch_model", transformer, state, shards=3)

    vae = flux_vae_config()
    state = randomize(AutoencoderKL.from_config(vae).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_component(folder / "vae", "diffusion_pytorch_model", vae, state, shards=1)

    make_clip_l(folder / "text_encoder", seed=seed, projection=False, torch_dtype="bfloat16")
    write_clip_tokenizer(folder / "tokenizer")

    t5 = t5_config(torch_dtype="bfloat16")
    state = T5EncoderModel(T5Config(**t5)).state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared.weight`; only one of them is published
    gains = {"SelfAttention.q": t5["d_kv"] ** -0.5, "relative_attention_bias": 0.5}
    write_component(folder / "text_encoder_2", "model", t5, randomize(state, seed, gains), shards=2)
    write_tokenizer(folder / "tokenizer_2")


def write_all(root: Path) -> None:
    write_checkpoint(root / "flux-schnell", transformer_config(), scheduler_config(), seed=11)
    # Distilled guidance, and noise levels that depend on the size of the picture.
    write_checkpoint(
        root / "flux-dev",
        transformer_config(
            attention_head_dim=8,
            axes_dims_rope=[2, 2, 4],
            guidance_embeds=True,
            num_attention_heads=6,
            num_layers=3,
            num_single_layers=2,
        ),
        scheduler_config(shift=3.0, use_dynamic_shifting=True),
        seed=12,
    )
