# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/tokenizers/<family>/{tokenizer.json,cases.json}.

Small tokenizers, each with the components that the published files of its family have, trained on
the sonnets of tests/data/heldout.txt and a few lines in other scripts; and what the library answers
for a few hundred texts and lists of ids, which test_tokenizer_cases.c replays. Run it again after a
change here (pip install -r tests/requirements.txt); the same version gives the same bytes.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

import tokenizer_texts as texts

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"

OTHER_SCRIPTS = [
    "Привет, мир! Ёлка стояла в лесу, и снег падал на неё.",
    "Γειά σου Κόσμε. Ο ουρανός είναι μπλε και η θάλασσα ήρεμη.",
    "Où est l'hôtel? Là-bas, près du café. Ça coûte très cher, déjà.",
    "Füße, Straße, Übermut, Größe, schön, für, über, Mädchen.",
    "你好,世界!我们今天去公园。天气很好。你们呢?",
    "こんにちは、世界。今日は良い天気です。",
    "안녕하세요 세계. 오늘은 날씨가 좋습니다.",
    "नमस्ते दुनिया। आज मौसम अच्छा है।",
    "x = f(a, b) + c[1];  // 12345 67890 2024-01-31 3.14",
    "    if (x < 10) {\n        return x;\n    }\n",
    "😀😃 👍🏽 👨‍👩‍👧 🇩🇪",
    # Runs, so that one character over and over has merges to go through.
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "😀" * 8, "x" + " " * 40 + "x", "-" * 24, "\n" * 8,
]

GPT4_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K_SPLIT = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
               r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_level(prefix=False, use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def metaspace(scheme, do_split):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": do_split}


def template(token, token_id):
    special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def added(token_id, content, special=True, **options):
    token = {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": not special, "special": special}
    return {**token, **options}


LLAMA_DECODER = sequence("decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                         {"type": "ByteFallback"}, {"type": "Fuse"},
                         {"type": "Strip", "content": " ", "start": 1, "stop": 0})
LLAMA_NORMALIZER = sequence("normalizers", {"type": "Prepend", "prepend": "▁"},
                            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]


def corpus():
    return (DATA / "heldout.txt").read_text(encoding="utf-8").split("\n") + OTHER_SCRIPTS * 4


def train(pre, size, first=(), alphabet=(), lines=None, **options):
    """A BPE model trained on words as `pre` cuts them; `first` are the vocabulary's first tokens."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(first), show_progress=False,
                                  initial_alphabet=list(alphabet), min_frequency=2, **options)
    tok.train_from_iterator(lines or corpus(), trainer)
    return json.loads(tok.to_str())["model"]


def train_bytes(pre, size, first=()):
    return train(pre, size, first, sorted(pre_tokenizers.ByteLevel.alphabet()))


def llama_model(pre, size=1400):
    model = train(pre, size, LLAMA_SPECIALS + BYTES)
    model.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return model


def compose(model, **parts):
    out = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
           "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    return {**out, **parts}


def gpt_neox():
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = train_bytes(gpt2, 1300, ["<|endoftext|>", "<|padding|>"])
    n = len(model["vocab"])
    spaces = [added(n + 24 - k, " " * k, special=False) for k in range(24, 1, -1)]
    return compose(model, normalizer={"type": "NFC"}, pre_tokenizer=byte_level(), decoder=byte_level(True),
                   post_processor=byte_level(),
                   added_tokens=[added(0, "<|endoftext|>"), added(1, "<|padding|>")] + spaces)


def gpt2_prefix():
    model = train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=True), 1200, ["<s>", "<pad>", "</s>", "<unk>"])
    model.update(unk_token="<unk>")
    return compose(model, pre_tokenizer=byte_level(True), decoder=byte_level(True),
                   post_processor={"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
                                   "trim_offsets": True, "add_prefix_space": True},
                   added_tokens=[added(0, "<s>"), added(1, "<pad>"), added(2, "</s>"), added(3, "<unk>"),
                                 added(len(model["vocab"]), "<mask>", lstrip=True),
                                 added(len(model["vocab"]) + 1, "<left>", special=False, rstrip=True, normalized=False),
                                 added(len(model["vocab"]) + 2, "word", special=False, single_word=True)])


def llama_legacy():
    model = llama_model(pre_tokenizers.Metaspace())
    return compose(model, normalizer=LLAMA_NORMALIZER, decoder=LLAMA_DECODER, post_processor=template("<s>", 1),
                   added_tokens=[added(i, t) for i, t in enumerate(LLAMA_SPECIALS)])


def mistral_first():
    # Trained without cuts, so that merges run across words, as they may where `split` is false.
    model = llama_model(pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    return compose(model, pre_tokenizer=metaspace("first", False), decoder=LLAMA_DECODER,
                   post_processor=template("<s>", 1),
                   added_tokens=[added(i, t) for i, t in enumerate(LLAMA_SPECIALS)] +
                   [added(len(model["vocab"]), "[INST]"), added(len(model["vocab"]) + 1, "[/INST]")])


def metaspace_always():
    model = llama_model(pre_tokenizers.Metaspace())
    return compose(model, pre_tokenizer=metaspace("always", True),
                   decoder={**metaspace("always", True)}, post_processor=template("<s>", 1),
                   added_tokens=[added(i, t) for i, t in enumerate(LLAMA_SPECIALS)])


def metaspace_never():
    model = train(pre_tokenizers.Metaspace(prepend_scheme="never"), 900, LLAMA_SPECIALS)
    model.update(unk_token="<unk>", fuse_unk=False)
    return compose(model, pre_tokenizer=metaspace("never", True), decoder=metaspace("never", True),
                   added_tokens=[added(i, t) for i, t in enumerate(LLAMA_SPECIALS)])


def falcon():
    cut = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
                                   pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    names = [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", ">>COMMENT<<", ">>ANSWER<<",
             ">>QUESTION<<", ">>DOMAIN<<", ">>PREFIX<<", ">>SUFFIX<<", ">>MIDDLE<<", "<|endoftext|>"]
    return compose(train_bytes(cut, 1300, names), decoder=byte_level(True), post_processor=byte_level(),
                   pre_tokenizer=sequence("pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"},
                                          byte_level(), {"type": "Digits", "individual_digits": False},
                                          split("[0-9][0-9][0-9]")),
                   added_tokens=[added(i, t) for i, t in enumerate(names)])


def llama3(pattern=GPT4_SPLIT):
    cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    model = train_bytes(cut, 1300)
    model["ignore_merges"] = True
    # Words that no merges build: only ignore_merges finds them.
    for word in ["Ġunreachable", "zqx", "ĠShakespeare"]:
        model["vocab"].setdefault(word, len(model["vocab"]))
    n = len(model["vocab"])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]
    return compose(model, pre_tokenizer=sequence("pretokenizers", split(pattern), byte_level(False, False)),
                   decoder=byte_level(True), post_processor=sequence("processors", byte_level(True, False),
                                                                     template(names[0], n)),
                   added_tokens=[added(n + i, t) for i, t in enumerate(names)])


def o200k():
    out = llama3(O200K_SPLIT)
    out["model"]["ignore_merges"] = False
    return {**out, "normalizer": {"type": "NFC"}}


def clip():
    """End-of-word suffix, lower case, white space squeezed by an expression."""
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CLIP_SPLIT), "removed", invert=True),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model = train(pre, 1200, ["<|startoftext|>", "<|endoftext|>"], sorted(pre_tokenizers.ByteLevel.alphabet()),
                  [line.lower() for line in corpus()], end_of_word_suffix="</w>")
    model.update(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix="")
    return compose(model, decoder={"type": "BPEDecoder", "suffix": "</w>"},
                   normalizer=sequence("normalizers", {"type": "NFC"},
                                       {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                                       {"type": "Lowercase"}),
                   pre_tokenizer=sequence("pretokenizers", split(CLIP_SPLIT, "Removed", True), byte_level()),
                   post_processor={"type": "BertProcessing", "sep": ["<|endoftext|>", 1], "cls": ["<|startoftext|>", 0]},
                   added_tokens=[added(0, "<|startoftext|>", normalized=True), added(1, "<|endoftext|>")])


def prefixed():
    """A continuing-subword prefix, accents stripped, words by Whitespace, no decoder at all."""
    model = train(pre_tokenizers.Whitespace(), 1000, ["[UNK]"], continuing_subword_prefix="##")
    model.update(unk_token="[UNK]", continuing_subword_prefix="##")
    return compose(model, pre_tokenizer={"type": "Whitespace"}, added_tokens=[added(0, "[UNK]")],
                   normalizer=sequence("normalizers", {"type": "Strip", "strip_left": True, "strip_right": True},
                                       {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}))


def cuts():
    """Every behaviour of Split, literal and by expression, one after the other."""
    pre = pre_tokenizers.Metaspace(prepend_scheme="never")
    model = llama_model(pre, 1000)
    return compose(model, normalizer={"type": "NFKC"},
                   pre_tokenizer=sequence("pretokenizers", split("the", "MergedWithPrevious", kind="String"),
                                          split(r"\d{1,2}+", "Isolated"),
                                          split(r"\b[aeiou]", "MergedWithNext"), split("[.,;]+", "Contiguous"),
                                          split(r"(?i)ll|x*", "Isolated"), {"type": "Digits", "individual_digits": True},
                                          {"type": "Punctuation"}, {"type": "WhitespaceSplit"}, metaspace("always", True)),
                   decoder=sequence("decoders", {"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "},
                                    {"type": "ByteFallback"}, {"type": "Strip", "content": "e", "start": 1, "stop": 0},
                                    {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "th"}, "content": "þ"},
                                    {"type": "Strip", "content": " ", "start": 2, "stop": 0}))


FAMILIES = {f.__name__.replace("_", "-"): f for f in (
    gpt_neox, gpt2_prefix, llama_legacy, mistral_first, metaspace_always, metaspace_never, falcon, llama3,
    o200k, clip, prefixed, cuts)}


def describe(path):
    """What the random texts and ids of a tokenizer are drawn from."""
    data = json.loads(path.read_text(encoding="utf-8"))
    tok = Tokenizer.from_str(json.dumps(data))
    vocab = data["model"]["vocab"]
    return {"tok": tok, "n_ids": tok.get_vocab_size(), "specials": [t["content"] for t in data["added_tokens"]],
            "special_ids": [t["id"] for t in data["added_tokens"]],
            "byte_ids": [vocab[b] for b in BYTES if b in vocab] or
            [vocab[c] for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c in vocab]}


def words():
    return sorted({w for line in corpus() for w in line.split()})


def random_text(rng, about, vocabulary):
    return texts.text(rng, vocabulary, about["specials"])


def random_ids(rng, about):
    return texts.ids(rng, about["n_ids"], about["byte_ids"], about["special_ids"])


def make_cases(name, about, n=250):
    rng, vocabulary, tok = texts.seeded("cases " + name), words(), about["tok"]
    encode = texts.SAMPLES + about["specials"] + [random_text(rng, about, vocabulary) for _ in range(n)]
    decode = [random_ids(rng, about) for _ in range(n)]
    return {
        "encode": [{"text": t, "ids": tok.encode(t, add_special_tokens=False).ids,
                    "special": tok.encode(t).ids[:2] + tok.encode(t).ids[-1:]} for t in encode],
        "decode": [{"ids": i, "text": tok.decode(i, skip_special_tokens=False),
                    "skipped": tok.decode(i)} for i in decode],
    }


def write(path, data):
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for key in ('{"text"', '{"ids"', '"model"', '"merges"', '"decode"', '{"id":'):  # a line a case
        text = text.replace(key, "\n" + key)
    path.write_text(text + "\n", encoding="utf-8")


def main():
    for name, make in FAMILIES.items():
        folder = DATA / "tokenizers" / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "tokenizer.json", make())
        about = describe(folder / "tokenizer.json")
        write(folder / "cases.json", make_cases(name, about))
        print(name, about["n_ids"])


if __name__ == "__main__":
    main()
