#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/heldout.json: what the text models lose on heldout.txt, by transformers.

The loss is that of lm-eval's loglikelihood_rolling with one window: the end-of-text token, then the
text's tokens, one forward without a cache; natural logarithms, summed. transformers is run in
float64 as for the goldens (make_goldens.py says why; both models have one group, so that its norm
needs no mending) and, as people run it, in float32. Made with torch 2.15.0 and transformers 5.23.0
on a CPU; its output is committed, so that tests need neither.

    python tests/golden/make_heldout.py
"""

import contextlib
import json
import math
import pathlib

import torch
import transformers
from tokenizers import Tokenizer

from make_goldens import in_float64

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
MODELS = [ROOT / "config" / "models" / "shakespeare-mamba", DATA / "models" / "shakespeare-mamba2"]


def loss(folder, ids, dtype):
    """The sum of -log p of ids[1:], each after all before it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(dtype)
    with in_float64() if dtype == torch.float64 else contextlib.nullcontext():
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    return -logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()


def main():
    torch.set_num_threads(1)
    text = (DATA / "heldout.txt").read_text(encoding="utf-8")
    out = {}
    for folder in MODELS:
        prefix = json.loads((folder / "config.json").read_text())["eos_token_id"]
        tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
        nll, single = (loss(folder, [prefix, *tokens], dtype) for dtype in (torch.float64, torch.float32))
        size = len(text.encode())
        out[folder.name] = {
            "prefix_token": prefix, "tokens": len(tokens), "bytes": size, "nll": round(nll, 6),
            "nll_float32": round(single, 6), "bits_per_byte": round(nll / size / math.log(2), 9)}
        print(folder.name, out[folder.name], "nats a token", nll / len(tokens))
    (DATA / "heldout.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
