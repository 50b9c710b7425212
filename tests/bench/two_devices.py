"""Compares pictures of two ranks with those of one, for every parallel method, on small test models.

    python two_devices.py XDIT [--device cuda] [--jobs 4]

XDIT is the program. Prints a line for each model: the distance of the final latents in f32, relative to their norm, from
one rank's (for PipeFusion and DistriFusion, from one rank with as many patches), and those of one rank from the CPU's.
Pictures are compared as well: decoded by two ranks and by one, and in bf16 and f32. With CUDA, each rank has a GPU. Exits
with 1 if a distance is above 1e-5, a picture is off by more than a level of 255, or bf16 has less than 40 dB. Needs numpy
and Pillow.
"""

import argparse
import concurrent.futures
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
SIZE = ["--height", "64", "--width", "96"]
MODELS = {
    "pixart-sigma-512": [*SIZE, "--no-use-resolution-binning"],
    "sd3-medium": [*SIZE, "--guidance-scale", "4"],
    "flux-dev": [*SIZE, "--true-cfg-scale", "2", "--negative-prompt", "rain"],
    "dit-256": [],
    "latte": ["--height", "64", "--width", "64"],
    "sdxl-base": ["--height", "64", "--width", "64"],
    "hunyuan-11": [*SIZE, "--no-use-resolution-binning"],
}
PROMPTS = {"dit-256": "3"}
# Each method: its options, and those of the one rank that it must equal.
PATCHES = ["--num-pipeline-patch", "2"]
METHODS = {
    "cfg": (["--use-cfg-parallel"], []),
    "ulysses": (["--ulysses-degree", "2"], []),
    "ring": (["--ring-degree", "2"], []),
    "tensor": (["--tensor-parallel-degree", "2"], []),
    "pipefusion": (["--pipefusion-parallel-degree", "2", *PATCHES], PATCHES),
    "distrifusion": (["--ring-degree", "2", "--distrifusion"], ["--distrifusion", *PATCHES]),
    "data": (["--data-parallel-degree", "2", "--num-images", "2"], ["--num-images", "2"]),
}
# The UNet has one block, so there are no stages.
REFUSED = {"sdxl-base": ["pipefusion"]}
VAE = ["--ulysses-degree", "2", "--use-parallel-vae"]
LIMIT, LEVELS, DECIBELS = 1e-5, 1, 40


def latents(file: Path) -> np.ndarray:
    """The latents in `file`, in f64."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])["latents"]["data_offsets"]
    return np.frombuffer(content[8 + length :][begin:end], dtype=np.float32).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("xdit")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=4)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())

    def run(model: str, options: tuple[str, ...], ending: str, device: str, dtype: str) -> Path:
        """Generates, and returns the file. It has the same name for the same run."""
        name = "_".join([model, device, dtype, *options]).replace("-", "").replace(":", "")
        output = folder / f"{name}.{ending}"
        kind = "latent" if ending == "safetensors" else "png"
        command = [args.xdit, "generate", "--model", str(GOLDENS / model), "--prompt", PROMPTS.get(model, "a small cactus")]
        command += ["--num-inference-steps", "4", "--seed", "3", "--quiet", "--output-type", kind, "--output", str(output)]
        command += ["--device", device, "--dtype", dtype, *MODELS[model], *options]
        end = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if end.returncode:
            sys.exit(f"{' '.join(command)}\n{end.stderr}")
        if "host's memory" in end.stderr:
            print(end.stderr, file=sys.stderr)
        return output

    def methods(model: str) -> dict[str, tuple[list[str], list[str]]]:
        return {name: options for name, options in METHODS.items() if name not in REFUSED.get(model, [])}

    wanted = set()
    for model in MODELS:
        for own, other in methods(model).values():
            wanted |= {(model, tuple(options), "safetensors", args.device, "f32") for options in (own, other)}
        wanted |= {(model, (), "safetensors", "cpu", "f32"), (model, tuple(VAE), "png", args.device, "f32")}
        wanted |= {(model, (), "png", args.device, dtype) for dtype in ("f32", "bf16")}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        files = dict(zip(sorted(wanted), pool.map(lambda key: run(*key), sorted(wanted))))

    bad = False
    for model in MODELS:

        def file(options: list[str], ending: str = "safetensors", device: str = args.device, dtype: str = "f32") -> Path:
            return files[model, tuple(options), ending, device, dtype]

        def distance(one: Path, other: Path) -> float:
            a, b = (latents(path).ravel() for path in folder_of(one, other))
            return float(np.linalg.norm(a - b) / np.linalg.norm(b))

        def folder_of(*paths: Path) -> list[Path]:
            """Several pictures are numbered: the last one is compared."""
            return [path if path.exists() else sorted(path.parent.glob(f"{path.stem}-*"))[-1] for path in paths]

        distances = {"cpu": distance(file([]), file([], device="cpu"))}
        distances |= {name: distance(file(own), file(other)) for name, (own, other) in methods(model).items()}
        pixels = [np.asarray(Image.open(path)).astype(float) for path in (file([], "png"), file(VAE, "png"))]
        levels = np.abs(pixels[0] - pixels[1]).max()
        half = np.asarray(Image.open(file([], "png", dtype="bf16"))).astype(float)
        decibels = 10 * np.log10(255**2 / max(np.square(half - pixels[0]).mean(), 1e-9))
        shown = ", ".join(f"{name} {value:.1e}" for name, value in distances.items())
        print(f"{model}: {shown}, parallel VAE {levels:.0f} of 255, bf16 {decibels:.1f} dB")
        bad |= max(distances.values()) > LIMIT or levels > LEVELS or decibels < DECIBELS
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
