"""Tiled decoding of a latent that does not divide evenly, with tiles far smaller than the published ones."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file


def write_all(root: Path) -> None:
    vae = AutoencoderKL.from_pretrained(root / "pixart-alpha-256" / "vae")
    vae.enable_tiling()
    vae.tile_sample_min_size = 64
    vae.tile_latent_min_size = 8
    z = torch.randn((1, 4, 20, 13), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        decoded = vae.decode(z).sample
    case = {"checkpoint": "pixart-alpha-256", "tile": 64}
    (root / "cases" / "tiling.json").write_text(json.dumps(case, indent=1) + "\n")
    save_file({"z": z, "decoded": decoded.contiguous()}, root / "cases" / "tiling.safetensors")
