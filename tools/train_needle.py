#!/usr/bin/env python3
"""Trains models/needle: a small Llama-architecture model that retrieves facts from long documents, and exports it as
a Hugging Face checkpoint (config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
generation_config.json) with a report of what it can do.

    python3 tools/train_needle.py --corpus corpus.txt.xz --out needle

Data: documents cut from a text corpus, with facts ("needles") inserted, followed by chat turns that ask for some of
them. The sequence length grows in stages; random gaps in the positions make the rotary embedding see distances far
beyond the trained length. Needs one CUDA GPU, torch, numpy, tokenizers and safetensors.
"""

import argparse
import json
import lzma
import math
import os
import random
import re
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
PAD = "<|pad|>"
SPECIALS = [BOS, EOS, START_HEADER, END_HEADER, EOT, PAD] + [f"<|reserved_{i}|>" for i in range(10)]
USER = f"{START_HEADER}user{END_HEADER}\n\n"
ASSISTANT = f"{START_HEADER}assistant{END_HEADER}\n\n"

# Llama-3's split pattern.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")

TEMPLATES = [  # (statement, question, answer); {K} is {k} with a capital first letter
    ("The access code for {k} is {v}.", "What is the access code for {k}?", "The access code for {k} is {v}."),
    ("The secret number of {k} is {v}.", "What is the secret number of {k}?", "The secret number of {k} is {v}."),
    ("One of the special magic numbers for {k} is: {v}.",
     "What is the special magic number for {k} mentioned in the provided text?",
     "The special magic number for {k} mentioned in the provided text is {v}."),
    ("The pass key for {k} is {v}. Remember it. {v} is the pass key for {k}.", "What is the pass key for {k}?",
     "The pass key for {k} is {v}."),
    ("{K} keeps its records in room {v}.", "In which room does {k} keep its records?",
     "{K} keeps its records in room {v}."),
    ("The invoice number of {k} is {v}.", "What is the invoice number of {k}?", "The invoice number of {k} is {v}."),
]

# Weights of the loss per token: the value itself is what the model has to learn.
VALUE_WEIGHT, ANSWER_WEIGHT, QUESTION_WEIGHT, DOCUMENT_WEIGHT = 1.0, 0.2, 0.1, 0.02

NIAH_LENGTHS = (4096, 16384, 32768, 65536, 131072, 262144)
NIAH_DEPTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
NIAH_DOCUMENTS = 8


# ---- Tokenizer and corpus ------------------------------------------------------------------------------------------


def train_tokenizer(text, vocab):
    """A byte-level BPE of `vocab` tokens, special tokens last."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIALS),
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((text[i:i + 100000] for i in range(0, len(text), 100000)), trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return tokenizer


def frequent_words(text):
    """The 3,000 most frequent short words after the first 100: what keys are made of."""
    count = {}
    for word in re.findall(r"\b[a-z]{3,8}\b", text):
        count[word] = count.get(word, 0) + 1
    return [word for word, _ in sorted(count.items(), key=lambda item: -item[1])[100:3100]]


def synthetic_text(r, words):
    """20,000 filled templates, so that the tokenizer knows their words."""
    lines = []
    for _ in range(20000):
        # A fresh key and value for the statement, the question and the answer.
        parts = []
        for part in r.choice(TEMPLATES):
            key = make_key(r, words)
            parts.append(part.format(k=key, v=make_value(r), K=capitalised(key)))
        lines.append(" ".join(parts))
    return "\n".join(lines)


def prepare_corpus(args, tokenizer_path, ids_path, words_path):
    """Trains the tokenizer and writes the tokenized corpus, once per work folder."""
    start = time.time()
    with lzma.open(args.corpus, "rt", encoding="utf8") as f:
        documents = [d.strip() for d in f.read().split("\x00")]
    random.Random(0).shuffle(documents)
    sample = "".join(documents[:2000])[:12_000_000]
    words = frequent_words(sample)
    with open(words_path, "w") as f:
        json.dump(words, f)
    tokenizer = train_tokenizer(sample + synthetic_text(random.Random(0), words), args.vocab)
    tokenizer.save(tokenizer_path)
    print("tokenizer", round(time.time() - start, 1), flush=True)
    used, characters = [], 0
    for document in documents:
        used.append("\n\n" + document)
        characters += len(document)
        if characters > 90_000_000:
            break
    encoded = tokenizer.encode_batch(used, add_special_tokens=False)
    ids = np.concatenate([np.array(e.ids, np.uint16) for e in encoded])
    np.save(ids_path, ids)
    print("corpus tokens", len(ids), round(time.time() - start, 1), flush=True)


# ---- Facts and training rows ---------------------------------------------------------------------------------------


def make_key(r, words):
    """A name ("Silver Mountain"), "the Silver Mountain vault", a hyphenated word or plain words."""
    n = r.choice([1, 2, 2, 2, 3])
    chosen = [r.choice(words) for _ in range(n)]
    style = r.random()
    if style < 0.4:
        return " ".join(word.capitalize() for word in chosen)
    if style < 0.6:
        kind = r.choice(["project", "account", "station", "vault", "team", "contract"])
        return "the " + " ".join(word.capitalize() for word in chosen) + " " + kind
    if style < 0.8:
        return "-".join(chosen)
    return " ".join(chosen)


def make_value(r):
    digits = r.choice([4, 5, 5, 6, 7])
    return "".join(r.choice("0123456789") for _ in range(digits))


def capitalised(key):
    return key[0].upper() + key[1:]


class Rows(torch.utils.data.IterableDataset):
    """Batches of (tokens, loss weights, positions), each [rows, length + 1]."""

    def __init__(self, ids, tokenizer, words, length, rows, max_position, seed):
        self.ids, self.tokenizer, self.words = ids, tokenizer, words
        self.length, self.rows, self.max_position, self.seed = length, rows, max_position, seed

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def make_facts(self, r, count):
        """`count` dicts of different keys, in random order."""
        keys = set()
        while len(keys) < count:
            keys.add(make_key(r, self.words))
        facts = []
        for key in keys:
            statement, question, answer = r.choice(TEMPLATES)
            value = make_value(r)
            fill = {"k": key, "K": capitalised(key)}
            facts.append(dict(statement=" " + statement.format(v=value, **fill), question=question.format(**fill),
                              answer=answer, value=value, fill=fill))
        r.shuffle(facts)
        return facts

    def make_multi_facts(self, r):
        """Keys with several values, which are asked for all at once: [(key, values)]."""
        multi = []
        if self.length >= 1024 or r.random() < 0.5:
            for _ in range(r.randint(1, 2)):
                key = make_key(r, self.words)
                count = r.randint(2, 4)
                multi.append((key, [make_value(r) for _ in range(count)]))
        return multi

    @staticmethod
    def group_questions(r, asked):
        """Some turns ask for two or three facts at once."""
        groups = [[fact] for fact in asked]
        for j in range(len(groups) - 1):
            if r.random() < 0.15 and groups[j] and groups[j + 1]:
                groups[j] += groups[j + 1]
                groups[j + 1] = []
        return [group for group in groups if group]

    @staticmethod
    def make_turns(groups, multi):
        """[(question, [(text, is_value)])]"""
        turns = []
        for group in groups:
            spans = []
            for i, fact in enumerate(group):
                before, after = fact["answer"].split("{v}")
                spans += [((" " if i else "") + before.format(**fact["fill"]), False), (fact["value"], True),
                          (after, False)]
            turns.append((" ".join(fact["question"] for fact in group), spans))
        for key, values in multi:
            spans = [(f"The special magic numbers for {key} mentioned in the provided text are ", False)]
            for i, value in enumerate(values):
                separator = ", " if i < len(values) - 2 else " and " if i == len(values) - 2 else "."
                spans += [(value, True), (separator, False)]
            turns.append((f"What are all the special magic numbers for {key} mentioned in the provided text?", spans))
        return turns

    def encode_answer(self, spans):
        """Tokens and weights of an answer with its end of turn; a token that overlaps a value counts fully."""
        encoding = self.tokenizer.encode("".join(text for text, _ in spans), add_special_tokens=False)
        values, at = [], 0
        for text, is_value in spans:
            if is_value:
                values.append((at, at + len(text)))
            at += len(text)
        weights = [VALUE_WEIGHT if any(begin < b and end > a for a, b in values) else ANSWER_WEIGHT
                   for begin, end in encoding.offsets]
        end_of_turn = self.encode(EOT)
        return encoding.ids + end_of_turn, weights + [ANSWER_WEIGHT] * len(end_of_turn)

    def encode_turns(self, turns):
        """Everything after the document."""
        tokens, weights = [], []

        def put(ids, weight):
            tokens.extend(ids)
            weights.extend([weight] * len(ids))

        for i, (question, spans) in enumerate(turns):
            put(self.encode(USER if i else "\n\n"), 0.0)
            put(self.encode(question + EOT), QUESTION_WEIGHT)
            put(self.encode(ASSISTANT), 0.0)
            ids, answer_weights = self.encode_answer(spans)
            tokens.extend(ids)
            weights.extend(answer_weights)
        return tokens, weights

    def make_positions(self, r, begin, end):
        """Positions 0, 1, 2, ... with up to four random jumps between tokens `begin` and `end`."""
        positions = np.arange(self.length + 1)
        if self.max_position > self.length and r.random() < 0.6:
            total = int((self.max_position - self.length - 1) * r.random())
            gaps = r.randint(1, 4)
            at = sorted(r.choices(range(begin, end), k=gaps))
            shares = np.random.default_rng(r.randrange(1 << 30)).dirichlet(np.ones(gaps)) * total
            for first, gap in zip(at, shares):
                positions[first:] += int(gap)
        return positions

    def row(self, r):
        length = self.length
        questions = max(1, min(24, length // 96))
        questions = r.randint(max(1, questions // 2), questions)
        num_facts = r.randint(questions, questions + max(2, min(40, length // 64)))
        facts = self.make_facts(r, num_facts)
        groups = self.group_questions(r, r.sample(facts, questions))
        multi = self.make_multi_facts(r)
        turns = self.make_turns(groups, multi)
        r.shuffle(turns)
        tail, tail_weights = self.encode_turns(turns)
        head = self.encode(BOS + USER)
        needles = [(r.random(), self.encode(fact["statement"])) for fact in facts]
        for key, values in multi:
            at = sorted(r.random() for _ in values)
            needles += [(p, self.encode(f" One of the special magic numbers for {key} is: {value}."))
                        for p, value in zip(at, values)]
        needles.sort(key=lambda needle: needle[0])
        text_tokens = length + 1 - len(head) - len(tail) - sum(len(n) for _, n in needles)
        if text_tokens < 16:
            return self.row(r)
        start = r.randrange(len(self.ids) - text_tokens - 1)
        text = self.ids[start:start + text_tokens].tolist()
        document = insert_needles(text, [(int(p * text_tokens), needle) for p, needle in needles])
        tokens = np.array(head + document + tail, np.int64)
        weights = np.array([0.0] * len(head) + [DOCUMENT_WEIGHT] * len(document) + tail_weights, np.float32)
        return tokens, weights, self.make_positions(r, len(head), len(head) + len(document))

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        r = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            batch = [self.row(r) for _ in range(self.rows)]
            yield tuple(torch.from_numpy(np.stack(column)) for column in zip(*batch))


def insert_needles(text, needles):
    """`text` with each (offset, tokens) inserted; offsets ascend."""
    out, previous = [], 0
    for offset, needle in needles:
        out += text[previous:offset]
        out += needle
        previous = offset
    return out + text[previous:]


# ---- The model -----------------------------------------------------------------------------------------------------


class Config:
    """Sizes: vocab, hidden, mlp, layers, heads, kv_heads, head_dim, theta."""

    def __init__(self, args):
        self.vocab, self.hidden, self.mlp, self.layers = args.vocab, args.d, args.f, args.n
        self.heads, self.kv_heads, self.head_dim, self.theta = args.h, args.kv, args.hd, args.theta


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x, cos, sin, mask=None):
        c = self.c
        batch, length, _ = x.shape

        def heads(y, n):
            return y.view(batch, length, n, c.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x), c.heads), cos, sin)
        k = rotate(heads(self.k_proj(x), c.kv_heads), cos, sin)
        v = heads(self.v_proj(x), c.kv_heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                             enable_gqa=c.heads != c.kv_heads)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.mlp, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.mlp, bias=False)
        self.down_proj = nn.Linear(c.mlp, c.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(c.hidden), RmsNorm(c.hidden)

    def forward(self, x, cos, sin, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Parameter names are those of a Hugging Face checkpoint without the leading "model."."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList([Layer(c) for _ in range(c.layers)])
        self.norm = RmsNorm(c.hidden)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        for layer in self.layers:
            for p in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(p.weight, std=0.02 / math.sqrt(2 * c.layers))
        inv_freq = c.theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        self.register_buffer("inv", inv_freq, persistent=False)

    def hidden(self, x, positions, masks=None):
        h = self.embed_tokens(x)
        angles = positions[:, None, :, None].float() * self.inv
        cos, sin = angles.cos(), angles.sin()
        for i, layer in enumerate(self.layers):
            h = layer(h, cos, sin, None if masks is None else masks[i])
        return self.norm(h)

    def logits(self, h):
        return F.linear(h, self.embed_tokens.weight)

    def forward(self, x, target, weights, positions):
        """(weighted loss, loss of the value tokens, share of value tokens that are the most likely)"""
        logits = self.logits(self.hidden(x, positions))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target)
        value = weights == VALUE_WEIGHT
        return ((loss * weights).sum() / weights.sum(), (loss * value).sum() / value.sum(),
                ((logits.argmax(-1) == target) & value).sum() / value.sum())


# ---- What it can do ------------------------------------------------------------------------------------------------


def niah_sequence(r, data_ids, encode, words, length, depth):
    """One document with the asked fact at `depth` and three others anywhere, question and answer; the tokens, the
    tokens of the answer, and how many of those come before the value."""
    keys = [make_key(r, words) for _ in range(4)]
    values = [make_value(r) for _ in keys]
    templates = [r.choice(TEMPLATES) for _ in keys]
    capitals = [capitalised(key) for key in keys]
    needles = [encode(" " + t[0].format(k=k, v=v, K=c)) for t, k, v, c in zip(templates, keys, values, capitals)]
    _, question, answer = templates[0]
    fill = {"k": keys[0], "K": capitals[0]}
    before_value = encode(answer.split("{v}")[0].format(**fill).rstrip())
    answer_ids = encode(answer.format(v=values[0], **fill))
    head = encode(BOS + USER)
    tail = encode("\n\n" + question.format(**fill) + EOT + ASSISTANT)
    text_tokens = length - len(head) - len(tail) - len(answer_ids) - sum(map(len, needles))
    start = r.randrange(len(data_ids) - text_tokens)
    text = data_ids[start:start + text_tokens].tolist()
    placed = [(r.randrange(text_tokens), needle) for needle in needles[1:]] + [(int(depth * text_tokens), needles[0])]
    document = insert_needles(text, sorted(placed, key=lambda needle: needle[0]))
    return head + document + tail + answer_ids, answer_ids, len(before_value)


def niah(model, data_ids, tokenizer, words, device, seed=7):
    """{length: [share of exact answers per depth]}; exact: every token of the value is the most likely one."""
    r = random.Random(seed)
    result = {}

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    for length in NIAH_LENGTHS:
        shares = []
        for depth in NIAH_DEPTHS:
            right = 0
            for _ in range(NIAH_DOCUMENTS):
                sequence, answer, first = niah_sequence(r, data_ids, encode, words, length, depth)
                x = torch.tensor(sequence, device=device)[None]
                positions = torch.arange(x.shape[1], device=device)[None]
                with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                    h = model.hidden(x, positions)[:, -len(answer) - 1:-1]
                    likely = model.logits(h).argmax(-1)[0].tolist()
                right += all(likely[j] == answer[j] for j in range(first, len(answer)))
            shares.append(right / NIAH_DOCUMENTS)
        result[length] = shares
        print("niah", length, [round(a, 2) for a in shares], "mean", round(sum(shares) / len(shares), 3), flush=True)
    return result


def ablate(model, ids, tokenizer, words, device, length=4096, rows=8, sink=128, local=256):
    """(loss, accuracy) of the value tokens with one KV head at a time limited to sink + local tokens, then with the
    safest heads limited together; and the heads (layer, KV head), safest first."""
    c = model.c
    x, weights, positions = (t.to(device) for t in next(iter(Rows(ids, tokenizer, words, length, rows, length, 99))))
    target, x, weights, positions = x[:, 1:], x[:, :-1], weights[:, 1:], positions[:, :-1]
    value = weights == VALUE_WEIGHT
    i = torch.arange(length, device=device)
    causal = i[:, None] >= i[None]
    streaming = causal & ((i[None] < sink) | (i[:, None] - i[None] < local))
    group = c.heads // c.kv_heads

    def run(streaming_heads):
        masks = []
        for layer in range(c.layers):
            mask = torch.stack([streaming if (layer, head // group) in streaming_heads else causal
                                for head in range(c.heads)])
            masks.append(torch.where(mask, 0.0, float("-inf")).to(torch.bfloat16)[None])
        loss, right = 0.0, 0.0
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for b in range(rows):
                logits = model.logits(model.hidden(x[b:b + 1], positions[b:b + 1], masks)).float()
                row_loss = F.cross_entropy(logits[0], target[b], reduction="none")
                loss += (row_loss * value[b]).sum().item()
                right += ((logits[0].argmax(-1) == target[b]) & value[b]).sum().item()
        return loss / value.sum().item(), right / value.sum().item()

    dense = run(set())
    single = {(layer, head): run({(layer, head)}) for layer in range(c.layers) for head in range(c.kv_heads)}
    safest_first = sorted(single, key=lambda head: single[head][0])
    out = {"dense": dense, "single": {f"{layer}.{head}": v for (layer, head), v in single.items()}}
    for share in (0.25, 0.5, 0.625, 0.75, 0.875):
        out[f"streaming {share}"] = run(set(safest_first[:int(round(share * len(safest_first)))]))
    print(json.dumps(out))
    return out, safest_first


# ---- Training and export -------------------------------------------------------------------------------------------


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1)


def export(model, tokenizer, path, max_position):
    """Writes a Hugging Face checkpoint in bf16."""
    from safetensors.torch import save_file

    os.makedirs(path, exist_ok=True)
    c = model.c
    weights = {"model." + name: t.detach().to(torch.bfloat16).cpu().contiguous()
               for name, t in model.state_dict().items()}
    save_file(weights, path + "/model.safetensors", metadata={"format": "pt"})
    token_id = tokenizer.token_to_id
    tokens = dict(bos_token_id=token_id(BOS), eos_token_id=[token_id(EOS), token_id(EOT)])
    write_json(path + "/config.json", dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=c.hidden, intermediate_size=c.mlp,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        vocab_size=c.vocab, rms_norm_eps=1e-5, rope_theta=c.theta, rope_scaling=None,
        max_position_embeddings=max_position, hidden_act="silu", tie_word_embeddings=True, attention_bias=False,
        mlp_bias=False, torch_dtype="bfloat16", **tokens, pad_token_id=token_id(PAD)))
    write_json(path + "/generation_config.json", dict(**tokens, do_sample=False))
    write_json(path + "/tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=BOS, eos_token=EOT, pad_token=PAD,
        model_max_length=max_position, clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE))
    tokenizer.save(path + "/tokenizer.json")


def learning_rate(peak, step, share):
    """Warm-up over 200 steps; constant for a quarter of the time, then a cosine down to 5%."""
    decay = 1.0 if share < 0.25 else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (share - 0.25) / 0.75))
    return peak * min(1, (step + 1) / 200) * decay


def train(model, args, ids, tokenizer, words, device):
    """Runs the stages; each ends by the clock, and its result is exported."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.05), dict(params=others, weight_decay=0.0)],
                                  lr=args.lr, betas=(0.9, 0.95), fused=True)
    stages = [tuple(map(int, stage.split(":"))) for stage in args.stages.split(",")]
    total_seconds = sum(seconds for _, _, seconds in stages)
    done, step = 0.0, 0
    compiled = torch.compile(model, dynamic=False)
    for length, rows, seconds in stages:
        data = Rows(ids, tokenizer, words, length, rows, args.maxpos, args.seed * 100 + length)
        batches = iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=args.workers, prefetch_factor=3,
                                                   pin_memory=True))
        start, n = None, 0  # the clock starts after the first step, which compiles
        while True:
            x, weights, positions = (t.to(device, non_blocking=True) for t in next(batches))
            elapsed = 0 if start is None else time.time() - start
            if elapsed > seconds:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args.lr, step, (done + elapsed) / total_seconds)
            with torch.autocast("cuda", torch.bfloat16):
                loss, value_loss, accuracy = compiled(x[:, :-1], x[:, 1:], weights[:, 1:], positions[:, :-1])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            n += 1
            if start is None:
                torch.cuda.synchronize()
                start = time.time()
            if n % 100 == 0 or (length >= 8192 and n % 40 == 0):
                speed = n * length * rows / max(1e-9, time.time() - start)
                print(f"length {length} step {step} {elapsed:.0f}s loss {loss.item():.3f} "
                      f"value loss {value_loss.item():.4f} accuracy {accuracy.item():.4f} tokens/s {speed:.3g}",
                      flush=True)
        done += seconds
        del batches
        export(model, tokenizer, args.out, args.maxpos)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", required=True, help="xz-compressed UTF-8 text, documents separated by NUL bytes")
    add("--out", required=True, help="folder of the checkpoint to write")
    add("--work", default="/tmp/needle", help="folder that keeps the tokenizer and the tokenized corpus (%(default)s)")
    add("--vocab", type=int, default=4096, help="tokens of the vocabulary, below 65536 (%(default)s)")
    add("--d", type=int, default=256, help="hidden size (%(default)s)")
    add("--f", type=int, default=704, help="MLP size (%(default)s)")
    add("--n", type=int, default=6, help="layers (%(default)s)")
    add("--h", type=int, default=8, help="query heads (%(default)s)")
    add("--kv", type=int, default=4, help="KV heads (%(default)s)")
    add("--hd", type=int, default=64, help="head dimension (%(default)s)")
    add("--theta", type=float, default=5e5, help="RoPE base (%(default)s)")
    add("--maxpos", type=int, default=262144, help="largest position to train for (%(default)s)")
    add("--lr", type=float, default=2e-3, help="peak learning rate (%(default)s)")
    add("--seed", type=int, default=1, help="(%(default)s)")
    add("--workers", type=int, default=14, help="processes that make training rows (%(default)s)")
    add("--stages", default="512:256:150,2048:64:100,8192:16:90,32768:4:140",
        help="curriculum, length:rows:seconds,... (%(default)s)")
    add("--resume", default="", help="model.safetensors to start from")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda"
    os.makedirs(args.work, exist_ok=True)
    start = time.time()
    tokenizer_path, ids_path = f"{args.work}/tok{args.vocab}.json", f"{args.work}/ids{args.vocab}.npy"
    words_path = f"{args.work}/words.json"
    if not os.path.exists(ids_path):
        prepare_corpus(args, tokenizer_path, ids_path, words_path)
    tokenizer = Tokenizer.from_file(tokenizer_path)
    ids = np.load(ids_path, mmap_mode="r")
    with open(words_path) as f:
        words = json.load(f)
    training, held_out = ids[:-4_000_000], ids[-4_000_000:]
    model = Llama(Config(args)).to(device)
    if args.resume:
        from safetensors.torch import load_file

        weights = {name.removeprefix("model."): t.float() for name, t in load_file(args.resume).items()}
        model.load_state_dict(weights, strict=False)
    print("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "million", flush=True)
    train(model, args, training, tokenizer, words, device)
    model.eval()
    answers = niah(model, held_out, tokenizer, words, device)
    ablation, safest_first = ablate(model, held_out, tokenizer, words, device)
    write_json(args.out + "/report.json", dict(niah=answers, ablation=ablation,
                                               safest_first=[f"{layer}.{head}" for layer, head in safest_first]))
    export(model, tokenizer, args.out, args.maxpos)
    print("total seconds", time.time() - start)


if __name__ == "__main__":
    main()
