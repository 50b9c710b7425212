"""Trains the autoencoder, then the text encoder and the transformer together, in pieces of a few minutes.

    python train.py --sprites sprites.npz --vocabulary spiece.model --out piece-1 --vae-seconds 200 --seconds 560
    python train.py --sprites sprites.npz --vocabulary spiece.model --out piece-2 --resume piece-1 --seconds 560

Pictures and captions are drawn while it runs; nothing is read but the two files. The first piece begins with the
autoencoder, which is fixed afterwards; later pieces continue from the weights of the last one (16 bits, without the
state of the optimisers, which a short warm-up rebuilds). Each piece ends after `--seconds`, so the number of steps
depends on the GPU; `log.csv` has it.
"""

import argparse
import csv
import math
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import models
from sampling import Networks, picture_grid, sample
from scenes import Painter, Sprites, caption, draw_chunk

CAPTIONS = 4
CHUNK = 2000
# Share of captions that are replaced by the empty prompt, for classifier-free guidance.
EMPTY = 0.1
TIME_BINS = 50


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sprites", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--vae", type=Path, help="what `decoder.py` wrote, in place of the autoencoder of `--resume`")
    parser.add_argument("--seconds", type=float, default=560, help="for everything, from start to written files")
    parser.add_argument("--vae-seconds", type=float, default=200)
    parser.add_argument("--vae-batch", type=int, default=96)
    parser.add_argument("--vae-rate", type=float, default=6e-4)
    parser.add_argument("--bank", type=int, default=300_000, help="scenes that are painted and encoded")
    parser.add_argument("--bank-seconds", type=float, default=75, help="the bank is smaller if it would take longer")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--muon-rate", type=float, default=0.015)
    parser.add_argument("--adam-rate", type=float, default=1.5e-3)
    parser.add_argument("--rates", type=float, nargs=2, default=(1.0, 1.0), help="factors at the piece's begin and end")
    parser.add_argument("--middle", type=float, default=0.0, help="share of timesteps drawn from 40 to 450 alone")
    parser.add_argument("--bank-file", type=Path, help="where the bank is kept for the next piece on the same machine")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="two blocks of the transformer, to try the script out")
    return parser.parse_args()


class Log:
    """Rows of `log.csv`, also printed."""

    def __init__(self, path: Path, start: float):
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerow(("phase", "step", "seconds", "samples", "loss", "detail", "rate"))
        self.start = start

    def row(self, phase: str, step: int, samples: int, loss: float, detail: float, rate: float) -> None:
        seconds = time.time() - self.start
        self.writer.writerow((phase, step, f"{seconds:.1f}", samples, f"{loss:.6f}", f"{detail:.6f}", f"{rate:.3g}"))
        self.file.flush()
        print(f"{phase} {step} {seconds:.0f}s {samples} loss {loss:.5f} {detail:.5f} rate {rate:.2g}", flush=True)


# --- Data -----------------------------------------------------------------------------------------------------------

_WORKER = {}


def start_worker(sprites: str, vocabulary: str) -> None:
    _WORKER["sprites"] = Sprites(sprites)
    _WORKER["sprites"].pixels = None
    _WORKER["pieces"] = sentencepiece.SentencePieceProcessor(model_file=vocabulary)


def make_chunk(seed: int, captions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    backgrounds, slots, _, scenes = draw_chunk(seed, CHUNK, _WORKER["sprites"], training=True)
    rng = random.Random(seed + 1)
    tokens = np.zeros((CHUNK, captions, models.MAX_TOKENS), np.int16)
    for row, scene in zip(tokens, scenes, strict=True):
        for line in row:
            ids = _WORKER["pieces"].encode(caption(rng, scene))[: models.MAX_TOKENS - 1] + [models.EOS]
            line[: len(ids)] = ids
    return backgrounds, slots, tokens


class Scenes:
    """Scenes that other processes draw ahead of time."""

    def __init__(self, pool: ProcessPoolExecutor, seed: int, chunks: int, captions: int):
        self.futures = [pool.submit(make_chunk, (seed << 32) + 2 * number, captions) for number in range(chunks)]

    def wait(self) -> list[torch.Tensor]:
        parts = zip(*(future.result() for future in self.futures), strict=True)
        return [torch.from_numpy(np.concatenate(part)) for part in parts]


# --- Autoencoder ----------------------------------------------------------------------------------------------------


class SameTypeGroupNorm(torch.nn.GroupNorm):
    """Under autocast group norm would answer in 32 bits and double the memory traffic; its sums are in 32 bits anyway."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def same_type_norms(module: torch.nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, torch.nn.GroupNorm):
            child.__class__ = SameTypeGroupNorm


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute differences of pixels and, at three sharpnesses, of their differences to their neighbours."""
    loss = (made - wanted).abs().mean()
    for _ in range(3):
        for a, b in zip(edges(made), edges(wanted), strict=True):
            loss = loss + (a - b).abs().mean()
        made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
    return loss


def crops(backgrounds, slots, side: int) -> torch.Tensor:
    """Where a window of `side` pixels begins that shows a part of a random sprite."""
    n = len(slots)
    counts = (slots[:, :, 0] >= 0).sum(1)
    chosen = (torch.rand(n, device=slots.device) * counts).long()
    middles = slots[torch.arange(n, device=slots.device), chosen, 1:3]
    moved = middles + (torch.rand(n, 2, device=slots.device) - 0.5) * side * 1.2 - side / 2
    return moved.clamp(0, 256 - side).round()


def rate_at(progress: float, step: int, warmup: int, decay: float) -> float:
    """Of the full rate: a linear warm-up, a plateau, and a linear decay over the last `decay` of the time."""
    up = min(1.0, (step + 1) / warmup)
    down = 1.0 if decay == 0 else min(1.0, (1 - progress) / decay)
    return max(0.0, up * down)


def train_vae(vae, painter: Painter, scenes: Scenes, options, device, log: Log, until: float) -> None:
    same_type_norms(vae)
    backgrounds, slots, _ = [part.to(device) for part in scenes.wait()]
    vae.to(device).train()
    parameters = list(vae.parameters())

    def optimiser():
        return torch.optim.AdamW(parameters, lr=options.vae_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)

    adam = optimiser()
    layouts = [torch.contiguous_format, torch.channels_last] if device.type == "cuda" else [torch.contiguous_format]
    speed = {}
    layout = layouts[0]
    begin, step, seen = time.time(), 0, 0
    total = max(1.0, until - begin)
    while time.time() < until:
        # A few steps in each memory layout, then the faster one.
        if step < 12 * len(layouts) and len(layouts) > 1:
            if step % 12 == 0:
                layout = layouts[step // 12]
                vae.to(memory_format=layout)
                adam = optimiser()
            if step % 12 == 4:
                torch.cuda.synchronize()
                clock = time.time()
            if step % 12 == 11:
                torch.cuda.synchronize()
                speed[layout] = time.time() - clock
                print("autoencoder", layout, f"{7 * options.vae_batch / speed[layout]:.0f} windows a second", flush=True)
                if len(speed) == len(layouts):
                    layout = min(speed, key=speed.get)
                    vae.to(memory_format=layout)
                    adam = optimiser()
        progress = (time.time() - begin) / total
        # The last tenth sees whole pictures, whose middle attention covers four times as many places.
        side, batch = (128, options.vae_batch) if progress < 0.9 else (256, max(2, options.vae_batch // 4))
        rows = torch.randint(len(slots), (batch,), device=device)
        origin = crops(backgrounds[rows], slots[rows], side)
        wanted = painter.paint(backgrounds[rows], slots[rows], side, origin).to(memory_format=layout)
        for group in adam.param_groups:
            group["lr"] = options.vae_rate * rate_at(progress, step, 200, 0.6)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(wanted).latent_dist
            made = vae.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = picture_loss(made.float(), wanted) + 2e-3 * kl
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        step, seen = step + 1, seen + batch
        if step % 100 == 0:
            with torch.no_grad():
                error = (made.float() - wanted).square().mean() / 4
            print(f"kl {kl.item():.3f} psnr {-10 * math.log10(error.item()):.2f}", end=" ")
            log.row("vae", step, seen, loss.item(), kl.item(), adam.param_groups[0]["lr"])
    vae.eval()
    vae.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def encode(vae, painter: Painter, backgrounds, slots, device, batch: int, seconds: float = math.inf) -> torch.Tensor:
    """Latents of the scenes, before `scaling_factor`: of all, or of as many as `seconds` allow."""
    latents = torch.empty(len(slots), 4, 32, 32, dtype=torch.float16, device=device)
    begin, done = time.time(), 0
    for part in torch.arange(len(slots), device=device).split(40 * batch):
        if time.time() - begin > seconds:
            break
        # Scenes with as many sprites together: the painter stops after the last sprite of a batch.
        part = part[(slots[part, :, 0] >= 0).sum(1).argsort()]
        for rows in part.split(batch):
            pictures = painter.paint(backgrounds[rows], slots[rows])
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents[rows] = vae.encode(pictures).latent_dist.mode().half()
        done += len(part)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return latents[:done]


@torch.no_grad()
def standardize(vae, latents: torch.Tensor) -> None:
    """Gives each latent channel mean 0 and deviation 1 by folding both into the convolutions around them."""
    sample = latents.float()
    mean, deviation = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    print("latent means", mean.tolist(), "deviations", deviation.tolist(), flush=True)
    scale, shift = 1 / deviation, -mean / deviation
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= scale.view(4, 1, 1, 1)
    quant.bias[:4] = quant.bias[:4] * scale + shift
    quant.bias[4:] += 2 * scale.log()  # logarithms of variances
    post.bias += (post.weight[:, :, 0, 0] @ mean.view(4, 1))[:, 0]
    post.weight *= deviation.view(1, 4, 1, 1)


# --- Optimiser ------------------------------------------------------------------------------------------------------


def orthogonalized(update: torch.Tensor) -> torch.Tensor:
    """The nearest matrices whose singular values are all about 1, of `[n, rows, columns]` with rows ≤ columns.

    Five Newton–Schulz iterations with the coefficients of Muon (Jordan et al. 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon:
    """Momentum, orthogonalised; for the matrices inside the blocks, all of one shape at once."""

    def __init__(self, parameters, rate: float, momentum: float = 0.95, weight_decay: float = 0.01):
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
        self.memory = {shape: None for shape in self.groups}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        rate = self.rate * factor
        for shape, parameters in self.groups.items():
            gradients = torch.stack([p.grad if p.shape[0] <= p.shape[1] else p.grad.mT for p in parameters])
            if self.memory[shape] is None:
                self.memory[shape] = torch.zeros_like(gradients)
            memory = self.memory[shape].lerp_(gradients, 1 - self.momentum)
            update = gradients.lerp(memory, self.momentum)
            half = torch.bfloat16 if update.is_cuda else torch.float32
            update = orthogonalized(update.to(half)).float()
            # A tall matrix takes longer steps.
            updates = [
                u if p.shape[0] <= p.shape[1] else u.mT * (p.shape[0] / p.shape[1]) ** 0.5
                for u, p in zip(update, parameters, strict=True)
            ]
            torch._foreach_mul_(parameters, 1 - rate * self.weight_decay)
            torch._foreach_add_(parameters, updates, alpha=-rate)


# --- Transformer ----------------------------------------------------------------------------------------------------


def train_transformer(networks: Networks, ema: Networks, bank, tokens, options, device, log: Log, until: float) -> None:
    transformer, text_encoder = networks.transformer.to(device).train(), networks.text_encoder.to(device).train()
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True
        for block in transformer.transformer_blocks:
            block.compile()
    matrices = [p for n, p in transformer.named_parameters() if "transformer_blocks" in n and n.endswith("weight")]
    inside = {id(p) for p in matrices}
    rest = [p for p in [*transformer.parameters(), *text_encoder.parameters()] if id(p) not in inside]
    muon = Muon(matrices, options.muon_rate)
    adam = torch.optim.AdamW(rest, lr=options.adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    everything = matrices + rest
    averages = [*ema.transformer.to(device).parameters(), *ema.text_encoder.to(device).parameters()]
    current = [*transformer.parameters(), *text_encoder.parameters()]

    alphas = models.alphas_cumprod().to(device)
    typical = torch.ones(TIME_BINS, device=device)
    empty = torch.zeros(models.MAX_TOKENS, dtype=torch.long, device=device)
    empty[0] = models.EOS
    n, batch = len(bank), options.batch
    begin, step = time.time(), 0
    total = max(1.0, until - begin)
    progress = 0.0
    while progress < 1:
        if step % 10 == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            progress = (time.time() - begin) / total
        rows = torch.randint(n, (batch,), device=device)
        latents = bank[rows].float()
        ids = tokens[rows, torch.randint(tokens.shape[1], (batch,), device=device)].long()
        ids = torch.where(torch.rand(batch, 1, device=device) < EMPTY, empty, ids)
        mask = (ids != models.PAD).long()
        # Spread evenly over the batch.
        even = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
        share = 1 - options.middle
        middle = 40 + 410 * (even - share) / max(options.middle, 1e-6)
        times = torch.where(even < share, 1000 * even / share, middle).long().clamp(0, 999)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            text = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            guess = transformer(
                noisy,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                timestep=times,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample[:, :4]
        errors = (guess.float() - velocity).square().mean((1, 2, 3))
        # Timesteps with small errors count for more than these would: half-way to what makes all count alike.
        bins = times * TIME_BINS // 1000
        with torch.no_grad():
            sums = torch.zeros_like(typical).index_add_(0, bins, errors.detach())
            counts = torch.zeros_like(typical).index_add_(0, bins, torch.ones_like(errors))
            typical = torch.where(counts > 0, typical.lerp(sums / counts.clamp(min=1), 0.02), typical)
            weights = (typical.mean() / typical).sqrt().clamp(0.3, 4)[bins]
        loss = (errors * weights).mean()
        for parameter in everything:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        first, last = options.rates
        factor = min(1.0, (step + 1) / options.warmup) * (first + (last - first) * min(1.0, progress))
        adam.param_groups[0]["lr"] = options.adam_rate * factor
        adam.step()
        muon.step(factor)
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(averages, current, 1 - min(0.999, (step + 1) / (step + 20)))
        if step % 100 == 0 or step in (1, 20):
            log.row("transformer", step, step * batch, errors.mean().item(), loss.item(), factor)
    print("errors by time", [round(value, 4) for value in typical.tolist()], flush=True)
    transformer.eval()
    text_encoder.eval()


# --- Files ----------------------------------------------------------------------------------------------------------


def half_state(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    return {name: t.detach().half().cpu().contiguous().clone() for name, t in names.items() if "embed_tokens" not in name}


def load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str) -> None:
    own = {name[len(prefix) + 1 :]: tensor.float() for name, tensor in state.items() if name.startswith(prefix + ".")}
    missing, unexpected = module.load_state_dict(own, strict=False)
    assert not unexpected and all("embed_tokens" in n or "pos_embed.pos_embed" in n for n in missing), (missing, unexpected)


def main() -> None:
    start = time.time()
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    piece = options.seed * 1000 + (1 if options.resume is None else int(options.resume.name.split("-")[-1]) + 1)
    log = Log(options.out / "log.csv", start)
    # Started before anything touches the GPU.
    pool = ProcessPoolExecutor(
        max(2, (multiprocessing.cpu_count() or 4) - 2),
        mp_context=multiprocessing.get_context("fork"),
        initializer=start_worker,
        initargs=(options.sprites, options.vocabulary),
    )
    first = Scenes(pool, piece * 10, 1 if options.tiny else 20, 1) if options.resume is None else None
    known = options.bank_file and options.bank_file.exists()
    bank_scenes = None if known else Scenes(pool, piece * 10 + 1, -(-options.bank // CHUNK), CAPTIONS)
    torch.manual_seed(piece)

    sprites = Sprites(options.sprites)
    painter = Painter(sprites, device)
    small = {"num_layers": 2} if options.tiny else {}
    vae = models.new_vae()
    networks = Networks(vae, models.new_transformer(**small), models.new_text_encoder())
    if options.resume is None:
        train_vae(vae, painter, first, options, device, log, start + options.vae_seconds)
    else:
        state = load_file(options.resume / "state.safetensors")
        load_state(vae, load_file(options.vae) if options.vae else state, "vae")
        load_state(networks.transformer, state, "transformer")
        load_state(networks.text_encoder, state, "text_encoder")
        same_type_norms(vae)
        vae.to(device).eval()

    clock = time.time()
    block = 8 if device.type == "cpu" else 250
    if options.bank_file and options.bank_file.exists():
        kept = load_file(options.bank_file, device=str(device))
        bank, tokens, backgrounds, slots = (kept[name] for name in ("bank", "tokens", "backgrounds", "slots"))
    else:
        backgrounds, slots, tokens = [part.to(device) for part in bank_scenes.wait()]
        if options.resume is None:
            rows = slice(0, min(len(slots), 40 * block))
            standardize(vae, encode(vae, painter, backgrounds[rows], slots[rows], device, block))
        bank = encode(vae, painter, backgrounds, slots, device, block, options.bank_seconds)
        if options.bank_file:
            shown = {"backgrounds": backgrounds[:16].clone(), "slots": slots[:16].clone()}
            save_file({"bank": bank, "tokens": tokens} | shown, options.bank_file)
    deviation = bank[:10000].float().std()
    print(f"bank of {len(bank)} in {time.time() - clock:.0f} s; deviation {deviation:.4f}", flush=True)

    ema = Networks(vae, models.new_transformer(**small), models.new_text_encoder())
    ema.transformer.load_state_dict(networks.transformer.state_dict())
    ema.text_encoder.load_state_dict(networks.text_encoder.state_dict())
    spare = 12 if device.type == "cuda" else 5
    train_transformer(networks, ema, bank, tokens, options, device, log, start + options.seconds - spare)

    averaged = half_state("vae", vae) | half_state("transformer", ema.transformer) | half_state("text_encoder", ema.text_encoder)
    save_file(averaged, options.out / "averaged.safetensors")
    raw = half_state("vae", vae) | half_state("transformer", networks.transformer) | half_state("text_encoder", networks.text_encoder)
    save_file(raw, options.out / "state.safetensors")
    pieces = sentencepiece.SentencePieceProcessor(model_file=options.vocabulary)
    ema.transformer.eval()
    ema.text_encoder.eval()
    # What the autoencoder alone does to pictures: original above, decoded below.
    with torch.no_grad():
        wanted = painter.paint(backgrounds[:16], slots[:16])
        made = vae.decode(vae.encode(wanted).latent_dist.mode()).sample
    picture_grid(torch.cat([wanted, made]), 8).save(options.out / "autoencoder.png")
    error = (made.clamp(-1, 1) - wanted).square().mean((1, 2, 3)) / 4
    print(f"autoencoder on 16 pictures: {(-10 * error.log10()).mean():.2f} dB")
    prompts = [
        "a small cactus",
        "two red apples on a blue background",
        "a cat to the left of a house",
        "three penguins on a pink background",
        "a big robot on a striped yellow background",
        "a whale",
        "four stars on a black background",
        "a flat drawing of a frog on an orange background",
    ]
    ema.device = device
    if options.tiny:
        prompts = prompts[:2]
    for guidance in (4.5, 2.0):
        pictures = sample(ema, pieces, prompts * 2, seed=0, steps=20, guidance=guidance)
        picture_grid(pictures, len(prompts)).save(options.out / f"samples-{guidance}.png")
    pool.shutdown(cancel_futures=True)
    print(f"done in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
