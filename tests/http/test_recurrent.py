# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in servers of recurrent models: short prompts, chunk edges, recycled slots.

The measure is the server itself: the distribution after k tokens, read off a longer prompt's
scores, must be the one that a prompt of those k tokens gives.
"""

import concurrent.futures

import pytest

from harness import models
from harness.metrics import slots_used, total
from harness.models import DEMO
from harness.program import wait_until

NAMES = [DEMO, "shakespeare-mamba2"]
TEXT = "".join(g["prompt"] + g["greedy_text"] for g in models.goldens(DEMO))
CHUNK = 16


def ids_of(client, text=TEXT):
    return client.post("/tokenize", {"content": text}).json()["tokens"]


def after(client, ids, model, **parameters):
    """The top 8 of the next token after ids."""
    (choice,) = client.complete(ids, model=model, max_tokens=1, temperature=0, logprobs=8,
                                **parameters)["choices"]
    return choice["logprobs"]["top_logprobs"][0]


def scores(client, ids, model):
    """The top 8 at each place of ids: item k is the distribution after k tokens."""
    (choice,) = client.complete(ids, model=model, max_tokens=0, echo=True, logprobs=8)["choices"]
    return choice["logprobs"]["top_logprobs"]


def agree(got, want, tolerance=1e-3):
    """Two tops agree where both have a token; the likeliest is in both."""
    assert max(want, key=want.get) in got
    for token in got.keys() & want.keys():
        assert not abs(got[token] - want[token]) > tolerance, (token, got, want)
    assert len(got.keys() & want.keys()) >= 7


@pytest.mark.smoke
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "computed"])
def test_prompts_shorter_than_the_convolution(client, need_model, model, length, cache):
    ids = ids_of(client)[:24]
    want = scores(client, ids, need_model(model))[length]
    for _ in range(2):  # the second may start from what the first left
        agree(after(client, ids[:length], model, cache_prompt=cache), want)


@pytest.mark.parametrize("model", NAMES)
def test_short_prompts_again_and_again(client, need_model, model):
    """A one-token prompt looks like a decode step; it must not depend on the slot's last user."""
    need_model(model)
    for length in (1, 2, 3, 4):
        ids = ids_of(client)[40:40 + length]
        answers = set()
        for _ in range(6):
            client.complete("Some other text, to leave a state behind", model=model, max_tokens=3)
            answers.add(client.greedy(ids, model=model, max_tokens=16, cache_prompt=False))
        assert len(answers) == 1


def model_options(names=NAMES):
    return [word for name in names for word in ("--model", f"{name}={models.folder(name)}")]


@pytest.fixture(scope="module")
def want(shared_client, served_models):
    """The shared server's scores over 100 tokens, for each model."""
    ids = ids_of(shared_client)[:100]
    return ids, {name: scores(shared_client, ids, name) for name in NAMES if name in served_models}


@pytest.mark.parametrize("chunk", [1, 3, CHUNK, 64])
def test_any_chunk_size(start, want, chunk):
    """Prompts around the chunk's edges, and their scores, whatever the chunk."""
    client = start(*model_options(), "--chunk-tokens", chunk).client
    ids, tops = want
    for name in NAMES:
        for got, expected in zip(scores(client, ids, name)[1:], tops[name][1:]):
            agree(got, expected)
        for length in (chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, 2 * chunk + 1):
            if 0 < length < 100:
                agree(after(client, ids[:length], name), tops[name][length])


def test_prompts_of_all_lengths_together(start, want):
    """Segments of many sequences in one step, none aligned to a chunk: each is as alone."""
    client = start(*model_options(), "--chunk-tokens", CHUNK).client
    ids, tops = want
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        for name in NAMES:
            lengths = range(1, 81)
            for length, got in zip(lengths, pool.map(lambda n: after(client, ids[:n], name), lengths)):
                agree(got, tops[name][length])


def test_poisoned_slots(start, client, want):
    """Freed slots are filled with NaN: few slots, many users, nobody reads what was left."""
    poisoned = start(*model_options(), "--poison-slots", "--max-sessions", 2).client
    ids, tops = want
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for name in NAMES:
            lengths = [1, 2, 3, 4, 5, 17, 1, 33, 2, 60, 1, 4] * 4
            for length, got in zip(lengths, pool.map(lambda n: after(poisoned, ids[:n], name), lengths)):
                agree(got, tops[name][length])
            texts = list(pool.map(lambda i: poisoned.greedy(ids[:1 + i % 7], model=name, max_tokens=12), range(28)))
            for i, text in enumerate(texts):
                assert text == client.greedy(ids[:1 + i % 7], model=name, max_tokens=12)
            several = poisoned.complete(ids[:9], model=name, n=7, temperature=0, max_tokens=12)
            assert {c["text"] for c in several["choices"]} == {client.greedy(ids[:9], model=name, max_tokens=12)}


@pytest.mark.smoke
def test_failed_admissions_lose_no_slot(start):
    """A queue of one in front of one slot: most are refused, all slots come back."""
    client = start("--max-sessions", 1, "--max-queue", 1).client

    def ask(i):
        answer = client.post("/v1/completions", {"prompt": "ROMEO:", "max_tokens": 60, "temperature": 0,
                                                 "ignore_eos": True})
        if answer.status == 429:
            error = answer.error(429)
            assert error["type"] == "rate_limit_exceeded"
            assert int(answer.headers["Retry-After"]) >= 0
        else:
            assert answer.status == 200
        return answer.status

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        statuses = list(pool.map(ask, range(96)))
    assert {200, 429} == set(statuses)
    wait_until(lambda: slots_used(client) == 0, 2, "no slot is used")
    assert total(client, "ssmd_slots_total") == 1
    assert client.greedy(max_tokens=4)
