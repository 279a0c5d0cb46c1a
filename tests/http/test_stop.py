# SPDX-License-Identifier: Apache-2.0
"""Ways to end: stop strings, stop ids, end of text, min_tokens, length."""

import pytest

from harness import models
from harness.client import joined
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)[1]
PROMPT, TEXT = GOLDEN["prompt"], GOLDEN["greedy_text"]  # ".\n\nProvost:\nI'll believe you, sir.\n..."


def stopped(client, **parameters):
    parameters = {"temperature": 0, "max_tokens": 48, **parameters}
    (choice,) = client.complete(PROMPT, **parameters)["choices"]
    chunks = client.stream(PROMPT, **parameters)
    assert joined(chunks)[0] == choice["text"]
    return choice


def every_substring(lengths):
    return sorted({TEXT[i:i + n] for n in lengths for i in range(0, len(TEXT) - n, 5)})


@pytest.mark.smoke
def test_cut(client):
    choice = stopped(client, stop="sir")
    assert choice["text"] == TEXT[:TEXT.index("sir")]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "sir")


def test_included(client):
    choice = stopped(client, stop="sir", include_stop_str_in_output=True)
    assert choice["text"] == TEXT[:TEXT.index("sir") + 3]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stop", every_substring([1, 2, 7, 20]))
def test_wherever_it_lies_in_the_tokens(client, stop):
    choice = stopped(client, stop=[stop])
    assert choice["text"] == TEXT[:TEXT.index(stop)]
    assert choice["stop_reason"] == stop


def test_the_one_that_ends_first(client):
    choice = stopped(client, stop=["believe you", "you", "Provost", "zzz"])
    assert choice["text"] == TEXT[:TEXT.index("Provost")]
    assert choice["stop_reason"] == "Provost"


def test_almost_a_stop_string_is_given_back(client):
    """Held back while it might go on, shown when it does not."""
    choice = stopped(client, stop=["I'll believe you, madam", "sir.\n\nQ"])
    assert choice["text"] == TEXT
    assert choice["finish_reason"] == "length" and choice["stop_reason"] is None


def test_held_back_in_a_stream(client):
    """No event shows the beginning of a stop string that then comes whole."""
    stop = "I'll believe you, sir."
    shown = ""
    for chunk in client.stream(PROMPT, temperature=0, max_tokens=48, stop=stop):
        shown += "".join(choice["text"] for choice in chunk["choices"])
        assert "I" not in shown
    assert shown == TEXT[:TEXT.index(stop)]


def test_held_back_at_the_end_is_released(client):
    """Ending by length inside a possible stop string shows what was held."""
    ids = GOLDEN["greedy_ids"]
    for n in (6, 10, 14):
        plain = client.greedy(PROMPT, max_tokens=n)
        choice = stopped(client, stop=[plain[-3:] + "###"], max_tokens=n)
        assert choice["text"] == plain, ids[:n]


def test_stop_in_the_prompt_does_not_count(client):
    assert stopped(client, stop="First Citizen")["text"] == TEXT


def test_stop_does_not_cut_the_echo(client):
    text = client.greedy(PROMPT, echo=True, stop=["proceed", "sir"], max_tokens=48)
    assert text == PROMPT + TEXT[:TEXT.index("sir")]


def test_sixteen_stops(client):
    stops = [f"never {i}" for i in range(15)] + ["sir"]
    assert stopped(client, stop=stops)["stop_reason"] == "sir"


def test_stop_of_many_bytes(client):
    assert stopped(client, stop=["\U0001f600\u4e2d", "you"])["stop_reason"] == "you"


def test_stop_usage_counts_what_was_drawn(client):
    """The engine is some tokens ahead of who looks for the string: on two busy cores it drew 48."""
    answer = client.complete(PROMPT, temperature=0, max_tokens=4000, stop="sir")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert 0 < answer["usage"]["completion_tokens"] < 4000


def test_stop_frees_the_other_choices_not(client):
    """One choice's stop string ends that choice alone."""
    answer = client.complete("ROMEO:", n=8, seed=3, stop=["the"], max_tokens=40, temperature=1)
    for choice in answer["choices"]:
        assert "the" not in choice["text"]
        assert choice["finish_reason"] == ("stop" if choice["stop_reason"] == "the" else "length")
    assert {c["finish_reason"] for c in answer["choices"]} == {"stop", "length"}


# ---- ids


@pytest.mark.smoke
def test_stop_token_ids(client):
    ids = GOLDEN["greedy_ids"]
    wanted = ids[9]
    first = ids.index(wanted)
    answer = client.complete(PROMPT, temperature=0, max_tokens=48, stop_token_ids=[wanted, 1023],
                             return_token_ids=True)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", wanted)
    assert answer["usage"]["completion_tokens"] == first + 1
    assert choice["token_ids"][:first] == ids[:first]
    assert TEXT.startswith(choice["text"])


def test_end_of_text(client):
    answer = client.complete(logit_bias={"0": 100}, max_tokens=5)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == ""
    assert choice["stop_reason"] in (None, 0)
    assert answer["usage"]["completion_tokens"] == 1


def test_ignore_eos(client):
    answer = client.complete(logit_bias={"0": 100}, max_tokens=5, ignore_eos=True,
                             return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["token_ids"] == [0] * 5


def test_min_tokens(client):
    answer = client.complete(logit_bias={"0": 50}, temperature=0, min_tokens=6, max_tokens=20,
                             return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 7
    assert 0 not in choice["token_ids"][:6]


def test_min_tokens_holds_stop_ids_off(client):
    ids = GOLDEN["greedy_ids"]
    (choice,) = client.complete(PROMPT, temperature=0, max_tokens=48, min_tokens=5,
                                stop_token_ids=[ids[2]], return_token_ids=True)["choices"]
    assert len(choice["token_ids"]) >= 6
    assert ids[2] not in choice["token_ids"][:5]
