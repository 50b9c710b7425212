"""Draws the same pictures by every parallel method, compares them with those of one rank, and writes `docs/methods.md`.

    python methods.py CLASSIFIER [--prompts 16] [--folder FOLDER] [--xdit FILE] [--docs FOLDER]

CLASSIFIER is the file that `evaluate.py classifier` writes; `../../xdit-cli/demo/training/README.md` has the command.
The pictures are those of the built-in model. With FOLDER, they are kept, and a second run draws only what is missing.
The packages are torch, safetensors, sentencepiece, numpy and pillow. Without --xdit, cargo builds the program.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TRAINING = ROOT / "xdit-cli/demo/training"
sys.path.insert(0, str(TRAINING))

from evaluate import classify, load_classifier, make_prompts  # noqa: E402

# The picture of the first part. The data method draws eight of them, with consecutive seeds.
PROMPT = "two red apples on a blue background"
SEED = 8
STEPS = 20
FEWER_STEPS = 10
GUIDANCE = 3

RANKS = (2, 4, 8)
PATCHES = (2, 4, 8)
WARMUPS = (0, 1, 2, 4)
DEFAULT_WARMUP = 1
# On one core, the whole script takes about half an hour with as many.
PROMPTS = 16
# Prompts of each group that all rows draw before any row goes on.
ROUND = 4


class Refused(Exception):
    """The program's first line of an error that a request caused."""


class Program:
    """Runs `xdit generate`, keeps the pictures in a folder, and counts the processor's seconds."""

    def __init__(self, xdit: Path, folder: Path):
        self.xdit, self.folder = xdit, folder
        self.record = folder / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.record.read_text()) if self.record.exists() else {}

    def run(self, name: str, texts: list[str], seed: int, options: str, steps: int) -> None:
        """Draws a picture of each text; picture `i` is `name/SEED.png` with seed + i."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        prompts = self.folder / "prompts.txt"
        prompts.write_text("".join(text + "\n" for text in texts))
        command = [
            *(self.xdit, "generate", "--quiet", "--prompt-file", prompts, "--seed", seed, "--output", place / "{seed}.png"),
            *("--num-inference-steps", steps, "--guidance-scale", GUIDANCE, "--dtype", "f32", *options.split()),
        ]
        environment = os.environ | {"RAYON_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == 2:
            raise Refused(errors.splitlines()[0].removeprefix("error: "))
        if process.returncode != 0:
            sys.exit(f"`{' '.join(map(str, command))}` failed:\n{errors}")
        self.seconds[name] = self.seconds.get(name, 0) + usage.ru_utime + usage.ru_stime
        self.record.write_text(json.dumps(self.seconds, indent=1) + "\n")

    def draw(self, name: str, texts: dict[int, str], options: str, steps: int = STEPS) -> list[np.ndarray]:
        """The pictures of texts by seed; those that the folder has are not drawn again."""
        files = {seed: self.folder / name / f"{seed}.png" for seed in texts}
        run: list[int] = []
        for seed in sorted(texts) + [None]:
            if run and seed != run[-1] + 1:
                self.run(name, [texts[number] for number in run], run[0], options, steps)
                run = []
            if seed is not None and not files[seed].exists():
                run.append(seed)
        return [np.asarray(Image.open(file).convert("RGB")) for file in files.values()]


# --- Comparisons ----------------------------------------------------------------------------------------------------


def psnr(picture: np.ndarray, other: np.ndarray) -> float:
    """In dB, of 8-bit pictures; infinite if they are equal."""
    error = np.mean((picture.astype(float) - other) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def greatest(picture: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(picture.astype(int) - other).max())


def decibels(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


@cache
def font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def grid(cells: dict[tuple[int, int], tuple[str, np.ndarray | None]], side: int, path: Path) -> None:
    """Pictures with labels above them, by row and column, with 256 colours to keep the file small."""
    head, gap = 30, 4
    rows, columns = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + head + gap) - gap), "white")
    pen = ImageDraw.Draw(sheet)
    for (row, column), (label, picture) in cells.items():
        left, top = column * (side + gap), row * (side + head + gap)
        pen.multiline_text((left + 1, top + head - 2), label, fill="black", font=font(11), anchor="ld", spacing=1)
        if picture is not None:
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top + head))
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


# --- One picture by every method -------------------------------------------------------------------------------------


class Row:
    """One run on several ranks, beside one rank."""

    def __init__(self, method: str, ranks: int, options: str, pictures: list, serial: list, stale: list | None):
        self.method, self.ranks, self.options, self.pictures = method, ranks, options, pictures
        self.psnr = min(map(psnr, pictures, serial))
        self.greatest = max(map(greatest, pictures, serial))
        # In comparison with one rank that uses the same patches and warm-up steps.
        self.same = min(map(psnr, pictures, stale)) if stale else None


# Name, options on `n` ranks, options of one rank with the same patches, numbers of ranks.
METHODS = (
    ("CFG", "--use-cfg-parallel", None, (2,)),
    ("data", "--data-parallel-degree {n}", None, RANKS),
    ("Ulysses", "--ulysses-degree {n}", None, RANKS),
    ("ring", "--ring-degree {n}", None, RANKS),
    ("tensor", "--tensor-parallel-degree {n}", None, RANKS),
    ("parallel VAE (with ring)", "--ring-degree {n} --use-parallel-vae", None, RANKS),
    ("hybrid", "--use-cfg-parallel --ring-degree 2 --tensor-parallel-degree 2 --use-parallel-vae", None, (8,)),
    ("PipeFusion", "--pipefusion-parallel-degree {n}", "--num-pipeline-patch {n}", RANKS),
    ("DistriFusion", "--distrifusion --ring-degree {n}", "--distrifusion --num-pipeline-patch {n}", RANKS),
    (
        "hybrid with PipeFusion",
        "--use-cfg-parallel --pipefusion-parallel-degree 2 --ulysses-degree 2 --use-parallel-vae",
        "--num-pipeline-patch 2",
        (8,),
    ),
)


def every_method(program: Program) -> tuple[list[np.ndarray], list[Row], list[str]]:
    """The pictures of one rank, a row for each run, and what the program refused."""
    texts = {seed: PROMPT for seed in range(SEED, SEED + max(RANKS))}
    serial = program.draw("one-rank", texts, "")
    rows, refusals = [], []
    for method, many, one, degrees in METHODS:
        some = texts if method == "data" else {SEED: PROMPT}
        for wanted in degrees:
            for ranks in range(wanted, 1, -1):
                options = many.format(n=ranks)
                name = options.removeprefix("--").replace(" --", "-").replace(" ", "-")
                try:
                    pictures = program.draw(name, some, options)
                except Refused as refusal:
                    refusals.append(f"`{options}`: {refusal}")
                    continue
                stale = one and program.draw(f"one-rank-{name}", some, one.format(n=ranks))
                rows.append(Row(method, ranks, options, pictures, serial, stale))
                break
    return serial, rows, refusals


def methods_grid(serial: list[np.ndarray], rows: list[Row], path: Path) -> None:
    cells = {(0, 0): ("one rank", serial[0])}
    methods = list(dict.fromkeys(row.method for row in rows if not row.method.startswith("hybrid")))
    for row in rows:
        label = f"{row.method.removesuffix(' (with ring)')}, {row.ranks} ranks\n{decibels(row.psnr)}"
        if row.method.startswith("hybrid"):
            label = f"hybrid, {row.ranks} ranks\n{decibels(row.psnr)}"
            place = (1 + (row.method != "hybrid"), 0)
        else:
            place = (RANKS.index(min(n for n in RANKS if n >= row.ranks)), 1 + methods.index(row.method))
        cells[place] = (label, row.pictures[0])
    grid(cells, 128, path)


# --- Patches and warm-up steps ---------------------------------------------------------------------------------------

STALE = {
    "PipeFusion": "--num-pipeline-patch {patches} --warmup-steps {warmup}",
    "DistriFusion": "--distrifusion --num-pipeline-patch {patches} --warmup-steps {warmup}",
}


class Setting:
    """A way to draw all prompts on one rank, with what is measured of its pictures."""

    def __init__(self, method: str, patches: int, warmup: int, steps: int):
        self.method, self.patches, self.warmup, self.steps = method, patches, warmup, steps
        stale = method in STALE
        self.options = STALE[method].format(patches=patches, warmup=warmup) if stale else ""
        self.name = f"{method.lower()}-{patches}-{warmup}-{steps}" if stale else f"serial-{steps}"
        self.pictures: list[np.ndarray] = []
        self.psnr: list[float] = []
        self.object: list[bool] = []
        self.colour: list[bool] = []

    @property
    def mean(self) -> float:
        finite = [value for value in self.psnr if math.isfinite(value)]
        return float(np.mean(finite)) if finite else math.inf

    @property
    def worst(self) -> float:
        return min(self.psnr)

    def shares(self) -> list[str]:
        return [f"{100 * np.mean(hits):.1f} %" for hits in (self.object, self.colour)]


def all_settings() -> list[Setting]:
    settings = [Setting("serial", 1, 0, STEPS)]
    settings += [Setting(method, p, w, STEPS) for method in STALE for p in PATCHES for w in WARMUPS]
    middle = PATCHES[1]
    settings += [Setting("serial", 1, 0, FEWER_STEPS)]
    return settings + [Setting(method, middle, DEFAULT_WARMUP, FEWER_STEPS) for method in STALE]


def measure(program: Program, classifier_path: str, count: int) -> tuple[list[Setting], list[dict]]:
    """All settings, drawn and judged on the first `count` prompts of the seen and of the unseen combinations."""
    everything = make_prompts()
    groups = [[i for i, prompt in enumerate(everything) if prompt["group"] == name] for name in ("seen", "unseen")]
    numbers = [i for group in groups for i in group[: count // 2]]
    settings = all_settings()
    for begin in range(0, count // 2, ROUND):
        part = [i for group in groups for i in group[begin : min(begin + ROUND, count // 2)]]
        for setting in settings:
            program.draw(setting.name, {i: everything[i]["prompt"] for i in part}, setting.options, setting.steps)
    prompts = [everything[i] for i in numbers]
    texts = {i: everything[i]["prompt"] for i in numbers}
    classifier = load_classifier(classifier_path, torch.device("cpu"))
    serial = {}
    for setting in settings:
        setting.pictures = program.draw(setting.name, texts, setting.options, setting.steps)
        if setting.method == "serial":
            serial[setting.steps] = setting.pictures
        guesses = classify(classifier, torch.from_numpy(np.stack(setting.pictures)).permute(0, 3, 1, 2) / 127.5 - 1)
        setting.object = [guess == prompt["labels"]["first"] for guess, prompt in zip(guesses["first"], prompts, strict=True)]
        setting.colour = [guess == prompt["labels"]["colour"] for guess, prompt in zip(guesses["colour"], prompts, strict=True)]
    for setting in settings:
        # The serial pictures of fewer steps are compared with those of all steps, the others with those of as many.
        wanted = serial[STEPS if setting.method == "serial" else setting.steps]
        setting.psnr = list(map(psnr, setting.pictures, wanted))
    return settings, prompts


def warmup_grid(settings: list[Setting], prompts: list[dict], path: Path) -> str:
    """The prompt that the most patches with the default warm-up change most, by the larger numbers of patches."""
    find = {(s.method, s.patches, s.warmup, s.steps): s for s in settings}
    hardest = find["PipeFusion", PATCHES[-1], DEFAULT_WARMUP, STEPS]
    number = int(np.argmin(hardest.psnr))
    cells = {}
    for row, (method, patches) in enumerate((method, patches) for method in STALE for patches in PATCHES[1:]):
        cells[row, 0] = ("one rank,\nno stale keys", settings[0].pictures[number])
        for column, warmup in enumerate(WARMUPS):
            setting = find[method, patches, warmup, STEPS]
            label = f"{method}, {patches} patches,\nwarm-up {warmup}: {decibels(setting.psnr[number])}"
            cells[row, 1 + column] = (label, setting.pictures[number])
    grid(cells, 128, path)
    return prompts[number]["prompt"]


# --- The page --------------------------------------------------------------------------------------------------------


def span(values: list[float]) -> float:
    return max(values) - min(values)


def between(values: list[float], unit: str, digits: int = 1) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def advice(settings: list[Setting]) -> str:
    """What the figures say about the options. All figures and the best warm-up are computed."""
    find = {(s.method, s.patches, s.warmup, s.steps): s for s in settings}
    serial, fewer = (find["serial", 1, 0, steps] for steps in (STEPS, FEWER_STEPS))
    stale = [s for s in settings if s.method in STALE]
    full = [s for s in stale if s.steps == STEPS]
    low, middle, high = PATCHES

    def default(method: str, patches: int, steps: int = STEPS) -> float:
        return find[method, patches, DEFAULT_WARMUP, steps].mean

    falls = {method: default(method, low) - default(method, high) for method in STALE}
    halved = {method: default(method, middle) - default(method, middle, FEWER_STEPS) for method in STALE}
    spans = [span([find[m, p, w, STEPS].mean for w in WARMUPS]) for m in STALE for p in PATCHES]
    worst = [span([find[m, p, w, STEPS].worst for w in WARMUPS]) for m in STALE for p in PATCHES]
    overall = {w: float(np.mean([s.mean for s in full if s.warmup == w])) for w in WARMUPS}
    best = max(WARMUPS, key=lambda w: round(overall[w], 1))
    gain = overall[best] - overall[DEFAULT_WARMUP]
    pairs = [
        (few, many)
        for m in STALE
        for p in PATCHES
        for few, many in zip(find[m, p, DEFAULT_WARMUP, STEPS].psnr, find[m, p, WARMUPS[-1], STEPS].psnr, strict=True)
    ]
    better = 100 * float(np.mean([many > few for few, many in pairs]))
    objects, colours = ([100 * float(np.mean(getattr(s, name))) for s in stale] for name in ("object", "colour"))
    right = [100 * float(np.mean(hits)) for hits in (serial.object, serial.colour)]
    numbers = ", ".join(f"{overall[w]:.1f} dB with {w}" for w in WARMUPS)
    verdict = f"{WARMUPS[-1]} warm-up steps instead of {DEFAULT_WARMUP} bring the picture closer to the serial one in {better:.0f} % of the pairs of pictures"
    if round(gain, 1) <= 0:
        choice = f"No other number has a higher mean than the default of {DEFAULT_WARMUP}."
    else:
        choice = f"The highest mean, with {best}, is {gain:.1f} dB above that of the default of {DEFAULT_WARMUP}."
    return "\n\n".join(
        [
            f"**Patches and steps.** The mean PSNR falls by {falls['PipeFusion']:.1f} dB in PipeFusion and by"
            f" {falls['DistriFusion']:.1f} dB in DistriFusion from {low} patches to {high}, with {DEFAULT_WARMUP} warm-up step."
            f" It falls by {halved['PipeFusion']:.1f} dB and {halved['DistriFusion']:.1f} dB from {STEPS} steps to"
            f" {FEWER_STEPS}, with {middle} patches, because a stale key is older in fewer, larger steps. For scale: the serial"
            f" pictures of {FEWER_STEPS} steps have {fewer.mean:.1f} dB to those of {STEPS}. The fewest patches that keep all"
            " ranks busy are therefore the best choice: one for each stage, which is the default of `--num-pipeline-patch`.",
            f"**Warm-up steps.** With an equal number of patches, the means of {WARMUPS[0]} to {WARMUPS[-1]} warm-up steps lie"
            f" within {between(spans, 'dB')}, and the worst pictures within {between(worst, 'dB')}. The mean over both methods"
            f" and all numbers of patches is {numbers}. {choice} {verdict}. More warm-up steps are not free: the stages of"
            " PipeFusion [wait for each other](../README.md#many-ranks) in each of them.",
            f"**What is shown.** The classifier finds the right object in {between(objects, '%')} of the pictures with stale"
            f" keys, and the right background colour in {between(colours, '%')}; in the serial pictures, in {right[0]:.1f} %"
            f" and {right[1]:.1f} %.",
        ]
    )


def page(program: Program, rows: list[Row], refusals: list[str], settings: list[Setting], prompts: list[dict], hardest: str, command: str) -> str:
    serial = settings[0]
    first = table(
        ["method", "ranks", "options", "PSNR to one rank", "greatest difference", "PSNR to one rank with the same patches"],
        [
            [row.method, row.ranks, f"`{row.options}`", decibels(row.psnr), row.greatest, "" if row.same is None else decibels(row.same)]
            for row in rows
        ],
    )
    head = ["steps", "patches", "warm-up steps", "mean PSNR", "worst PSNR", "object", "background colour"]

    def lines(method: str) -> str:
        some = [s for s in settings if s.method in ("serial", method)]
        cells = []
        for s in some:
            plain = s.method == "serial"
            values = ["–", "–"] if s is serial else [decibels(s.mean), decibels(s.worst)]
            if plain and s is not serial:
                values = [f"{value} *" for value in values]
            cells.append([s.steps, "serial" if plain else s.patches, "–" if plain else s.warmup, *values, *s.shares()])
        return f"### {method}\n\n{table(head, cells)}"

    exact = [row for row in rows if row.same is None]
    minutes = sum(program.seconds.values()) / 60
    each = program.seconds[serial.name] / len(prompts)
    refused = "".join(f"- {line}\n" for line in refusals)
    half = len(prompts) // 2
    return f"""# What the parallel methods do to a picture

This page compares the pictures of all parallel methods with those of one rank. The small trained model that is built into
the program draws them. The exact methods (CFG, data, Ulysses, ring, tensor, parallel VAE) give the picture of one rank: no
value differs by more than {max(row.greatest for row in exact)} of 255. PipeFusion and DistriFusion use stale keys and values, which change the picture. The
second part measures how much, for several numbers of patches and warm-up steps.

A script measures all figures and writes this page. `classifier.safetensors` is the classifier that judges the small model;
[its README](../xdit-cli/demo/training/README.md#again) has the command that trains it.

```sh
{command}
```

The run took {minutes:.0f} minutes of one core; a serial picture takes {each:.1f} s.

## One picture by every method

The prompt is "{PROMPT}", with seed {SEED}, {STEPS} steps, guidance {GUIDANCE} and f32. Each rank is a thread. PSNR
compares the 8-bit pictures. The greatest difference is that of a colour value, in levels of 255. The data method draws
{max(RANKS)} pictures, with the seeds {SEED} to {SEED + max(RANKS) - 1}; its row has the worst of them. The parallel VAE needs ranks, which ring gives it here. The
last column compares PipeFusion and DistriFusion with one rank that uses the same patches and warm-up steps
(`--num-pipeline-patch`).

![one picture by every method on 1, 2, 4 and 8 ranks](methods.png)

{first}

Guidance has two branches, so CFG by itself has two ranks. The model has 6 heads and 8 blocks. The program refused these
degrees, and the next smaller degree that it accepts takes their place:

{refused}
## Patches and warm-up steps

These are the first {half} prompts of seen and the first {half} of unseen combinations in the evaluation set of
[`evaluate.py`](../xdit-cli/demo/training/evaluate.py), with the seeds of that set and guidance {GUIDANCE}. One rank with the same patches gives the
picture of many ranks, as the table above shows, so one rank draws them all. For DistriFusion, a patch stands for a rank
(`--distrifusion --ring-degree PATCHES`).

PSNR compares with the serial picture of as many steps; * compares the serial pictures of {FEWER_STEPS} steps with those of
{STEPS}. The last two columns are the shares of pictures in which the classifier finds the right object and background colour.
The first step of DistriFusion is synchronous even without a warm-up step. In PipeFusion without one, a patch in the first
step sees only itself and the patches before it.

{lines("PipeFusion")}

{lines("DistriFusion")}

The picture shows the prompt that {PATCHES[-1]} patches of PipeFusion with {DEFAULT_WARMUP} warm-up step change most, "{hardest}":

![one prompt with 0, 1, 2 and 4 warm-up steps](methods-warm-up.png)

## Choosing `--warmup-steps` and the number of patches

{advice(settings)}

The figures are those of one small model with {STEPS} steps and {len(prompts)} prompts. They do not say that a large model behaves alike.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("classifier")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="even: half of them seen, half unseen")
    parser.add_argument("--folder", type=Path, help="keeps the pictures, so that an interrupted run can go on")
    parser.add_argument("--xdit", type=Path, help="the program [default: cargo builds it]")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    if options.xdit is None:
        subprocess.run(["cargo", "build", "--release", "--package", "xdit-cli"], cwd=ROOT, check=True)
        options.xdit = ROOT / "target/release/xdit"
    command = "python tests/bench/methods.py classifier.safetensors"
    if options.prompts != PROMPTS:
        command += f" --prompts {options.prompts}"
    with tempfile.TemporaryDirectory() as temporary:
        program = Program(options.xdit.resolve(), options.folder or Path(temporary))
        serial, rows, refusals = every_method(program)
        settings, prompts = measure(program, options.classifier, options.prompts)
        methods_grid(serial, rows, options.docs / "methods.png")
        hardest = warmup_grid(settings, prompts, options.docs / "methods-warm-up.png")
        text = page(program, rows, refusals, settings, prompts, hardest, command)
        (options.docs / "methods.md").write_text(text)


if __name__ == "__main__":
    main()
