#!/usr/bin/env python3
"""lserve beside llama.cpp on the same machine: same shapes, interleaved runs, medians and ratios.

    tools/compare_llama_bench.py run --llama-bench PATH --json FILE [--shape 100m] [--prompt 2048] [--depth 2048]
    tools/compare_llama_bench.py table FILE...

`run` needs a built `build/lserve` and a llama-bench of your own build. A random checkpoint of the
shape is written as GGUF for llama.cpp (bf16 weights, f16 KV, flash attention on: its fastest here);
`lserve bench --shape` makes its own. Only speed is compared: random weights mean nothing. The
programs take turns, so that a drifting machine drifts for both. Every run is appended to FILE as
it ends, and rounds that FILE holds already are not run again: hours of runs can be done in pieces.

`table` takes the ratio round by round and prints its median, least and most.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time

# layers, hidden, query heads, KV heads, head_dim, intermediate, vocabulary; embeddings are tied.
SHAPES = {
    "100m": (12, 768, 12, 4, 64, 2048, 32000),
    "1b": (16, 2048, 32, 8, 64, 8192, 32000),
}
# What `lserve bench` is told. Random weights have no structure that the estimate of block-sparse prefill could find, so
# lists of a quarter and of half of the tiles are asked for by their mass, which is even here; the estimate is paid for.
ARMS = {
    "dense": ("--attention", "dense"),
    "sparse": ("--attention", "sparse"),
    "sparse, 50% lists": ("--attention", "sparse", "--sparse-prefill-threshold", "0.5"),
    "sparse, 25% lists": ("--attention", "sparse", "--sparse-prefill-threshold", "0.25"),
    "dense, int8": ("--attention", "dense", "--quantization", "int8"),
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


def measured(command):
    """(the standard output of `command`, processor seconds per second); ends the program if it fails."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{command[0]}: ended with status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / wall


def llama_bench(arguments, model, prompt, depth):
    """llama.cpp's tokens/s in each repetition: prefill of `prompt`, or decode at `depth`, which is read once."""
    command = [arguments.llama_bench, "-m", model, "-t", str(arguments.threads), "-fa", "1", "-o", "json", "-ngl", "0",
               "-r", str(arguments.repeat)]
    command += ["-p", str(prompt), "-n", "0"] if prompt else ["-p", "0", "-n", str(arguments.tokens), "-d", str(depth)]
    # Its warm-up reads the whole prompt; a long one warms up on its own.
    command += ["--no-warmup"] if prompt >= 8192 else []
    out, cores = measured(command)
    record = json.loads(out)[0]
    return {"tokens_per_second": record["samples_ts"], "cores": cores, "build": record["build_commit"]}


def lserve_bench(arguments, arm, prompt, depth):
    """lserve's tokens/s in each repetition, and its whole record: gauge, load, share of attention."""
    command = [arguments.lserve, "bench", "--shape", arguments.shape, "--threads", str(arguments.threads),
               "--repeat", str(arguments.repeat), "--json", "-", *ARMS[arm]]
    command += ["--prompt", str(prompt)] if prompt else ["--depth", str(depth), "-n", str(arguments.tokens)]
    out, _ = measured(command)
    record = [json.loads(line) for line in out.splitlines() if line.startswith("{")][-1]
    tokens = prompt or arguments.tokens
    return {"tokens_per_second": [tokens / seconds for seconds in record["seconds"]], "record": record}


def read_records(paths):
    return [json.loads(line) for path in paths if os.path.exists(path) for line in open(path)]


def run(arguments):
    gguf = pathlib.Path(tempfile.gettempdir()) / f"lserve-compare-{arguments.shape}.gguf"
    if not gguf.exists():
        write_gguf(gguf, SHAPES[arguments.shape])
    done = {(r["shape"], r["test"], r["program"], r["round"]) for r in read_records([arguments.json])}
    # Lengths take turns within a round: a few minutes' disturbance meets one round of each.
    for round_idx in range(arguments.rounds):
        for test, prompt, depth in ([(f"pp{p}", p, 0) for p in arguments.prompt]
                                    + [(f"tg{arguments.tokens} @ d{d}", 0, d) for d in arguments.depth]):
            for program in ["llama.cpp", *arguments.arms]:
                if (arguments.shape, test, program, round_idx) in done:
                    continue
                result = (llama_bench(arguments, str(gguf), prompt, depth) if program == "llama.cpp"
                          else lserve_bench(arguments, program, prompt, depth))
                record = {"shape": arguments.shape, "test": test, "round": round_idx, "program": program,
                          "note": arguments.note, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                          "load_average": os.getloadavg()[0], **result}
                with open(arguments.json, "a") as log:
                    log.write(json.dumps(record) + "\n")
                print(f"{arguments.shape} {test} round {round_idx} {program}: "
                      f"{statistics.median(result['tokens_per_second']):.1f} tok/s", flush=True)


def samples(records, shape, test, program):
    """tokens/s in the order of rounds and, within one, of repetitions."""
    chosen = sorted((r for r in records if (r["shape"], r["test"], r["program"]) == (shape, test, program)),
                    key=lambda r: r["round"])
    return [rate for r in chosen for rate in r["tokens_per_second"]]


def table(arguments):
    records = read_records(arguments.files)
    rows = list(dict.fromkeys((r["shape"], r["test"], r["program"]) for r in records if r["program"] != "llama.cpp"))
    print("| shape | test | arm | runs | llama.cpp tok/s | lserve tok/s | ratio, median (least - most) | slowest gauge |")
    print("|---|---|---|---:|---:|---:|---|---:|")
    for shape, test, program in rows:
        mine, theirs = samples(records, shape, test, program), samples(records, shape, test, "llama.cpp")
        pairs = min(len(mine), len(theirs))
        if not pairs:
            continue
        ratios = [a / b for a, b in zip(mine, theirs)]
        gauge = min(g for r in records if (r["shape"], r["test"], r["program"]) == (shape, test, program)
                    for g in r["record"]["gauge_flop_s"])
        print(f"| {shape} | {test} | {program} | {pairs} | {statistics.median(theirs[:pairs]):.1f} | "
              f"{statistics.median(mine[:pairs]):.1f} | {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} - {max(ratios):.2f}) | {gauge / 1e9:.0f} GFLOP/s |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="measure")
    runs.add_argument("--llama-bench", required=True)
    runs.add_argument("--lserve", default=str(ROOT / "build/lserve"))
    runs.add_argument("--json", required=True, help="append every run to this file")
    runs.add_argument("--note", default="", help="goes into every record: the commit")
    runs.add_argument("--shape", choices=SHAPES, default="100m")
    runs.add_argument("--prompt", type=int, nargs="*", default=[])
    runs.add_argument("--depth", type=int, nargs="*", default=[])
    runs.add_argument("--arms", choices=ARMS, nargs="*", default=["dense", "sparse"])
    runs.add_argument("--tokens", type=int, default=32)
    runs.add_argument("--threads", type=int, default=os.cpu_count())
    runs.add_argument("--rounds", type=int, default=5)
    runs.add_argument("--repeat", type=int, default=1,
                      help="runs within a round; decode reads its prompt once for all of them")
    runs.set_defaults(action=run)
    tables = commands.add_parser("table", help="ratios of measured runs")
    tables.add_argument("files", nargs="+")
    tables.set_defaults(action=table)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
