"""Times PyTorch at the sizes of `tokens.rs`: `OMP_NUM_THREADS=2 python tokens.py`. Prints medians in ms."""

import statistics
import time

import torch
from torch.nn import functional as F

HEADS, HEAD_DIM = 16, 72
FEATURES = HEADS * HEAD_DIM


def timed(name, function, seconds=0.6):
    with torch.inference_mode():
        function()
        times, start = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            function()
            times.append(time.perf_counter() - before)
    print(f"{name}: {statistics.median(times) * 1e3:.2f}", flush=True)


def attention(name, nq, nk, biased):
    # The heads come first in memory here, which spares PyTorch a copy.
    q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM) for n in (nq, nk, nk))
    bias = torch.randn(1, 1, 1, nk).expand(1, HEADS, nq, nk) if biased else None
    timed(name, lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


def attention_types(name, b, nq, nk, h, d, biased):
    for label, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        q, k, v = (torch.randn(b, h, n, d).to(dtype) for n in (nq, nk, nk))
        bias = torch.randn(1, 1, 1, nk).to(dtype).expand(b, h, nq, nk) if biased else None
        timed(f"{name}/{label}", lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias))


def linear(name, rows, c_in, c_out):
    x, weight, bias = torch.randn(rows, c_in), torch.randn(c_out, c_in), torch.randn(c_out)
    timed(name, lambda: F.linear(x, weight, bias))


print(torch.__version__, torch.get_num_threads(), "threads")
attention("attention_1024", 1024, 1024, False)
attention("attention_4096", 4096, 4096, False)
attention("attention_4096_text", 4096, 120, True)
attention_types("attention_types_1024", 2, 1024, 1024, HEADS, HEAD_DIM, False)
attention_types("attention_types_4096", 1, 4096, 4096, HEADS, HEAD_DIM, False)
attention_types("attention_types_4096_text", 1, 4096, 120, HEADS, HEAD_DIM, True)
attention_types("attention_types_4608_flux", 1, 4608, 4608, 6, 128, False)
linear("linear_1024_qkv", 1024, FEATURES, 3 * FEATURES)
linear("linear_1024_up", 1024, FEATURES, 4 * FEATURES)
linear("linear_1024_down", 1024, 4 * FEATURES, FEATURES)
linear("linear_1_modulation", 1, FEATURES, 6 * FEATURES)
linear("linear_2_modulation", 2, FEATURES, 6 * FEATURES)
linear("linear_8_modulation", 8, FEATURES, 6 * FEATURES)
wide, factor = torch.randn(2, 1, 1024, 4 * FEATURES)
timed("gelu_tanh_1024", lambda: F.gelu(wide, approximate="tanh"))
timed("gelu_1024", lambda: F.gelu(wide))
timed("silu_1024", lambda: F.silu(wide))
timed("geglu_1024", lambda: F.gelu(wide) * factor)
x, y = torch.randn(2, 1, 1024, FEATURES)
shift, scale, gate = torch.randn(3, 1, 1, FEATURES)
timed("layer_norm_modulate_1024", lambda: F.layer_norm(x, (FEATURES,), eps=1e-6) * (1 + scale) + shift)
timed("layer_norm_1024", lambda: F.layer_norm(x, (FEATURES,), eps=1e-6))
heads = x.view(1, 1024, HEADS, HEAD_DIM)
timed("rms_norm_1024_heads", lambda: F.rms_norm(heads, (HEAD_DIM,), eps=1e-6))
timed("gated_residual_1024", lambda: x + gate * y)


def turned(cos, sin):
    first, second = heads.unflatten(3, (HEAD_DIM // 2, 2)).unbind(4)
    return heads * cos + torch.stack([-second, first], dim=4).flatten(3) * sin


cos, sin = torch.randn(2, 1024, 1, HEAD_DIM)
timed("rotary_1024_heads", lambda: turned(cos, sin))
