# SPDX-License-Identifier: Apache-2.0
"""The models that the tests serve, their goldens, and prompts whose answers are known."""

import functools
import json
import random

from .program import ROOT

DEMO = "shakespeare-mamba"
DATA = ROOT / "tests" / "data" / "models"
LETTERS = "abcdefghijklmno"


def folder(name):
    return ROOT / "config" / "models" / name if name == DEMO else DATA / name


def served():
    """Options of the server that most tests share: the demonstration model first, so the default."""
    names = [DEMO, "shakespeare-mamba2", "induction-heads", "selective-copying"]
    return [word for name in names if folder(name).is_dir()
            for word in ("--model", f"{name}={folder(name)}")]


@functools.cache
def goldens(name):
    return json.loads((folder(name) / "golden.json").read_text())


@functools.cache
def vocabulary(name=DEMO):
    return json.loads((folder(name) / "tokenizer.json").read_text())["model"]["vocab"]


def byte_ids(values, name=DEMO):
    """Ids of the tokens that stand for single bytes in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    spelling = {b: chr(b) for b in printable}
    spelling.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [vocabulary(name)[spelling[value]] for value in values]


def induction_prompt(length, seed):
    """A prompt of so many tokens, and the letter that followed its first marker."""
    chance = random.Random(seed)
    letters = chance.choices(LETTERS, k=length - 2)
    marker = chance.randrange(1, max(2, length // 2))
    text = "".join(letters[:marker]) + "|" + "".join(letters[marker:]) + "|"
    assert len(text) == length
    return text, letters[marker]
