# SPDX-License-Identifier: Apache-2.0
"""What each sampling parameter does to the tokens drawn."""

import math

import pytest

from harness import models
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)[0]
GREEDY = GOLDEN["greedy_text"]


def drawn(client, prompt="ROMEO:", **parameters):
    parameters = {"max_tokens": 32, "return_token_ids": True, **parameters}
    (choice,) = client.complete(prompt, **parameters)["choices"]
    return choice["token_ids"]


@pytest.mark.smoke
def test_seed_gives_the_same_tokens(client):
    assert drawn(client, seed=7) == drawn(client, seed=7)


def test_seeds_differ(client):
    assert len({tuple(drawn(client, seed=seed)) for seed in range(8)}) == 8


def test_without_a_seed_answers_differ(client):
    assert len({tuple(drawn(client)) for _ in range(4)}) == 4


@pytest.mark.parametrize("narrow", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}, {"top_p": 1e-6},
                                    {"min_p": 1}, {"temperature": 1e-4}], ids=str)
def test_narrow_sampling_is_greedy(client, narrow):
    assert client.text(max_tokens=48, seed=3, **narrow) == GREEDY


def test_typical_keeps_few(client):
    """At a tiny typical_p one token is left, so the seed changes nothing."""
    assert drawn(client, typical_p=1e-6, seed=1) == drawn(client, typical_p=1e-6, seed=2)


def test_top_k_is_a_bound(client):
    """With top_k 3 every drawn token is among the three likeliest."""
    (choice,) = client.complete(seed=5, top_k=3, logprobs=3, max_tokens=40, temperature=2)["choices"]
    assert all(len(top) == 3 for top in choice["logprobs"]["top_logprobs"])
    assert len({max(top, key=top.get) == token for token, top in zip(
        choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"])}) == 2


def test_min_p_is_a_bound(client):
    (choice,) = client.complete(seed=5, min_p=0.3, logprobs=1, max_tokens=40)["choices"]
    found = choice["logprobs"]
    for value, top in zip(found["token_logprobs"], found["top_logprobs"]):
        assert value >= max(top.values()) + math.log(0.3) - 1e-3


def test_top_p_is_a_bound(client):
    """A token outside the smallest set that holds top_p is never drawn."""
    (choice,) = client.complete(seed=6, top_p=0.4, logprobs=20, max_tokens=40)["choices"]
    for token, top in zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]):
        before = sum(math.exp(v) for v in top.values() if v > top[token])
        assert before < 0.4 + 1e-3


def test_temperature_flattens(client):
    def mean(temperature):
        (choice,) = client.complete(seed=2, temperature=temperature, logprobs=0, max_tokens=200,
                                    ignore_eos=True)["choices"]
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    assert mean(0.3) > mean(1) > mean(2)


def test_frequencies_match_probabilities(client):
    """The first token of 1,280 draws is distributed as its log-probabilities say."""
    (choice,) = client.complete(max_tokens=1, temperature=0, logprobs=5)["choices"]
    top = choice["logprobs"]["top_logprobs"][0]
    count, seen = 0, {}
    for seed in range(10):
        answer = client.complete(max_tokens=1, n=128, seed=seed * 1000, logprobs=0, ignore_eos=True)
        for one in answer["choices"]:
            token = one["logprobs"]["tokens"][0]
            seen[token] = seen.get(token, 0) + 1
            count += 1
    for token, value in top.items():
        p = math.exp(value)
        spread = math.sqrt(p * (1 - p) / count)
        assert abs(seen.get(token, 0) / count - p) < 5 * spread + 1 / count, token


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_fall_on_what_was_drawn(client, name):
    plain = drawn(client, temperature=0, max_tokens=120)
    other = drawn(client, temperature=0, max_tokens=120, **{name: 2})
    first = next(i for i, (a, b) in enumerate(zip(plain, other)) if a != b)
    assert plain[first] in plain[:first]
    assert len(set(other)) > len(set(plain))


def test_negative_penalty_repeats(client):
    plain = drawn(client, temperature=0, max_tokens=80)
    other = drawn(client, temperature=0, max_tokens=80, frequency_penalty=-2)
    assert len(set(other)) < len(set(plain))


def test_repetition_penalty_falls_on_the_prompt_too(client):
    plain = drawn(client, GOLDEN["prompt_ids"], temperature=0, max_tokens=80)
    other = drawn(client, GOLDEN["prompt_ids"], temperature=0, max_tokens=80, repetition_penalty=1.5)
    first = next(i for i, (a, b) in enumerate(zip(plain, other)) if a != b)
    assert plain[first] in plain[:first] + GOLDEN["prompt_ids"]


@pytest.mark.smoke
def test_logit_bias(client):
    assert drawn(client, logit_bias={"77": 100}, max_tokens=5) == [77] * 5
    greedy = GOLDEN["greedy_ids"][0]
    assert greedy not in drawn(client, temperature=0, logit_bias={str(greedy): -100})


def test_logit_bias_by_text(client):
    assert client.text(logit_bias={"z": 100}, max_tokens=3, seed=1) == "zzz"


def test_allowed_token_ids(client):
    allowed = [300, 301, 302]
    assert set(drawn(client, allowed_token_ids=allowed, temperature=2, seed=1, max_tokens=60)) == set(allowed)


def occurs(ids, within):
    return any(within[i:i + len(ids)] == ids for i in range(len(within)))


@pytest.mark.parametrize("word", [" believe", "I'll believe", " you", ","])
def test_bad_words(client, word):
    """The word's tokens are never drawn in a row; until they would be, nothing changes."""
    golden = models.goldens(DEMO)[1]
    ids = client.post("/tokenize", {"content": word}).json()["tokens"]
    assert occurs(ids, golden["greedy_ids"])
    other = drawn(client, golden["prompt"], temperature=0, max_tokens=48, bad_words=[word, "never seen"])
    assert not occurs(ids, other)
    first = next(i for i, (a, b) in enumerate(zip(golden["greedy_ids"], other)) if a != b)
    assert golden["greedy_ids"][first - len(ids) + 1:first + 1] == ids


# ---- several choices


@pytest.mark.smoke
def test_n_choices(client):
    answer = client.complete(n=4, seed=20, max_tokens=24)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 4
    assert answer["usage"]["completion_tokens"] <= 4 * 24
    assert answer["usage"]["prompt_tokens"] == 2  # the prompt runs once


def test_n_more_than_slots(client):
    """Choices beyond the slots wait inside their request."""
    answer = client.complete(n=128, seed=1, max_tokens=4, ignore_eos=True)
    assert len(answer["choices"]) == 128
    assert answer["usage"]["completion_tokens"] == 512


def test_choice_i_draws_with_seed_plus_i(client):
    answer = client.complete(n=3, seed=50, max_tokens=24)
    for i, choice in enumerate(answer["choices"]):
        assert choice["text"] == client.text(seed=50 + i, max_tokens=24)


def test_n_greedy_choices_are_equal(client):
    answer = client.complete(n=5, temperature=0, max_tokens=48)
    assert {choice["text"] for choice in answer["choices"]} == {GREEDY}


def test_best_of(client):
    """best_of 6, n 2: the two of six with the highest mean log-probability, best first."""
    parameters = dict(seed=9, max_tokens=12, ignore_eos=True)
    every = client.complete(n=6, logprobs=0, **parameters)["choices"]
    values = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / 12 for c in every}
    ranked = sorted(values, key=values.get, reverse=True)
    answer = client.complete(n=2, best_of=6, **parameters)
    assert [choice["text"] for choice in answer["choices"]] == ranked[:2]
    assert answer["usage"]["completion_tokens"] == 6 * 12
