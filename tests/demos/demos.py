#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What selection adds, as a table: models x tasks x lengths through the HTTP server.

Starts build/ssmd with the demonstration models of tests/data, asks for greedy answers to prompts
drawn from a seed, and prints the share of answers that are right as a whole and of letters that
are, next to what was measured when the models were trained. The exit status is 1 if a model that
solves its task does not, or one that fails differs from its figures by more than chance explains.

usage: demos.py [--prompts 128] [--models NAME,...] [--seed 1] [--json FILE] [--url URL]
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import random
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "http"))

import tasks  # noqa: E402
from harness.client import Client  # noqa: E402
from harness.program import ROOT, Program  # noqa: E402

LONG = 2048  # half as many prompts from here on
WORKERS = 16


def ask(client, row, prompt, answer):
    """(whole answer right, share of letters right)

    The answer is the model's own greedy text. Letters are counted as in training: each after the
    right ones before it, so that one wrong letter does not derail the rest. Such counting takes a
    second request, for a wrong answer only.
    """
    options = {"model": row.model, "temperature": 0, "cache_prompt": False}
    text = client.complete(prompt, max_tokens=len(answer), **options)["choices"][0]["text"]
    if text == answer:
        return True, 1
    scored = client.complete(prompt + answer, max_tokens=0, echo=True, logprobs=1, **options)
    tops = scored["choices"][0]["logprobs"]["top_logprobs"][-len(answer):]
    likeliest = [max(top, key=top.get) for top in tops]
    return False, sum(a == b for a, b in zip(likeliest, answer, strict=True)) / len(answer)


def measure(client, pool, row, n, count, seed):
    rng = random.Random(f"{row.model} {row.task} {n} {seed}")
    drawn = [row.prompt(n, rng) for _ in range(count)]
    answers = list(pool.map(lambda pair: ask(client, row, *pair), drawn))
    whole = sum(right for right, _ in answers) / count
    return {"model": row.model, "task": row.task, "length": n, "prompts": count,
            "whole": 100 * whole, "letters": 100 * sum(share for _, share in answers) / count}


def is_as_before(cell, row):
    """Right where it must be; elsewhere within four standard errors of the figures before.

    Letters of an answer are no 16 independent draws: they count as 4.
    """
    n = cell["length"]
    if n <= row.must:
        return cell["whole"] == 100
    for key, before, draws in (("whole", row.before[n][0], 1), ("letters", row.before[n][1], 4)):
        if before is None:
            continue
        p = min(max((cell[key] + before) / 200, 0.02), 0.98)
        error = 100 * math.sqrt(p * (1 - p) * (2 / cell["prompts"] / draws))
        if not abs(cell[key] - before) <= 4 * error + 1:
            return False
    return True


def run(client, options):
    cells, wrong = [], []
    names = options.models.split(",") if options.models else None
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for row in tasks.ROWS:
            if names and row.model not in names:
                continue
            for n in row.before:
                count = max(1, options.prompts // (2 if n >= LONG else 1))
                cell = measure(client, pool, row, n, count, options.seed)
                cell["before"] = row.before[n]
                cells.append(cell)
                if not is_as_before(cell, row):
                    wrong.append(cell)
            print(f"{row.model}, {row.task}: done", file=sys.stderr, flush=True)
    return cells, wrong


def shown(whole, letters):
    text = f"{whole:.1f}".removesuffix(".0")
    return text if letters is None or whole == 100 else f"{text} ({letters:.0f})"


def table(cells):
    lines = ["| model | task | | " + " | ".join(f"{n:,}" for n in tasks.LENGTHS) + " |",
             "|---|---|---|" + "---|" * len(tasks.LENGTHS)]
    by_row = {}
    for cell in cells:
        by_row.setdefault((cell["model"], cell["task"]), {})[cell["length"]] = cell
    for (model, task), row in by_row.items():
        for what, get in (("here", lambda c: (c["whole"], c["letters"])),
                          ("trained", lambda c: c["before"])):
            values = [shown(*get(row[n])) if n in row else "-" for n in tasks.LENGTHS]
            lines.append(f"| {model if what == 'here' else ''} | {task if what == 'here' else ''} "
                         f"| {what} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=128, help="a cell; half from 2,048 on")
    parser.add_argument("--models", help="only these, with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, help="write every cell there")
    parser.add_argument("--url", help="a server that runs already, with the models' names")
    options = parser.parse_args()
    models = dict.fromkeys(row.model for row in tasks.ROWS)
    program = None
    if options.url:
        client = Client.from_url(options.url, None)
    else:
        folders = [f"--model={ROOT}/tests/data/models/{name}" for name in models
                   if not options.models or name in options.models.split(",")]
        program = Program(*folders, "--log-level", "error", "--max-sessions", WORKERS)
        client = program.client
    started = time.monotonic()
    try:
        cells, wrong = run(client, options)
    finally:
        if program:
            program.stop()
    print("Whole answers right, percent (letters right), by positions before the marker.\n")
    print(table(cells))
    print(f"\n{sum(c['prompts'] for c in cells):,} prompts in {time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text("\n".join(json.dumps(c) for c in cells) + "\n")
    for cell in wrong:
        print(f"not as it should be: {cell}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
