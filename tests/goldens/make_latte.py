"""Writes Latte's golden data with the reference implementation, in f32 on the CPU.

It needs the environment of `make_pixart.py`.

    python make_latte.py [FOLDER]

It writes the checkpoints (`latte*/`) and their `cases/` to FOLDER, by default the folder of this script. Nothing is
downloaded, and a second run on the same machine writes equal files.
"""

import latte_cases
import latte_checkpoints
from make_pixart import prepare


def main() -> None:
    root = prepare(__doc__.splitlines()[0])
    latte_checkpoints.write_all(root)
    latte_cases.write_all(root)


if __name__ == "__main__":
    main()
