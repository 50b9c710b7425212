"""`torch.randn` on the CPU generator: the numbers that make a seed mean the same picture everywhere.

Below 16 numbers PyTorch draws one at a time in double precision; from 16 on it fills blocks of 16, and overlaps the
last block with the one before when the count is no multiple of 16. Draws from one generator continue its stream.
"""

import hashlib
from pathlib import Path

import torch

from pipeline_cases import write_case

SEEDS = [0, 1, 42, 2**31 - 1, 2**31, 2**32 + 5, 2**63 - 1, 2**64 - 1]
COUNTS = [*range(1, 21), 31, 32, 33, 47, 48, 49, 100]
CONSECUTIVE = [[1, 1, 1, 16, 1], [3, 20, 5, 33], [16, 16, 15, 17], [15, 1, 32], [2, 4096, 2]]
LARGE = [4 * 64 * 64, 624 * 4, 1_000_003]


def write_all(root: Path) -> None:
    tensors, draws, large = {}, [], []
    for seed in SEEDS:
        sequences = [[count] for count in (COUNTS if seed in (0, 42) else [1, 2, 15, 16, 17, 33])]
        sequences += CONSECUTIVE if seed in (1, 42) else []
        for counts in sequences:
            generator = torch.Generator().manual_seed(seed)
            keys = [f"seed-{seed}/{'-'.join(map(str, counts))}/{i}" for i in range(len(counts))]
            tensors |= {key: torch.randn(n, generator=generator) for key, n in zip(keys, counts, strict=True)}
            draws.append({"seed": seed, "counts": counts, "tensors": keys})
    for count in LARGE:
        values = torch.randn(count, generator=torch.Generator().manual_seed(42))
        key = f"large/{count}"
        tensors |= {f"{key}/first": values[:16].clone(), f"{key}/last": values[-16:].clone()}
        digest = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
        large.append({"seed": 42, "count": count, "tensors": [f"{key}/first", f"{key}/last"], "sha256": digest})
    record = {"draws": draws, "large": large, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    write_case(root / "cases", "randn", record, tensors)
