"""Times PyTorch at the sizes of `images.rs`: `OMP_NUM_THREADS=2 python images.py`. Prints medians in ms."""

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


def timed(name, function, seconds=0.6):
    with torch.inference_mode():
        function()
        times, start = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            function()
            times.append(time.perf_counter() - before)
    print(f"{name}: {statistics.median(times) * 1e3:.1f}", flush=True)


def convolution(name, c_in, c_out, size, kernel=3, upsample=False, block=False):
    x = torch.randn(1, c_in, size, size)
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
    if upsample:
        timed(name, lambda: conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
    elif block:
        norm, residual = nn.GroupNorm(32, c_in), torch.randn(1, c_out, size, size)
        timed(name, lambda: residual + conv(F.silu(norm(x))))
    else:
        timed(name, lambda: conv(x))


convolution("4to512_128", 4, 512, 128)
convolution("512_64", 512, 512, 64)
# The norm's moments are in this time, and not in that of `images.rs`.
convolution("512_64_block", 512, 512, 64, block=True)
convolution("512_128_1x1", 512, 512, 128, kernel=1)
convolution("256_256", 256, 256, 256)
convolution("256_256_block", 256, 256, 256, block=True)
convolution("256_128_upsample", 256, 256, 128, upsample=True)
convolution("128_512", 128, 128, 512)
convolution("64_1024", 64, 64, 1024)
convolution("128to64_1024", 128, 64, 1024)
convolution("64to3_1024", 64, 3, 1024)

x, norm = torch.randn(1, 256, 256, 256), nn.GroupNorm(32, 256)
timed("group_norm_256_256, norm and SiLU", lambda: F.silu(norm(x)))
