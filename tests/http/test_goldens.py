# SPDX-License-Identifier: Apache-2.0
"""The demonstration models' goldens over HTTP, and prompts of a million tokens in constant memory."""

import threading
import time

import pytest

from harness import models
from harness.models import DEMO, DATA, induction_prompt
from harness.program import SCALE

CASES = [(name, i) for name in (DEMO, "shakespeare-mamba2", "induction-heads", "selective-copying")
         if models.folder(name).is_dir() for i in range(len(models.goldens(name)))]


def test_every_golden_is_here():
    for name in ("shakespeare-mamba2", "induction-heads", "selective-copying"):
        assert (DATA / name / "golden.json").is_file()


@pytest.mark.smoke
@pytest.mark.parametrize("name, i", CASES)
def test_greedy(client, need_model, name, i):
    golden = models.goldens(name)[i]
    answer = client.complete(golden["prompt"], model=need_model(name), temperature=0,
                             max_tokens=len(golden["greedy_ids"]), return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["prompt_token_ids"] == golden["prompt_ids"]
    assert choice["token_ids"] == golden["greedy_ids"]
    assert choice["text"] == golden["greedy_text"]
    if "expected" in golden:
        assert choice["text"] == golden["expected"]


def test_selective_copying_at_1024(client, need_model):
    (golden,) = [g for g in models.goldens("selective-copying") if len(g["prompt"]) == 1025]
    text = client.greedy(golden["prompt"], model=need_model("selective-copying"), max_tokens=16)
    assert text == golden["expected"]


class Watch:
    """The highest resident memory of a program while a block runs."""

    def __init__(self, program):
        self.program, self.peak, self._stop = program, 0, threading.Event()

    def _run(self):
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self.program.resident_bytes())

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("length", [64, 1000, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_induction(client, need_model, length, seed):
    prompt, letter = induction_prompt(length, seed)
    assert client.greedy(prompt, model=need_model("induction-heads"), max_tokens=1) == letter


# What a prompt may cost besides the state: its text, its ids and their copies, some 30 bytes a token.
BYTES_A_TOKEN = 48


@pytest.mark.timeout(240)
@pytest.mark.parametrize("form", ["text", "ids"])
@pytest.mark.parametrize("length", [1000, 100_000, 1_048_576])
def test_induction_in_constant_memory(client, program, need_model, length, form):
    model = need_model("induction-heads")
    prompt, letter = induction_prompt(length, length)
    if form == "ids":
        vocabulary = models.vocabulary(model)
        sent = [vocabulary[character] for character in prompt]
    else:
        sent = prompt
    client.greedy(prompt[:1000], model=model, max_tokens=1)
    if program is None:
        assert client.greedy(sent, model=model, max_tokens=1) == letter
        return
    before = program.resident_bytes()
    with Watch(program) as watch:
        answer = client.complete(sent, model=model, max_tokens=1, temperature=0, timings=True)
    assert answer["choices"][0]["text"] == letter
    assert answer["usage"]["prompt_tokens"] == length
    assert watch.peak - before < 24e6 + BYTES_A_TOKEN * length, (watch.peak, before)


@pytest.mark.timeout(240)
def test_a_long_prompt_does_not_stall_a_stream(client, need_model):
    """While a million tokens are read, another client of the same model keeps getting its own."""
    model = need_model("induction-heads")
    prompt, letter = induction_prompt(1_048_576, 3)
    result = []
    reader = threading.Thread(
        target=lambda: result.append(client.greedy(prompt, model=model, max_tokens=1)))
    with client.open_stream("abc|", model=model, max_tokens=10**6, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        reader.start()
        longest, last = 0, (began := time.monotonic())
        while reader.is_alive():
            next(events)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        reader.join()
    assert result == [letter]
    # a part of what reading takes, so that a slow machine may be slow
    assert longest < max(1.0 * SCALE, (last - began) / 5), f"a gap of {longest:.2f} s between two tokens"
