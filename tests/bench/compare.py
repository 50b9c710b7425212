"""Times diffusers and xdit alternately on one checkpoint, and prints the ratios.

    python compare.py [--family pixart|sd3|flux] [--rounds 3] [--threads 2] [--steps 4] [--size 1024] [--dtype f32|bf16] [--folder FOLDER] [--xdit FILE]

Both run with the same prompt, seed, steps, size and threads, each in a separate process with no other load. Figures
are medians over the rounds; memory and the time of the whole process are measured from outside, in the same way for
both. The final latents must agree, because a fast wrong result is worthless. The environment is that of
`../goldens/make_pixart.py`. If FOLDER does not exist, `make_bench_checkpoint.py` writes the checkpoint; cargo builds
the program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# The limit of ‖ours − theirs‖ / ‖theirs‖ for the final latents in f32, as in the tests against the goldens.
TOLERANCE = 1e-4
# In bf16 both differ from f32, and more from each other. Ours may be this many times as far from f32 as theirs.
FACTOR = 1.2


def distance(found: numpy.ndarray, expected: numpy.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float(numpy.linalg.norm((found - expected).ravel()) / numpy.linalg.norm(expected.ravel()))


def timed(command: list, environment: dict) -> tuple[dict, float, float]:
    """Runs a command that prints JSON, and returns its output, its time in seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=environment, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"`{command[0]}` failed with code {process.returncode}")
    return json.loads(output), seconds, usage.ru_maxrss / 1024


def xdit_command(xdit: Path, args: argparse.Namespace, reference: dict) -> list:
    """Builds the command for the same run from the reference's report."""
    options = [
        *(xdit, "generate", "--model", args.folder, "--quiet", "--report", "json"),
        *("--num-inference-steps", args.steps, "--height", args.size, "--width", args.size, "--dtype", args.dtype),
    ]
    for name, value in reference["call"].items():
        option = name.replace("_", "-")
        if value is False:
            # Both options that the calls turn off are on by default.
            options += [f"--no-{option}"]
        else:
            options += [f"--{option}", value]
    return options


def build() -> Path:
    """Builds the program and returns its path."""
    command = ["cargo", "build", "--release", "--package", "xdit-cli", "--message-format", "json-render-diagnostics"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    messages = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    return Path([message["executable"] for message in messages if message.get("executable")][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["pixart", "sd3", "flux"], default="pixart")
    parser.add_argument("--folder", type=Path, help="the checkpoint (default: made in the target folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024, help="height and width in pixels")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="type of weights and activations, in both")
    parser.add_argument("--xdit", type=Path, help="the program, if it is built already")
    args = parser.parse_args()

    xdit, timed_dtype = args.xdit or build(), args.dtype
    args.folder = args.folder or ROOT / "target" / "bench-checkpoints" / args.family
    if not args.folder.exists():
        subprocess.run([sys.executable, HERE / "make_bench_checkpoint.py", args.family, args.folder], check=True)
    threads = {name: str(args.threads) for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1"}

    rows = {name: ([], []) for name in ["text encoding, s", "step, s", "VAE decode, s", "process, s", "peak RSS, MiB"]}
    with tempfile.TemporaryDirectory() as scratch:
        theirs, ours = Path(scratch, "theirs.safetensors"), Path(scratch, "ours.safetensors")
        diffusers = [
            *(sys.executable, HERE / "diffusers_bench.py", args.folder, "--save", theirs),
            *("--threads", args.threads, "--steps", args.steps, "--size", args.size, "--dtype", args.dtype),
        ]
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            reference, *outside = timed(diffusers, environment)
            figures = [[reference["text_s"]], reference["step_s"], [reference["decode_s"]], *([x] for x in outside)]
            for (values, _), new in zip(rows.values(), figures, strict=True):
                values += new
            command = xdit_command(xdit, args, reference)
            report, *outside = timed([*command, "--output", Path(scratch, "ours.png")], environment)
            seconds = report["seconds"]
            figures = [[seconds["encode"]], seconds["steps"][0], seconds["decode"], *([x] for x in outside)]
            for (_, values), new in zip(rows.values(), figures, strict=True):
                values += new
        # Latents are saved in separate runs, which are not timed.
        latents = [load_file(theirs)["latents"]]
        for dtype in dict.fromkeys([args.dtype, "f32"]):
            args.dtype = dtype
            command = xdit_command(xdit, args, reference)
            timed([*command, "--output-type", "latent", "--output", ours], environment)
            latents.append(load_file(ours)["latents"])

    versions = ", ".join(f"{name} {version}" for name, version in reference["versions"].items())
    blocks = reference["blocks"]
    print(f"{args.family}, {timed_dtype}: {args.size}x{args.size}, {args.steps} steps, {blocks} blocks, {args.threads} threads; {versions}\n")
    print("| | diffusers | xdit | xdit / diffusers |\n|---|---:|---:|---:|")
    for name, values in rows.items():
        ours_median, theirs_median = statistics.median(values[1]), statistics.median(values[0])
        print(f"| {name} | {theirs_median:.2f} | {ours_median:.2f} | {ours_median / theirs_median:.2f} |")
    if timed_dtype == "f32":
        apart = distance(latents[1], latents[0])
        print(f"\nfinal latents: relative L2 distance {apart:.1e} (at most {TOLERANCE:.0e})")
        agree = apart <= TOLERANCE
    else:
        theirs, ours = (distance(found, latents[2]) for found in latents[:2])
        print(f"\nfinal latents: relative L2 distance from f32 {ours:.1e} in xdit, {theirs:.1e} in diffusers")
        agree = ours <= FACTOR * theirs
    if not agree:
        sys.exit("the latents differ: these timings compare different things")


if __name__ == "__main__":
    main()
