#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes corpus/snapshot: sessions of a tiny model as a server exports and stores them.

    python3 tests/fuzz/make_snapshot_corpus.py      (build/ssmd must be there)
"""

import json
import pathlib
import subprocess
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "snapshot"


def call(url, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def main():
    CORPUS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [ROOT / "build" / "ssmd", "serve", "--port", "0", "--model", ROOT / "tests/data/models/copying-mamba",
             "--state-dir", folder, "--durability", "sync"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            url = next(line for line in server.stdout if "http://" in line).split("http://")[1].split()[0].rstrip("/,;")
            base = f"http://{url}"
            prompt = [1, 2, 3, 4, 5, 6, 7]
            call(f"{base}/v1/completions", {"prompt": prompt, "session": "pending", "max_tokens": 3, "temperature": 0})
            call(f"{base}/v1/completions", {"prompt": prompt, "session": "logits", "max_tokens": 0})
            call(f"{base}/v1/chat/completions", {"messages": [{"role": "user", "content": "1 2"}], "session": "chat",
                                                 "max_tokens": 3, "temperature": 0})
            for name in ("pending", "logits", "chat"):
                (CORPUS / name).write_bytes(call(f"{base}/v1/sessions/{name}/state"))
            (stored, *_) = sorted(pathlib.Path(folder).rglob("*.session"))
            (CORPUS / "stored").write_bytes(stored.read_bytes())
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
