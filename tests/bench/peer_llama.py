#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Speed of `ssmd bench` beside llama.cpp's, same geometry, same machine, same threads, in turns.

Needs the packages llama-cpp-python (built for this CPU), gguf and numpy. A GGUF file with random
weights is made for each type and kept in --cache. Each round runs the peer, then ssmd; the table
gives the median round of each and their ratio, and the read ceiling that ssmd measured beside it.

    peer_llama.py --ssmd build/ssmd --types bf16,f32,q8_0 --rounds 3 --csv results/peer.csv
"""

import argparse
import csv
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

import gguf
import llama_cpp
import numpy as np

GEOMETRIES = {  # layers, d_model, d_state, vocabulary; expand 2, convolution 4
    "mamba-130m": (24, 768, 16, 50280),
    "mamba2-130m": (24, 768, 128, 50288),
}
OURS = {  # a GGUF type: our options of the same precision
    "f32": [["f32", "auto"]],
    "bf16": [["bf16", "auto"], ["bf16", "bf16"]],
    "q8_0": [["int8", "auto"]],
    "q4_0": [["int4", "auto"]],
}


def add_tokenizer(w, path):
    """A byte-level BPE tokenizer.json; without one the file can only be given token ids."""
    if not path:
        w.add_tokenizer_model("none")
        return
    with open(path) as f:
        model = json.load(f)["model"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    w.add_token_types([gguf.TokenType.NORMAL] * len(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    w.add_token_merges(merges or ["a b"])  # a file without any is refused
    w.add_eos_token_id(0)


def write_gguf(path, geometry, kind, tokenizer=None):
    layers, dm, n, vocab = GEOMETRIES[geometry]
    is2 = geometry.startswith("mamba2")
    di, rank, heads = 2 * dm, dm // 16, 2 * dm // 64
    arch = "mamba2" if is2 else "mamba"
    rng = np.random.default_rng(1)
    qtype = gguf.GGMLQuantizationType[kind.upper()]
    w = gguf.GGUFWriter(path, arch)
    w.add_name(geometry)
    w.add_context_length(1 << 20)
    w.add_embedding_length(dm)
    w.add_feed_forward_length(0)
    w.add_head_count(0)
    w.add_block_count(layers)
    w.add_vocab_size(vocab)
    w.add_ssm_conv_kernel(4)
    w.add_ssm_inner_size(di)
    w.add_ssm_state_size(n)
    w.add_ssm_time_step_rank(heads if is2 else rank)
    if is2:
        w.add_ssm_group_count(1)
    w.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(w, tokenizer)

    def matrix(name, rows, cols):
        x = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(3 * cols))
        if kind == "f32":
            w.add_tensor(name, x)
        else:
            w.add_tensor(name, gguf.quants.quantize(x, qtype), raw_dtype=qtype)

    def f32(name, x):
        w.add_tensor(name, np.ascontiguousarray(x, dtype=np.float32))

    matrix("token_embd.weight", vocab, dm)
    f32("output_norm.weight", np.ones(dm))
    for i in range(layers):
        p = f"blk.{i}."
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), heads if is2 else di))
        f32(p + "attn_norm.weight", np.ones(dm))
        conv = di + 2 * n if is2 else di
        matrix(p + "ssm_in.weight", 2 * di + 2 * n + heads if is2 else 2 * di, dm)
        f32(p + "ssm_conv1d.weight", rng.uniform(-0.5, 0.5, (conv, 4)))
        f32(p + "ssm_conv1d.bias", np.zeros(conv))
        f32(p + "ssm_dt.bias", dt + np.log(-np.expm1(-dt)))
        if is2:
            f32(p + "ssm_a", -rng.uniform(1, 16, (heads, 1)))
            f32(p + "ssm_d", np.ones((heads, 1)))
            f32(p + "ssm_norm.weight", np.ones((1, di)))
        else:
            matrix(p + "ssm_x.weight", rank + 2 * n, di)
            f32(p + "ssm_dt.weight", rng.standard_normal((di, rank)) / np.sqrt(rank))
            f32(p + "ssm_a", -np.tile(np.arange(1, n + 1), (di, 1)))
            f32(p + "ssm_d", np.ones(di))
        matrix(p + "ssm_out.weight", dm, di)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Peer:
    """A model in llama.cpp with room for several sequences."""

    def __init__(self, path, threads, sequences, longest):
        quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = quiet(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(4096, 2 * longest) * sequences
        params.n_batch = longest
        params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(longest, 0, 1)

    def decode(self, tokens):
        """tokens: (id, position, sequence, wants logits)"""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            b.token[i] = token
            b.pos[i] = position
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = sequence
            b.logits[i] = wanted
        start = time.perf_counter()
        if llama_cpp.llama_decode(self.context, b) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits(self.context)  # waits for what runs behind
        return time.perf_counter() - start

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, n, repeats=3):
        times = []
        for _ in range(repeats):
            self.forget()
            times.append(self.decode([(i * 7919 % 50000, i, 0, i == n - 1) for i in range(n)]))
        return n / statistics.median(times)

    def generate(self, sequences, steps=40):
        self.forget()
        times = [self.decode([(t * 31 % 50000, t, s, True) for s in range(sequences)])
                 for t in range(steps)]
        return sequences / statistics.median(times[5:])

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def run_ours(args, weights, activations):
    command = args.prefix.split() + [
        args.ssmd, "bench", "--geometry", args.geometry, "--threads", str(args.threads),
        "--weight-dtype", weights, "--activation-dtype", activations, "--json",
        "--seconds", str(args.seconds), "--batches", args.batches, "--prompts", args.prompts]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    speeds = {(r["phase"], r["tokens"]): r["tokens_per_second"] for r in result["rows"]}
    shares = {(r["phase"], r["tokens"]): (r["read_share"], r["product_share"])
              for r in result["rows"]}
    return speeds, shares, result


def run_peer(args, path):
    """In a process of its own, so that its threads are gone when ours run."""
    command = args.prefix.split() + [sys.executable, __file__, "--peer-file", path,
                                     "--threads", str(args.threads), "--batches", args.batches,
                                     "--prompts", args.prompts]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {tuple(k): v for k, v in json.loads(out.splitlines()[-1])}


def peer_main(args):
    batches = [int(x) for x in args.batches.split(",")]
    prompts = [int(x) for x in args.prompts.split(",")]
    peer = Peer(args.peer_file, args.threads, max(batches), max(prompts))
    out = [(("prefill", n), peer.prefill(n)) for n in prompts]
    out += [(("decode", n), peer.generate(n)) for n in batches]
    peer.close()
    print(json.dumps(out))


def compare(args, kind):
    os.makedirs(args.cache, exist_ok=True)
    path = os.path.join(args.cache, f"{args.geometry}-{kind}.gguf")
    if not os.path.exists(path):
        print(f"writing {path}", file=sys.stderr)
        write_gguf(path + ".part", args.geometry, kind)
        os.rename(path + ".part", path)
    rounds = []
    ours = [o for o in OURS[kind] if o[1] in args.activations.split(",")]
    for i in range(args.rounds):
        theirs = run_peer(args, path)
        for weights, activations in ours:
            print(f"{kind}: round {i + 1} of {args.rounds}", file=sys.stderr)
            rounds.append((weights, activations, theirs, *run_ours(args, weights, activations)))
    rows = []
    for weights, activations in ours:
        mine = [r for r in rounds if r[:2] == (weights, activations)]
        for key in mine[0][3]:
            ratios = [r[3][key] / r[2][key] for r in mine]
            rows.append({
                "geometry": args.geometry, "type": kind, "weights": weights,
                "activations": activations.replace("auto", "f32"), "phase": key[0],
                "tokens": key[1],
                "peer_tokens_per_s": round(statistics.median(r[2][key] for r in mine), 1),
                "ssmd_tokens_per_s": round(statistics.median(r[3][key] for r in mine), 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_low": round(min(ratios), 2), "ratio_high": round(max(ratios), 2),
                "read_share": round(statistics.median(r[4][key][0] for r in mine), 3),
                "product_share": round(statistics.median(r[4][key][1] for r in mine), 3),
                "read_gb_s": round(statistics.median(
                    r[5]["read_bytes_per_second"] for r in mine) / 1e9, 1)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ssmd", default="build/ssmd")
    parser.add_argument("--geometry", default="mamba-130m", choices=sorted(GEOMETRIES))
    parser.add_argument("--types", default="bf16,f32,q8_0")
    parser.add_argument("--activations", default="auto,bf16", help="of ours; auto is f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompts", default="512,2048")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--cache", default="build/peer")
    parser.add_argument("--prefix", default="", help="words before both commands, as 'chrt -f 10'")
    parser.add_argument("--csv", help="write the table here too")
    parser.add_argument("--peer-file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_file:
        peer_main(args)
        return
    rows = [row for kind in args.types.split(",") for row in compare(args, kind)]
    for to in [sys.stdout] + ([open(args.csv, "w", newline="")] if args.csv else []):
        table = csv.DictWriter(to, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
