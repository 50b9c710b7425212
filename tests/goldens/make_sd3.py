"""Writes Stable Diffusion 3's golden data with the reference implementation, in f32 on the CPU.

It needs the environment of `make_pixart.py`, and the checkpoints that `make_pixart.py` writes.

    python make_sd3.py [FOLDER]

It writes the checkpoints (`sd3-*/`, `sd35-*/`) and their `cases/` to FOLDER, by default the folder of this script.
Nothing is downloaded, and a second run on the same machine writes equal files.
"""

import argparse
from pathlib import Path

import diffusers
import torch
import transformers

import sd3_cases
import sd3_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    root = parser.parse_args().folder
    # Sums are then computed in the same order, whatever the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    # Both libraries warn of intended properties, such as prompts that are cut.
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()

    sd3_checkpoints.write_all(root)
    sd3_cases.write_all(root)


if __name__ == "__main__":
    main()
