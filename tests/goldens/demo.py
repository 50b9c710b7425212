"""Writes a call of the trained model in `xdit-cli/demo/model` with the reference implementation, in f32 on the CPU.

    python demo.py [FOLDER]

The packages are those of `make_pixart.py`. It writes `cases/demo-apples` to FOLDER, by default the folder of this
script, in less than a minute. The weights of the model are kept with 16 bits and computed with in 32.
"""

from pathlib import Path

import torch

from make_pixart import prepare
from pipeline_cases import CALL, Recorder, load, run_both, size, write_case

MODEL = "../../xdit-cli/demo/model"
SEED = 8
REQUEST = {
    "prompt": "two red apples on a blue background",
    "negative_prompt": "",
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
}
# Every step would make the file three times as large.
KEPT = ("init_latents", "latents", "image")


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    checkpoint = Path(__file__).parent / MODEL
    call = CALL | size(256, 256) | REQUEST
    pipe = load(checkpoint)
    tensors, seeds, rounding = run_both(pipe, load(checkpoint, torch.float64), call, SEED, Recorder())
    tensors = {name: tensors[name] for name in KEPT}
    record = {
        "checkpoint": MODEL,
        "pipeline": type(pipe).__name__,
        "call": call,
        "seeds": seeds,
        "scheduler": None,
        "bucket": size(256, 256),
        "timesteps": [float(t) for t in pipe.scheduler.timesteps],
        "init_noise_sigma": float(pipe.scheduler.init_noise_sigma),
        "rounding": rounding,
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(tensors.items())},
    }
    write_case(root / "cases", "demo-apples", record, tensors)


if __name__ == "__main__":
    main()
