"""Cases of Stable Diffusion 3: its modules and its pipeline, computed with the reference implementation."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from pipeline_cases import LONG_PROMPT, NEGATIVE, PROMPT, Recorder, load, relative_distance, run_both, size, write_case
from sd3_checkpoints import CHECKPOINTS

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
# Few T5 tokens, because they account for most of the work of such a small model.
CALL = {"prompt": PROMPT, "num_inference_steps": 5, "num_images_per_prompt": 1, "max_sequence_length": 24}
TWO = {"prompt": [PROMPT, "two dragons"]}

# name -> (checkpoint, seed of image 0, call, scheduler that replaces the checkpoint's)
CASES = {
    "sd3-medium-defaults": ("sd3-medium", 50, {"num_inference_steps": 28, "max_sequence_length": 256}, None),
    "sd3-medium-negative": ("sd3-medium", 51, size(64, 96) | {"negative_prompt": NEGATIVE}, None),
    "sd3-medium-batch": ("sd3-medium", 52, size(64, 48) | TWO | {"num_images_per_prompt": 2}, None),
    "sd3-medium-no-guidance": ("sd3-medium", 53, size(48, 64) | {"guidance_scale": 1.0}, None),
    "sd3-medium-long-prompt": (
        "sd3-medium",
        54,
        size(48, 48) | {"prompt": LONG_PROMPT, "negative_prompt": LONG_PROMPT[100:], "max_sequence_length": 100},
        None,
    ),
    "sd3-medium-texts": (
        "sd3-medium",
        55,
        size(64, 64)
        | TWO
        | {"prompt_2": ["a fox", "a whale"], "prompt_3": ["", "golden light"], "clip_skip": 1}
        | {"negative_prompt": "two dragons", "negative_prompt_2": "smoke", "negative_prompt_3": "rain"},
        None,
    ),
    "sd3-medium-by-size": (
        "sd3-medium",
        56,
        size(96, 64),
        SCHEDULER | {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64},
    ),
    "sd35-medium-portrait": ("sd35-medium", 61, size(224, 48) | {"negative_prompt": NEGATIVE}, None),
    "sd35-medium-one-step": ("sd35-medium", 62, size(64, 64) | {"num_inference_steps": 1}, None),
    "sd35-medium-karras": ("sd35-medium", 63, size(64, 80), SCHEDULER | {"shift": 3.0, "use_karras_sigmas": True}),
    # Steps 1 and 2 of 12; one of the skipped blocks has a second attention.
    "sd35-medium-skip-layers": (
        "sd35-medium",
        64,
        size(64, 96) | {"negative_prompt": NEGATIVE, "num_inference_steps": 12, "skip_guidance_layers": [1, 2]},
        None,
    ),
    # Steps 2 to 5 of 10, because both ends are exclusive. The first and the last block are skipped.
    "sd35-medium-skip-layers-window": (
        "sd35-medium",
        65,
        size(80, 48)
        | TWO
        | {"num_inference_steps": 10, "skip_guidance_layers": [0, 3], "skip_layer_guidance_scale": 1.5}
        | {"skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.6},
        None,
    ),
    "sd35-large-batch": ("sd35-large", 71, size(80, 64) | TWO | {"guidance_scale": 3.5}, None),
    "sd35-large-no-text-encoder-3": ("sd35-large", 72, size(48, 48) | {"max_sequence_length": 256}, None),
}


def watch_transformer(recorder: Recorder, model: torch.nn.Module) -> None:
    """The embeddings, both streams after every block, and the inside of one block."""
    recorder.output(model.pos_embed, "pos_embed")
    recorder.output(model.time_text_embed, "time_text_embed")
    recorder.output(model.context_embedder, "context_embedder")

    def streams(name):
        def hook(_module, _inputs, output):
            text, image = output
            recorder.put(name, image)
            if text is not None:
                recorder.put(f"{name}.text", text)

        return hook

    for i, block in enumerate(model.transformer_blocks):
        recorder.hooks.append(block.register_forward_hook(streams(f"transformer_blocks.{i}")))


@torch.no_grad()
def transformer_case(root: Path, name: str, rows: int, columns: int) -> None:
    """One forward pass for a batch of two texts, on a latent of `rows` by `columns` tokens."""
    config, seed, _ = CHECKPOINTS[name]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    patch = config["patch_size"]
    inputs = {
        "hidden_states": draw(2, config["in_channels"], rows * patch, columns * patch),
        "encoder_hidden_states": draw(2, 9, config["joint_attention_dim"]),
        "pooled_projections": draw(2, config["pooled_projection_dim"]),
    }
    timestep = 731.25
    outputs = {}
    recorder = Recorder()
    for dtype in [torch.float32, torch.float64]:
        model = SD3Transformer2DModel.from_pretrained(root / name / "transformer", torch_dtype=dtype)
        if dtype == torch.float32:
            watch_transformer(recorder, model)
        steps = torch.full((2,), timestep, dtype=dtype)
        cast = {key: tensor.to(dtype) for key, tensor in inputs.items()}
        outputs[dtype] = model(**cast, timestep=steps, return_dict=False)[0]
    recorder.close()
    rounding = relative_distance(outputs[torch.float32], outputs[torch.float64])
    record = {"checkpoint": name, "timestep": timestep, "rounding": {"output": rounding}}
    tensors = inputs | recorder.tensors | {"output": outputs[torch.float32]}
    write_case(root / "cases", f"{name}-transformer", record, tensors)


@torch.no_grad()
def vae_case(root: Path) -> None:
    """Latents to pixels, with shift and scale, and back."""
    vae = AutoencoderKL.from_pretrained(root / "sd3-medium/vae")
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 7, 10, generator=generator)
    pixels = torch.rand(1, 3, 56, 80, generator=generator) * 2 - 1
    tensors = {
        "latents": latents,
        "decoded": vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample,
        "pixels": pixels,
        "moments": vae.encode(pixels).latent_dist.parameters,
    }
    write_case(root / "cases", "sd3-medium-vae", {"checkpoint": "sd3-medium"}, tensors)


def pipeline_case(root: Path, name: str, checkpoint: str, seed: int, call: dict, scheduler: dict | None) -> None:
    """One call; missing options have the pipeline's defaults."""
    call = CALL | call
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    if scheduler is not None:
        for each in [pipe, pipe64]:
            each.scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
    tensors, seeds, rounding = run_both(pipe, pipe64, call, seed, Recorder())
    record = {
        "checkpoint": checkpoint,
        "call": call,
        "seeds": seeds,
        "scheduler": scheduler,
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
    }
    write_case(root / "cases", name, record, {key: tensors[key] for key in ["init_latents", "latents", "image"]})


def write_all(root: Path) -> None:
    for name, case in CASES.items():
        pipeline_case(root, name, *case)
    transformer_case(root, "sd3-medium", 5, 3)
    transformer_case(root, "sd35-medium", 4, 7)
    transformer_case(root, "sd35-large", 12, 2)
    vae_case(root)
