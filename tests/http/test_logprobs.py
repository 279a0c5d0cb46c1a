# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities: their forms, and that they are what they say."""

import json
import math

import pytest

from harness import models
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)[1]
PROMPT = GOLDEN["prompt"]


def logprobs(client, prompt=PROMPT, **parameters):
    (choice,) = client.complete(prompt, **parameters)["choices"]
    found = choice["logprobs"]
    lengths = {len(found[key]) for key in found}
    assert len(lengths) == 1, lengths
    return choice, found


def log_softmax(logits):
    top = max(logits)
    norm = top + math.log(sum(math.exp(x - top) for x in logits))
    return [x - norm for x in logits]


@pytest.mark.smoke
def test_of_the_golden(client):
    """The first drawn token's distribution is the softmax of the golden's logits."""
    _, found = logprobs(client, max_tokens=1, temperature=0, logprobs=20)
    expected = log_softmax(GOLDEN["last_logits"])
    assert abs(found["token_logprobs"][0] - max(expected)) < 2e-3  # stored with five decimals
    listed = sorted(found["top_logprobs"][0].values(), reverse=True)
    for got, want in zip(listed, sorted(expected, reverse=True)):
        assert not abs(got - want) > 2e-3


def test_none_unless_asked(client):
    assert client.complete(max_tokens=1)["choices"][0]["logprobs"] is None


def test_zero_gives_the_drawn_token_alone(client):
    _, found = logprobs(client, max_tokens=6, logprobs=0, seed=1)
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        assert top == {token: value}


def test_five(client):
    _, found = logprobs(client, max_tokens=12, logprobs=5, seed=1, temperature=2)
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        assert 5 <= len(top) <= 6
        assert top[token] == value
        assert sum(math.exp(x) for x in top.values()) <= 1.0001


def test_greedy_draws_the_top(client):
    _, found = logprobs(client, max_tokens=12, logprobs=3, temperature=0)
    for value, top in zip(found["token_logprobs"], found["top_logprobs"]):
        assert value == max(top.values())
        assert len(top) == 3


def test_of_the_model_not_of_the_sampler(client):
    """Temperature, bias and filters change what is drawn, not the numbers."""
    _, plain = logprobs(client, max_tokens=1, temperature=0, logprobs=4)
    _, other = logprobs(client, max_tokens=1, temperature=2, top_k=1, logprobs=4)
    assert plain == other
    _, biased = logprobs(client, max_tokens=1, temperature=0, logprobs=4, logit_bias={"5": 100})
    for token, value in plain["top_logprobs"][0].items():
        assert biased["top_logprobs"][0][token] == value


def test_tokens_are_the_text(client):
    choice, found = logprobs(client, max_tokens=20, temperature=0, logprobs=1)
    assert "".join(found["tokens"]) == choice["text"]
    for token, offset in zip(found["tokens"], found["text_offset"]):
        assert choice["text"][offset:offset + len(token)] == token


def test_echo(client):
    choice, found = logprobs(client, max_tokens=4, temperature=0, logprobs=2, echo=True)
    count = len(GOLDEN["prompt_ids"])
    assert len(found["tokens"]) == count + 4
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert all(value is not None for value in found["token_logprobs"][1:])
    for token, offset in zip(found["tokens"], found["text_offset"]):
        assert choice["text"][offset:offset + len(token)] == token
    assert found["text_offset"][0] == 0
    assert found["text_offset"][count] == len(PROMPT)


def test_scoring(client):
    """max_tokens 0 with echo: the prompt's log-probabilities alone."""
    choice, found = logprobs(client, max_tokens=0, logprobs=3, echo=True)
    assert choice["text"] == PROMPT
    assert len(found["tokens"]) == len(GOLDEN["prompt_ids"])


@pytest.mark.smoke
def test_scoring_agrees_with_generating(client):
    """What was drawn step by step has, read as a prompt, the same log-probabilities."""
    choice, drawn = logprobs(client, max_tokens=30, temperature=0, logprobs=5, return_token_ids=True)
    ids = GOLDEN["prompt_ids"] + choice["token_ids"]
    _, scored = logprobs(client, ids, max_tokens=0, echo=True, logprobs=5)
    count = len(GOLDEN["prompt_ids"])
    assert scored["tokens"][count:] == drawn["tokens"]
    for a, b in zip(scored["token_logprobs"][count:], drawn["token_logprobs"]):
        assert not abs(a - b) > 1e-3
    for a, b in zip(scored["top_logprobs"][count:], drawn["top_logprobs"]):
        for token in a.keys() & b.keys():
            assert not abs(a[token] - b[token]) > 1e-3


def test_prompt_scores_do_not_depend_on_what_follows(client):
    _, zero = logprobs(client, max_tokens=0, echo=True, logprobs=3)
    _, some = logprobs(client, max_tokens=5, echo=True, logprobs=3)
    count = len(GOLDEN["prompt_ids"])
    assert some["token_logprobs"][:count] == zero["token_logprobs"]
    assert some["top_logprobs"][:count] == zero["top_logprobs"]


def test_same_digits_wherever_it_appears(client):
    answer = client.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "temperature": 0,
                                             "logprobs": 1, "echo": True})
    found = json.loads(answer.body, parse_float=str)["choices"][0]["logprobs"]
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        if value is not None:
            assert top[token] == value


def test_bytes_that_are_no_character(client):
    ids = models.byte_ids([0xF0, 0x9F, 0x98, 0x80])
    choice, found = logprobs(client, ids, max_tokens=0, echo=True, logprobs=0)
    assert choice["text"] == "\U0001f600"
    assert found["tokens"] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80"]


def test_text_offset_counts_characters(client):
    prompt = "\u4e2d\u6587 \U0001f600 ok"
    choice, found = logprobs(client, prompt, max_tokens=0, echo=True, logprobs=0)
    assert choice["text"] == prompt
    assert found["text_offset"] == sorted(found["text_offset"])
    assert found["text_offset"][-1] < len(prompt)
    (last,) = [i for i, token in enumerate(found["tokens"]) if token.strip() in ("ok", "o")][:1]
    assert prompt[found["text_offset"][last]:].startswith(found["tokens"][last])


def test_several_prompts_have_their_own(client):
    prompts = [g["prompt"] for g in models.goldens(DEMO)]
    answer = client.complete(prompts, max_tokens=1, temperature=0, logprobs=1)
    for choice, prompt in zip(answer["choices"], prompts):
        _, alone = logprobs(client, prompt, max_tokens=1, temperature=0, logprobs=1)
        assert choice["logprobs"]["tokens"] == alone["tokens"]
        assert not abs(choice["logprobs"]["token_logprobs"][0] - alone["token_logprobs"][0]) > 1e-4


def test_tokens_as_token_ids(client):
    choice, found = logprobs(client, max_tokens=4, temperature=0, logprobs=2, return_token_ids=True,
                             return_tokens_as_token_ids=True)
    assert found["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(key.startswith("token_id:") for top in found["top_logprobs"] for key in top)


def test_forbidden_tokens_have_their_probability_still(client):
    """A ban is the sampler's: no -9999 appears where the model itself gives a number."""
    _, found = logprobs(client, max_tokens=3, temperature=0, logprobs=5, allowed_token_ids=[5, 6])
    assert all(value > -9999 for top in found["top_logprobs"] for value in top.values())


def test_stop_string_and_logprobs(client):
    """Tokens that were cut away by a stop string are not listed beyond the text."""
    choice, found = logprobs(client, max_tokens=48, temperature=0, logprobs=1, stop="sir")
    assert all(offset <= len(choice["text"]) for offset in found["text_offset"])
