"""Draws the same pictures by every parallel method, compares them with those of one rank, and writes `docs/methods.md`.

    python methods.py CLASSIFIER [--prompts 12] [--folder FOLDER] [--xdit FILE] [--docs FOLDER]

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
import textwrap
from functools import cache, partial
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
# For one prompt.
MORE_WARMUPS = (0, 1, 2, 4, 8)
# In dB; the tables count the pictures below it.
FAR = 20
DEFAULT_WARMUP = 1
# On one core, the whole script takes about half an hour with as many.
PROMPTS = 12
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

    def count(self, name: str) -> int:
        return len(list((self.folder / name).glob("*.png")))

    def each(self, name: str) -> float:
        """Seconds a picture."""
        return self.seconds[name] / self.count(name)

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
            label = f"hybrid, {row.ranks} ranks\n{decibels(row.psnr)}{row.method.removeprefix('hybrid').replace(' with', ',')}"
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
        self.number: list[bool] = []

    @property
    def mean(self) -> float:
        finite = [value for value in self.psnr if math.isfinite(value)]
        return float(np.mean(finite)) if finite else math.inf

    @property
    def worst(self) -> float:
        return min(self.psnr)

    def shares(self) -> list[str]:
        return [f"{100 * np.mean(hits):.1f} %" for hits in (self.object, self.colour, self.number)]


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
        for attribute, label in (("object", "first"), ("colour", "colour"), ("number", "count")):
            pairs = zip(guesses[label], prompts, strict=True)
            setattr(setting, attribute, [guess == prompt["labels"][label] for guess, prompt in pairs])
    for setting in settings:
        # The serial pictures of fewer steps are compared with those of all steps, the others with those of as many.
        wanted = serial[STEPS if setting.method == "serial" else setting.steps]
        setting.psnr = list(map(psnr, setting.pictures, wanted))
    return settings, prompts


def far(values: list[float]) -> int:
    return sum(value < FAR for value in values)


def one_prompt(program: Program, serial: list[np.ndarray], path: Path) -> dict[tuple[str, int], list[float]]:
    """Draws the prompt of the first part with more warm-up steps.

    The grid shows the first seed with the larger numbers of patches. Returns the PSNR of all seeds with the smaller one of
    these, by method and warm-up steps.
    """
    cells, found = {}, {}
    for row, (method, patches) in enumerate((method, patches) for method in STALE for patches in PATCHES[1:]):
        cells[row, 0] = ("one rank,\nno stale keys", serial[0])
        for column, warmup in enumerate(MORE_WARMUPS):
            options = STALE[method].format(patches=patches, warmup=warmup)
            seeds = range(SEED, SEED + (len(serial) if patches == PATCHES[1] else 1))
            name = f"warm-up-{method.lower()}-{patches}-{warmup}"
            pictures = program.draw(name, dict.fromkeys(seeds, PROMPT), options)
            values = list(map(psnr, pictures, serial))
            if patches == PATCHES[1]:
                found[method, warmup] = values
            label = f"{method}, {patches} patches,\nwarm-up {warmup}: {decibels(values[0])}"
            cells[row, 1 + column] = (label, pictures[0])
    grid(cells, 128, path)
    return found


# --- The page --------------------------------------------------------------------------------------------------------


def wrapped(text: str) -> str:
    """Breaks the lines of paragraphs anew; tables, lists, headings, pictures and commands stay."""
    blocks = text.rstrip().split("\n\n")
    fill = partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(block if block.startswith(("|", "#", "- ", "!", "`")) else fill(block) for block in blocks) + "\n"


def span(values: list[float]) -> float:
    return max(values) - min(values)


def between(values: list[float], unit: str, digits: int = 1) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def advice(settings: list[Setting], example: dict[tuple[str, int], list[float]]) -> str:
    """What the figures say about the options. All figures and the best warm-up are computed."""
    find = {(s.method, s.patches, s.warmup, s.steps): s for s in settings}
    stale = [s for s in settings if s.method in STALE]
    low, middle, high = PATCHES

    def default(method: str, patches: int, steps: int = STEPS) -> float:
        return find[method, patches, DEFAULT_WARMUP, steps].mean

    falls = {method: default(method, low) - default(method, high) for method in STALE}
    fewer = {method: default(method, middle) - default(method, middle, FEWER_STEPS) for method in STALE}
    spans = [span([find[m, p, w, STEPS].mean for w in WARMUPS]) for m in STALE for p in PATCHES]
    overall = {w: float(np.mean([s.mean for s in stale if s.warmup == w and s.steps == STEPS])) for w in WARMUPS}
    lowest = {w: min(s.worst for s in stale if s.warmup == w and s.steps == STEPS) for w in WARMUPS}
    shares = [[100 * float(np.mean(hits)) for hits in (s.object, s.colour, s.number)] for s in stale]
    objects, colours, numbers = ([share[i] for share in shares] for i in range(3))
    serial = settings[0].shares()
    last = MORE_WARMUPS[-1]
    seeds = len(example["PipeFusion", DEFAULT_WARMUP])
    lost = {m: ", ".join(f"{far(example[m, w])} with {w}" for w in MORE_WARMUPS) for m in STALE}
    gains = {m: float(np.mean(example[m, last]) - np.mean(example[m, DEFAULT_WARMUP])) for m in STALE}
    means = ", ".join(f"{overall[w]:.1f} dB with {w}" for w in WARMUPS)
    worst = ", ".join(f"{lowest[w]:.1f} dB with {w}" for w in WARMUPS)
    return f"""**Patches and steps.** With {DEFAULT_WARMUP} warm-up step, the mean PSNR of {high} patches is {falls["PipeFusion"]:.1f} dB below that of {low}
patches in PipeFusion, and {falls["DistriFusion"]:.1f} dB in DistriFusion. With {middle} patches, the mean PSNR of {FEWER_STEPS} steps is {fewer["PipeFusion"]:.1f} dB
below that of {STEPS} steps in PipeFusion, and {fewer["DistriFusion"]:.1f} dB in DistriFusion. So fewer patches are
closer to the serial picture. The default of `--num-pipeline-patch`, one for each stage, is the smallest number that gives
every stage a patch to work on.

**Warm-up steps, all prompts.** With an equal number of patches, the means of {WARMUPS[0]} to {WARMUPS[-1]} warm-up steps are
within {between(spans, "dB")} of each other. The mean of both methods and all numbers of patches is
{means}. The worst picture of all has
{worst}.

**Warm-up steps, one prompt.** The red apples show what these means hide: stale keys in the first steps can change where
objects stand. Of {seeds} pictures with {middle} patches, the number below {FAR} dB depends on the warm-up steps. In PipeFusion it is
{lost["PipeFusion"]}.
In DistriFusion it is
{lost["DistriFusion"]}.

**The default.** These figures do not separate the default of {DEFAULT_WARMUP} from its neighbours. For a picture close to the serial one,
many more warm-up steps are needed: with {last} of {STEPS} steps, the mean PSNR of the red apples is {gains["PipeFusion"]:.1f} dB above that of
the default in PipeFusion, and {gains["DistriFusion"]:.1f} dB in DistriFusion. They are not free, because the stages of PipeFusion
[wait for each other](../README.md#many-ranks) in each of them.

**What is shown.** With stale keys, the classifier finds the right object in {between(objects, "%")} of the pictures,
the right background colour in {between(colours, "%")}, and the right number in {between(numbers, "%")}. The shares of the
serial pictures are {serial[0]}, {serial[1]} and {serial[2]}."""


def page(
    program: Program,
    rows: list[Row],
    refusals: list[str],
    settings: list[Setting],
    prompts: list[dict],
    example: dict[tuple[str, int], list[float]],
    command: str,
) -> str:
    serial = settings[0]
    first = table(
        ["method", "ranks", "options", "PSNR to one rank", "greatest difference", "PSNR to one rank with the same patches"],
        [
            [
                *(row.method, row.ranks, f"`{row.options}`", decibels(row.psnr), row.greatest),
                "" if row.same is None else decibels(row.same),
            ]
            for row in rows
        ],
    )
    head = ["steps", "patches", "warm-up steps", "mean PSNR", "worst PSNR", f"below {FAR} dB", "object", "background colour", "number"]

    def lines(method: str) -> str:
        some = [s for s in settings if s.method in ("serial", method)]
        cells = []
        for s in some:
            plain = s.method == "serial"
            values = ["–"] * 3 if s is serial else [decibels(s.mean), decibels(s.worst), f"{far(s.psnr)} of {len(prompts)}"]
            if plain and s is not serial:
                values = [f"{value} *" for value in values]
            cells.append([s.steps, "serial" if plain else s.patches, "–" if plain else s.warmup, *values, *s.shares()])
        return f"### {method}\n\n{table(head, cells)}"

    seeds = table(
        ["method", "warm-up steps", "mean PSNR", "worst PSNR", f"below {FAR} dB"],
        [
            [method, warmup, decibels(float(np.mean(values))), decibels(min(values)), f"{far(values)} of {len(values)}"]
            for (method, warmup), values in example.items()
        ],
    )
    exact = [row for row in rows if row.same is None]
    # The folder may hold pictures of more prompts.
    of_prompts = {s.name for s in settings}
    drawn = {name: max(RANKS) if name not in of_prompts else len(prompts) for name in program.seconds}
    minutes = sum(program.each(name) * min(count, program.count(name)) for name, count in drawn.items()) / 60
    each = program.each(serial.name)
    refused = "".join(f"- {line}\n" for line in refusals)
    half = len(prompts) // 2
    return f"""# What the parallel methods do to a picture

This page compares the pictures of all parallel methods with those of one rank. The small trained model that is built into
the program draws them. The exact methods (CFG, data, Ulysses, ring, tensor, parallel VAE) give the picture of one rank: no
value differs by more than {max(row.greatest for row in exact)} of 255. PipeFusion and DistriFusion use stale keys and values, which change the
picture, and sometimes where the objects stand. The second part measures how much, for several numbers of patches and warm-up steps, and whether the pictures still show what
their prompts say. The last part draws the conclusions for `--warmup-steps` and the number of patches.

A script measures all figures and writes this page. `classifier.safetensors` is the classifier that judges the small model;
[its README](../xdit-cli/demo/training/README.md#again) has the command that trains it.

```sh
{command}
```

The run took {minutes:.0f} minutes of one core; a serial picture takes {each:.1f} s.

## One picture by every method

The prompt is "{PROMPT}", with seed {SEED}, {STEPS} steps, guidance {GUIDANCE} and f32. Each rank is a thread. PSNR
compares the 8-bit pictures. The greatest difference is that of a colour value, in levels of 255. The data method draws
{max(RANKS)} pictures, with the seeds {SEED} to {SEED + max(RANKS) - 1}; its row has the worst of them. The parallel VAE needs
ranks, which ring gives it here. The last column compares PipeFusion and DistriFusion with one rank that uses the same patches and warm-up steps
(`--num-pipeline-patch`).

![one picture by every method on 1, 2, 4 and 8 ranks](methods.png)

{first}

Guidance has two branches, so CFG by itself has two ranks. The program refused these degrees, and the next smaller
degree that it accepts takes their place:

{refused}
## Patches and warm-up steps

These are the first {half} prompts of seen and the first {half} of unseen combinations in the evaluation set of
[`evaluate.py`](../xdit-cli/demo/training/evaluate.py), with the seeds of that set and guidance {GUIDANCE}. One
rank with the same patches gives the picture of many ranks, as the table above shows, so one rank draws them all. For DistriFusion, a patch stands for a rank
(`--ring-degree`).

PSNR compares with the serial picture of as many steps. A star marks the serial pictures of {FEWER_STEPS} steps, compared with
those of {STEPS}. The last three columns are the shares of pictures in which the classifier finds the right object, background colour
and number.
The first step of DistriFusion is synchronous even without a warm-up step. In PipeFusion without one, a patch in the first
step sees only itself and the patches before it.

{lines("PipeFusion")}

{lines("DistriFusion")}

### One prompt

These are the picture of the first part with {PATCHES[1]} and {PATCHES[2]} patches, and up to {MORE_WARMUPS[-1]} warm-up steps:

![two red apples with 0 to {MORE_WARMUPS[-1]} warm-up steps](methods-warm-up.png)

The table has the pictures of seeds {SEED} to {SEED + max(RANKS) - 1} with {PATCHES[1]} patches:

{seeds}

## Choosing `--warmup-steps` and the number of patches

{advice(settings, example)}

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
        example = one_prompt(program, serial, options.docs / "methods-warm-up.png")
        text = page(program, rows, refusals, settings, prompts, example, command)
        (options.docs / "methods.md").write_text(wrapped(text))


if __name__ == "__main__":
    main()
