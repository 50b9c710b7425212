"""Measures whether pictures show what their prompts say.

    python evaluate.py classifier sprites.npz classifier.safetensors --seconds 60
    python evaluate.py prompts > prompts.json
    python evaluate.py draw averaged.safetensors spiece.model classifier.safetensors figures.json
    python evaluate.py judge classifier.safetensors FOLDER

`classifier` trains a small network on scenes as `scenes.py` paints them, all combinations of object, colour and number
among them; it never sees a generated picture. `prompts` prints the prompts of a fixed seed: 250 of combinations that
training had, 250 of combinations that `objects.held_out` kept back, and 100 of two objects. `draw` draws them with the
networks of `train.py`; number `i` begins with the noise of seed `i`. `judge` reads `000.png`, `001.png`, … of the same
prompts, drawn by any program.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import models
from objects import COLOUR_NAMES, MAX_COUNT, PATTERNS, RELATIONS, SIZES, STYLES, THINGS, held_out
from scenes import LABELS, Painter, Sprites, draw_chunk, noun_phrase
from train import load_state

CLASSES = dict(
    zip(
        LABELS,
        map(len, (THINGS, THINGS, RELATIONS, range(MAX_COUNT), COLOUR_NAMES, PATTERNS, SIZES, STYLES)),
        strict=True,
    )
)


# --- The classifier -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.one = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.two = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)

    def forward(self, x):
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + self.skip(F.avg_pool2d(x, 2)))


class Classifier(nn.Module):
    """Pictures `[n, 3, 256, 256]` in -1 to 1; logits by label. It looks at them with 128 × 128 pixels."""

    def __init__(self):
        super().__init__()
        widths = (32, 64, 96, 128, 192)
        self.stem = nn.Conv2d(5, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Residual(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(widths[-1] * 6, sum(CLASSES.values()))

    def forward(self, pictures):
        x = F.avg_pool2d(pictures, 2)
        line = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
        shape = (len(x), 1, x.shape[-2], x.shape[-1])
        x = torch.cat([x, line.expand(shape), line.view(-1, 1).expand(shape)], 1)
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        pooled = [F.adaptive_avg_pool2d(x, 2).flatten(1), x.mean((2, 3)), x.amax((2, 3))]
        return dict(zip(CLASSES, self.head(torch.cat(pooled, 1)).split(list(CLASSES.values()), 1), strict=True))


def roughen(pictures: torch.Tensor) -> torch.Tensor:
    """Noise, blur and changes of light, so that the classifier judges what is shown and not how crisp it is."""
    n, device = len(pictures), pictures.device
    draw = torch.rand(n, 4, 1, 1, 1, device=device).unbind(1)
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = torch.where(draw[0] < 0.35, blurred, pictures)
    pictures = pictures * (1 + 0.1 * (draw[1] - 0.5)) + 0.06 * (draw[2] - 0.5)
    return (pictures + 0.08 * draw[3] * torch.randn_like(pictures)).clamp(-1, 1)


def train_classifier(sprites: Sprites, device: torch.device, seconds: float, batch: int) -> tuple[Classifier, dict]:
    torch.manual_seed(11)
    painter = Painter(sprites, device)
    chunks = [draw_chunk(7000 + number, 20000, sprites, training=False) for number in range(6 if seconds > 20 else 1)]
    backgrounds, slots, labels = (
        torch.from_numpy(np.concatenate([chunk[part] for chunk in chunks])).to(device) for part in range(3)
    )
    model = Classifier().to(device).train()
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    begin, step, progress = time.time(), 0, 0.0
    while progress < 1:
        progress = (time.time() - begin) / seconds
        rows = torch.randint(len(slots), (batch,), device=device)
        pictures = roughen(painter.paint(backgrounds[rows], slots[rows]))
        adam.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * max(0.0, min(1, 2 * (1 - progress)))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(pictures)
        losses = [F.cross_entropy(logits[name].float(), labels[rows, i]) for i, name in enumerate(LABELS)]
        adam.zero_grad(set_to_none=True)
        sum(losses).backward()
        adam.step()
        if step % 100 == 0:
            print(f"classifier {step} {[round(loss.item(), 3) for loss in losses]}", flush=True)
        step += 1
    model.eval()
    # As it is kept: 16 bits.
    model.load_state_dict({name: t.half().float() if t.is_floating_point() else t for name, t in model.state_dict().items()})
    *fresh, _ = draw_chunk(99, 4000 if seconds > 20 else 64, sprites, training=False)
    backgrounds, slots, labels = (torch.from_numpy(part).to(device) for part in fresh)
    right = dict.fromkeys(LABELS, 0)
    for rows in torch.arange(len(slots), device=device).split(100):
        guesses = classify(model, painter.paint(backgrounds[rows], slots[rows]))
        for i, name in enumerate(LABELS):
            right[name] += int((guesses[name] == labels[rows, i].cpu().numpy()).sum())
    report = {name: count / len(slots) for name, count in right.items()}
    print(f"classifier after {step} steps on fresh scenes: {report}", flush=True)
    return model, {"steps": step, "scenes": len(slots), "accuracy": report}


@torch.no_grad()
def classify(model: Classifier, pictures: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: logits.argmax(1).cpu().numpy() for name, logits in model(pictures).items()}


def load_classifier(path: str, device) -> Classifier:
    model = Classifier()
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()})
    return model.to(device).eval()


# --- The prompts ----------------------------------------------------------------------------------------------------


def make_prompts(seed: int = 2024) -> list[dict]:
    rng = random.Random(seed)
    prompts = []
    for group in ("seen", "unseen"):
        while sum(prompt["group"] == group for prompt in prompts) < 250:
            thing, colour = rng.randrange(len(THINGS)), rng.randrange(len(COLOUR_NAMES))
            count, size = rng.randint(1, MAX_COUNT), rng.choices(range(3), (1, 2, 1))[0]
            if held_out(thing, colour, count) != (group == "unseen"):
                continue
            words = noun_phrase(rng, thing, count, SIZES[size], plain=True)
            article = "an" if COLOUR_NAMES[colour] == "orange" else "a"
            labels = {"first": thing, "second": thing, "colour": colour, "count": count - 1, "size": size}
            text = f"{words} on {article} {COLOUR_NAMES[colour]} background"
            prompts.append({"group": group, "prompt": text, "labels": labels})
    while len(prompts) < 600:
        first, second = rng.sample(range(len(THINGS)), 2)
        relation = rng.choice((1, 2))
        words = [noun_phrase(rng, thing, 1, "normal", plain=True) for thing in (first, second)]
        link = "to the left of" if relation == 1 else "above"
        labels = {"first": first, "second": second, "relation": relation}
        prompts.append({"group": "pair", "prompt": f"{words[0]} {link} {words[1]}", "labels": labels})
    return prompts


def score(prompts: list[dict], guesses: dict[str, np.ndarray]) -> dict:
    """Shares of right answers by group."""
    report = {}
    for group in ("seen", "unseen", "pair"):
        rows = [i for i, prompt in enumerate(prompts) if prompt["group"] == group and i < len(guesses["first"])]
        if not rows:
            continue

        def share(*names, rows=rows):
            hits = [all(guesses[name][i] == prompts[i]["labels"][name] for name in names) for i in rows]
            return round(float(np.mean(hits)), 4)

        if group == "pair":
            either = [
                {int(guesses["first"][i]), int(guesses["second"][i])}
                == {prompts[i]["labels"]["first"], prompts[i]["labels"]["second"]}
                for i in rows
            ]
            report[group] = {
                "pictures": len(rows),
                "both objects": round(float(np.mean(either)), 4),
                "both objects in their places": share("first", "second", "relation"),
            }
        else:
            report[group] = {
                "pictures": len(rows),
                "object": share("first"),
                "background colour": share("colour"),
                "number": share("count"),
                "size": share("size"),
                "object, colour and number": share("first", "colour", "count"),
            }
    return report


def mistakes(prompts: list[dict], guesses: dict[str, np.ndarray]) -> list[str]:
    lines = []
    lists = {"first": [t.name for t in THINGS], "second": [t.name for t in THINGS], "colour": COLOUR_NAMES}
    for i, prompt in enumerate(prompts[: len(guesses["first"])]):
        for name, wanted in prompt["labels"].items():
            got = int(guesses[name][i])
            if name != "size" and got != wanted and not (name == "second" and prompt["group"] != "pair"):
                told = lists[name][got] if name in lists else got + 1 if name == "count" else RELATIONS[got]
                lines.append(f"{i:03} {prompt['prompt']}: {name} {told}")
    return lines


# --- Commands -------------------------------------------------------------------------------------------------------


def draw(options, device) -> None:
    from sampling import Networks, as_bytes, picture_grid, sample

    state = load_file(options.weights)
    if options.vae:
        state |= load_file(options.vae)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.transformer_blocks"))
    networks = Networks(models.new_vae(), models.new_transformer(num_layers=layers), models.new_text_encoder(), device)
    for name in ("vae", "transformer", "text_encoder"):
        load_state(getattr(networks, name), state, name)
        getattr(networks, name).to(device).eval()
    pieces = sentencepiece.SentencePieceProcessor(model_file=options.vocabulary)
    classifier = load_classifier(options.classifier, device)
    prompts = make_prompts()[: options.limit]
    figures = {"weights": Path(options.weights).name, "prompts": len(prompts), "draws": []}
    # Every guidance with the first number of steps, then every other number of steps with the first guidance.
    draws = [(guidance, options.steps[0]) for guidance in options.guidance]
    draws += [(options.guidance[0], steps) for steps in options.steps[1:]]
    for guidance, steps in draws:
        guesses, shown = [], []
        for begin in range(0, len(prompts), 100):
            texts = [prompt["prompt"] for prompt in prompts[begin : begin + 100]]
            pictures = sample(networks, pieces, texts, seed=begin, steps=steps, guidance=guidance)
            # What a file would hold.
            pictures = torch.from_numpy(as_bytes(pictures)).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
            guesses.append(classify(classifier, pictures))
            shown.append(pictures.cpu())
        guesses = {name: np.concatenate([part[name] for part in guesses]) for name in guesses[0]}
        shown = torch.cat(shown)
        wrong = mistakes(prompts, guesses)
        scores = score(prompts, guesses)
        print(guidance, steps, json.dumps(scores), flush=True)
        figures["draws"].append({"guidance": guidance, "steps": steps, "scores": scores, "mistakes": wrong})
        Path(options.figures).write_text(json.dumps(figures, indent=2) + "\n")
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            name = f"guidance-{guidance}-steps-{steps}"
            sheet = torch.cat([shown[:48], shown[250:298], shown[500:532]])
            picture_grid(F.avg_pool2d(sheet, 2), 16).save(options.sheets / f"{name}.png")
            rows = sorted({int(line[:3]) for line in wrong})[:64]
            if rows:
                picture_grid(F.avg_pool2d(shown[rows], 2), 16).save(options.sheets / f"{name}-mistakes.png")


def judge(options, device) -> None:
    prompts = make_prompts()
    files = sorted(Path(options.folder).glob("[0-9][0-9][0-9].png"))
    assert [int(file.stem) for file in files] == list(range(len(files))), "the pictures must be numbered from 000"
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]))
    pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [classify(load_classifier(options.classifier, device), part.to(device)) for part in pictures.split(50)]
    guesses = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    print(json.dumps(score(prompts, guesses) | {"mistakes": mistakes(prompts, guesses)}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("classifier")
    command.add_argument("sprites")
    command.add_argument("out")
    command.add_argument("--seconds", type=float, default=60)
    command.add_argument("--batch", type=int, default=256)
    command.add_argument("--figures")
    command = commands.add_parser("draw")
    for name in ("weights", "vocabulary", "classifier", "figures"):
        command.add_argument(name)
    command.add_argument("--guidance", type=float, nargs="+", default=[4.5])
    command.add_argument("--steps", type=int, nargs="+", default=[20])
    command.add_argument("--sheets", type=Path, help="folder for sheets of pictures and of mistakes")
    command.add_argument("--limit", type=int, default=600)
    command.add_argument("--vae", help="what `decoder.py` wrote, in place of the autoencoder of the weights")
    command = commands.add_parser("judge")
    command.add_argument("classifier")
    command.add_argument("folder")
    commands.add_parser("prompts")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.command == "classifier":
        model, report = train_classifier(Sprites(options.sprites), device, options.seconds, options.batch)
        half = {n: t.half() if t.is_floating_point() else t for n, t in model.state_dict().items()}
        save_file({name: t.cpu().contiguous() for name, t in half.items()}, options.out)
        if options.figures:
            Path(options.figures).write_text(json.dumps(report, indent=2) + "\n")
    elif options.command == "draw":
        draw(options, device)
    elif options.command == "judge":
        judge(options, device)
    else:
        json.dump(make_prompts(), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
