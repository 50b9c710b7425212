"""Pictures from the three networks, many at once, with the solver and the guidance of the pipeline."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from PIL import Image
from transformers import T5EncoderModel

import models


@dataclass
class Networks:
    vae: AutoencoderKL
    transformer: PixArtTransformer2DModel
    text_encoder: T5EncoderModel
    device: torch.device = torch.device("cpu")


def token_ids(pieces, prompts: list[str]) -> torch.Tensor:
    rows = [(pieces.encode(prompt.lower().strip())[: models.MAX_TOKENS - 1] + [models.EOS]) for prompt in prompts]
    longest = max(map(len, rows))
    return torch.tensor([row + [models.PAD] * (longest - len(row)) for row in rows])


@torch.no_grad()
def sample(networks: Networks, pieces, prompts: list[str], seed: int, steps: int = 20, guidance: float = 4.5):
    """Pictures `[n, 3, 256, 256]` in -1 to 1; number `i` begins with the noise of `seed + i`."""
    device = networks.device
    ids = token_ids(pieces, [""] * len(prompts) + prompts).to(device)
    mask = (ids != models.PAD).long()
    text = networks.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    noise = [torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
    latents = torch.stack(noise).to(device)
    scheduler = DPMSolverMultistepScheduler.from_config(models.SCHEDULER)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        guess = networks.transformer(
            torch.cat([latents, latents]),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=time.to(device).expand(len(ids)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, :4]
        free, guided = guess.chunk(2)
        latents = scheduler.step(free + guidance * (guided - free), time, latents).prev_sample
    return networks.vae.decode(latents / models.VAE["scaling_factor"]).sample.float().clamp(-1, 1)


def as_bytes(pictures: torch.Tensor):
    """`u8 [n, height, width, 3]`"""
    return ((pictures.float().cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def picture_grid(pictures: torch.Tensor, columns: int) -> Image.Image:
    tiles = as_bytes(pictures)
    rows, side = -(-len(tiles) // columns), tiles.shape[1]
    grid = Image.new("RGB", (columns * side, rows * side), "white")
    for number, tile in enumerate(tiles):
        grid.paste(Image.fromarray(tile), (number % columns * side, number // columns * side))
    return grid
