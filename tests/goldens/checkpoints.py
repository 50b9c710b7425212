"""Small random checkpoints in the layout of the published PixArt models.

The configs follow the published files and not the output of current libraries: the transformer has the class
`Transformer2DModel`, the text encoder's config contains `torch_dtype`, the scheduler's contains `-Infinity` (which is
not valid JSON), and there is a `spiece.model` but no `tokenizer.json`.

Default initialisation would leave biases at zero, norm weights at one and the gates of zero-initialised layers closed,
so a wrong port could still agree. `randomize` therefore draws *every* parameter, with a seed derived from its name.
"""

import json
import math
import zlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from vocabulary import EXTRA_IDS, write_tokenizer


def randomize(state: dict[str, torch.Tensor], seed: int, gains: dict[str, float]) -> dict[str, torch.Tensor]:
    """Draws every tensor of `state` from a separate stream, so that adding a tensor changes no other.

    Matrices and convolutions get the variance `gain² / fan_in`; biases and norms get values clearly different from their
    defaults. `gains` maps a part of a name to the gain of the tensors with that part in their names.
    """
    drawn = {}
    for name, tensor in state.items():
        generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
        normal = torch.randn(tensor.shape, generator=generator)
        gain = next((gain for part, gain in gains.items() if part in name), 1.0)
        if name.endswith("scale_shift_table"):
            value = 0.3 * normal
        elif name == "shared.weight" or "relative_attention_bias" in name:
            value = gain * normal
        elif tensor.ndim >= 2:
            value = gain / math.sqrt(tensor[0].numel()) * normal
        elif name.endswith("bias"):
            value = 0.1 * normal
        elif name.endswith("mix_factor"):
            # The logit of a share.
            value = normal
        else:
            value = 1.0 + 0.2 * normal
        drawn[name] = value.contiguous()
    return drawn


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_weights(folder: Path, stem: str, state: dict[str, torch.Tensor], *, variant: str | None, shards: int) -> None:
    """Writes `state` as one file, as a variant (`stem.fp16.safetensors`), or as shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if variant == "fp16":
        state = {name: tensor.half() for name, tensor in state.items()}
    if shards == 1:
        suffix = f".{variant}" if variant else ""
        save_file(state, folder / f"{stem}{suffix}.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    per_shard = math.ceil(len(names) / shards)
    weight_map = {}
    for shard in range(shards):
        part = names[shard * per_shard : (shard + 1) * per_shard]
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    total_size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def transformer_config(sample_size: int, layers: int, **changes) -> dict:
    """The published `transformer/config.json` with smaller numbers; a change to `...` removes the key."""
    config = {
        "_class_name": "Transformer2DModel",
        "_diffusers_version": "0.22.0.dev0",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 12,
        "attention_type": "default",
        "caption_channels": 32,
        "cross_attention_dim": 48,
        "double_self_attention": False,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 4,
        "num_embeds_ada_norm": 1000,
        "num_layers": layers,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": sample_size,
        "upcast_attention": False,
        "use_linear_projection": False,
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def vae_config(**changes) -> dict:
    config = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.22.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [8, 8, 16, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 256,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return config | changes


def t5_config(**changes) -> dict:
    config = {
        "architectures": ["T5EncoderModel"],
        "classifier_dropout": 0.0,
        "d_ff": 64,
        "d_kv": 8,
        "d_model": 32,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_layers": 2,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.34.0.dev0",
        "use_cache": False,
        "vocab_size": 928,
    }
    return config | changes


def scheduler_config(**changes) -> dict:
    """The solver of PixArt; α was published before the option `final_sigmas_type` existed, and Σ after."""
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": "0.22.0.dev0",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "dynamic_thresholding_ratio": 0.995,
        "euler_at_final": False,
        "lambda_min_clipped": -math.inf,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "linspace",
        "trained_betas": None,
        "use_karras_sigmas": False,
        "use_lu_lambdas": False,
        "variance_type": None,
    }
    return config | changes


def rename_attention(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the autoencoder's attention as in files from before diffusers 0.18, which are still supported."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in state.items():
        if ".attentions." in name:
            for new_part, old_part in old.items():
                name = name.replace(new_part, old_part)
        renamed[name] = tensor
    return renamed


def write_checkpoint(
    folder: Path,
    pipeline: str,
    transformer: dict,
    vae: dict,
    text_encoder: dict,
    scheduler: dict,
    *,
    seed: int,
    variant: str | None = None,
    shards: int = 1,
    old_attention_names: bool = False,
) -> None:
    """Writes one pipeline folder. Components with equal configs and seeds give equal files."""
    parts = {
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", transformer["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    version = transformer["_diffusers_version"]
    write_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": version} | parts)
    write_json(folder / "scheduler/scheduler_config.json", scheduler)
    write_tokenizer(folder / "tokenizer")

    # In a random network the latents grow from 1 to several hundred over the steps. With these gains the
    # contributions of attention and MLP to the residual stream stay comparable to the embedded latents at both ends
    # of that range.
    gains = {
        "pos_embed.proj": 0.2,
        "to_q": 1.5,
        "to_k": 1.5,
        "to_out": 6.0,
        "ff.net.2": 6.0,
        "adaln_single.linear": 0.5,
    }
    model = PixArtTransformer2DModel.from_config(transformer)
    # The position table is not stored in files, because readers compute it.
    state = randomize(model.state_dict(), seed, gains)
    write_json(folder / "transformer/config.json", transformer)
    write_weights(folder / "transformer", "diffusion_pytorch_model", state, variant=variant, shards=shards)

    # A small last convolution keeps the picture inside [-1, 1], so that differences are visible.
    state = randomize(AutoencoderKL.from_config(vae).state_dict(), seed, {"decoder.conv_out": 0.5})
    state = rename_attention(state) if old_attention_names else state
    write_json(folder / "vae/config.json", vae)
    write_weights(folder / "vae", "diffusion_pytorch_model", state, variant=variant, shards=1)

    assert text_encoder["vocab_size"] >= EXTRA_IDS.stop
    state = T5EncoderModel(T5Config(**text_encoder)).state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared.weight`; only one of them is published
    # T5 does not divide its scores by sqrt(d_kv), so the queries are small instead.
    gains = {"SelfAttention.q": text_encoder["d_kv"] ** -0.5, "relative_attention_bias": 0.5}
    state = randomize(state, seed, gains)
    write_json(folder / "text_encoder/config.json", text_encoder)
    write_weights(folder / "text_encoder", "model", state, variant=variant, shards=shards)


SIGMA = {"_diffusers_version": "0.27.0.dev0"}
SIGMA_VAE = {
    "_diffusers_version": "0.27.0.dev0",
    "block_out_channels": [8, 8, 16, 16],
    "force_upcast": True,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


def write_all(root: Path) -> None:
    """The five golden checkpoints; together they cover every variation of the layout that must be supported."""
    alpha, sigma = "PixArtAlphaPipeline", "PixArtSigmaPipeline"
    sigma_scheduler = scheduler_config(_diffusers_version="0.27.0.dev0", final_sigmas_type="zero")
    write_checkpoint(
        root / "pixart-alpha-256",
        alpha,
        transformer_config(32, 4),
        vae_config(),
        t5_config(),
        scheduler_config(),
        seed=1,
    )
    # There are no convolutions around the latent space.
    write_checkpoint(
        root / "pixart-alpha-512",
        alpha,
        transformer_config(64, 3, attention_head_dim=16, cross_attention_dim=64),
        vae_config(use_quant_conv=False, use_post_quant_conv=False),
        t5_config(),
        scheduler_config(),
        seed=2,
    )
    # The micro conditions follow from `sample_size` alone: `use_additional_conditions` is not in the published
    # file.
    write_checkpoint(
        root / "pixart-alpha-1024",
        alpha,
        transformer_config(128, 5, num_attention_heads=6, attention_head_dim=8, cross_attention_dim=48),
        vae_config(),
        t5_config(),
        scheduler_config(),
        seed=3,
        old_attention_names=True,
    )
    write_checkpoint(
        root / "pixart-sigma-512",
        sigma,
        transformer_config(64, 4, interpolation_scale=1, use_additional_conditions=False, **SIGMA),
        vae_config(**SIGMA_VAE),
        t5_config(),
        sigma_scheduler,
        seed=4,
        shards=2,
    )
    # There are only half-precision files, and the class name is the one that newer converters write.
    write_checkpoint(
        root / "pixart-sigma-2k",
        sigma,
        transformer_config(
            256,
            3,
            interpolation_scale=4,
            use_additional_conditions=False,
            **SIGMA | {"_class_name": "PixArtTransformer2DModel"},
        ),
        vae_config(**SIGMA_VAE),
        t5_config(torch_dtype="float16"),
        sigma_scheduler,
        seed=5,
        variant="fp16",
    )
