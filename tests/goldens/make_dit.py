"""Writes DiT's golden data with the reference implementation, in f32 on the CPU.

It needs the environment of `make_pixart.py`.

    python make_dit.py [FOLDER]

It writes the checkpoints (`dit-*/`) and their `cases/` to FOLDER, by default the folder of this script. Nothing is
downloaded, and a second run on the same machine writes equal files.
"""

import importlib
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from checkpoints import randomize, transformer_config, vae_config, write_json, write_weights
from make_pixart import prepare
from pipeline_cases import Recorder, load, relative_distance, write_case

# Some of ImageNet's classes. One has several names, and one name belongs to two of them.
ID2LABEL = {
    "1": "goldfish, Carassius auratus",
    "134": "crane",
    "2": "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "207": "golden retriever",
    "208": "Labrador retriever",
    "517": "crane",
    "879": "umbrella",
}


def dit_config(sample_size: int, layers: int, **changes) -> dict:
    """The published `transformer/config.json` with smaller numbers."""
    changes = {"attention_type": ..., "caption_channels": ..., "cross_attention_dim": None} | changes
    changes |= {"double_self_attention": ..., "norm_eps": ..., "norm_type": "ada_norm_zero"}
    return transformer_config(sample_size, layers, **{"_diffusers_version": "0.12.0.dev0"} | changes)


def scheduler_config() -> dict:
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.12.0.dev0",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    }


# name -> (transformer, seed, keyword arguments of `write_weights`). The pipeline needs the thousand classes of ImageNet:
# class 1000 is none. With both, the tables of the classes are most of the weights.
CHECKPOINTS = {
    "dit-256": (dit_config(12, 4, attention_head_dim=6), 91, {"variant": None, "shards": 1}),
    "dit-512": (
        dit_config(14, 5, attention_head_dim=4, num_attention_heads=5, _class_name="DiTTransformer2DModel"),
        92,
        {"variant": None, "shards": 2},
    ),
}

CALL = {"prompt": ["golden retriever"], "num_inference_steps": 5, "num_images_per_prompt": 1}
SCHEDULER = scheduler_config() | {"_class_name": "DPMSolverMultistepScheduler"}

# name -> (checkpoint, seed of image 0, call, scheduler that replaces the checkpoint's)
CASES = {
    "dit-256-defaults": ("dit-256", 81, {"num_inference_steps": 50}, None),
    "dit-256-classes": (
        "dit-256",
        82,
        {"prompt": ["white shark", "207", "crane", "999"], "num_images_per_prompt": 2, "guidance_scale": 1.5},
        None,
    ),
    "dit-256-no-guidance": ("dit-256", 83, {"guidance_scale": 1.0, "prompt": ["0"]}, None),
    "dit-256-dpm": ("dit-256", 84, {"num_inference_steps": 7}, SCHEDULER),
    "dit-512-defaults": ("dit-512", 85, {"prompt": ["umbrella"]}, None),
    "dit-512-trailing": ("dit-512", 86, {}, scheduler_config() | {"timestep_spacing": "trailing"}),
}


def write_checkpoint(root: Path, name: str, transformer: dict, seed: int, options: dict) -> None:
    folder, vae = root / name, vae_config(_diffusers_version="0.12.0.dev0")
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.12.0.dev0",
        "id2label": ID2LABEL,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", transformer["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler/scheduler_config.json", scheduler_config())
    # As for PixArt: attention and MLP stay comparable to the embedded latents. Embeddings have the variance of one.
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    gains = {"pos_embed.proj": 0.2, "to_q": 1.5, "to_k": 1.5, "to_out": 6.0, "ff.net.2": 6.0, "norm1.linear": 0.5}
    gains |= {"embedding_table": width**0.5, "proj_out_1": 0.5}
    state = randomize(DiTTransformer2DModel.from_config(transformer).state_dict(), seed, gains)
    write_json(folder / "transformer/config.json", transformer)
    write_weights(folder / "transformer", "diffusion_pytorch_model", state, **options)
    state = randomize(AutoencoderKL.from_config(vae).state_dict(), seed, {"decoder.conv_out": 0.5})
    write_json(folder / "vae/config.json", vae)
    write_weights(folder / "vae", "diffusion_pytorch_model", state, **options | {"shards": 1})


@torch.no_grad()
def run_pipeline(pipe: DiTPipeline, call: dict, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """One call from `noise`, with the final latents."""
    labels = [int(label) if label.isdigit() else pipe.get_label_ids([label])[0] for label in call["prompt"]]
    labels = [label for label in labels for _ in range(call["num_images_per_prompt"])]
    samples, step = [], pipe.scheduler.step

    def recorded(*args, **kwargs):
        samples.append(step(*args, **kwargs)[0])
        return step_output(samples[-1])

    # The pipeline takes no latents.
    module = importlib.import_module(DiTPipeline.__module__)
    randn_tensor, pipe.scheduler.step = module.randn_tensor, recorded
    module.randn_tensor = lambda shape, **_: noise.reshape(shape)
    named = {key: call[key] for key in ["num_inference_steps", "guidance_scale"] if key in call}
    image = pipe(class_labels=labels, **named, output_type="np").images
    module.randn_tensor, pipe.scheduler.step = randn_tensor, step
    # With guidance, the sample is there twice.
    latents = samples[-1][: len(labels)]
    return {"latents": latents, "image": torch.from_numpy((image * 255).round().astype("uint8"))}


def step_output(sample: torch.Tensor):
    return diffusers.schedulers.scheduling_utils.SchedulerOutput(prev_sample=sample)


def pipeline_case(root: Path, name: str, checkpoint: str, seed: int, call: dict, scheduler: dict | None) -> None:
    call = CALL | call
    pipe, pipe64 = load(root / checkpoint), load(root / checkpoint, torch.float64)
    if scheduler is not None:
        kind = getattr(diffusers, scheduler["_class_name"])
        pipe.scheduler, pipe64.scheduler = kind.from_config(scheduler), kind.from_config(scheduler)
    seeds = [seed + i for i in range(len(call["prompt"]) * call["num_images_per_prompt"])]
    config = pipe.transformer.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    tensors, double = run_pipeline(pipe, call, noise), run_pipeline(pipe64, call, noise.double())
    rounding = {"latents": relative_distance(tensors["latents"], double["latents"])}
    rounding["image"] = (tensors["image"].int() - double["image"].int()).abs().max().item()
    record = {
        "checkpoint": checkpoint,
        "call": call,
        "seeds": seeds,
        "scheduler": scheduler,
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "rounding": rounding,
    }
    write_case(root / "cases", name, record, {"init_latents": noise} | tensors)


@torch.no_grad()
def transformer_case(root: Path, name: str) -> None:
    """One forward pass for two classes, the second of which is none."""
    config, seed, _ = CHECKPOINTS[name]
    size = config["sample_size"]
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, config["in_channels"], size, size, generator=generator)
    timestep, labels, outputs, recorder = 731, torch.tensor([879, 1000]), {}, Recorder()
    for dtype in [torch.float32, torch.float64]:
        model = DiTTransformer2DModel.from_pretrained(root / name / "transformer", torch_dtype=dtype)
        if dtype == torch.float32:
            recorder.output(model.pos_embed, "pos_embed")
            for i, block in enumerate(model.transformer_blocks):
                recorder.output(block, f"transformer_blocks.{i}")
        steps = torch.full((2,), timestep)
        outputs[dtype] = model(latents.to(dtype), timestep=steps, class_labels=labels, return_dict=False)[0]
    recorder.close()
    rounding = relative_distance(outputs[torch.float32], outputs[torch.float64])
    record = {"checkpoint": name, "timestep": timestep, "classes": labels.tolist(), "rounding": {"output": rounding}}
    tensors = {"hidden_states": latents} | recorder.tensors | {"output": outputs[torch.float32]}
    write_case(root / "cases", f"{name}-transformer", record, tensors)


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    for name, checkpoint in CHECKPOINTS.items():
        write_checkpoint(root, name, *checkpoint)
        transformer_case(root, name)
    for name, case in CASES.items():
        pipeline_case(root, name, *case)


if __name__ == "__main__":
    main()
