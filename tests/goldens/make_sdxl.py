"""Writes SDXL's golden data with the reference implementation, in f32 on the CPU.

It needs the environment of `make_pixart.py`, and the checkpoint `sd3-medium/` of `make_sd3.py`.

    python make_sdxl.py [FOLDER]

It writes the checkpoints `sdxl-base/` and `sdxl-turbo/` and the `cases/` to FOLDER, by default the folder of this script. Nothing is
downloaded, and a second run on the same machine writes equal files.
"""

import argparse
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

from checkpoints import randomize, vae_config, write_json, write_weights
from clip_checkpoints import make_clip_g, make_clip_l, write_clip_tokenizer
from pipeline_cases import LONG_PROMPT, NEGATIVE, PROMPT, Recorder, load, relative_distance, run_both, size, write_case
from sd3_checkpoints import link

NAME, TURBO = "sdxl-base", "sdxl-turbo"
SEED = 91


def unet_config(**changes) -> dict:
    """The published `unet/config.json` of SDXL base 1.0 with smaller numbers."""
    config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 8,
        "attention_head_dim": [1, 4, 6],
        "block_out_channels": [8, 16, 24],
        "center_input_sample": False,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_dim": 28,
        "cross_attention_norm": None,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 4,
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 64,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "sample_size": 16,
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": [1, 1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "upcast_attention": None,
        "use_linear_projection": True,
    }
    return config | changes


def scheduler_config(**changes) -> dict:
    """The published `scheduler_config.json` of SDXL base 1.0."""
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }
    return config | changes


def turbo_scheduler_config() -> dict:
    """The published `scheduler_config.json` of SDXL-Turbo."""
    return scheduler_config(
        _class_name="EulerAncestralDiscreteScheduler",
        _diffusers_version="0.24.0.dev0",
        sigma_max=None,
        sigma_min=None,
        timestep_spacing="trailing",
        timestep_type="discrete",
    )


def sdxl_vae_config() -> dict:
    return vae_config(
        _diffusers_version="0.20.0.dev0",
        block_out_channels=[8, 8, 8, 16],
        force_upcast=True,
        sample_size=1024,
        scaling_factor=0.13025,
    )


def model_index(scheduler: str = "EulerDiscreteScheduler") -> dict:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


# Attention must be visible beside the stream that it is added to. Larger gains make the network so steep that f32 is far
# from f64.
GAINS = {"to_q": 0.7, "to_out": 0.7, "net.2": 0.7, "proj_out": 0.7, "time_emb_proj": 0.3, "conv1": 0.7, "conv2": 0.5}
GAINS["conv_out"] = 0.5
# The largest distance between f32 and f64 that leaves room to judge another implementation: of one forward pass, and
# of the final latents.
UNET_ROUNDING, LATENTS_ROUNDING = 1e-6, 1e-5

# Other layouts of the same class: attention in other levels, another number of layers a level, the projections around
# attention as convolutions, and one number for all levels.
OTHERS = {
    "sdxl-unet-other": unet_config(
        attention_head_dim=2,
        block_out_channels=[8, 12, 12, 16],
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        layers_per_block=1,
        transformer_layers_per_block=1,
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
        use_linear_projection=False,
    ),
}


def write_unet(folder: Path, config: dict, seed: int, variant: str | None = None) -> None:
    state = randomize(UNet2DConditionModel.from_config(config).state_dict(), seed, GAINS)
    write_json(folder / "config.json", config)
    write_weights(folder, "diffusion_pytorch_model", state, variant=variant, shards=1)


def write_vae(folder: Path, seed: int, variant: str | None = None) -> None:
    config = sdxl_vae_config()
    state = randomize(AutoencoderKL.from_config(config).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_json(folder / "config.json", config)
    write_weights(folder, "diffusion_pytorch_model", state, variant=variant, shards=1)


# The sizes of the first text encoder.
CLIP_L = {"hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 3, "projection_dim": 12}


def write_turbo(root: Path) -> None:
    """SDXL-Turbo, of which all weights are of the variant `fp16`. Its `unet/config.json` was written by a newer version."""
    folder, variant, seed = root / TURBO, "fp16", SEED + 2
    config = unet_config(
        _diffusers_version="0.24.0.dev0",
        attention_type="default",
        dropout=0.0,
        reverse_transformer_layers_per_block=None,
        sample_size=8,
    )
    write_unet(folder / "unet", config, seed, variant)
    write_vae(folder / "vae", seed, variant)
    make_clip_l(folder / "text_encoder", seed=seed, projection=False, variant=variant, **CLIP_L)
    # With the other encoder's, the features that the UNet expects.
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "projection_dim": 16}
    make_clip_g(folder / "text_encoder_2", seed=seed, variant=variant, **sizes)
    link(folder / "tokenizer", root / NAME / "tokenizer")
    link(folder / "tokenizer_2", root / "sd3-medium/tokenizer_2")
    write_json(folder / "scheduler/scheduler_config.json", turbo_scheduler_config())
    write_json(folder / "model_index.json", model_index("EulerAncestralDiscreteScheduler"))


def write_checkpoints(root: Path) -> None:
    folder = root / NAME
    write_unet(folder / "unet", unet_config(), SEED)
    for name, config in OTHERS.items():
        write_unet(root / name / "unet", config, SEED + 1)
    write_vae(folder / "vae", SEED)
    make_clip_l(folder / "text_encoder", seed=SEED, projection=False, **CLIP_L)
    write_clip_tokenizer(folder / "tokenizer")
    link(folder / "text_encoder_2", root / "sd3-medium/text_encoder_2")
    link(folder / "tokenizer_2", root / "sd3-medium/tokenizer_2")
    write_json(folder / "scheduler/scheduler_config.json", scheduler_config())
    write_json(folder / "model_index.json", model_index())
    write_turbo(root)


CALL = {"prompt": PROMPT, "num_inference_steps": 4, "num_images_per_prompt": 1}
TWO = {"prompt": [PROMPT, "two dragons"]}
DPM = scheduler_config(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True)

# As the model cards of distilled models say: no guidance, and the last timesteps of equal parts.
LIGHTNING = scheduler_config(timestep_spacing="trailing")

# name -> (seed of image 0, call, scheduler that replaces the checkpoint's)
CASES = {
    "sdxl-base-defaults": (80, {"num_inference_steps": 50}, None),
    # Sides of the latents that cannot be halved twice.
    "sdxl-base-odd-size": (81, size(104, 72) | {"negative_prompt": NEGATIVE}, None),
    "sdxl-base-batch": (82, size(64, 96) | TWO | {"num_images_per_prompt": 2}, None),
    "sdxl-base-no-guidance": (83, size(64, 64) | {"guidance_scale": 1.0}, None),
    "sdxl-base-texts": (
        84,
        size(64, 64)
        | TWO
        | {"prompt_2": ["a fox", LONG_PROMPT], "clip_skip": 1}
        | {"negative_prompt": ["two dragons", NEGATIVE], "negative_prompt_2": "smoke"},
        None,
    ),
    "sdxl-base-conditions": (
        85,
        size(96, 64)
        | {"original_size": (512, 384), "crops_coords_top_left": (16, 40), "target_size": (640, 576)},
        None,
    ),
    "sdxl-base-negative-conditions": (
        86,
        size(64, 64)
        | {"negative_prompt": NEGATIVE, "negative_original_size": (256, 320)}
        | {"negative_crops_coords_top_left": (8, 24), "negative_target_size": (1024, 1000)},
        None,
    ),
    "sdxl-base-rescale": (87, size(80, 64) | {"guidance_scale": 9.0, "guidance_rescale": 0.7}, None),
    # Without a negative prompt, the negative branch has zeros, even if there is a second negative prompt.
    "sdxl-base-dpm": (88, size(64, 80) | {"num_inference_steps": 8, "negative_prompt_2": "smoke"}, DPM),
    # An empty negative prompt is a text.
    "sdxl-base-empty-negative": (89, size(64, 72) | {"negative_prompt": ""}, None),
    "sdxl-base-karras": (90, size(64, 64) | {"num_inference_steps": 8}, scheduler_config(use_karras_sigmas=True)),
    "sdxl-base-lightning": (91, size(72, 64) | {"guidance_scale": 0.0}, LIGHTNING),
    "sdxl-base-lightning-one-step": (
        92,
        size(64, 64) | {"guidance_scale": 0.0, "num_inference_steps": 1},
        LIGHTNING | {"prediction_type": "sample"},
    ),
    "sdxl-turbo-one-step": (93, {"guidance_scale": 0.0, "num_inference_steps": 1}, None),
    # Three of the steps draw noise, each picture from its own stream.
    "sdxl-turbo-four-steps": (94, size(64, 80) | {"guidance_scale": 0.0, "num_images_per_prompt": 2}, None),
}


def pipeline_case(root: Path, name: str, seed: int, call: dict, scheduler: dict | None) -> None:
    """One call; missing options have the pipeline's defaults."""
    call, checkpoint = CALL | call, TURBO if name.startswith(TURBO) else NAME
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    if scheduler is not None:
        for each in [pipe, pipe64]:
            each.scheduler = getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
    tensors, seeds, rounding = run_both(pipe, pipe64, call, seed, Recorder())
    assert rounding["latents"] < LATENTS_ROUNDING, (name, rounding)
    record = {
        "checkpoint": checkpoint,
        "call": call,
        "seeds": seeds,
        "scheduler": scheduler,
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
    }
    write_case(root / "cases", name, record, {key: tensors[key] for key in ["init_latents", "latents", "image"]})


@torch.no_grad()
def unet_case(root: Path, name: str, case: str, rows: int, columns: int) -> None:
    """One forward pass for a batch of two texts, with the output of every residual block, transformer and level."""
    generator = torch.Generator().manual_seed(SEED)
    config = unet_config() if name == NAME else OTHERS[name]

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    inputs = {
        "sample": draw(2, config["in_channels"], rows, columns),
        "encoder_hidden_states": draw(2, 9, config["cross_attention_dim"]),
        "text_embeds": draw(2, pooled),
        "time_ids": torch.tensor([[512.0, 768, 8, 16, 1024, 960]] * 2),
    }
    timestep = 731.25
    outputs = {}
    recorder = Recorder()
    for dtype in [torch.float32, torch.float64]:
        model = UNet2DConditionModel.from_pretrained(root / name / "unet", torch_dtype=dtype)
        if dtype == torch.float32:
            order = ["conv_in"]
            order += [f"down_blocks.{i}" for i in range(len(config["down_block_types"]))] + ["mid_block"]
            order += [f"up_blocks.{i}" for i in range(len(config["up_block_types"]))]
            for part in order:
                recorder.output(model.get_submodule(part), part)
        cast = {key: tensor.to(dtype) for key, tensor in inputs.items()}
        outputs[dtype] = model(
            cast["sample"],
            torch.tensor(timestep, dtype=dtype),
            cast["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": cast["text_embeds"], "time_ids": cast["time_ids"]},
            return_dict=False,
        )[0]
    recorder.close()
    rounding = relative_distance(outputs[torch.float32], outputs[torch.float64])
    assert rounding < UNET_ROUNDING, (case, rounding)
    record = {"checkpoint": name, "timestep": timestep, "rounding": {"output": rounding}}
    tensors = inputs | recorder.tensors | {"output": outputs[torch.float32]}
    if name == NAME:
        # The published width.
        values = torch.tensor([1.0, 731.25, 951.0, 999.0])
        tensors["sinusoids_320"] = get_timestep_embedding(values, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    write_case(root / "cases", case, record, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    root = parser.parse_args().folder
    # Sums are then computed in the same order, whatever the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    # Both libraries warn of intended properties, such as prompts that are cut.
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()

    write_checkpoints(root)
    unet_case(root, NAME, "sdxl-base-unet", 8, 12)
    unet_case(root, NAME, "sdxl-base-unet-odd", 13, 7)
    unet_case(root, "sdxl-unet-other", "sdxl-unet-other", 16, 8)
    for name, case in CASES.items():
        pipeline_case(root, name, *case)


if __name__ == "__main__":
    main()
