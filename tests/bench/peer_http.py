#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens a second over HTTP beside llama.cpp's server, same geometry, threads and load, in turns.

Needs the packages of peer_llama.py and llama-cpp-python[server], a model folder made by
make_random_model.py, and ssmd and ssmd-load. That package's server answers one request at a time,
so its figure for several clients is that of its queue; --llama-server names llama.cpp's own, which
batches (its sources are in the package, vendor/llama.cpp). in_process is the same library given
all sequences in one batch without a server, the best that a server around it could do.

    peer_http.py --model DIR --build build --rounds 3 --csv results/peer-http.csv
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request

import peer_llama


def wait_for(url, process):
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=1).read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def load(args, url, clients, text):
    command = [f"{args.build}/ssmd-load", "--url", url, "--clients", str(clients), "--json",
               "--duration", str(args.seconds), "--max-tokens", "128", "--prompt-tokens", "16",
               "--vocab", "50000", "--temperature", str(args.temperature)]
    out = subprocess.run(command + ["--text"] * text, check=True, capture_output=True).stdout
    return json.loads(out)["output_tokens_per_s"]


def serve(args, command, ready, clients, text):
    """Each number of clients against a fresh server."""
    speeds = []
    for n in clients:
        with open(os.path.join(args.cache, "server.log"), "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                wait_for(f"http://127.0.0.1:{args.port}{ready}", process)
                speeds.append(load(args, f"http://127.0.0.1:{args.port}", n, text))
            finally:
                process.terminate()
                process.wait()
    return speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--build", default="build")
    parser.add_argument("--llama-server", help="llama.cpp's program instead of the Python server")
    parser.add_argument("--activations", default="f32,bf16")
    parser.add_argument("--geometry", default="mamba-130m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--port", type=int, default=8391)
    parser.add_argument("--cache", default="build/peer")
    parser.add_argument("--csv")
    args = parser.parse_args()
    os.makedirs(args.cache, exist_ok=True)
    path = os.path.join(args.cache, f"{args.geometry}-bf16-text.gguf")
    if not os.path.exists(path):
        peer_llama.write_gguf(path + ".part", args.geometry, "bf16",
                              os.path.join(args.model, "tokenizer.json"))
        os.rename(path + ".part", path)
    clients = [int(n) for n in args.clients.split(",")]
    threads = str(args.threads)
    peer = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--n_threads", threads,
            "--n_threads_batch", threads, "--port", str(args.port), "--n_ctx", "4096",
            "--interrupt_requests", "False"]
    if args.llama_server:
        peer = [args.llama_server, "--model", path, "--threads", threads, "--threads-batch",
                threads, "--port", str(args.port), "--parallel", str(max(clients)), "--ctx-size",
                str(512 * max(clients)), "--cache-ram", "0"]
    ours = [f"{args.build}/ssmd", "serve", "--model", args.model, "--threads", threads, "--port",
            str(args.port), "--log-level", "warn"]
    batch = [sys.executable, peer_llama.__file__, "--peer-file", path, "--threads", threads,
             "--batches", args.clients, "--prompts", "64"]
    forms = args.activations.split(",")
    speeds = {name: [] for name in ["peer_http", "peer_in_process", *forms]}
    for i in range(args.rounds):
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
        ready = "/health" if args.llama_server else "/v1/models"
        speeds["peer_http"].append(serve(args, peer, ready, clients, True))
        for form in forms:
            command = ours + ["--activation-dtype", form]
            speeds[form].append(serve(args, command, "/health", clients, False))
        out = subprocess.run(batch, check=True, capture_output=True, text=True).stdout
        alone = {tuple(k): v for k, v in json.loads(out.splitlines()[-1])}
        speeds["peer_in_process"].append([alone["decode", n] for n in clients])
    rows = []
    for form in forms:
        for i, n in enumerate(clients):
            row = {"geometry": args.geometry, "weights": "bf16", "activations": form, "clients": n,
                   "ssmd_tokens_per_s": statistics.median(r[i] for r in speeds[form])}
            for other in "peer_http", "peer_in_process":
                ratios = [a[i] / b[i] for a, b in zip(speeds[form], speeds[other])]
                row[f"{other}_tokens_per_s"] = statistics.median(r[i] for r in speeds[other])
                row[f"ratio_to_{other}"] = statistics.median(ratios)
                row[f"lowest_{other}"] = min(ratios)
            rows.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    for to in [sys.stdout] + ([open(args.csv, "w", newline="")] if args.csv else []):
        table = csv.DictWriter(to, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
