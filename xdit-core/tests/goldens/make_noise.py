"""Records draws from PyTorch's CPU generator; `tests/noise.rs` compares with them, bit for bit.

    pip install torch==2.15.0 numpy
    python make_noise.py

`noise.json` contains streams: a seed and consecutive draws. A draw consists of the number of values and their bits
as hex digits (big-endian f32); long draws have a checksum instead, the sum of `bits * (2 * index + 1)` modulo 2^64.

The file was recorded on an x86 machine with AVX2. PyTorch's code for machines without AVX2 rounds differently.
"""

import json
from pathlib import Path

import numpy as np
import torch

SIZES = [*range(1, 21), 31, 32, 33, 100]
STREAMS = [
    *[(seed, SIZES) for seed in (0, 1, 42, 2**31, 2**32 + 5, 2**63 - 1)],
    # The second value of a pair survives draws in blocks, which do not use it.
    (7, [1, 16, 1, 3, 0, 20, 1, 15, 624, 2]),
    (0, [16384, 16384]),
    (1234, [4 * 128 * 128, 1]),
    (2**31 - 1, [1_000_003]),
    (3, [1 << 22]),
]
SUMMED_FROM = 624


def draw(generator, size):
    values = torch.randn(size, generator=generator).numpy()
    if size < SUMMED_FROM:
        return {"size": size, "bits": values.astype(">f4").tobytes().hex()}
    weights = 2 * np.arange(size, dtype=np.uint64) + 1
    checksum = (values.view(np.uint32).astype(np.uint64) * weights).sum(dtype=np.uint64)
    return {"size": size, "checksum": f"{checksum:016x}"}


def main():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    lines = []
    for seed, sizes in STREAMS:
        generator = torch.Generator().manual_seed(seed)
        lines.append(json.dumps({"seed": seed, "draws": [draw(generator, size) for size in sizes]}))
    Path(__file__).with_name("noise.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
