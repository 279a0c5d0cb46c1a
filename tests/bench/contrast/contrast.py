#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A session here against a KV-cached Transformer of the same size: speed and bytes by position.

Ours: build/ssmd serving the demonstration model; a prompt of ids, then answers of two lengths, whose
difference is what a token costs there; `n` sessions at once. The other: transformers' Llama of as
many parameters with random weights, its cache filled to the position with random keys and values,
on as many threads, both in fp32 activations. Needs torch,
transformers and jsonschema.

usage: contrast.py [--svg FILE] [--threads 2]  -> a table in Markdown
"""

import argparse
import os
import pathlib
import random
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "http"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402
from harness.program import ROOT, Program  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

POSITIONS = (64, 512, 2048, 8192)
BATCHES = (1, 8)
STEPS = 32


def transformer():
    config = LlamaConfig(vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
                         num_attention_heads=8, max_position_embeddings=1 << 17,
                         tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval()


def filled(config, batch, position):
    cache = DynamicCache()
    shape = (batch, config.num_key_value_heads, position, config.hidden_size // config.num_attention_heads)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


@torch.no_grad()
def theirs(model, batch, position):
    cache = filled(model.config, batch, position)
    ids = torch.randint(0, 1024, (batch, 1))
    times = []
    for _ in range(STEPS // 2):
        start = time.perf_counter()
        model(input_ids=ids, past_key_values=cache, use_cache=True).logits.argmax(-1)
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def ours(client, batch, position):
    rng = random.Random(position)
    ids = [rng.randrange(1, 1000) for _ in range(position)]

    def seconds(tokens):
        start = time.perf_counter()
        client.complete(ids, n=batch, max_tokens=tokens, temperature=1, seed=1, ignore_eos=True)
        return time.perf_counter() - start

    seconds(1)  # the prompt's state is saved: what follows is answers
    short = statistics.median(seconds(1) for _ in range(5))
    long = statistics.median(seconds(1 + STEPS) for _ in range(5))
    return batch * STEPS / (long - short)


def panel(title, series, x0, top):
    """Curves of (position, value), both axes logarithmic."""
    from math import log10

    low = min(v for _, points in series for _, v in points)
    high = max(v for _, points in series for _, v in points)
    first, last = log10(POSITIONS[0]), log10(POSITIONS[-1])

    def at(position, value):
        x = x0 + 60 + 300 * (log10(position) - first) / (last - first)
        return x, 250 - 180 * (log10(value) - log10(low)) / max(log10(high) - log10(low), 0.1)

    out = [f'<text x="{x0 + 60}" y="{top}" font-weight="bold">{title}</text>']
    for position in POSITIONS:
        out.append(f'<text x="{at(position, low)[0]:.0f}" y="275" text-anchor="middle">{position:,}</text>')
    for (name, points), color in zip(series, ("#0066cc", "#cc4400"), strict=True):
        line = " ".join("{:.1f},{:.1f}".format(*at(*p)) for p in points)
        out.append(f'<polyline fill="none" stroke="{color}" stroke-width="2.5" points="{line}"/>')
        for p in (points[0], points[-1]):
            x, y = at(*p)
            out.append(f'<text x="{x:.0f}" y="{y - 8:.0f}" text-anchor="middle" fill="{color}">{p[1]:,.0f}</text>')
        x, y = at(*points[len(points) // 2])
        out.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" fill="{color}">{name}</text>')
    return "\n".join(out)


def draw(path, rows):
    alone = [r for r in rows if r["batch"] == 1]
    speed = [("ssmd", [(r["position"], r["ours"]) for r in alone]),
             ("Transformer", [(r["position"], r["theirs"]) for r in alone])]
    size = [("ssmd", [(r["position"], r["our_bytes"] / 1000) for r in alone]),
            ("Transformer", [(r["position"], r["their_bytes"] / 1000) for r in alone])]
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 290" '
                    'font-family="sans-serif" font-size="12">\n'
                    '<rect width="820" height="290" fill="#fff"/>\n'
                    + panel("tokens a second, one session, by position", speed, 0, 25) + "\n"
                    + panel("kilobytes of a session, by position", size, 400, 25) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = transformer()
    config = model.config
    program = Program("--threads", options.threads, "--log-level", "error", "--max-sessions", 16)
    info = program.client.get("/v1/models").json()["data"][0]
    rows = []
    try:
        for batch in BATCHES:
            for position in POSITIONS:
                rows.append({
                    "batch": batch, "position": position,
                    "ours": ours(program.client, batch, position),
                    "theirs": theirs(model, batch, position),
                    "our_bytes": info["session_bytes"],
                    "their_bytes": 2 * 4 * config.num_hidden_layers * config.hidden_size * position})
    finally:
        program.stop()
    print(f"ssmd: {info['id']}, {info['parameters']:,} parameters; transformers' Llama, "
          f"{model.num_parameters():,} parameters, f32; {options.threads} threads each\n")
    print("| sessions | position | ssmd tokens/s | Transformer tokens/s | ssmd bytes a session "
          "| Transformer bytes a session |\n|---|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['batch']} | {r['position']:,} | {r['ours']:,.0f} | {r['theirs']:,.0f} "
              f"| {r['our_bytes']:,} | {r['their_bytes']:,} |")
    if options.svg:
        draw(options.svg, rows)


if __name__ == "__main__":
    main()
