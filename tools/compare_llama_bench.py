#!/usr/bin/env python3
"""lserve beside llama.cpp on the same machine: same shapes, interleaved runs, medians and ratios.

    tools/compare_llama_bench.py --llama-bench PATH [--shape 100m] [--prompt 2048] [--depth 2048] [--rounds 5]

Needs a built `build/lserve` and a llama-bench of your own build. A random checkpoint of the shape
is written as GGUF for llama.cpp (bf16 weights, f16 KV, flash attention on: its fastest here);
`lserve bench --shape` makes its own. Only speed is compared: random weights mean nothing. Each
round runs one after the other, so that a drifting machine drifts for both; the ratio is taken
round by round, and the table gives the median, the least and the most of it.
"""
import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile

# layers, hidden, query heads, KV heads, head_dim, intermediate, vocabulary; embeddings are tied.
SHAPES = {
    "100m": (12, 768, 12, 4, 64, 2048, 32000),
    "1b": (16, 2048, 32, 8, 64, 8192, 32000),
}
ROOT = pathlib.Path(__file__).resolve().parent.parent

GGUF_UINT32, GGUF_FLOAT32, GGUF_STRING = 4, 6, 8
GGML_F32, GGML_BF16 = 0, 30
ALIGNMENT = 32


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_pair(key, kind, value):
    packed = {GGUF_UINT32: lambda: struct.pack("<I", value), GGUF_FLOAT32: lambda: struct.pack("<f", value),
              GGUF_STRING: lambda: gguf_string(value)}[kind]()
    return gguf_string(key) + struct.pack("<I", kind) + packed


def tensors_of(shape):
    """(name, dims with the input dimension first, type) of every tensor."""
    layers, hidden, q_heads, kv_heads, head_dim, intermediate, vocab = shape
    q, kv = q_heads * head_dim, kv_heads * head_dim
    yield "token_embd.weight", (hidden, vocab), GGML_BF16
    yield "output_norm.weight", (hidden,), GGML_F32
    for layer in range(layers):
        for name, dims, kind in (("attn_norm", (hidden,), GGML_F32), ("attn_q", (hidden, q), GGML_BF16),
                                 ("attn_k", (hidden, kv), GGML_BF16), ("attn_v", (hidden, kv), GGML_BF16),
                                 ("attn_output", (q, hidden), GGML_BF16), ("ffn_norm", (hidden,), GGML_F32),
                                 ("ffn_gate", (hidden, intermediate), GGML_BF16),
                                 ("ffn_up", (hidden, intermediate), GGML_BF16),
                                 ("ffn_down", (intermediate, hidden), GGML_BF16)):
            yield f"blk.{layer}.{name}.weight", dims, kind


def write_gguf(path, shape):
    layers, hidden, q_heads, kv_heads, head_dim, intermediate, vocab = shape
    pairs = [
        ("general.architecture", GGUF_STRING, "llama"),
        ("llama.context_length", GGUF_UINT32, 1 << 18),
        ("llama.embedding_length", GGUF_UINT32, hidden),
        ("llama.block_count", GGUF_UINT32, layers),
        ("llama.feed_forward_length", GGUF_UINT32, intermediate),
        ("llama.attention.head_count", GGUF_UINT32, q_heads),
        ("llama.attention.head_count_kv", GGUF_UINT32, kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", GGUF_FLOAT32, 1e-5),
        ("llama.rope.dimension_count", GGUF_UINT32, head_dim),
        ("llama.rope.freq_base", GGUF_FLOAT32, 500000.0),
        ("llama.vocab_size", GGUF_UINT32, vocab),
        ("tokenizer.ggml.model", GGUF_STRING, "no_vocab"),
    ]
    tensors = list(tensors_of(shape))
    # A megabyte of bf16 in +-0.03, repeated: speed does not depend on the values, and zeros would
    # make some kernels faster.
    noise = os.urandom(1 << 20)
    bf16 = b"".join(struct.pack("<H", (0x3C00 | (b & 0xF0)) | ((b & 1) << 15)) for b in noise)
    with open(path, "wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)))
        out.write(b"".join(gguf_pair(*pair) for pair in pairs))
        offset, sizes = 0, []
        for name, dims, kind in tensors:
            size = (2 if kind == GGML_BF16 else 4)
            for dim in dims:
                size *= dim
            out.write(gguf_string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
                      + struct.pack("<IQ", kind, offset))
            sizes.append(size)
            offset += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        out.write(b"\0" * (-out.tell() % ALIGNMENT))
        for (name, dims, kind), size in zip(tensors, sizes):
            if kind == GGML_F32:
                out.write(struct.pack("<f", 1.0) * (size // 4))
            else:
                whole, rest = divmod(size, len(bf16))
                for _ in range(whole):
                    out.write(bf16)
                out.write(bf16[:rest])
            out.write(b"\0" * (-out.tell() % ALIGNMENT))


def llama_bench(program, model, threads, prompt, depth, tokens):
    """tokens/s of llama.cpp: prefill of `prompt`, or decode of `tokens` at `depth`."""
    command = [program, "-m", model, "-t", str(threads), "-fa", "1", "-r", "1", "-o", "json", "-ngl", "0"]
    command += ["-p", str(prompt), "-n", "0"] if prompt else ["-p", "0", "-n", str(tokens), "-d", str(depth)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program}: ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


def lserve_bench(arguments, arm, prompt, depth):
    """tokens/s of lserve and the machine's gauge, from the same kind of run."""
    command = [str(ROOT / "build/lserve"), "bench", "--shape", arguments.shape, "--threads", str(arguments.threads),
               "--attention", arm, "--repeat", "1", "--json", "-"]
    command += ["--prompt", str(prompt)] if prompt else ["--depth", str(depth), "-n", str(arguments.tokens)]
    command += arguments.lserve_options
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lserve bench: ended with status {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--prompt", type=int, nargs="*", default=[])
    parser.add_argument("--depth", type=int, nargs="*", default=[])
    parser.add_argument("--arms", nargs="*", default=["dense"], help="dense, sparse")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-rounds", type=int, default=None, help="fewer for a slow peer; its median then serves")
    parser.add_argument("--json", help="append every measurement to this file")
    parser.add_argument("lserve_options", nargs="*", help="after --: options for lserve bench")
    arguments = parser.parse_args()
    gguf = pathlib.Path(tempfile.gettempdir()) / f"lserve-compare-{arguments.shape}.gguf"
    if not gguf.exists():
        write_gguf(gguf, SHAPES[arguments.shape])
    log = open(arguments.json, "a") if arguments.json else None
    print("| shape | test | arm | llama.cpp tok/s | lserve tok/s | ratio (least-most) |\n|---|---|---|---|---|---|")
    for test, prompt, depth in ([(f"pp{p}", p, 0) for p in arguments.prompt]
                                + [(f"tg{arguments.tokens} @ d{d}", 0, d) for d in arguments.depth]):
        peer, ours = [], {arm: [] for arm in arguments.arms}
        for round_idx in range(arguments.rounds):
            if arguments.peer_rounds is None or round_idx < arguments.peer_rounds:
                peer.append(llama_bench(arguments.llama_bench, str(gguf), arguments.threads, prompt, depth,
                                        arguments.tokens))
            for arm in arguments.arms:
                record = lserve_bench(arguments, arm, prompt, depth)[-1]
                ours[arm].append(record["tokens_per_second"]["median"])
                if log:
                    log.write(json.dumps({"shape": arguments.shape, "test": test, "round": round_idx,
                                          "llama_cpp_tokens_per_second": peer[-1], "lserve": record}) + "\n")
                    log.flush()
        for arm in arguments.arms:
            peers = peer if len(peer) == len(ours[arm]) else [statistics.median(peer)] * len(ours[arm])
            ratios = [mine / theirs for mine, theirs in zip(ours[arm], peers)]
            print(f"| {arguments.shape} | {test} | {arm} | {statistics.median(peer):.1f} | "
                  f"{statistics.median(ours[arm]):.1f} | {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f}-{max(ratios):.2f}) |", flush=True)


if __name__ == "__main__":
    main()
