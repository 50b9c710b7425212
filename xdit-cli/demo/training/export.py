"""Writes trained weights as a pipeline folder that diffusers loads: `python export.py averaged.safetensors spiece.model DIR`.

All weights are kept with 16 bits. The files and options are those with which PixArt-Σ is published.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

import models


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> None:
    weights, vocabulary, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    state = load_file(weights)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.transformer_blocks"))
    parts = {
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    head = {"_class_name": "PixArtSigmaPipeline", "_diffusers_version": models.VAE["_diffusers_version"]}
    write_json(out / "model_index.json", head | parts)
    write_json(out / "scheduler/scheduler_config.json", models.SCHEDULER)
    write_json(out / "transformer/config.json", models.TRANSFORMER | {"num_layers": layers})
    write_json(out / "vae/config.json", models.VAE)
    write_json(out / "text_encoder/config.json", models.TEXT_ENCODER)
    models.write_tokenizer(out / "tokenizer", vocabulary.read_bytes())
    total = 0
    for folder, stem in (("text_encoder", "model"), ("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        part = {name[len(folder) + 1 :]: t.half().contiguous() for name, t in state.items() if name.startswith(folder + ".")}
        assert all(tensor.isfinite().all() for tensor in part.values())
        save_file(part, out / folder / f"{stem}.safetensors", metadata={"format": "pt"})
        total += (out / folder / f"{stem}.safetensors").stat().st_size
    print(f"{total / 2**20:.2f} MiB of weights in {out}")


if __name__ == "__main__":
    main()
