# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions and /apply-template: messages in, the template's prompt, both forms out."""

import contextlib
import json
import signal
import subprocess
import time

import pytest

from harness import models, shapes
from harness.client import Answer, Stream
from harness.models import DEMO
from harness.program import BINARY, SCALE, wait_until

HELLO = [{"role": "user", "content": "Speak, my lord."}]
PROMPT = "User: Speak, my lord.\n\nAssistant:"


def post(client, messages=None, **parameters):
    return client.post("/v1/chat/completions", {"messages": messages or HELLO, **parameters})


def chat(client, messages=None, **parameters):
    answer = post(client, messages, **parameters)
    assert answer.status == 200, answer
    parsed = answer.json()
    shapes.check("chat", parsed)
    return parsed


def content(client, messages=None, **parameters):
    (choice,) = chat(client, messages, **parameters)["choices"]
    return choice["message"]["content"]


@contextlib.contextmanager
def open_stream(client, messages=None, **parameters):
    connection = client.connect()
    try:
        body = {"messages": messages or HELLO, "stream": True, **parameters}
        connection.request("POST", "/v1/chat/completions", body=json.dumps(body),
                           headers=client.headers({"Content-Type": "application/json"}))
        response = connection.getresponse()
        assert response.status == 200, Answer(response.status, response.headers, response.read())
        yield Stream(connection, response)
    finally:
        connection.close()


def stream(client, messages=None, **parameters):
    with open_stream(client, messages, **parameters) as events:
        chunks = list(events)
        assert events.done
    for chunk in chunks:
        shapes.check("chat_chunk", chunk)
    return chunks


def joined(chunks):
    texts = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts.setdefault(choice["index"], []).append(choice["delta"])
    for index, deltas in texts.items():
        assert deltas[0]["role"] == "assistant", "the first chunk of a choice says whose it is"
        assert all("role" not in delta for delta in deltas[1:])
        texts[index] = "".join(delta.get("content", "") for delta in deltas)
    return texts


def template(client, messages=None, **parameters):
    answer = client.post("/apply-template", {"messages": messages or HELLO, **parameters})
    assert answer.status == 200, answer
    return answer.json()["prompt"]


# ---- the answer


@pytest.mark.smoke
def test_equal_to_the_completion_of_its_prompt(client):
    prompt = template(client)
    assert prompt == PROMPT
    text = client.greedy(prompt, max_tokens=40)
    assert content(client, temperature=0, max_tokens=40) == text
    assert joined(stream(client, temperature=0, max_tokens=40)) == {0: text}


@pytest.mark.smoke
def test_streamed_and_whole_agree(client):
    options = dict(seed=7, n=3, max_tokens=60, stop=["the", "ou"], logprobs=True, top_logprobs=3)
    whole = chat(client, **options)
    chunks = stream(client, **options)
    texts = joined(chunks)
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert texts[choice["index"]] == choice["message"]["content"]
        assert "the" not in texts[choice["index"]] and "ou" not in texts[choice["index"]]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert all(c["finish_reason"] is None for c in own[:-1])
        listed = [entry for c in own if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert listed == choice["logprobs"]["content"]


def test_the_end_of_a_stream(client):
    chunks = stream(client, max_tokens=3, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_half_characters_never_leak(client):
    ids = models.byte_ids("é€😀".encode())
    (choice,) = chat(client, allowed_token_ids=ids, max_tokens=64, seed=3)["choices"]
    with open_stream(client, allowed_token_ids=ids, max_tokens=64, seed=3) as events:
        chunks = list(events)  # decoding each line strictly
    assert joined(chunks) == {0: choice["message"]["content"]}


def test_logprobs(client):
    options = dict(temperature=0, max_tokens=5, logprobs=True)
    (plain,) = chat(client, **options)["choices"]
    (choice,) = chat(client, top_logprobs=4, **options)["choices"]
    assert [e["top_logprobs"] for e in plain["logprobs"]["content"]] == [[]] * 5
    entries = choice["logprobs"]["content"]
    assert bytes(b for e in entries for b in e["bytes"]).decode() == choice["message"]["content"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 4
        best = entry["top_logprobs"][0]
        assert (best["token"], best["logprob"], best["bytes"]) == (entry["token"], entry["logprob"], entry["bytes"])
        ranked = [e["logprob"] for e in entry["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)
    (same,) = client.complete(PROMPT, temperature=0, max_tokens=5, logprobs=4)["choices"]
    assert same["logprobs"]["token_logprobs"] == [e["logprob"] for e in entries]


@pytest.mark.parametrize("limits, tokens", [
    ({}, 512), ({"max_tokens": None, "max_completion_tokens": None}, 512), ({"max_tokens": 4}, 4),
    ({"max_completion_tokens": 5}, 5), ({"max_tokens": 9, "max_completion_tokens": 3}, 3), ({"max_tokens": 0}, 0),
    ({"max_tokens": 9, "max_completion_tokens": 0}, 0)])
def test_limits(client, limits, tokens):
    answer = chat(client, ignore_eos=True, **limits)
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == "length"
    if tokens == 0:
        assert answer["choices"][0]["message"]["content"] == ""
        assert joined(stream(client, **limits)) == {0: ""}


def test_seeds(client):
    assert content(client, seed=5, max_tokens=30) == content(client, seed=5, max_tokens=30)
    assert content(client, seed=5, max_tokens=30) != content(client, seed=6, max_tokens=30)


# ---- what is taken

NULLS = ["max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs",
         "stream", "stream_options", "logit_bias", "presence_penalty", "frequency_penalty", "tools", "tool_choice",
         "functions", "function_call", "modalities", "response_format", "audio", "user", "metadata", "store",
         "prediction", "service_tier", "reasoning_effort", "web_search_options", "moderation", "verbosity",
         "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "parallel_tool_calls",
         "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "model"]


def test_null_everywhere(client):
    nulls = dict.fromkeys(name for name in NULLS if name != "max_tokens")
    assert content(client, temperature=0, max_tokens=4) == \
        content(client, **{**nulls, "temperature": 0, "max_tokens": 4})


@pytest.mark.parametrize("extra", [
    {"store": True, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "reasoning_effort": "low"},
    {"prediction": {"type": "content", "content": "x"}, "modalities": ["text"], "verbosity": "low"},
    {"audio": {"voice": "alloy", "format": "wav"}, "web_search_options": {}, "response_format": {"type": "text"}},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s", "parallel_tool_calls": False},
    {"tools": [], "functions": []},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    {"functions": [{"name": "f"}], "function_call": "none"}, {"moderation": {}}])
def test_ignored(client, extra):
    assert content(client, temperature=0, max_tokens=4, **extra) == content(client, temperature=0, max_tokens=4)


@pytest.mark.parametrize("extra, param", [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"), ({"modalities": ["text", "audio"]}, "modalities"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"logprobs": 3}, "logprobs"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"), ({"max_tokens": "x"}, "max_tokens"),
    ({"temperature": 3}, "temperature"), ({"n": 0}, "n"), ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"stop": [""]}, "stop")])
def test_refused(client, extra, param):
    post(client, **extra).error(400, param=param)


@pytest.mark.parametrize("messages, param", [
    ([], "messages"), ({}, "messages"), ("hi", "messages"), (None, "messages"), (["hi"], "messages"),
    ([{"content": "x"}], "messages[0].role"), ([{"role": "robot", "content": "x"}], "messages[0].role"),
    ([{"role": 5, "content": "x"}], "messages[0].role"), ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"), ([{"role": "user", "content": 5}], "messages[0].content"),
    (HELLO + [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[1].content"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content"),
    ([{"role": "assistant", "tool_calls": 5}], "messages[0].tool_calls")])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template"])
def test_bad_messages(client, messages, param, path):
    client.post(path, {"messages": messages}).error(400, param=param)


def test_missing_messages_and_unknown_model(client):
    client.post("/v1/chat/completions", {}).error(400, param="messages")
    client.post("/v1/chat/completions", b"[]").error(400)
    post(client, model="nope").error(404, param="model", code="model_not_found")
    client.post("/apply-template", {"messages": HELLO, "model": "nope"}).error(404, code="model_not_found")


# ---- prompts


@pytest.mark.smoke
def test_the_plain_form(client):
    assert template(client, [
        {"role": "developer", "content": "Be brief. "},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]) == "System: Be brief.\n\nUser: one\ntwo\n\nAssistant: \n\nTool: 42\n\nAssistant:"


def test_the_last_message_is_continued_or_a_turn_begins(client):
    last = HELLO + [{"role": "assistant", "content": "My lord, the"}]
    assert template(client, last).endswith("Assistant: My lord, the\n\nAssistant:")
    continued = template(client, last, continue_final_message=True)
    assert continued.endswith("Assistant: My lord, the")
    assert content(client, last, continue_final_message=True, temperature=0, max_tokens=12) == \
        client.greedy(continued, max_tokens=12)
    assert template(client, add_generation_prompt=False).endswith("my lord.\n\n")


@pytest.mark.own_server  # its tree is more than the share of 256 MiB that a container gives requests
@pytest.mark.timeout(120)
def test_a_hundred_thousand_messages(client):
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "so"} for i in range(100_000)]
    started = time.monotonic()
    prompt = template(client, messages)
    assert time.monotonic() - started < 20 * SCALE
    assert prompt.count("User: so\n\n") == 50_000 and prompt.endswith("Assistant:")


def test_a_hundred_thousand_messages_in_a_small_container(start):
    server = start("--max-request-memory", "100M", "--cache-bytes", "16M")
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "so"} for i in range(100_000)]
    assert template(server.client, messages).endswith("Assistant:")
    assert server.resident_bytes("VmHWM") < 224 << 20


def test_a_conversation_beyond_the_memory_is_said_to_be(start):
    """What can never be read is not told to come again; what can be is."""
    own = start("--max-request-memory", "16M").client
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "so"} for i in range(100_000)]
    refused = post(own, messages).error(400, param="messages")
    assert "--max-request-memory" in refused["message"] and "16 MiB" in refused["message"]
    assert template(own, messages[:5000]).count("User: so\n\n") == 2500


# ---- other templates


def test_a_named_template(start):
    own = start("--chat-template", "chatml", "--default-max-tokens", "7").client
    assert template(own) == "<|im_start|>user\nSpeak, my lord.<|im_end|>\n<|im_start|>assistant\n"
    assert chat(own, ignore_eos=True)["usage"]["completion_tokens"] == 7


def test_a_template_of_a_file(start, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
                    "{{ messages | map(attribute='content') | join(' ') }}{{ tail }}{{ messages[0].nope.x if bad }}")
    own = start("--chat-template", path).client
    assert template(own) == "Speak, my lord."
    assert template(own, chat_template_kwargs={"tail": "!"}) == "Speak, my lord.!"
    refused = post(own, [{"role": "user", "content": "no"}]).error(400, param="messages")
    assert refused["message"] == "not this"
    post(own, chat_template_kwargs={"bad": True}).error(400, param="chat_template")
    post(own, chat_template_kwargs={"bad": True}, stream=True).error(400, param="chat_template")
    assert content(own, temperature=0, max_tokens=10) == \
        own.greedy("Speak, my lord.", max_tokens=10, add_special_tokens=False)


@pytest.mark.own_server
@pytest.mark.parametrize("text, complaint", [("line one\n{% include 'x' %}", "line 2"), ("{{ x", "line 1"),
                                             ("{{ x | nonsense }}", "'nonsense'")])
def test_a_broken_template_is_refused_at_start(tmp_path, text, complaint):
    path = tmp_path / "broken.jinja"
    path.write_text(text)
    command = [str(BINARY), "serve", "--port", "0", "--model", f"{DEMO}={models.folder(DEMO)}", "--chat-template", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60 * SCALE)
    assert done.returncode not in (0, -signal.SIGSEGV, -signal.SIGABRT), done.stdout
    assert complaint in done.stdout


def test_what_chats_of_a_base_model_are_is_said_after_the_address(start):
    plain = start()
    wait_until(lambda: "no chat template" in plain.tail(), 10, "the log says it")
    assert plain.log().startswith("ssmd ")
    chosen = start("--chat-template", "plain")
    assert chosen.stop() == 0 and "no chat template" not in chosen.log()
