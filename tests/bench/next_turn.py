#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a long past costs a chat's next turn, end to end over HTTP: the time from the request's
first byte to the first event that holds text, for a session with so many tokens of past (its
whole conversation is sent each time, as clients do) and for the same turn of a new session, in turns.

    make_random_model.py mamba-130m FOLDER && next_turn.py --model FOLDER --past 100000
"""

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import time

MESSAGE = 500  # tokens of a message of the past, about


def words(generator, tokens, per_token):
    """Text of about so many tokens."""
    text = ""
    while len(text) < tokens * per_token:
        text += generator.choice("the sea was calm and a ship of oak went by under the old light".split()) + " "
    return text


def start(args):
    command = [f"{args.build}/ssmd", "serve", "--model", args.model, "--port", "0", "--threads",
               str(args.threads), "--device", args.device, "--log-level", "error", *args.option]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in server.stdout:
        print(line, end="")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found:
            return server, int(found.group(1))
    sys.exit("the server did not start")


def turn(connection, session, messages):
    """One turn: seconds to its first text, its whole text, prompt tokens that were not cached."""
    body = json.dumps({"messages": messages, "session": session, "stream": True, "max_tokens": 4,
                       "temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}})
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(answer.read().decode())
    first, text, usage = None, "", None
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
        if piece:
            first = first or time.perf_counter() - began
            text += piece
    return first or time.perf_counter() - began, text, usage


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--build", default="build")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--past", type=int, default=100000)
    parser.add_argument("--new", type=int, default=32, help="tokens of the turn that is timed")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--per-token", type=float, default=1, help="letters a token, of this tokenizer")
    parser.add_argument("--option", action="append", default=[], help="one more of the server's")
    args = parser.parse_args()
    generator = random.Random(1)
    server, port = start(args)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
        past = []
        for i in range(max(1, args.past // MESSAGE // 2)):
            past.append({"role": "user", "content": words(generator, MESSAGE, args.per_token)})
            past.append({"role": "assistant", "content": words(generator, MESSAGE, args.per_token)})
        past[-1]["role"] = "user"
        took, text, usage = turn(connection, "long", past)
        print(f"a past of {usage['prompt_tokens']} tokens, {len(json.dumps(past))} bytes: {took:.1f} s")
        past.append({"role": "assistant", "content": text})
        times = {"no past": [], "the past": []}
        for i in range(args.turns + 1):
            said = [{"role": "user", "content": words(generator, args.new, args.per_token)}]
            fresh = turn(connection, f"new{i}", said)
            past += said
            next_ = turn(connection, "long", past)
            past.append({"role": "assistant", "content": next_[1]})
            if i > 0:  # the first warms up
                times["no past"].append(fresh[0])
                times["the past"].append(next_[0])
        for what, seconds in times.items():
            print(f"{what:10} least {min(seconds) * 1e3:8.2f} ms  median {statistics.median(seconds) * 1e3:8.2f} ms")
        ratios = [a / b for a, b in zip(times["the past"], times["no past"])]
        print(f"ratio      least {min(times['the past']) / min(times['no past']):8.2f}     "
              f"median of {len(ratios)} pairs {statistics.median(ratios):.2f}, "
              f"range {min(ratios):.2f} to {max(ratios):.2f}")
        print(f"last turns: {fresh[2]} | {next_[2]}")
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
