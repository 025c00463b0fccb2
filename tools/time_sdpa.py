#!/usr/bin/env python3
"""Times PyTorch's causal attention by cuDNN on this GPU, as cuda_attention_bench times ours.

    tools/time_sdpa.py [TOKENS...]          (default: 32768 131072)

One layer of Llama-3-8B's shape, bf16, one sequence. Half a second of load first, since the chip's
clock settles under it; then the median of 20 calls, or as many as take two seconds. Needs PyTorch
with a cuDNN that has this kernel (2.11 with 9.19 has). A yardstick, no part of the program.
"""
import statistics
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
WARM_UP_MS, MOST_MS, CALLS = 500, 2000, 20


def timed(call):
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def main():
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for tokens in [int(word) for word in sys.argv[1:]] or [32768, 131072]:
        q, k, v = (torch.randn(1, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
                   for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            def call():
                functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            loaded = 0.0
            while loaded < WARM_UP_MS:
                loaded += timed(call)
            times = []
            while len(times) < CALLS and sum(times) < MOST_MS:
                times.append(timed(call))
        median = statistics.median(times)
        flop = 4 * HEAD_DIM * Q_HEADS * tokens * (tokens + 1) / 2
        print(f"{tokens} tokens: median {median:.2f} ms of {len(times)} calls, {flop / median * 1e-9:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
