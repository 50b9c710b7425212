"""Times a denoising step and the VAE decode of diffusers on a GPU, on a model of published size with random weights.

    python diffusers_device.py NAME [--size 1024] [--dtype bf16] [--repeat 10] [--compile]

NAME is one of the models of `xdit bench`, whose descriptions in `xdit-cli/published` give the configs. A step is one
forward pass of the transformer, of two images where the pipeline guides by default. Prints one JSON object with
medians in milliseconds and the peak memory in GiB. Needs torch with CUDA and diffusers; no weights are read.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import diffusers
import torch

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "xdit-cli/published"
DEVICE = "cuda"


def build(config: dict, default: str, dtype: torch.dtype) -> torch.nn.Module:
    """A model with random weights, made on the device."""
    # The published class of PixArt-α is that of an older version.
    names = {"Transformer2DModel": "PixArtTransformer2DModel"}
    name = config.get("_class_name", default)
    torch.set_default_dtype(dtype)
    with torch.device(DEVICE):
        model = getattr(diffusers, names.get(name, name)).from_config(config)
    torch.set_default_dtype(torch.float32)
    return model.to(dtype).eval()


def inputs(name: str, config: dict, size: int, dtype: torch.dtype) -> dict:
    """The arguments of a forward pass at `size` pixels."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=dtype)

    side = size // 8
    if name.startswith("flux"):
        grid = side // 2
        ids = torch.zeros(grid, grid, 3, device=DEVICE, dtype=dtype)
        ids[..., 1] += torch.arange(grid, device=DEVICE)[:, None]
        ids[..., 2] += torch.arange(grid, device=DEVICE)[None]
        return {
            "hidden_states": random(1, grid * grid, config["in_channels"]),
            "encoder_hidden_states": random(1, 512, config["joint_attention_dim"]),
            "pooled_projections": random(1, config["pooled_projection_dim"]),
            "timestep": torch.full((1,), 0.5, device=DEVICE, dtype=dtype),
            "img_ids": ids.reshape(-1, 3),
            "txt_ids": torch.zeros(512, 3, device=DEVICE, dtype=dtype),
            "guidance": torch.full((1,), 3.5, device=DEVICE) if config["guidance_embeds"] else None,
        }
    latents = random(2, config["in_channels"], side, side)
    timestep = torch.full((2,), 500.0, device=DEVICE)
    if name.startswith("pixart"):
        tokens = 120 if name == "pixart-alpha" else 300
        sizes = {"resolution": None, "aspect_ratio": None}
        if name == "pixart-alpha":
            sizes = {"resolution": random(2, 2) * 0 + size, "aspect_ratio": random(2, 1) * 0 + 1}
        return {
            "hidden_states": latents,
            "encoder_hidden_states": random(2, tokens, config["caption_channels"]),
            "encoder_attention_mask": torch.ones(2, tokens, device=DEVICE, dtype=dtype),
            "timestep": timestep,
            "added_cond_kwargs": sizes,
        }
    if name.startswith("sdxl"):
        return {
            "sample": latents,
            "encoder_hidden_states": random(2, 77, config["cross_attention_dim"]),
            "timestep": timestep,
            "added_cond_kwargs": {"text_embeds": random(2, 1280), "time_ids": random(2, 6)},
        }
    if name.startswith("hunyuan"):
        grid = side // config["patch_size"]
        angles = torch.randn(grid * grid, config["attention_head_dim"], device=DEVICE)
        return {
            "hidden_states": latents,
            # The model computes the embeddings of conditions in this type.
            "timestep": timestep.to(dtype),
            "encoder_hidden_states": random(2, 77, config["cross_attention_dim"]),
            "text_embedding_mask": torch.ones(2, 77, device=DEVICE, dtype=torch.long),
            "encoder_hidden_states_t5": random(2, 256, config["cross_attention_dim_t5"]),
            "text_embedding_mask_t5": torch.ones(2, 256, device=DEVICE, dtype=torch.long),
            "image_meta_size": random(2, 6),
            "style": torch.zeros(2, device=DEVICE, dtype=torch.long),
            "image_rotary_emb": (angles.cos(), angles.sin()),
        }
    # Without the third text encoder, its 256 tokens are zeros: the shape is the same.
    return {
        "hidden_states": latents,
        "encoder_hidden_states": random(2, 77 + 256, config["joint_attention_dim"]),
        "pooled_projections": random(2, config["pooled_projection_dim"]),
        "timestep": timestep,
    }


def median_ms(run, repeat: int) -> dict:
    """The median and the minimum of `repeat` runs after two others, in milliseconds."""
    times = []
    with torch.no_grad():
        for number in range(repeat + 2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if number >= 2:
                times.append(1e3 * (time.perf_counter() - start))
    return {"median": statistics.median(times), "min": min(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(path.stem for path in PUBLISHED.glob("*.json")))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="also time compiled blocks")
    args = parser.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    components = json.loads((PUBLISHED / f"{args.name}.json").read_text())["components"]
    report = {
        "name": args.name,
        "size": args.size,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }

    config = components["unet" if "unet" in components else "transformer"]["config"]
    model = build(config, "", dtype)
    call = inputs(args.name, config, args.size, dtype)
    torch.cuda.reset_peak_memory_stats()
    report["step_ms"] = median_ms(lambda: model(**call, return_dict=False), args.repeat)
    report["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if args.compile:
        start = time.perf_counter()
        model.compile_repeated_blocks(fullgraph=True)
        report["compiled_step_ms"] = median_ms(lambda: model(**call, return_dict=False), args.repeat)
        report["compile_s"] = time.perf_counter() - start
    del model, call
    torch.cuda.empty_cache()

    config = components["vae"]["config"]
    vae = build(config, "AutoencoderKL", dtype)
    latents = torch.randn(1, config["latent_channels"], args.size // 8, args.size // 8, device=DEVICE, dtype=dtype)
    report["decode_ms"] = median_ms(lambda: vae.decode(latents, return_dict=False), args.repeat)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
