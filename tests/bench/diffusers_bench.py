"""Times the reference pipeline on a checkpoint, and prints the figures as JSON.

    python diffusers_bench.py FOLDER [--threads 2] [--steps 4] [--size 1024] [--save FILE]

`--save` writes the initial and final latents and the picture, so that results can be compared as well as timed.
"""

import time

PROCESS_START = time.perf_counter()

import argparse
import json
import resource

import diffusers
import torch
import transformers
from safetensors.torch import save_file

PROMPT = "A photo of a fox, sitting on the red sofa beside a broken teapot"

# The arguments of each pipeline; xdit gets the same values as options.
CALLS = {
    "PixArtAlphaPipeline": {
        "negative_prompt": "blurry, low quality",
        "guidance_scale": 4.5,
        "clean_caption": False,
        "use_resolution_binning": False,
    },
    "StableDiffusion3Pipeline": {"negative_prompt": "blurry, low quality", "guidance_scale": 7.0},
    "FluxPipeline": {"guidance_scale": 3.5, "max_sequence_length": 512},
}


class Stopwatch:
    """Sums up the time spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def wrap(self, owner: object, name: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024, help="height and width in pixels")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", metavar="FILE", help="a safetensors file for latents and picture")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    imported = time.perf_counter()

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    pipe = diffusers.DiffusionPipeline.from_pretrained(args.folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    call = CALLS[type(pipe).__name__]

    stopwatch, latents, step_ends = Stopwatch(), [], []
    stopwatch.wrap(pipe, "encode_prompt")
    stopwatch.wrap(pipe, "prepare_latents")
    stopwatch.wrap(pipe.vae, "decode")
    step_starts = []
    pipe.transformer.register_forward_pre_hook(lambda _module, _inputs: step_starts.append(time.perf_counter()))

    scheduler_step = pipe.scheduler.step

    def step(*args, **kwargs):
        result = scheduler_step(*args, **kwargs)
        step_ends.append(time.perf_counter())
        latents.append(result[0])
        return result

    pipe.scheduler.step = step
    image = pipe(
        PROMPT,
        num_inference_steps=args.steps,
        height=args.size,
        width=args.size,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="np",
        **call,
    ).images
    done = time.perf_counter()

    steps = [end - start for start, end in zip(step_starts, step_ends, strict=True)]
    figures = {
        "versions": {module.__name__: module.__version__ for module in [torch, diffusers, transformers]},
        "threads": torch.get_num_threads(),
        "call": {"prompt": PROMPT, "seed": args.seed, **call},
        "blocks": pipe.transformer.config.num_layers + pipe.transformer.config.get("num_single_layers", 0),
        "import_s": imported - PROCESS_START,
        "load_s": loaded - imported,
        "text_s": sum(stopwatch.seconds["encode_prompt"]),
        "step_s": steps,
        "decode_s": sum(stopwatch.seconds["decode"]),
        "call_s": done - loaded,
        "process_s": done - PROCESS_START,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}))
    if args.save:
        picture = torch.from_numpy((image * 255).round().astype("uint8"))
        final = latents[-1]
        if final.ndim == 3:
            final = pipe._unpack_latents(final, args.size, args.size, pipe.vae_scale_factor)
        save_file({"latents": final.float().contiguous(), "image": picture.contiguous()}, args.save)


if __name__ == "__main__":
    main()
