"""The three networks and the tokenizer, with the configs in which PixArt-Σ is published and smaller numbers."""

import io
import json
import math
import random
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from scenes import Sprites, caption, draw_scene

PIECES = 368
# T5 numbers its sentinels downwards: `<extra_id_0>` has the highest id.
EXTRA_IDS = range(PIECES, PIECES + 100)
PAD, EOS = 0, 1
MAX_TOKENS = 32

TRANSFORMER = {
    "_class_name": "PixArtTransformer2DModel",
    "_diffusers_version": "0.42.1",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 48,
    "attention_type": "default",
    "caption_channels": 192,
    "cross_attention_dim": 288,
    "dropout": 0.0,
    "in_channels": 4,
    "interpolation_scale": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 6,
    "num_embeds_ada_norm": 1000,
    "num_layers": 8,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_additional_conditions": False,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.42.1",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 96, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 256,
    # Training folds the scale of each latent channel into the convolutions around the latent space.
    "scaling_factor": 1.0,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT_ENCODER = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 384,
    "d_kv": 48,
    "d_model": 192,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.0,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_layers": 3,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 32,
    "relative_attention_num_buckets": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": False,
    "vocab_size": 472,
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.42.1",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
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


def new_vae() -> AutoencoderKL:
    return AutoencoderKL.from_config(VAE)


def new_transformer(**changes) -> PixArtTransformer2DModel:
    """Initialised as PixArt's own training code does: Xavier in the blocks, a prediction of zero at the end."""
    model = PixArtTransformer2DModel.from_config(TRANSFORMER | changes)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "scale_shift_table" in name:
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        elif "adaln_single" in name or "caption_projection" in name:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
    torch.nn.init.zeros_(model.proj_out.weight)
    return model


def new_text_encoder(**changes) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**TEXT_ENCODER | changes))


def alphas_cumprod() -> torch.Tensor:
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], SCHEDULER["num_train_timesteps"])
    return (1 - betas.double()).cumprod(0).float()


# --- Tokenizer ------------------------------------------------------------------------------------------------------


def train_sentencepiece(sprites: Sprites, captions: int = 30000) -> bytes:
    """A unigram vocabulary of words that captions have; letters are in it, so that any word can be spelled."""
    rng = random.Random(0)
    words = {word: None for _ in range(captions) for word in caption(rng, draw_scene(rng, sprites)).replace(",", "").split()}
    # Every word as often as any other: by their true frequencies the trainer would rather have parts of rare words.
    words = (list(words) + ["background"] * 9) * 30
    rng.shuffle(words)
    lines = [" ".join(words[begin : begin + 10]) for begin in range(0, len(words), 10)]
    alphabet = " ".join("abcdefghijklmnopqrstuvwxyz")
    lines += [alphabet, "0 1 2 3 4 5 6 7 8 9", ". , ; : ! ? ' - ( ) & / \" + % #"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, model: bytes) -> None:
    """The three files with which T5's tokenizer is published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    sentinels = [f"<extra_id_{i}>" for i in range(len(EXTRA_IDS))]
    tokens = dict(enumerate(named.values())) | dict(zip(EXTRA_IDS, reversed(sentinels), strict=True))
    special_tokens_map = {"additional_special_tokens": sentinels} | {
        role: {"content": token} | flags for role, token in named.items()
    }
    tokenizer_config = {
        "add_prefix_space": True,
        "added_tokens_decoder": {str(id): {"content": token, "special": True} | flags for id, token in tokens.items()},
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": True,
        "extra_ids": len(EXTRA_IDS),
        "legacy": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    } | named
    for name, value in {"special_tokens_map": special_tokens_map, "tokenizer_config": tokenizer_config}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
