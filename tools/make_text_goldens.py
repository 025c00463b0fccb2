#!/usr/bin/env python3
"""Writes the expected ids and texts under tests/goldens/text.

Trains small tokenizers of every supported family with Hugging Face tokenizers, encodes and decodes
hard text with them, and renders our chat templates with transformers' apply_chat_template. Run it
where transformers and tokenizers are installed (5.17 and 0.23 made the committed files):

    python3 tools/make_text_goldens.py OUTPUT_DIR
"""

import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# No family's own pattern: runs through the general regular expression path.
OTHER = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{2}|\p{N}| ?[^\s\p{L}\p{M}\p{N}]++[\r\n/]*|\s+(?=\d)|\s+(?!\S)|\s"

POOLS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ",
    "accents": "\u00e9\u00e8\u00fc\u00f1\u00df\u0153\u0131\u0130\u017f\u1e9e",
    "combining": "e\u0301a\u0308o\u0327\u0323\u0302n\u0303\u0345\u0316",
    "cjk": "\u4f60\u597d\u4e16\u754c\u65e5\u672c\u8a9e\u306e\u3068\u30ab\u30bf\uac00\ub098\u1100\u1161\u11a8",
    "arabic": "\u0645\u0631\u062d\u0628\u0627\u0660\u0661\u0662\u064b\u0651",
    "indic": "\u0928\u092e\u0938\u094d\u0924\u0947\u0967\u0968\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f\U0001f44d\U0001f3fd\u2764",
    "digits": "0123456789\u00b2\u00bd\u2167\u0669",
    "space": "  \t\n\r\u00a0\u2003\u3000\u180e\u200b\u0085\u2028",
    "punct": "!?.,;:'\"()[]{}<>|/\\-_=+*&^%$#@~`\u2014\u00ab\u2581\u0120",
    "control": "\x00\x01\x07\x1b\x1c\x1f\x7f\u0080\ufffd\ufeff",
}


def hard_texts():
    texts = [
        "", " ", "  ", "   a", "a   ", "\n", "\r\n", "\n\n\n", " \n \n x", "\t\tindent\n    more\n",
        "Hello, world!", "hello", " hello", "it's I'M we'll THEY'RE it'\u017f 'tis don''t 'LL",
        "1234567890 12 1 1,234.56 x1y22z333", "a" * 300, " " * 300, "\n" * 100, "9" * 100, "!" * 200,
        "ab" * 150, " a" * 100, "\r\n\r\nline\r\n", "foo\n\n\n  bar", "x \n", "trailing \t ",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family \U0001f44d\U0001f3fd",
        "e\u0301 \u00e9 A\u030a \u212b \ufb01 \u1e9b\u0323", "\u0344\u0958 \u1100\u1161\u11a8 \uac01",
        "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u3053\u3093\u306b\u3061\u306f", "\u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "a\x00b\x01\x1fc\x7f",
        "nbsp\u00a0here \u2003em\u3000wide\u180emvs\u200bzwsp\u0085nel", "\ufffd \ufeffbom \U0010ffff \ue000",
        "<|begin_of_text|>hi<|eot_id|>", "<s>[INST] x [/INST]</s>", " <s> </s> <unk> ", "<|im_start|>user\nhi<|im_end|>\n",
        "<0x41><0x0A>", "\u2581\u2581spm \u2581marks", "\u0120\u010a byte alphabet", "<tool> word<tool>x <tool>", "a <pad>  <mask> b",
        "<|begin_of_text", "<<s>>", "<s><s>", "x<|eot_id|>\n\n y", "def f(x):\n\treturn x**2  # ok\n\n\nprint(f(3))\n",
        "https://example.org/a?b=c&d=%20e#f", "MixedCASEWords snake_case kebab-case CamelCase", "\u2026\u2014\u00ab\u00bb",
    ]
    rng = random.Random(7)
    names = sorted(POOLS)
    for _ in range(70):
        pools = rng.sample(names, rng.randint(1, 4)) + ["latin", "space"]
        texts.append("".join(rng.choice(POOLS[rng.choice(pools)]) for _ in range(rng.randint(1, 40))))
    return texts


def corpus():
    rng = random.Random(3)
    words = []
    for name in sorted(POOLS):
        if name not in ("space", "control"):
            words += ["".join(rng.choice(POOLS[name]) for _ in range(rng.randint(1, 6))) for _ in range(60)]
    words += "the of and to in is that it was for on are as with his they at be this from hello world it's".split() * 8
    lines = []
    for _ in range(1500):
        line = "".join(rng.choice(words) + rng.choice([" ", " ", " ", "  ", "\n", ", "]) for _ in range(12))
        lines.append(line)
    with open(os.path.abspath(__file__), encoding="utf-8") as own:
        lines += own.read().split("\n\n") * 4
    return lines


def byte_level(pattern, vocab_size, specials, normalizer=None, ignore_merges=False, bos=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    if bos is not None:
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                          special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    return tokenizer


def sentence_piece(newer, vocab_size):
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, limit_alphabet=90,
        special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens))
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    chain = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
             {"type": "ByteFallback"}, {"type": "Fuse"}]
    if newer:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    else:
        spec["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
        spec["pre_tokenizer"] = None
        # The older spelling of merges.
        spec["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    spec["decoder"] = {"type": "Sequence", "decoders": chain + [strip]}
    spec["post_processor"] = {"type": "TemplateProcessing",
                              "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                              "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                              "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return Tokenizer.from_str(json.dumps(spec))


def make_tokenizers():
    llama = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = {
        "gpt2": (byte_level(None, 700, ["<|endoftext|>"]), "<|endoftext|>", "<|endoftext|>"),
        "llama3": (byte_level(LLAMA3, 800, llama, ignore_merges=True, bos="<|begin_of_text|>"),
                   "<|begin_of_text|>", "<|eot_id|>"),
        "qwen2": (byte_level(QWEN2, 800, qwen, normalizer=normalizers.NFC()), None, "<|im_end|>"),
        "other": (byte_level(OTHER, 600, ["<|end|>"], normalizer=normalizers.NFKC()), None, "<|end|>"),
        "sp_legacy": (sentence_piece(False, 900), "<s>", "</s>"),
        "sp_metaspace": (sentence_piece(True, 900), "<s>", "</s>"),
    }
    # Every flag of added tokens, in both places where they are matched.
    made["gpt2"][0].add_tokens([
        AddedToken("<tool>", single_word=True, normalized=True), AddedToken("<pad>", lstrip=True, normalized=False),
        AddedToken("<mask>", rstrip=True, normalized=False), AddedToken("<<", normalized=False)])
    made["other"][0].add_tokens([AddedToken("\ufb01x", normalized=True), AddedToken("<s>", lstrip=True, rstrip=True, normalized=True)])
    return made


def encode_cases(tokenizer, texts):
    cases = []
    for text in texts:
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        matched = tokenizer.encode(text, add_special_tokens=True).ids
        cases.append({"text": text, "ids": plain, "ids_special": matched,
                      "decoded": tokenizer.decode(matched, skip_special_tokens=True),
                      "decoded_special": tokenizer.decode(matched, skip_special_tokens=False)})
    return cases


def decode_cases(tokenizer, byte_fallback):
    rng = random.Random(11)
    size = tokenizer.get_vocab_size()
    # A broken run of fallback bytes is the one place where we differ on purpose; see decoder.h.
    usable = [i for i in range(size) if not (byte_fallback and tokenizer.id_to_token(i).startswith("<0x"))]
    cases = []
    for _ in range(40):
        ids = [rng.choice(usable) for _ in range(rng.randint(1, 16))]
        if byte_fallback:
            at = rng.randrange(len(ids) + 1)
            ids[at:at] = [tokenizer.token_to_id(f"<0x{b:02X}>") for b in "\u00e9\U0001f600 ".encode()]
        cases.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True),
                      "text_special": tokenizer.decode(ids, skip_special_tokens=False)})
    return cases


def ranges_of(pattern):
    """The code points that one regular expression class matches, as [first, last] pairs."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    ranges = []
    for start in range(0, len(points), 4096):
        for piece, _ in split.pre_tokenize_str("".join(map(chr, points[start:start + 4096]))):
            for c in map(ord, piece):
                if ranges and ranges[-1][1] == c - 1:
                    ranges[-1][1] = c
                else:
                    ranges.append([c, c])
    return ranges


def conversations():
    tool = {"type": "function", "function": {
        "name": "weather", "description": "Looks \"up\" the weather \u2600.",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "a <city> & more"}, "days": {"type": "integer", "default": 1.5}}}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Z\u00fcrich", "days": 2}}}
    system = {"role": "system", "content": " Be brief.\n"}
    user = {"role": "user", "content": "  Wie geht's? \u4f60\u597d \U0001f600\n"}
    answer = {"role": "assistant", "content": "<think>\nhm, well\n</think>\n\nFine. "}
    again = {"role": "user", "content": "And\ttomorrow?"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "{\"t\": 21}"}
    done = {"role": "assistant", "content": "21 degrees", "reasoning_content": "read it"}
    return [
        {"messages": [user]},
        {"messages": [system, user], "add_generation_prompt": False},
        {"messages": [system, user, answer, again]},
        {"messages": [user, answer, again], "extra": {"enable_thinking": False, "date_string": "24 Nov 2026"}},
        {"messages": [system, user], "tools": [tool]},
        {"messages": [user], "tools": [tool, tool], "extra": {"tools_in_user_message": False}},
        {"messages": [user, called, result, done], "tools": [tool], "add_generation_prompt": False},
        {"messages": [user, called, result, result, done, again], "tools": [tool]},
    ]


def chat_cases(fast):
    cases = []
    folder = os.path.join(ROOT, "tests/goldens/text/templates")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            source = file.read()
        family = {"qwen2": "qwen2", "qwen3": "qwen2", "llama2": "sp_legacy", "mistral": "sp_legacy"}.get(name[:-6], "llama3")
        for request in conversations():
            request = {"tools": None, "extra": {}, "add_generation_prompt": True, **request}
            request["extra"].setdefault("date_string", "26 Jul 2024")
            case = {"template": name, "tokenizer": family, **request}
            arguments = dict(chat_template=source, tools=request["tools"],
                             add_generation_prompt=request["add_generation_prompt"], **request["extra"])
            try:
                case["text"] = fast[family].apply_chat_template(request["messages"], tokenize=False, **arguments)
                case["ids"] = fast[family](case["text"], add_special_tokens=False)["input_ids"]
            except Exception as error:  # the template refuses, or a construct fails: so must we
                case["error"] = str(error).split("\n")[0][:100]
            cases.append(case)
    return cases


def write(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


def main():
    out = sys.argv[1]
    texts = hard_texts()
    fast = {}
    for name, (tokenizer, bos, eos) in make_tokenizers().items():
        folder = os.path.join(out, name)
        write(os.path.join(folder, "tokenizer.json"), json.loads(tokenizer.to_str()))
        names = {"bos_token": bos, "eos_token": eos}
        fast[name] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})
        write(os.path.join(folder, "tokenizer_config.json"), {"tokenizer_class": "PreTrainedTokenizerFast", **names})
        write(os.path.join(folder, "cases.json"), {
            "encode": encode_cases(tokenizer, texts), "decode": decode_cases(tokenizer, name.startswith("sp_"))})
    needle = Tokenizer.from_file(os.path.join(ROOT, "models/needle/tokenizer.json"))
    write(os.path.join(out, "needle", "cases.json"),
          {"encode": encode_cases(needle, texts), "decode": decode_cases(needle, False)})
    write(os.path.join(out, "classes.json"),
          {"letter": ranges_of(r"\p{L}"), "number": ranges_of(r"\p{N}"), "space": ranges_of(r"\s")})
    write(os.path.join(out, "chat.json"), chat_cases(fast))


if __name__ == "__main__":
    main()
