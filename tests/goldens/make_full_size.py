"""Writes the names and shapes of all tensors of published checkpoints, at full size but without values.

The output is `NAME.json` in `xdit-cli/published`. It was made with torch 2.15.0, diffusers 0.42.1 and transformers 5.23.0 on their
meta device; as far as shapes depend on them, the configs are the published ones.
"""

import json
import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

import checkpoints
import latte_checkpoints
import make_dit
import make_hunyuan
import make_sdxl
import sd3_checkpoints
from flux_checkpoints import flux_vae_config, scheduler_config, transformer_config

OUT = Path(__file__).parent.parent.parent / "xdit-cli/published"

FLUX_DEV = transformer_config(
    attention_head_dim=128,
    axes_dims_rope=[16, 56, 56],
    guidance_embeds=True,
    joint_attention_dim=4096,
    num_attention_heads=24,
    num_layers=19,
    num_single_layers=38,
    pooled_projection_dim=768,
)

PIXART = {
    "attention_head_dim": 72,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "interpolation_scale": 2,
    "num_attention_heads": 16,
}

T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}

CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}

CLIP_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

SD3_MEDIUM = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
SD3 = {
    "sd3-medium": SD3_MEDIUM,
    "sd35-medium": SD3_MEDIUM
    | {"dual_attention_layers": list(range(13)), "pos_embed_max_size": 384}
    | sd3_checkpoints.SD35,
    "sd35-large": SD3_MEDIUM
    | {"caption_projection_dim": 2432, "dual_attention_layers": [], "num_attention_heads": 38, "num_layers": 38}
    | sd3_checkpoints.SD35,
}


def collapse(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Abbreviates `blocks.0.x`, `blocks.1.x`, … of one shape to `blocks.{0..2}.x`, by the index of the transformer block or
    else by the first number in the names."""
    groups: dict[tuple, list[int]] = {}
    single: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        match = re.search(r"transformer_blocks\.(\d+)\.", name) or re.search(r"\.(\d+)\.", name)
        if match is None:
            single[name] = shape
            continue
        before, after = name[: match.start(1)], name[match.end(1) :]
        groups.setdefault((before, after, tuple(shape)), []).append(int(match[1]))
    for (before, after, shape), numbers in groups.items():
        first, last = numbers[0], numbers[-1]
        assert numbers == list(range(first, last + 1)), (before, after)
        single[f"{before}{{{first}..{last + 1}}}{after}"] = list(shape)
    return single


def component(model: torch.nn.Module, config: dict, stem: str, shards: int, prefix: str = "") -> dict:
    shapes = {prefix + name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # T5: the same tensor as `shared.weight`; only one is published
    return {"config": config, "stem": stem, "dtype": "BF16", "shards": shards, "tensors": collapse(shapes)}


def flux(config: dict, **scheduler) -> dict:
    vae = flux_vae_config() | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    vae |= {"layers_per_block": 2}
    weights = "diffusion_pytorch_model"
    clip = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    has_prefix = next(iter(clip.state_dict())).startswith("text_model.")
    return {
        "model_index": {
            "_class_name": "FluxPipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler": scheduler_config(**scheduler),
        "components": {
            "transformer": component(FluxTransformer2DModel.from_config(config), config, weights, 3),
            "text_encoder": component(clip, CLIP_L, "model", 1, "" if has_prefix else "text_model."),
            "text_encoder_2": component(T5EncoderModel(T5Config(**T5_XXL)), T5_XXL, "model", 2),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
        },
    }


def dit() -> dict:
    """The model for 512×512 pixels, without the names of its classes."""
    transformer = make_dit.dit_config(64, 28, attention_head_dim=72, num_attention_heads=16)
    vae = checkpoints.vae_config() | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    vae |= {"layers_per_block": 2}
    weights = "diffusion_pytorch_model"
    return {
        "model_index": {
            "_class_name": "DiTPipeline",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", transformer["_class_name"]],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler": make_dit.scheduler_config(),
        "components": {
            "transformer": component(DiTTransformer2DModel.from_config(transformer), transformer, weights, 1),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
        },
    }


def hunyuan(beta_end: float, **changes) -> dict:
    """Versions 1.1 and 1.2, which differ in the noise and in `changes`."""
    transformer = make_hunyuan.transformer_config(
        40,
        **changes,
        attention_head_dim=88,
        cross_attention_dim=1024,
        cross_attention_dim_t5=2048,
        hidden_size=1408,
        mlp_ratio=4.3637,
        num_attention_heads=16,
        pooled_projection_dim=1024,
        sample_size=128,
    )
    bert = make_hunyuan.bert_config(
        hidden_size=1024,
        intermediate_size=4096,
        max_position_embeddings=512,
        num_attention_heads=16,
        num_hidden_layers=24,
        vocab_size=47020,
    )
    mt5 = T5_XXL | {"d_ff": 5120, "d_model": 2048, "num_heads": 32, "vocab_size": 250112}
    vae = checkpoints.vae_config(**make_hunyuan.VERSION, scaling_factor=0.13025)
    vae |= {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    weights = "diffusion_pytorch_model"
    return {
        "model_index": {
            "_class_name": "HunyuanDiTPipeline",
            "scheduler": ["diffusers", "DDPMScheduler"],
            "text_encoder": ["transformers", "BertModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
            "tokenizer_2": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "HunyuanDiT2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler": make_hunyuan.scheduler_config(beta_end),
        "components": {
            "transformer": component(HunyuanDiT2DModel.from_config(transformer), transformer, weights, 1),
            "text_encoder": component(BertModel(BertConfig(**bert)), bert, "model", 1),
            "text_encoder_2": component(T5EncoderModel(T5Config(**mt5)), mt5, "model", 2),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
        },
    }


def latte() -> dict:
    """Latte-1, whose folder `vae_temporal_decoder` is not in `model_index.json`."""
    transformer = latte_checkpoints.transformer_config(
        attention_head_dim=72,
        caption_channels=4096,
        cross_attention_dim=1152,
        num_attention_heads=16,
        num_layers=28,
        video_length=16,
    )
    sides = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    vae = checkpoints.vae_config(**latte_checkpoints.LATTE) | sides | {"norm_num_groups": 32}
    temporal = latte_checkpoints.temporal_vae_config() | sides | {"down_block_types": ["DownEncoderBlock2D"] * 4}
    weights = "diffusion_pytorch_model"
    return {
        "model_index": latte_checkpoints.model_index("AutoencoderKL"),
        "scheduler": latte_checkpoints.scheduler_config(),
        "components": {
            "transformer": component(LatteTransformer3DModel.from_config(transformer), transformer, weights, 1),
            "text_encoder": component(T5EncoderModel(T5Config(**T5_XXL)), T5_XXL, "model", 2),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
            "vae_temporal_decoder": component(AutoencoderKLTemporalDecoder.from_config(temporal), temporal, weights, 1),
        },
    }


def pixart(pipeline: str, scale_vae: dict, **changes) -> dict:
    """The models for 1024×1024 pixels."""
    transformer = checkpoints.transformer_config(128, 28, **PIXART, **changes)
    vae = checkpoints.vae_config(**scale_vae) | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    # Infinity is not valid JSON.
    scheduler = checkpoints.scheduler_config()
    del scheduler["lambda_min_clipped"]
    weights = "diffusion_pytorch_model"
    return {
        "model_index": {
            "_class_name": pipeline,
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", transformer["_class_name"]],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler": scheduler,
        "components": {
            "transformer": component(PixArtTransformer2DModel.from_config(transformer), transformer, weights, 1),
            "text_encoder": component(T5EncoderModel(T5Config(**T5_XXL)), T5_XXL, "model", 2),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
        },
    }


def sd3(name: str) -> dict:
    """SD 3.5 large is written without the third text encoder, like its small golden checkpoint."""
    vae = sd3_checkpoints.sd3_vae_config() | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    vae |= {"layers_per_block": 2}
    transformer = sd3_checkpoints.transformer_config(**SD3[name])
    weights, shards = "diffusion_pytorch_model", 2 if name == "sd35-large" else 1
    clip_l = CLIP_L | {"architectures": ["CLIPTextModelWithProjection"]}
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    components = {
        "transformer": component(SD3Transformer2DModel.from_config(transformer), transformer, weights, shards),
        "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
    }
    for folder, config in {"text_encoder": clip_l, "text_encoder_2": CLIP_G}.items():
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        components[folder] = component(model, config, "model", 1)
    if name != "sd35-large":
        index |= {
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
        }
        components["text_encoder_3"] = component(T5EncoderModel(T5Config(**T5_XXL)), T5_XXL, "model", 2)
    return {"model_index": index, "scheduler": sd3_checkpoints.scheduler_config(), "components": components}


def sdxl() -> dict:
    """Stable Diffusion XL base 1.0."""
    unet = make_sdxl.unet_config(
        addition_time_embed_dim=256,
        attention_head_dim=[5, 10, 20],
        block_out_channels=[320, 640, 1280],
        cross_attention_dim=2048,
        norm_num_groups=32,
        projection_class_embeddings_input_dim=2816,
        sample_size=128,
        transformer_layers_per_block=[1, 2, 10],
    )
    vae = make_sdxl.sdxl_vae_config() | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    vae |= {"layers_per_block": 2}
    weights = "diffusion_pytorch_model"
    clip = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    has_prefix = next(iter(clip.state_dict())).startswith("text_model.")
    return {
        "model_index": make_sdxl.model_index(),
        "scheduler": make_sdxl.scheduler_config(),
        "components": {
            "unet": component(UNet2DConditionModel.from_config(unet), unet, weights, 1),
            "text_encoder": component(clip, CLIP_L, "model", 1, "" if has_prefix else "text_model."),
            "text_encoder_2": component(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)), CLIP_G, "model", 1),
            "vae": component(AutoencoderKL.from_config(vae), vae, weights, 1),
        },
    }


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with torch.device("meta"):
        write("dit-xl", dit())
        write("flux-dev", flux(FLUX_DEV, shift=3.0, use_dynamic_shifting=True))
        write("flux-schnell", flux(FLUX_DEV | {"guidance_embeds": False}, shift=1.0, use_dynamic_shifting=False))
        write("hunyuan-11", hunyuan(0.03))
        write("hunyuan-12", hunyuan(0.018, use_style_cond_and_image_meta_size=False))
        write("latte", latte())
        write("pixart-alpha", pixart("PixArtAlphaPipeline", {}))
        write("pixart-sigma", pixart("PixArtSigmaPipeline", checkpoints.SIGMA_VAE, use_additional_conditions=False, **checkpoints.SIGMA))
        for name in SD3:
            write(name, sd3(name))
        write("sdxl-base", sdxl())


def write(name: str, checkpoint: dict) -> None:
    text = json.dumps(checkpoint, indent=1, sort_keys=True)
    # Each shape is on one line.
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    (OUT / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
