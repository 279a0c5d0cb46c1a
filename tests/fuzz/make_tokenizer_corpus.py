# SPDX-License-Identifier: Apache-2.0
"""Writes tests/fuzz/corpus/tokenizer: each family's tokenizer.json cut down to a few tokens, a NUL
byte, and a text that its components do something with."""

import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
TEXT = "the  They'll see\n12345 naïve ﬁ \u00a0a\u0301\u0323 你好 😀👍🏽 <s></s> <0x41> ▁x, END!"


def shrink(data):
    """Every character and byte token, and the first merges with what they make."""
    model = data["model"]
    keep = [t for t in model["vocab"] if len(t) == 1 or t.startswith("<") or t.startswith("##")][:330]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    prefix = len(model.get("continuing_subword_prefix") or "")
    for a, b in merges[:40]:
        keep += [a, b, a + b[prefix:]]
    keep = list(dict.fromkeys(keep))[:420]
    model["vocab"] = {t: i for i, t in enumerate(keep)}
    known = set(keep)
    model["merges"] = [[a, b] for a, b in merges if {a, b, a + b[prefix:]} <= known]
    if model.get("unk_token") not in known:
        model["unk_token"] = None
    names = [t["content"] for t in data["added_tokens"]]
    free = iter(range(len(keep), len(keep) + len(names)))
    ids = {n: model["vocab"].get(n) if n in known else next(free) for n in names}
    for t in data["added_tokens"]:
        t["id"] = ids[t["content"]]
    fix(data["post_processor"], ids)
    return data


def fix(part, ids):
    """The post-processor's ids, where the tokens have gone."""
    for p in (part or {}).get("processors", [part] if part else []):
        for name, special in p.get("special_tokens", {}).items():
            special["ids"] = [ids[name]]
        for key in ("sep", "cls"):
            if key in p:
                p[key][1] = ids[p[key][0]]


def main():
    folder = HERE / "corpus" / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((HERE.parent / "data" / "tokenizers").glob("*/tokenizer.json")):
        data = shrink(json.loads(path.read_text(encoding="utf-8")))
        out = json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\0" + TEXT
        (folder / path.parent.name).write_bytes(out.encode())


if __name__ == "__main__":
    main()
