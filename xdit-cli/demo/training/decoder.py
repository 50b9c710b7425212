"""Sharpens the autoencoder's decoder; its encoder, and so the latents, stay as they are.

    python decoder.py sprites.npz piece-1/state.safetensors decoder.safetensors --seconds 230

The first part of the time continues with the loss of `train.py`. The second adds an adversary that looks at patches
(Isola et al. 2017; weighted as in Esser et al. 2021), because where latents do not hold a detail, differences of pixels
alone are least if it is blurred.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import models
from sampling import picture_grid
from scenes import Painter, Sprites, draw_chunk
from train import crops, half_state, load_state, picture_loss, same_type_norms


def adversary() -> nn.Sequential:
    layers, inside = [], 3
    for outside in (48, 96, 192):
        layers.append(nn.Conv2d(inside, outside, 4, stride=2, padding=1))
        layers += [nn.GroupNorm(8, outside)] if inside > 3 else []
        layers.append(nn.LeakyReLU(0.2))
        inside = outside
    return nn.Sequential(*layers, nn.Conv2d(inside, 1, 3, padding=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("sprites", "state", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=float, default=230)
    parser.add_argument("--plain", type=float, default=0.55, help="share of the time without the adversary")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=5e-4)
    options = parser.parse_args()
    start = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(21)
    torch.backends.cudnn.benchmark = True
    sprites = Sprites(options.sprites)
    painter = Painter(sprites, device)
    backgrounds, slots, _, _ = draw_chunk(31, 30000 if options.seconds > 30 else 100, sprites, training=True)
    backgrounds, slots = torch.from_numpy(backgrounds).to(device), torch.from_numpy(slots).to(device)
    vae = models.new_vae()
    load_state(vae, load_file(options.state), "vae")
    vae.to(device)
    same_type_norms(vae)
    vae.requires_grad_(False)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    averages = [parameter.detach().clone() for parameter in trained]
    critic = adversary().to(device)
    same_type_norms(critic)
    adam = torch.optim.AdamW(trained, lr=options.rate, betas=(0.5, 0.99), weight_decay=1e-4)
    critic_adam = torch.optim.AdamW(critic.parameters(), lr=4e-4, betas=(0.5, 0.99), weight_decay=1e-4)
    last = vae.decoder.conv_out.weight
    half = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": device.type == "cuda"}

    def save(path: Path) -> None:
        current = [parameter.detach().clone() for parameter in trained]
        for parameter, average in zip(trained, averages, strict=True):
            parameter.data.copy_(average)
        save_file(half_state("vae", vae), path)
        with torch.no_grad():
            rows = torch.arange(24, device=device)
            wanted = painter.paint(backgrounds[rows], slots[rows])
            made = vae.decode(vae.encode(wanted).latent_dist.mode()).sample.float()
            error = (made.clamp(-1, 1) - wanted).square().mean((1, 2, 3)) / 4
        print(f"{path.name}: {(-10 * error.log10()).mean():.2f} dB after {time.time() - start:.0f} s", flush=True)
        picture_grid(torch.cat([wanted[:16], made[:16]]), 8).save(path.with_suffix(".png"))
        for parameter, value in zip(trained, current, strict=True):
            parameter.data.copy_(value)

    step, progress, plain_saved = 0, 0.0, False
    while progress < 1:
        progress = (time.time() - start) / options.seconds
        judged = progress > options.plain
        if judged and not plain_saved:
            save(options.out.with_name("plain-" + options.out.name))
            plain_saved = True
        # Within each part the rate falls; the adversary's part is gentler.
        part = progress / options.plain if not judged else (progress - options.plain) / (1 - options.plain)
        factor = min(1.0, (step + 1) / 100) * max(0.05, 1 - part) * (0.4 if judged else 1.0)
        adam.param_groups[0]["lr"] = options.rate * factor
        side, batch = (128, options.batch) if step % 5 else (256, max(2, options.batch // 4))
        rows = torch.randint(len(slots), (batch,), device=device)
        wanted = painter.paint(backgrounds[rows], slots[rows], side, crops(backgrounds[rows], slots[rows], side))
        with torch.autocast(**half):
            with torch.no_grad():
                latents = vae.encode(wanted).latent_dist.sample()
            made = vae.decode(latents).sample
        made = made.float()
        loss = rebuilt = picture_loss(made, wanted)
        if judged:
            with torch.autocast(**half):
                verdict = critic(made).float()
            cheat = -verdict.mean()
            pull = torch.autograd.grad(rebuilt, last, retain_graph=True)[0].norm()
            push = torch.autograd.grad(cheat, last, retain_graph=True)[0].norm()
            ramp = min(1.0, part / 0.2)
            loss = rebuilt + 0.35 * ramp * (pull / (push + 1e-4)).clamp(0, 100).detach() * cheat
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        if judged:
            with torch.autocast(**half):
                real, fake = critic(wanted).float(), critic(made.detach()).float()
            critic_loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
            critic_adam.zero_grad(set_to_none=True)
            critic_loss.backward()
            critic_adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, trained, 1 - min(0.998, (step + 1) / (step + 20)))
        if step % 200 == 1:
            error = -10 * math.log10((made - wanted).square().mean().item() / 4)
            more = f"critic {critic_loss.item():.3f}" if judged else ""
            print(f"decoder {step} {time.time() - start:.0f}s loss {rebuilt.item():.4f} psnr {error:.2f} {more}", flush=True)
        step += 1
    save(options.out)


if __name__ == "__main__":
    main()
