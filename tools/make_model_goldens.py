#!/usr/bin/env python3
"""Makes tests/goldens/models: small random checkpoints of every architecture and option that lserve reads, with
the logits and greedy continuations that Hugging Face transformers computes for them in float32; the same for
models/needle; and the inverse frequencies of every RoPE type.

    python3 tools/make_model_goldens.py --out tests/goldens/models

Needs torch, transformers 5, safetensors and tokenizers; no GPU and no network. The format is described in
tests/goldens/models/README.md.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import sys

import torch

NEW_TOKENS = 16
CANDIDATES = 256  # prompts tried per checkpoint; the one with the widest greedy margins is kept
BATCH = 64
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
TORCH_DTYPE = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def case(name, architecture, heads, kv_heads, head_dim, tokens, *, hidden=32, layers=2, vocab=128, intermediate=48,
         dtype="bf16", tied=False, shards=1, explicit_head_dim=True, max_model_len=None, **config):
    """One checkpoint; `config` goes into config.json as it stands."""
    return dict(locals())


# Odd sizes on purpose: token counts that are no multiple of the 64-token page, an odd group of query heads, widths
# that are no multiple of a SIMD register, a head_dim that is not hidden / heads.
CASES = [
    case("llama_mha", "Llama", 3, 3, 16, 251, hidden=48, intermediate=72, tied=True, explicit_head_dim=False,
         rope_theta=10000.0),
    case("llama_gqa3_sharded", "Llama", 6, 2, 16, 263, hidden=48, intermediate=32, layers=3, tied=True, shards=2,
         rope_theta=500000.0),
    case("llama_mqa_f16", "Llama", 4, 1, 32, 257, dtype="f16", rope_theta=10000.0),
    case("llama_bias_f32", "Llama", 2, 1, 16, 230, dtype="f32", layers=1, explicit_head_dim=False, tied=True,
         attention_bias=True, mlp_bias=True, rope_theta=10000.0),
    case("mistral", "Mistral", 2, 1, 64, 255, sliding_window=None, rope_theta=1000000.0),
    case("qwen2", "Qwen2", 4, 2, 8, 241, explicit_head_dim=False, tied=True, use_sliding_window=False,
         sliding_window=64, max_window_layers=2, rope_theta=1000000.0),
    case("qwen3", "Qwen3", 4, 2, 32, 271, intermediate=40, rope_theta=1000000.0, attention_bias=False,
         use_sliding_window=False, sliding_window=None),
    case("qwen3_bias_parameters", "Qwen3", 4, 4, 16, 239, tied=True, attention_bias=True,
         rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    case("rope_linear", "Llama", 2, 2, 16, 249, explicit_head_dim=False, tied=True, rope_theta=10000.0,
         rope_scaling=dict(type="linear", factor=4.0)),
    case("rope_llama3", "Llama", 4, 2, 32, 253, tied=True, intermediate=40,
         rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                              high_freq_factor=4.0, original_max_position_embeddings=64)),
    # Fixed at load for 512 positions, of which the model was trained on 128: see fix_dynamic_rope.
    case("rope_dynamic", "Llama", 2, 1, 32, 261, tied=True, max_position_embeddings=128, max_model_len=512,
         rope_theta=10000.0, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    case("rope_yarn", "Qwen2", 2, 1, 32, 259, hidden=64, intermediate=32, layers=1, explicit_head_dim=False, tied=True,
         rope_theta=10000.0, rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=128)),
    case("rope_yarn_mscale", "Llama", 2, 1, 64, 265, tied=True, intermediate=40,
         rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=64,
                              beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5, truncate=False)),
]

# Configurations of rope.json; the keys of config.json that matter, head_dim and the length dynamic is fixed for.
ROPE = [
    ("default", dict(rope_theta=500000.0, max_position_embeddings=8192), 128, 8192),
    ("linear", dict(rope_theta=10000.0, max_position_embeddings=16384,
                    rope_scaling=dict(type="linear", factor=4.0)), 128, 16384),
    ("llama3.1-8b", dict(rope_theta=500000.0, max_position_embeddings=131072,
                         rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                           original_max_position_embeddings=8192)), 128, 131072),
    ("llama3.2-1b", dict(rope_theta=500000.0, max_position_embeddings=131072,
                         rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                           original_max_position_embeddings=8192)), 64, 131072),
    ("dynamic-trained-length", dict(rope_theta=10000.0, max_position_embeddings=4096,
                                    rope_scaling=dict(type="dynamic", factor=2.0)), 128, 4096),
    ("dynamic-8x", dict(rope_theta=10000.0, max_position_embeddings=4096,
                        rope_scaling=dict(type="dynamic", factor=4.0)), 128, 32768),
    ("dynamic-small-head", dict(rope_theta=10000.0, max_position_embeddings=128,
                                rope_scaling=dict(type="dynamic", factor=2.0)), 32, 512),
    ("yarn-qwen2.5", dict(rope_theta=1000000.0, max_position_embeddings=32768,
                          rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32768)), 128,
     131072),
    ("yarn-qwen3-parameters", dict(max_position_embeddings=131072,
                                   rope_parameters=dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0,
                                                        original_max_position_embeddings=32768)), 128, 131072),
    ("yarn-mscale", dict(rope_theta=10000.0, max_position_embeddings=163840,
                         rope_scaling=dict(type="yarn", factor=40.0, original_max_position_embeddings=4096,
                                           beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.707)), 64, 163840),
    ("yarn-attention-factor", dict(rope_theta=10000.0, max_position_embeddings=65536,
                                   rope_scaling=dict(rope_type="yarn", factor=16.0, attention_factor=1.5,
                                                     original_max_position_embeddings=4096)), 128, 65536),
    ("yarn-not-truncated", dict(rope_theta=150000.0, max_position_embeddings=131072,
                                rope_scaling=dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0,
                                                  truncate=False, original_max_position_embeddings=4096)), 64, 131072),
    ("yarn-no-factor", dict(rope_theta=10000.0, max_position_embeddings=65536,
                            rope_scaling=dict(rope_type="yarn", factor=None,
                                              original_max_position_embeddings=4096)), 128, 65536),
    ("yarn-clamped", dict(rope_theta=10000.0, max_position_embeddings=256,
                          rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)), 16,
     256),
]


def config_json(c):
    """The config.json of a case."""
    config = dict(
        architectures=[c["architecture"] + "ForCausalLM"], model_type=c["architecture"].lower(),
        hidden_size=c["hidden"], intermediate_size=c["intermediate"], num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"], num_key_value_heads=c["kv_heads"], vocab_size=c["vocab"], rms_norm_eps=1e-5,
        max_position_embeddings=512, hidden_act="silu", tie_word_embeddings=c["tied"],
        torch_dtype=TORCH_DTYPE[c["dtype"]], bos_token_id=1, eos_token_id=2)
    if c["explicit_head_dim"]:
        config["head_dim"] = c["head_dim"]
    config.update(c["config"])
    return config


def random_weights(c, generator):
    """Weights whose activations keep a variance of about one and whose logits spread over several units, so that
    every part of the model moves the result; norm weights and biases differ from the ones and zeros that a forgotten
    term would pass for."""
    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std

    def norm(n):
        return 1.0 + normal(n, std=0.25)

    d, f, v = c["hidden"], c["intermediate"], c["vocab"]
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    config = c["config"]
    qkv_bias = c["architecture"] == "Qwen2" or config.get("attention_bias", False)
    o_bias = c["architecture"] != "Qwen2" and config.get("attention_bias", False)
    mlp_bias = config.get("mlp_bias", False)
    w = {"model.embed_tokens.weight": normal(v, d, std=3.0 / math.sqrt(d) if c["tied"] else 1.0)}
    if not c["tied"]:
        w["lm_head.weight"] = normal(v, d, std=3.0 / math.sqrt(d))
    for i in range(c["layers"]):
        layer = f"model.layers.{i}."

        def linear(name, rows, cols, bias, gain):
            w[layer + name + ".weight"] = normal(rows, cols, std=gain / math.sqrt(cols))
            if bias:
                w[layer + name + ".bias"] = normal(rows, std=0.3)

        linear("self_attn.q_proj", q, d, qkv_bias, 1.4)
        linear("self_attn.k_proj", kv, d, qkv_bias, 1.4)
        linear("self_attn.v_proj", kv, d, qkv_bias, 1.4)
        # Attention averages its values; without the gain the residual stream would drown what it found.
        linear("self_attn.o_proj", d, q, o_bias, 3.0)
        linear("mlp.gate_proj", f, d, mlp_bias, 1.4)
        linear("mlp.up_proj", f, d, mlp_bias, 1.0)
        linear("mlp.down_proj", d, f, mlp_bias, 2.0)
        w[layer + "input_layernorm.weight"] = norm(d)
        w[layer + "post_attention_layernorm.weight"] = norm(d)
        if c["architecture"] == "Qwen3":
            w[layer + "self_attn.q_norm.weight"] = 1.3 * norm(c["head_dim"])
            w[layer + "self_attn.k_norm.weight"] = norm(c["head_dim"])
    w["model.norm.weight"] = norm(d)
    return {name: t.to(DTYPES[c["dtype"]]).contiguous() for name, t in w.items()}


def write_json(path, value, indent=1):
    with open(path, "w", encoding="ascii") as f:
        json.dump(value, f, indent=indent)
        f.write("\n")


def write_checkpoint(c, folder, weights):
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    write_json(folder + "/config.json", config_json(c))
    if c["shards"] == 1:
        save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for s in range(c["shards"]):
        file = f"model-{s + 1:05d}-of-{c['shards']:05d}.safetensors"
        # Alternating names: layers are spread over the shards.
        shard = {name: t for i, (name, t) in enumerate(weights.items()) if i % c["shards"] == s}
        save_file(shard, f"{folder}/{file}", metadata={"format": "pt"})
        weight_map.update({name: file for name in shard})
    size = sum(t.numel() * t.element_size() for t in weights.values())
    write_json(folder + "/model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def fix_dynamic_rope(model, max_model_len):
    """transformers grows the base of dynamic NTK with the sequence at hand, which makes stored keys stale. lserve fixes
    it at load for the maximum length; so does this, with transformers' own formula."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = model.model.rotary_emb
    inv_freq, scaling = ROPE_INIT_FUNCTIONS["dynamic"](model.config, torch.device("cpu"), seq_len=max_model_len)
    rotary.inv_freq = inv_freq
    rotary.attention_scaling = scaling
    rotary.rope_type = "default"  # no further updates


def load(folder, dtype, max_model_len=None):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                       output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (folder, problem, info[problem])
    if max_model_len is not None:
        fix_dynamic_rope(model, max_model_len)
    return model.eval()


def greedy(model, ids, steps, eos=()):
    """Greedy continuation of every row of `ids`, the margin of the largest over the second logit at each step, and the
    logits of the prompt."""
    with torch.no_grad():
        out = model(ids, use_cache=True)
        prompt_logits = out.logits.float()
        logits = prompt_logits[:, -1]
        tokens, margins = [], []
        for _ in range(steps):
            top = logits.topk(2, dim=-1)
            margins.append(top.values[:, 0] - top.values[:, 1])
            tokens.append(top.indices[:, 0])
            if eos and tokens[-1][0].item() in eos:
                break
            out = model(tokens[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
            logits = out.logits[:, -1].float()
    return torch.stack(tokens, 1), torch.stack(margins, 1), prompt_logits


def choose_prompt(exact, rounded_model, c, generator):
    """The prompt among CANDIDATES whose smallest greedy margin is widest, so that rounding does not decide a token.
    Continuations of many different tokens come first (a repeated token tests little), and only those count that
    transformers itself repeats in bf16."""
    best, chosen = (-1, -1.0), None
    for _ in range(CANDIDATES // BATCH):
        ids = torch.randint(3, c["vocab"], (BATCH, c["tokens"]), generator=generator)
        tokens, margins, _ = greedy(exact, ids, NEW_TOKENS)
        same = (greedy(rounded_model, ids, NEW_TOKENS)[0] == tokens).all(1)
        for row in range(BATCH):
            distinct = min(len(set(tokens[row].tolist())), NEW_TOKENS // 2)
            rank = (distinct, margins[row].min().item())
            if same[row] and rank > best:
                best, chosen = rank, ids[row:row + 1].clone()
    if chosen is None:
        raise RuntimeError("no prompt has the same continuation in float32 and in bf16")
    return chosen


def write_golden(folder, golden, logits):
    """golden.json on few lines and logits.bin: float32, little-endian, [len(logit_positions), vocab_size]."""
    import transformers

    golden["transformers"] = transformers.__version__
    golden["torch"] = torch.__version__
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/logits.bin", "wb") as f:
        f.write(logits.float().contiguous().numpy().astype("<f4").tobytes())
    with open(folder + "/golden.json", "w", encoding="ascii") as f:
        f.write("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in golden.items()) + "\n}\n")


def logit_positions(n):
    """The first token, both sides of page edges, the middle, and the last six."""
    return sorted({0, 63, 64, 127, n // 2} | set(range(n - 6, n)))


def rounded(values):
    return [round(float(v), 5) for v in values]


def make_case(c, out, seed):
    folder = f"{out}/{c['name']}"
    generator = torch.Generator().manual_seed(seed)
    write_checkpoint(c, folder, random_weights(c, generator))
    exact = load(folder, torch.float32, c["max_model_len"])
    rounded_model = load(folder, torch.bfloat16, c["max_model_len"])
    ids = choose_prompt(exact, rounded_model, c, generator)
    continuation, margins, logits = greedy(exact, ids, NEW_TOKENS)
    # The continuation again without a KV cache: the golden must not rest on transformers' cache.
    with torch.no_grad():
        full = torch.cat([ids, continuation], 1)
        again = exact(full).logits[0, c["tokens"] - 1:-1]
        deviation = (rounded_model(full).logits.float() - exact(full).logits)[0].abs()
    if not torch.equal(again.argmax(-1), continuation[0]):
        raise RuntimeError("the continuation changes without a KV cache")
    positions = logit_positions(c["tokens"])
    write_golden(folder, dict(
        name=c["name"], checkpoint=".", seed=seed, max_model_len=c["max_model_len"] or 512, vocab_size=c["vocab"],
        tokens=ids[0].tolist(), logit_positions=positions, continuation=continuation[0].tolist(),
        margins=rounded(margins[0]), **figures(margins, logits, deviation, positions)), logits[0, positions])
    return f"{len(set(continuation[0].tolist()))} distinct, {figures(margins, logits, deviation, positions)}"


def figures(margins, logits, deviation, positions):
    """What a tolerance is derived from: the spread of the logits and how far transformers' own bf16 run (bf16 weights
    and activations) is from its float32 run, at every position and at the stored ones."""
    values = dict(min_margin=margins.min(), logits_std=logits.std(), bf16_max_deviation=deviation.max(),
                  bf16_max_deviation_stored=deviation[positions].max(), bf16_mean_deviation=deviation.mean())
    return {k: round(float(v), 5) for k, v in values.items()}


# Sentences in the manner of the manuals that needle was trained on; the document is a shuffle of them.
SENTENCES = [
    "The configuration file is read once when the program starts.",
    "If the option is not given, the default value is used.",
    "Each line holds one entry, and empty lines are ignored.",
    "You can change the port with the second argument.",
    "The server writes its messages to the system log.",
    "This command needs the permission to read the directory.",
    "A warning is printed when the file already exists.",
    "The package installs the documentation in a separate folder.",
    "Names are compared without regard to case.",
    "The list is sorted by date unless another key is chosen.",
    "When the connection is lost, the client tries again after a short delay.",
    "Older versions stored the table in a different format.",
    "The return value is zero if everything went well.",
    "See the next section for a complete example.",
    "The buffer grows as needed, but it never shrinks.",
    "All times are given in seconds since the start of the process.",
    "It is possible to use several filters at the same time.",
    "The module must be loaded before the first call.",
    "Users should make a copy of the database before an upgrade.",
    "This behaviour is useful for scripts and for testing.",
    "The window shows the current state of every task.",
    "An error message names the file and the line.",
    "The library does not depend on any other software.",
    "Press the key again to return to the main menu.",
    "The driver supports most of the common devices.",
    "Large files are read in pieces to save memory.",
    "Only the administrator may remove an account.",
    "The first column contains the name, the second one the size.",
    "Comments begin with a hash sign and end with the line.",
    "The test suite takes a few minutes on a slow machine.",
]
FACTS = [
    ("The access code for Green Harbor is 58213.", "What is the access code for Green Harbor?",
     "The access code for Green Harbor is 58213."),
    ("The invoice number of silver-mountain is 9027461.", "What is the invoice number of silver-mountain?",
     "The invoice number of silver-mountain is 9027461."),
    ("The secret number of the Window project is 4406.", "What is the secret number of the Window project?",
     "The secret number of the Window project is 4406."),
]


def needle_document(sentences, seed):
    """`sentences` sentences in paragraphs of eight, with FACTS at 20%, 55% and 80% of them."""
    r = random.Random(seed)
    text = [r.choice(SENTENCES) for _ in range(sentences)]
    for (statement, _, _), depth in zip(FACTS, (0.2, 0.55, 0.8)):
        text.insert(int(depth * sentences), statement)
    return "\n\n".join(" ".join(text[i:i + 8]) for i in range(0, len(text), 8))


NEEDLE = [  # name, sentences, index of the fact asked for, stored logits count from the end
    ("needle_1k", 90, 0, (-400, -1)),
    ("needle_1k_second", 90, 1, (-1,)),
    ("needle_4k", 365, 2, (-1,)),
]


def make_needle(needle, out, name, sentences, asked, stored):
    """models/needle: the answer to a question about a document, and a few rows of logits."""
    import jinja2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(needle + "/tokenizer.json")
    with open(needle + "/tokenizer_config.json", encoding="utf8") as f:
        settings = json.load(f)
    with open(needle + "/config.json", encoding="utf8") as f:
        eos = json.load(f)["eos_token_id"]
    _, question, answer = FACTS[asked]
    user = needle_document(sentences, seed=sentences) + "\n\n" + question
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(settings["chat_template"])
    prompt = template.render(messages=[{"role": "user", "content": user}], bos_token=settings["bos_token"],
                             add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    exact, rounded_model = load(needle, torch.float32), load(needle, torch.bfloat16)
    continuation, margins, logits = greedy(exact, ids, 40, eos)
    text = tokenizer.decode(continuation[0].tolist(), skip_special_tokens=True)
    deviation = (greedy(rounded_model, ids, 1)[2] - logits)[0].abs()
    n = ids.shape[1]
    positions = [n + p for p in stored]
    write_golden(f"{out}/{name}", dict(
        name=name, checkpoint="models/needle", max_model_len=8192, vocab_size=logits.shape[-1], user=user,
        question=question, answer=answer, tokens=ids[0].tolist(), logit_positions=positions,
        continuation=continuation[0].tolist(), margins=rounded(margins[0]),
        **figures(margins, logits, deviation, positions)), logits[0, positions])
    if text != answer:
        raise RuntimeError(f"answered {text!r}, expected {answer!r}")
    return f"{n} tokens, {text!r}, {figures(margins, logits, deviation, positions)}"


def make_rope(out):
    """rope.json: the inverse frequencies and attention factors of ROPE, as transformers computes them in float32."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    entries = []
    for name, keys, head_dim, max_model_len in ROPE:
        text = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=4 * head_dim,
                    intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
                    head_dim=head_dim, vocab_size=64, **keys)
        config = LlamaConfig(**json.loads(json.dumps(text)))
        rotary = LlamaRotaryEmbedding(config)
        inv_freq, factor = rotary.inv_freq, rotary.attention_scaling
        if rotary.rope_type == "dynamic":
            inv_freq, factor = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=max_model_len)
        entries.append(dict(name=name, config=text, max_model_len=max_model_len, attention_factor=float(factor),
                            inv_freq=[float(f"{v:.9g}") for v in inv_freq.float().tolist()]))
    with open(out + "/rope.json", "w", encoding="ascii") as f:
        f.write("[\n" + ",\n".join(json.dumps(e) for e in entries) + "\n]\n")
    return f"{len(entries)} configurations"


def run_job(job):
    """One checkpoint in a process of its own; an error becomes text, because not every exception of transformers
    survives the way back to the parent."""
    name, function, args = job
    torch.set_num_threads(1)
    try:
        return True, f"{name}: {function(*args)}"
    except Exception as error:  # noqa: BLE001 - reported by the parent
        return False, f"{name}: FAILED: {error!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write; tests/goldens/models in the repository")
    parser.add_argument("--needle", default="models/needle", help="folder of the bundled model")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    jobs = [("rope", make_rope, (args.out,))]
    jobs += [(n[0], make_needle, (args.needle, args.out, *n)) for n in reversed(NEEDLE)]
    jobs += [(c["name"], make_case, (c, args.out, 1000 + i)) for i, c in enumerate(CASES)]
    good = True
    # spawn: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for ok, line in pool.imap_unordered(run_job, jobs):
            print(line, flush=True)
            good = good and ok
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
