"""Writes FLUX's golden data with the reference implementation, in f32 on the CPU.

    python make_flux.py [FOLDER]

It needs the packages listed in `make_pixart.py`, and writes the checkpoints (`flux-*/`) and `cases/flux-*` to FOLDER,
by default the folder of this script. Nothing is downloaded, and a second run on the same machine writes equal files.
"""

import flux_cases
import flux_checkpoints
from make_pixart import prepare


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    flux_checkpoints.write_all(root)
    flux_cases.write_all(root)


if __name__ == "__main__":
    main()
