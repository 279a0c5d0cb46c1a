# SPDX-License-Identifier: Apache-2.0
"""Compares ssmd's tokenizers with the Hugging Face tokenizers library on fresh random input.

    diff_tokenizers.py TOKENIZE [--texts N] [--seed S] [FILE...]

TOKENIZE is the program built from tokenize.c; the files default to every one of
tests/data/tokenizers and the demonstration model's. Exit 77: the library is not installed (with
SSM_EXPECT_PYTHON=1 that is a failure).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import tokenizer_texts as texts

try:
    import tokenizers
    import make_tokenizers as make
except ImportError as error:
    print(f"the tokenizers library is not there: {error}")
    sys.exit(1 if os.environ.get("SSM_EXPECT_PYTHON") == "1" else 77)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def ask(program, path, requests):
    """All answers of one run of the C program."""
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    run = subprocess.run([program, str(path)], input=lines.encode(), stdout=subprocess.PIPE, check=True, timeout=250)
    answers = [json.loads(line) for line in run.stdout.split(b"\n")[:-1]]
    assert len(answers) == len(requests), f"{len(requests)} requests, {len(answers)} answers"
    return answers


def compare(program, path, n, seed):
    about, vocabulary = make.describe(path), make.words()
    tok, rng = about["tok"], texts.seeded(f"{seed} {path.parent.name}")
    requests, wanted = [], []

    def encode(text, special):
        requests.append({"text": text, "special": special})
        wanted.append({"ids": tok.encode(text, add_special_tokens=special).ids})

    def decode(ids, skip):
        requests.append({"ids": ids, "skip": skip})
        wanted.append({"text": tok.decode(ids, skip_special_tokens=skip)})

    for text in texts.SAMPLES + about["specials"]:
        encode(text, False)
    for a in about["specials"]:
        for b in about["specials"]:
            encode(f"{a}{b} {a}  {b}x", False)
    for i in range(n):
        encode(make.random_text(rng, about, vocabulary), i % 4 == 0)
        ids = make.random_ids(rng, about)
        decode(ids, i % 2 == 0)
        # The ids of real text, cut anywhere.
        ids = tok.encode(make.random_text(rng, about, vocabulary)).ids
        decode(ids[rng.randrange(3):len(ids) - rng.randrange(3)], i % 2 == 0)
    failures = 0
    for request, want, got in zip(requests, wanted, ask(program, path, requests)):
        if got != want:
            failures += 1
            if failures <= 5:
                print(f"{path.parent.name}: {json.dumps(request)}\n  library {json.dumps(want)}\n  ssmd    {json.dumps(got)}")
    return len(requests), failures


def round_trips(program, path, n, seed):
    """Characters that some Unicode table may not know: text -> ids -> the same text."""
    rng = texts.seeded(f"{seed} later {path.parent.name}")
    wanted = [texts.later(rng) for _ in range(n)]
    encoded = ask(program, path, [{"text": t} for t in wanted])
    decoded = ask(program, path, [{"ids": e["ids"]} for e in encoded])
    bad = [(t, d) for t, d in zip(wanted, decoded) if d.get("text") != t]
    for t, d in bad[:5]:
        print(f"{path.parent.name}: {json.dumps(t)} came back as {json.dumps(d)}")
    return len(wanted), len(bad)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--seed", default="ssmd")
    args = parser.parse_args()
    files = args.files or sorted((ROOT / "tests/data/tokenizers").glob("*/tokenizer.json")) + [
        ROOT / "config/models/shakespeare-mamba/tokenizer.json"]
    total = failed = 0
    for path in files:
        n, bad = compare(args.program, path, args.texts, args.seed)
        # Those whose text comes back unchanged whatever it holds.
        if path.parent.name in ("falcon", "llama3", "llama-legacy", "shakespeare-mamba"):
            more, worse = round_trips(args.program, path, args.texts // 4, args.seed)
            n, bad = n + more, bad + worse
        print(f"{path.parent.name}: {n} compared, {bad} differ")
        total, failed = total + n, failed + bad
    print(f"tokenizers {tokenizers.__version__}: {total} compared, {failed} differ")
    return 1 if failed or total == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
