"""Writes a random checkpoint with blocks of a real model's size, for timing only.

    python make_bench_checkpoint.py FAMILY FOLDER

| family | blocks, over 4,096 tokens at 1024x1024 | files |
|---|---|---|
| pixart | 8 of PixArt-α's 28, 1152 wide, 16 heads of 72 | f32 |
| sd3 | 4 of SD3 medium's 24, 1536 wide, 24 heads of 64 | f16, as published |
| flux | 2 of 19 double and 4 of 38 single ones, 3072 wide, 24 heads of 128 | bf16, as published |

The text encoders and the autoencoder, which has half of the published channels, are smaller than the real ones. The
environment is that of `../goldens/make_pixart.py`.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from transformers import T5Config, T5EncoderModel

sys.path.insert(0, str(Path(__file__).parent.parent / "goldens"))

import checkpoints
import clip_checkpoints
import flux_checkpoints
import sd3_checkpoints
from vocabulary import write_tokenizer

T5 = {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_heads": 16, "num_layers": 8, "num_decoder_layers": 8}
VAE = {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 8, "num_attention_heads": 10}


def pixart(folder: Path) -> None:
    checkpoints.write_checkpoint(
        folder,
        "PixArtAlphaPipeline",
        checkpoints.transformer_config(
            128, 8, num_attention_heads=16, attention_head_dim=72, cross_attention_dim=1152, caption_channels=1024
        ),
        checkpoints.vae_config(**VAE),
        checkpoints.t5_config(**T5),
        checkpoints.scheduler_config(),
        seed=6,
    )


def component(folder: Path, stem: str, config: dict, state: dict, dtype: torch.dtype, **gains: float) -> None:
    """Writes a component with random weights."""
    checkpoints.write_json(folder / "config.json", config)
    state = {name: tensor.to(dtype) for name, tensor in checkpoints.randomize(state, 6, gains).items()}
    checkpoints.write_weights(folder, stem, state, variant=None, shards=1)


def t5(folder: Path, dtype: torch.dtype, **changes: int) -> None:
    config = checkpoints.t5_config(**T5 | changes)
    state = T5EncoderModel(T5Config(**config)).state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared.weight`; only one of them is published
    component(folder, "model", config, state, dtype)


def index(folder: Path, name: str, **parts: tuple[str, str]) -> None:
    checkpoints.write_json(folder / "model_index.json", {"_class_name": name} | {k: list(v) for k, v in parts.items()})


def sd3(folder: Path) -> None:
    parts = {f"text_encoder{n}": ("transformers", "CLIPTextModelWithProjection") for n in ["", "_2"]}
    parts |= {f"tokenizer{n}": ("transformers", "CLIPTokenizer") for n in ["", "_2"]}
    index(
        folder,
        "StableDiffusion3Pipeline",
        **parts,
        scheduler=("diffusers", "FlowMatchEulerDiscreteScheduler"),
        text_encoder_3=("transformers", "T5EncoderModel"),
        tokenizer_3=("transformers", "T5TokenizerFast"),
        transformer=("diffusers", "SD3Transformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
    )
    checkpoints.write_json(folder / "scheduler/scheduler_config.json", flux_checkpoints.scheduler_config(shift=3.0))
    config = sd3_checkpoints.transformer_config(
        attention_head_dim=64,
        num_attention_heads=24,
        caption_projection_dim=1536,
        joint_attention_dim=2048,
        pooled_projection_dim=1408,
        pos_embed_max_size=192,
        sample_size=128,
        num_layers=4,
    )
    weights, half = "diffusion_pytorch_model", torch.float16
    state = SD3Transformer2DModel.from_config(config).state_dict()
    component(folder / "transformer", weights, config, state, half)
    clip_checkpoints.make_clip_l(folder / "text_encoder", seed=6, projection=True, projection_dim=768, **CLIP_L)
    clip_checkpoints.make_clip_g(folder / "text_encoder_2", seed=6, projection_dim=640, **CLIP_G)
    clip_checkpoints.write_clip_tokenizer(folder / "tokenizer")
    clip_checkpoints.write_clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    # At least as wide as both CLIP encoders together.
    t5(folder / "text_encoder_3", half, d_model=2048)
    write_tokenizer(folder / "tokenizer_3")
    vae = flux_checkpoints.flux_vae_config() | VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    component(folder / "vae", weights, vae, AutoencoderKL.from_config(vae).state_dict(), half)


def flux(folder: Path) -> None:
    index(
        folder,
        "FluxPipeline",
        scheduler=("diffusers", "FlowMatchEulerDiscreteScheduler"),
        text_encoder=("transformers", "CLIPTextModel"),
        text_encoder_2=("transformers", "T5EncoderModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        tokenizer_2=("transformers", "T5TokenizerFast"),
        transformer=("diffusers", "FluxTransformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
    )
    scheduler = flux_checkpoints.scheduler_config(shift=3.0, use_dynamic_shifting=True)
    checkpoints.write_json(folder / "scheduler/scheduler_config.json", scheduler)
    config = flux_checkpoints.transformer_config(
        attention_head_dim=128,
        axes_dims_rope=[16, 56, 56],
        guidance_embeds=True,
        joint_attention_dim=1024,
        num_attention_heads=24,
        num_layers=2,
        num_single_layers=4,
        pooled_projection_dim=768,
    )
    weights, half = "diffusion_pytorch_model", torch.bfloat16
    state = FluxTransformer2DModel.from_config(config).state_dict()
    component(folder / "transformer", weights, config, state, half)
    clip_checkpoints.make_clip_l(folder / "text_encoder", seed=6, projection=False, projection_dim=768, **CLIP_L)
    clip_checkpoints.write_clip_tokenizer(folder / "tokenizer")
    t5(folder / "text_encoder_2", half)
    write_tokenizer(folder / "tokenizer_2")
    vae = flux_checkpoints.flux_vae_config() | VAE
    component(folder / "vae", weights, vae, AutoencoderKL.from_config(vae).state_dict(), half)


FAMILIES = {"pixart": pixart, "sd3": sd3, "flux": flux}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FAMILIES[args.family](args.folder)


if __name__ == "__main__":
    main()
