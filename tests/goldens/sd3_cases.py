"""What Stable Diffusion 3's modules and pipeline compute, by the reference implementation."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from pipeline_cases import Recorder, relative_distance, write_case
from sd3_checkpoints import CHECKPOINTS


def watch_transformer(recorder: Recorder, model: torch.nn.Module) -> None:
    """The embeddings, both streams after every block, and one block's inside."""
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
    """One forward of a batch of two texts, on a latent of `rows` by `columns` tokens."""
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
    """The way of latents to pixels, with shift and scale, and back."""
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


def write_all(root: Path) -> None:
    transformer_case(root, "sd3-medium", 5, 3)
    transformer_case(root, "sd35-medium", 4, 7)
    transformer_case(root, "sd35-large", 12, 2)
    vae_case(root)
