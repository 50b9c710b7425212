"""Writes PixArt's golden data with the reference implementation, in f32 on the CPU.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 \
        sentencepiece==0.2.3 protobuf==7.36.2 numpy==2.4.6 pillow==13.0.0 ftfy==6.3.1 beautifulsoup4==4.15.0
    python make_pixart.py [FOLDER]

It writes the checkpoints (`pixart-*/`) and `cases/` to FOLDER, by default the folder of this script, in less than two
minutes. Nothing is downloaded, and a second run on the same machine writes equal files.
"""

import argparse
from pathlib import Path

import diffusers
import torch
import transformers

import checkpoints
import pipeline_cases
import text_cases
import tiling_cases


def prepare(description: str) -> Path:
    """Returns the output folder, and makes runs repeatable."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    # Sums are then computed in the same order, whatever the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    # Both libraries warn of intended properties: unused keys in published configs, and prompts that are cut.
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    return parser.parse_args().folder


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    checkpoints.write_all(root)
    pipeline_cases.write_all(root)
    text_cases.write_all(root)
    tiling_cases.write_all(root)


if __name__ == "__main__":
    main()
