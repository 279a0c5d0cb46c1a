# SPDX-License-Identifier: Apache-2.0
"""Every parameter of /v1/completions with values that it must refuse, each by its name."""

import json

import pytest

BIG = 10**18
BOOLEAN = [1, 0, "true", [], {}]
UNIT = [-0.001, 1.001, "0.5", True, [], {}, 1e300]
PENALTY = [-2.01, 2.01, "1", True, [], {}, 1e300]
STRING = [5, 1.5, True, [], {}]

REFUSED = {
    "model": [5, 1.5, True, [], {}],
    "prompt": [5, 1.5, True, {}, [1.5], [True], [None], ["a", 1], [1, "a"], [[1], "a"], ["a", [1]],
               [[1.5]], [["a"]], [[None]], [[[1]]], [-1], [1024], [BIG], [[1], [-1]], [{}]],
    "max_tokens": [-1, 1.5, "5", True, [], {}],
    "temperature": [-0.001, 2.001, "1", True, [], {}, 1e300],
    "top_p": UNIT,
    "n": [0, -1, 129, BIG, 1.5, "2", True, [], {}],
    "best_of": [-1, 129, 1.5, "2", True, [], {}],
    "stream": BOOLEAN,
    "stream_options": ["x", 5, True, []],
    "logprobs": [-1, 21, BIG, 1.5, "5", True, [], {}],
    "echo": BOOLEAN,
    "stop": [5, True, {}, [1], [None], [["a"]], ["a"] * 17],
    "seed": ["7", 1.5, True, [], {}],
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "logit_bias": [[], "x", 5, True, {"5": 100.5}, {"5": -100.5}, {"5": "1"}, {"5": None},
                   {"5": True}, {"5": []}],
    "suffix": [5, True, [], {}, "the end"],
    "user": STRING,
    "metadata": ["x", 5, True, []],
    "response_format": ["text", "json_object", 5, True, [], {}, {"type": None}, {"type": 5}, {"type": "json_object"},
                        {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, {"type": "y" * 999}],
    "top_k": [1.5, "5", True, [], {}],
    "min_p": UNIT,
    "typical_p": UNIT,
    "repetition_penalty": [0, -1, "1", True, [], {}],
    "ignore_eos": BOOLEAN,
    "min_tokens": [-1, 1.5, "5", True, [], {}],
    "stop_token_ids": [5, "x", True, {}, ["x"], [1.5], [True], [-1], [[1]]],
    "include_stop_str_in_output": BOOLEAN,
    "allowed_token_ids": [5, "x", True, {}, ["x"], [1.5], [-1], [1024], [BIG], [True]],
    "bad_words": [5, "x", True, {}, [5], [None], [["a"]]],
    "return_token_ids": BOOLEAN,
    "skip_special_tokens": BOOLEAN,
    "add_special_tokens": BOOLEAN,
    "cache_prompt": BOOLEAN,
    "cache_salt": STRING,
    "priority": [1.5, "1", True, [], {}],
    "timings": BOOLEAN,
    "return_tokens_as_token_ids": BOOLEAN,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(client, name):
    """One connection for all values: each error leaves it usable."""
    connection = client.connect()
    for value in REFUSED[name]:
        body = {"prompt": "x", "max_tokens": 1, name: value}
        answer = client.post("/v1/completions", body, connection=connection)
        assert answer.status == 400, (value, answer)
        error = answer.error(400)
        assert error["type"] == "invalid_request_error", (value, error)
        assert error["param"] is not None and error["param"].split(".")[0].split("[")[0] == name, \
            (value, error)
        assert name in error["message"], (value, error)
    connection.close()


@pytest.mark.smoke
def test_smoke_refused(client):
    for name in ("temperature", "stop", "logit_bias", "prompt", "max_tokens"):
        test_refused(client, name)


def test_missing_prompt(client):
    for body in ({}, {"max_tokens": 1}, {"prompt": None}):
        assert client.post("/v1/completions", body).error(400, param="prompt")["message"] == "prompt is missing"


def test_the_other_path_s_field(client):
    chat = {"messages": [{"role": "user", "content": "x"}]}
    assert "/v1/chat/completions" in client.post("/v1/completions", chat).error(400, param="prompt")["message"]
    refused = client.post("/v1/chat/completions", {"prompt": "x"}).error(400, param="messages")
    assert refused["message"].endswith(" /v1/completions")


@pytest.mark.parametrize("options", [{"include_usage": 1}, {"include_usage": "yes"},
                                     {"continuous_usage_stats": []}])
@pytest.mark.parametrize("stream", [False, True])
def test_stream_options_members(client, options, stream):
    answer = client.post("/v1/completions", {"prompt": "x", "stream": stream,
                                             "stream_options": options})
    error = answer.error(400)
    assert error["param"].startswith("stream_options")


def test_stream_options_without_stream_has_no_effect(client):
    answer = client.complete(temperature=0, max_tokens=4, stream_options={"include_usage": True})
    assert answer["choices"] == client.complete(temperature=0, max_tokens=4)["choices"]


def test_best_of_below_n(client):
    client.post("/v1/completions", {"prompt": "x", "n": 3, "best_of": 2}).error(400, param="best_of")


def test_best_of_with_stream(client):
    body = {"prompt": "x", "best_of": 2, "stream": True}
    client.post("/v1/completions", body).error(400, param="best_of")


@pytest.mark.parametrize("text", ["1" + "0" * 40, "-1" + "0" * 40, "1e999", "18446744073709551616"])
@pytest.mark.parametrize("name", ["seed", "max_tokens", "n", "temperature"])
def test_numbers_beyond_every_range(client, name, text):
    body = b'{"prompt":"x","max_tokens":1,"%s":%s}' % (name.encode(), text.encode())
    assert client.post("/v1/completions", body.replace(b'"max_tokens":1,"max_tokens"', b'"max_tokens"')
                       ).error(400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_any_seed(client, seed):
    assert client.text(seed=seed, max_tokens=4) == client.text(seed=seed, max_tokens=4)


@pytest.mark.parametrize("body", [
    {"temperature": 0}, {"temperature": 2}, {"temperature": 1}, {"top_p": 1}, {"top_p": 0},
    {"n": 128, "max_tokens": 1}, {"logprobs": 0}, {"logprobs": 20}, {"presence_penalty": -2},
    {"presence_penalty": 2}, {"frequency_penalty": -2}, {"frequency_penalty": 2},
    {"logit_bias": {}}, {"logit_bias": {"5": 100, "6": -100}}, {"stop": []}, {"stop": ["a"] * 16},
    {"best_of": 0}, {"best_of": 1}, {"min_p": 0}, {"min_p": 1}, {"typical_p": 1}, {"top_k": 0},
    {"top_k": 10**6}, {"repetition_penalty": 1}, {"min_tokens": 0}, {"stop_token_ids": []},
    {"bad_words": []}, {"metadata": {}}, {"user": ""}, {"stream_options": {}}, {"temperature": 1e-30},
    {"response_format": {"type": "text"}},
], ids=json.dumps)
def test_edges_are_accepted(client, body):
    client.complete(**{"max_tokens": 2, **body})


@pytest.mark.parametrize("body", [
    {"prompt": []}, {"prompt": [[]]}, {"prompt": [[], [1]]}, {"stop": ""}, {"stop": [""]},
    {"top_k": -1}, {"allowed_token_ids": []}, {"bad_words": [""]}, {"logit_bias": {"": 1}},
    {"min_tokens": 9, "max_tokens": 2}, {"stop_token_ids": [10**6]}, {"max_tokens": 2**31},
    {"logit_bias": {"99999999": 1}}, {"typical_p": 0}, {"repetition_penalty": 1e30}, {"session": 5},
    {"priority": 2**31}, {"max_tokens": 2**62},
], ids=json.dumps)
def test_edges_that_may_go_either_way(client, body):
    """Peers differ on these: an answer or a 400 that names it, and nothing else."""
    name = next(iter(body))
    with client.open_any({"prompt": "x", **body, "stream": True}) as (status, answer):
        assert status in (200, 400)
        if status == 400:
            assert answer.error(400)["param"].split("[")[0] == name


def test_the_first_fault_is_named_and_none_is_echoed(client):
    long = "y" * 50000
    answer = client.post("/v1/completions", {"prompt": "x", "temperature": long})
    answer.error(400, param="temperature")
    assert len(answer.body) < 2000
    answer = client.post("/v1/completions", {"prompt": "x", "logit_bias": {long: "x"}})
    assert answer.status == 400 and len(answer.body) < 2000
