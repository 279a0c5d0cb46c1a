# SPDX-License-Identifier: Apache-2.0
"""Every field of a chat request: what it does, what it refuses, what is ignored, null everywhere.

The list of fields is the official client's own: one that a new version adds fails here until
somebody says what becomes of it.
"""

import inspect

import pytest
from openai.resources.chat.completions import Completions

from harness.models import DEMO

HELLO = [{"role": "user", "content": "Speak, my lord."}]
BASE = {"messages": HELLO, "max_tokens": 12, "seed": 11, "temperature": 0.9}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

# Fields that do what they do in /v1/completions: values that show it, values that are refused.
SAMPLING = {
    "temperature": ([0, 0.3, 2], [-0.1, 2.1, "1", True, [], 1e999]),
    "top_p": ([0.0, 0.5, 1], [-1, 1.1, "x"]),
    "top_k": ([1, 40, -1, 0], [-2, 1.5, "x"]),
    "min_p": ([0.0, 0.2, 1], [-1, 1.1, "x"]),
    "typical_p": ([0.4, 1], [-0.1, 1.1, "x"]),
    "presence_penalty": ([-2, 1.5], [-2.1, 2.1, "x"]),
    "frequency_penalty": ([-2, 1.5], [-2.1, 2.1, "x"]),
    "repetition_penalty": ([0.5, 1.4], [0, 11, "x"]),
    "logit_bias": ([{}, {"5": -100, "the": 3.5}], [[], {"5": 101}, {"5": "x"}, {"": 1}, 5]),
    "seed": ([0, -5, 2**63], ["x", 1.5, True]),
    "stop": ([[], "the", [".", ",", "\n"]], [5, [""], ["a"] * 17, [5], {}]),
    "max_tokens": ([0, 1, 30], [-1, 1.5, "x", 2**40]),
    "min_tokens": ([0, 12], [-1, 13, "x"]),
    "ignore_eos": ([True, False], [1, "true"]),
    "stop_token_ids": ([[], [12, 199]], [[-1], ["x"], 12]),
    "include_stop_str_in_output": ([True], ["x"]),
    "allowed_token_ids": ([[5, 6, 7, 8, 12, 199]], [[], [-1], "x"]),
    "bad_words": ([["the", " and"]], ["x", [5]]),
    "skip_special_tokens": ([True, False], ["x"]),
    "cache_prompt": ([True, False], ["x"]),
    "cache_salt": (["a"], [5]),
    "priority": ([-3, 7], ["x"]),
    "n": ([1, 3], [0, 129, 1.5, "x"]),
    "user": (["me"], [5]),
    "metadata": ([{"a": "b"}], ["x", []]),
    "model": ([DEMO], [5]),
}

# Fields of a chat alone: values that leave the answer as it is, values that are refused (all by name).
OWN = {
    "max_completion_tokens": ([12], [-1, 1.5, "x"]),
    "logprobs": ([True, False], [3, "x"]),
    "stream": ([False], [1, "x"]),
    "stream_options": ([{}, {"include_usage": True}], ["x", 5]),
    "tool_choice": (["none", "auto"], []),
    "function_call": (["none", "auto"], []),
    "tools": ([[]], [[TOOL], "x", {}]),
    "functions": ([[]], [[TOOL["function"]], "x"]),
    "modalities": ([["text"], []], [["audio"], ["text", "audio"], "text", [5]]),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "text", {}]),
    "add_generation_prompt": ([True], ["x"]),
    "continue_final_message": ([False], ["x"]),
    "chat_template_kwargs": ([{}, {"x": 1}], [[], "x"]),
}

# Fields that mean nothing to such a model.
IGNORED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
    # of completions alone, or of nobody: ignored as unknown
    "echo": True,
    "best_of": 5,
    "suffix": "x",
    "prompt": "x",
    "no_such_field": {"a": [1, 2]},
}
ELSEWHERE = {"messages", "top_logprobs"}  # test_chat.py
OF_THE_CLIENT = {"self", "extra_body", "extra_headers", "extra_query", "timeout"}


def post(client, **fields):
    return client.post("/v1/chat/completions", {**BASE, **fields})


def contents(client, **fields):
    answer = post(client, **fields)
    assert answer.status == 200, answer
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


@pytest.fixture(scope="module")
def plain(shared_client):
    return contents(shared_client)


@pytest.fixture(scope="module")
def prompt(shared_client):
    return shared_client.post("/apply-template", {"messages": HELLO}).json()["prompt"]


def test_no_field_of_the_official_client_is_forgotten():
    fields = set(inspect.signature(Completions.create).parameters) - OF_THE_CLIENT
    assert fields > {"messages", "tools", "top_p"}
    assert not fields - ELSEWHERE - SAMPLING.keys() - OWN.keys() - IGNORED.keys()


@pytest.mark.parametrize("field, value", [(f, v) for f, (values, _) in SAMPLING.items() for v in values])
def test_as_in_a_completion(client, prompt, field, value):
    fields = {**BASE, field: value}
    fields.pop("messages")
    text = client.complete(prompt, **fields)["choices"]
    assert contents(client, **{field: value}) == [choice["text"] for choice in text]


@pytest.mark.parametrize("field, value", [(f, v) for f, (values, _) in OWN.items() for v in values])
def test_leaves_the_answer(client, plain, field, value):
    assert contents(client, **{field: value}) == plain


@pytest.mark.parametrize("field, value", [(f, v) for f, (_, bad) in {**SAMPLING, **OWN}.items() for v in bad])
def test_refused_by_name(client, field, value):
    error = post(client, **{field: value}).error(400)
    if value != float("inf"):  # not JSON at all
        assert error["param"] == field and field in error["message"]


@pytest.mark.parametrize("field", IGNORED)
def test_ignored(client, plain, field):
    assert contents(client, **{field: IGNORED[field]}) == plain


@pytest.mark.parametrize("field", sorted((SAMPLING.keys() | OWN.keys() | IGNORED.keys() | {"top_logprobs"}) - BASE.keys()))
def test_null(client, plain, field):
    assert contents(client, **{field: None}) == plain


def test_null_is_the_default(client):
    """Of the fields that every request here sets."""
    nulls = dict.fromkeys(["temperature", "seed", "max_tokens"])
    answer = client.post("/v1/chat/completions", {"messages": HELLO, **nulls, "max_completion_tokens": 3})
    assert answer.status == 200 and answer.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("fields", [
    {"tools": [TOOL], "tool_choice": "none"}, {"functions": [TOOL["function"]], "function_call": "none"},
    {"tools": [TOOL], "functions": [TOOL["function"]], "tool_choice": "none", "function_call": "none"}])
def test_tools_that_may_not_be_called(client, plain, fields):
    assert contents(client, **fields) == plain


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}, None])
def test_tools_that_may_be_called(client, choice):
    post(client, tools=[TOOL], tool_choice=choice).error(400, param="tools")
    post(client, functions=[TOOL["function"]], function_call=choice).error(400, param="functions")


def test_everything_ignored_at_once(client, plain):
    known = {field: value for field, value in IGNORED.items() if field != "no_such_field"}
    assert contents(client, **known) == plain


def test_only_what_nobody_knows_is_named_in_the_log(start):
    server = start()
    fields = {field: values[0] for field, (values, _) in {**SAMPLING, **OWN}.items() if values and field != "max_tokens"}
    assert post(server.client, **{**fields, **IGNORED, "top_logprobs": 0}).status == 200
    for field in SAMPLING.keys() | OWN.keys() | IGNORED.keys():
        unknown = field in {"echo", "best_of", "suffix", "prompt", "no_such_field"}
        assert (f"unknown parameter '{field}'" in server.tail()) == unknown, field


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
@pytest.mark.parametrize("content", ["text", [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}], [], ""])
def test_roles_and_contents(client, role, content):
    message = {"role": role, "content": content, "name": "n", "tool_call_id": "x"}
    answer = client.post("/apply-template", {"messages": [message, *HELLO]})
    assert answer.status == 200, answer
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    name = {"developer": "System"}.get(role, role.capitalize())
    assert answer.json()["prompt"] == f"{name}: {text}\n\nUser: Speak, my lord.\n\nAssistant:"


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, {"type": "file", "file": {"file_id": "x"}},
    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}, {"type": "video_url", "video_url": {"url": "x"}}])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_parts_that_are_no_text(client, part, role):
    message = {"role": role, "content": [{"type": "text", "text": "see"}, part]}
    error = client.post("/v1/chat/completions", {"messages": [message]}).error(400, param="messages[0].content")
    assert part["type"] in error["message"]


def test_a_refusal_and_calls_of_an_earlier_turn(client):
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for message in ({"content": None, "tool_calls": calls}, {"tool_calls": calls}, {"content": None, "refusal": "no"},
                    {"content": [{"type": "refusal", "refusal": "no"}]}, {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
                    {"content": "x", "audio": None, "refusal": None, "tool_calls": None, "function_call": None, "name": None}):
        assert len(contents(client, messages=[*HELLO, {"role": "assistant", **message}, *HELLO])) == 1


def test_a_limit_and_an_empty_choice(client):
    (choice,) = post(client, max_completion_tokens=0).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
