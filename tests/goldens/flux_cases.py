"""Cases of FLUX: the transformer block by block, and runs of the reference pipeline."""

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from pipeline_cases import (
    LONG_PROMPT,
    NEGATIVE,
    PROMPT,
    Recorder,
    load,
    relative_distance,
    run_pipeline,
    size,
    write_case,
)

CALL = {"prompt": PROMPT, "num_inference_steps": 4, "num_images_per_prompt": 1, "max_sequence_length": 64}

# name -> (checkpoint, seed of image 0, call)
CASES = {
    "flux-schnell-plain": (
        "flux-schnell",
        7,
        size(64, 96) | {"guidance_scale": 0.0, "max_sequence_length": 256},
    ),
    "flux-schnell-batch": (
        "flux-schnell",
        11,
        size(64, 64) | {"prompt": [PROMPT, "two dragons"], "prompt_2": ["a castle in the mist", "three owls"]},
    ),
    "flux-schnell-long-prompt": (
        "flux-schnell",
        13,
        size(64, 48) | {"prompt": LONG_PROMPT, "num_inference_steps": 1, "max_sequence_length": 48},
    ),
    "flux-dev-non-square": (
        "flux-dev",
        17,
        size(112, 80) | {"guidance_scale": 3.5, "num_inference_steps": 6},
    ),
    # Guidance, steps and text tokens have the pipeline's defaults.
    "flux-dev-defaults": ("flux-dev", 0, size(48, 64) | {"num_inference_steps": None, "max_sequence_length": None}),
    "flux-dev-images-per-prompt": (
        "flux-dev",
        21,
        size(64, 64) | {"prompt": [PROMPT, "two dragons"], "num_images_per_prompt": 2, "guidance_scale": 2.0},
    ),
    "flux-dev-true-cfg": (
        "flux-dev",
        23,
        size(64, 80)
        | {
            "guidance_scale": 3.0,
            "negative_prompt": NEGATIVE,
            "negative_prompt_2": "a broken lighthouse",
            "prompt_2": "a castle in the mist",
            "true_cfg_scale": 4.0,
        },
    ),
    # More tokens than the scheduler's shift starts from.
    "flux-dev-large": ("flux-dev", 29, size(240, 320) | {"guidance_scale": 5.0, "num_inference_steps": 3}),
}


def watch_transformer(recorder: Recorder, model: FluxTransformer2DModel) -> None:
    """The output of every part; a block's text output is called `….text`, and its image output `….image`."""

    def streams(name: str):
        def hook(_module, _inputs, output):
            recorder.put(f"{name}.text", output[0])
            recorder.put(f"{name}.image", output[1])

        return hook

    for name in ["x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"]:
        recorder.output(getattr(model, name), name)
    for kind in ["transformer_blocks", "single_transformer_blocks"]:
        for i, block in enumerate(getattr(model, kind)):
            recorder.hooks.append(block.register_forward_hook(streams(f"{kind}.{i}")))


@torch.no_grad()
def transformer_case(root: Path, checkpoint: str, seed: int, grid: list[int], text_tokens: int) -> None:
    """Two pictures in one batch, with different texts and inputs."""
    folder = root / checkpoint / "transformer"
    model = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    inputs = {
        "hidden_states": torch.randn(2, rows * columns, model.config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(2, text_tokens, model.config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, model.config.pooled_projection_dim, generator=generator),
    }
    # In the form that the pipeline passes.
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    ids = torch.cat([torch.zeros(rows, columns, 1), places], dim=-1).reshape(-1, 3)
    timestep, guidance = 617.1875, 2.75
    fixed = {"img_ids": ids, "txt_ids": torch.zeros(text_tokens, 3), "timestep": torch.full([2], timestep) / 1000}
    if model.config.guidance_embeds:
        fixed["guidance"] = torch.full([2], guidance)

    recorder = Recorder()
    watch_transformer(recorder, model)
    recorder.put("output", model(**inputs, **fixed).sample)
    recorder.close()
    double = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float64)
    expected = double(**{name: value.double() for name, value in inputs.items()}, **fixed).sample
    tensors = inputs | recorder.tensors
    record = {
        "checkpoint": checkpoint,
        "grid": grid,
        "timestep": timestep,
        "guidance": guidance,
        "rounding": {"output": relative_distance(tensors["output"], expected)},
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", f"{checkpoint}-transformer", record, tensors)


def run_case(root: Path, name: str, checkpoint: str, seed: int, call: dict) -> None:
    """One call; entries that are `None` are left to the pipeline."""
    call = {key: value for key, value in (CALL | call).items() if value is not None}
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    recorder = Recorder()
    prepare_latents = pipe.prepare_latents

    def prepared(batch, channels, height, width, *args):
        latents, ids = prepare_latents(batch, channels, height, width, *args)
        shape = (1, channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        assert torch.equal(latents, pipe._pack_latents(noise, batch, channels, *shape[2:]))
        recorder.put("init_latents", noise)
        recorder.put("packed", latents)
        return latents, ids

    pipe.prepare_latents = prepared
    prompts = 1 if isinstance(call["prompt"], str) else len(call["prompt"])
    # Image i of a request uses seed + i; prompts form the outer loop.
    seeds = [seed + i for i in range(prompts * call["num_images_per_prompt"])]
    tensors = run_pipeline(pipe, call, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    # The distance between single and double precision in this case: no tolerance can be below it.
    double = run_pipeline(pipe64, call, latents=recorder.tensors.pop("packed").double())
    rounding = {"latents": relative_distance(tensors["latents"], double["latents"])}
    rounding["image"] = (tensors["image"].int() - double["image"].int()).abs().max().item()

    tensors["latents"] = pipe._unpack_latents(tensors["latents"], call["height"], call["width"], pipe.vae_scale_factor)
    tensors = {key: value for key, value in (recorder.tensors | tensors).items() if not key.startswith("steps.")}
    record = {
        "checkpoint": checkpoint,
        "pipeline": type(pipe).__name__,
        "call": call,
        "seeds": seeds,
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
        "tensors": {key: list(tensor.shape) for key, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", name, record, tensors)


def write_all(root: Path) -> None:
    for name, (checkpoint, seed, call) in CASES.items():
        run_case(root, name, checkpoint, seed, call)
    transformer_case(root, "flux-schnell", 51, [5, 7], 11)
    transformer_case(root, "flux-dev", 52, [6, 3], 9)
