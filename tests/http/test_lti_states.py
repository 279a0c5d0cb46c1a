# SPDX-License-Identifier: Apache-2.0
"""What states make possible, with the ancestors' states: saved prompts, n > 1, sessions, forks and files of s4d, s4
and h3 models over HTTP, checked as a Mamba's are, which runs beside them.

Answers are compared token by token, and their logprobs: a prompt of an LTI model may run as a convolution that is cut
elsewhere, so those agree to fp32's rounding at logits of up to 46, not to the bit.
"""

import random

import pytest

from harness import models
from harness.metrics import total

pytestmark = pytest.mark.own_server

MODELS = ["shakespeare-s4d", "copying-s4d", "copying-lssl", "induction-h3", "copying-mamba"]
GREEDY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True, "logprobs": 0}
TOLERANCE = 4e-3


def ids_of(name, length, seed):
    chance = random.Random(seed)
    most = 900 if name.startswith("shakespeare") else 15
    return [chance.randrange(1, most) for _ in range(length)]


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def same(choice, want):
    assert choice["token_ids"] == want["token_ids"]
    for a, b in zip(choice["logprobs"]["token_logprobs"], want["logprobs"]["token_logprobs"], strict=True):
        assert abs(a - b) <= TOLERANCE


def computed(client, ids, **parameters):
    """The one choice for a text that nothing is known of."""
    answer = client.complete(ids, cache_prompt=False, **{**GREEDY, **parameters})
    assert cached(answer) == 0
    return answer["choices"][0]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def serve(name, start):
    """serve(*options): a client of a server of this model alone."""
    return lambda *options: start("--model", models.folder(name), "--threads", "1", *options).client


@pytest.mark.parametrize("length", [1, 3, 64, 300, 1100])
def test_a_saved_beginning_changes_no_answer(name, serve, length):
    client = serve()
    ids = ids_of(name, length, 1)
    first = client.complete(ids, **GREEDY)
    ran = total(client, "ssmd_prompt_tokens_total")
    again = client.complete(ids, **GREEDY)
    assert cached(first) == 0 and cached(again) == length
    assert total(client, "ssmd_prompt_tokens_total") == ran
    longer = ids + first["choices"][0]["token_ids"][:-1] + ids_of(name, 20, 2)
    further = client.complete(longer, **GREEDY)
    assert cached(further) == length + 11  # the end of the answer but its last token
    for answer, text in ((first, ids), (again, ids), (further, longer)):
        same(answer["choices"][0], computed(client, text))


def test_choices_run_their_prompt_once(name, serve):
    client = serve()
    ids = ids_of(name, 400, 3)
    (want,) = client.complete(ids, cache_prompt=False, **GREEDY)["choices"]
    ran = total(client, "ssmd_prompt_tokens_total")
    for choice in client.complete(ids, n=5, cache_prompt=False, **GREEDY)["choices"]:
        same(choice, want)
    assert total(client, "ssmd_prompt_tokens_total") == ran + len(ids)
    warm = {**GREEDY, "temperature": 1, "seed": 5}
    drawn = [c["token_ids"] for c in client.complete(ids, n=4, **warm)["choices"]]
    assert drawn == [c["token_ids"] for c in client.complete(ids, n=4, **warm)["choices"]]


def test_sessions_and_forks_continue_the_whole_text(name, serve):
    client = serve()
    texts = {"s": []}

    def turn(session, seed, length):
        ids = ids_of(name, length, seed)
        answer = client.complete(ids, session=session, **GREEDY)
        texts[session] = texts[session] + ids
        assert answer["usage"]["prompt_tokens"] == len(texts[session])
        same(answer["choices"][0], computed(client, texts[session]))
        texts[session] = texts[session] + answer["choices"][0]["token_ids"]

    for seed, length in enumerate((150, 1, 40, 300)):
        turn("s", seed, length)
    assert client.post("/v1/sessions/s/fork", {"id": "t"}).status == 201
    texts["t"] = texts["s"]
    turn("t", 10, 30)
    turn("s", 11, 30)
    assert client.get("/v1/sessions/s").json()["tokens"] == len(texts["s"])


def test_a_state_goes_from_server_to_server(name, serve, start):
    one, two = serve(), serve()
    ids, more = ids_of(name, 200, 4), ids_of(name, 25, 5)
    drawn = one.complete(ids, session="s", **GREEDY)["choices"][0]["token_ids"]
    state = one.get("/v1/sessions/s/state")
    assert state.status == 200
    assert two.request("PUT", "/v1/sessions/there/state", state.body).status == 201
    assert two.get("/v1/sessions/there/state").body == state.body
    here = one.complete(more, session="s", **GREEDY)
    there = two.complete(more, session="there", **GREEDY)
    assert cached(there) == cached(here) == len(ids) + 11
    same(there["choices"][0], here["choices"][0])
    same(there["choices"][0], computed(two, ids + drawn + more))
    other = start("--model", models.folder("copying-s4d" if name != "copying-s4d" else "copying-mamba")).client
    other.request("PUT", "/v1/sessions/there/state", state.body).error(400, "state")
    assert other.get("/v1/sessions").json()["data"] == []


def test_states_outlive_the_process(name, serve, start, tmp_path):
    options = ("--model", models.folder(name), "--state-dir", tmp_path / "states", "--durability", "sync")
    server = start(*options)
    ids, more = ids_of(name, 90, 6), ids_of(name, 10, 7)
    drawn = server.client.complete(ids, session="s", **GREEDY)["choices"][0]["token_ids"]
    server.kill()
    client = start(*options).client
    answer = client.complete(more, session="s", **GREEDY)
    assert cached(answer) == len(ids) + 11
    same(answer["choices"][0], computed(client, ids + drawn + more))
