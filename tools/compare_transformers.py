#!/usr/bin/env python3
"""Holds lserve's logits against transformers' on a random checkpoint that transformers writes.

    python3 tools/compare_transformers.py build/lserve --device cuda --tokens 2048,16384 --layers 4
    python3 tools/compare_transformers.py build/lserve --device cuda --layers 32 --sharpness 1

The checkpoint has Llama-3-8B's shape but for the number of layers and the vocabulary. transformers
computes in bfloat16 and in float32; lserve in bfloat16 weights, dense. lserve must be as near to the
float32 logits as transformers' own bfloat16 is (within a quarter), and agree on the top token
wherever the float32 logits are not tied within the error. Needs torch and transformers.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers


def make_checkpoint(folder, layers, vocab, sharpness):
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=vocab, max_position_embeddings=131072,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192})
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    # The initial weights (0.02) attend almost evenly; sharper ones make attention matter, and a deep
    # model chaotic.
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= sharpness
        layer.self_attn.k_proj.weight.data *= sharpness
    model.save_pretrained(folder)


def load(folder, dtype):
    # Not model.to(dtype): that rounds the rotary frequencies too.
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).cuda().eval()


def attention_by_head(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Causal attention in the tensors' own type, a head at a time: all scores at once do not fit."""
    group = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    future = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu(1)
    for head in range(query.shape[1]):
        scores = query[0, head] @ key[0, head // group].T * scaling
        out[0, head] = scores.masked_fill_(future, float("-inf")).softmax(-1) @ value[0, head // group]
    return out.transpose(1, 2), None


@torch.no_grad()
def logits_of(model, tokens):
    hidden = model.model(tokens[None], use_cache=False).last_hidden_state[0]
    return torch.cat([model.lm_head(part).float().cpu() for part in hidden.split(1024)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", default="2048,16384")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--sharpness", type=float, default=3, help="factor on the weights of q and k")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_checkpoint(folder / "model", args.layers, args.vocab, args.sharpness)
        model = load(folder / "model", torch.bfloat16)
        lengths = [int(n) for n in args.tokens.split(",")]
        prompts = [torch.randint(0, args.vocab, (n,), generator=torch.Generator().manual_seed(n)).cuda()
                   for n in lengths]
        half = [logits_of(model, p) for p in prompts]
        transformers.AttentionInterface.register("by_head", attention_by_head)
        exact_model = load(folder / "model", torch.float32)
        exact_model.set_attn_implementation("by_head")
        exact = [logits_of(exact_model, p) for p in prompts]
        del model, exact_model
        torch.cuda.empty_cache()
        for n, prompt, a, b in zip(lengths, prompts, half, exact):
            (folder / "tokens.txt").write_text(" ".join(map(str, prompt.tolist())))
            subprocess.run([args.program, "run", folder / "model", "--tokens", folder / "tokens.txt",
                            "--logits-out", folder / "logits.npy", "--max-tokens", "1", "--temperature", "0",
                            "--ignore-eos", "--attention", "dense", "--device", args.device],
                           check=True, stdout=subprocess.DEVNULL)
            ours = torch.from_numpy(numpy.load(folder / "logits.npy"))
            norm = b.norm()
            own, peer = ((ours - b).norm() / norm).item(), ((a - b).norm() / norm).item()
            top = (ours.argmax(1) == b.argmax(1)).double().mean().item()
            peer_top = (a.argmax(1) == b.argmax(1)).double().mean().item()
            good = own <= 1.25 * peer and top >= peer_top - 0.005
            failed |= not good
            print(f"{n} tokens: relative error to float32: lserve {own:.5f}, transformers bf16 {peer:.5f}; "
                  f"top-1 agreement: lserve {top:.4f}, transformers bf16 {peer_top:.4f}: {'ok' if good else 'FAILED'}",
                  flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
