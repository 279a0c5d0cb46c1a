# SPDX-License-Identifier: Apache-2.0
"""Streamed completions: headers, events, and that their sum is the whole answer."""

import time

import pytest

from harness import models, shapes
from harness.client import joined
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)


def finish_reasons(chunks, index=0):
    return [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]
            if choice["index"] == index]


def check_order(chunks, n=1):
    """One id, one time, one model; each choice ends once, with its last chunk."""
    for key in ("id", "created", "model", "object"):
        assert len({chunk[key] for chunk in chunks}) == 1, key
    for index in range(n):
        reasons = finish_reasons(chunks, index)
        assert reasons[-1] in ("stop", "length"), reasons
        assert all(reason is None for reason in reasons[:-1]), reasons


@pytest.mark.smoke
def test_headers_and_events(client):
    with client.open_stream(temperature=0, max_tokens=8) as stream:
        headers = stream.response.headers
        assert headers["Content-Type"].split(";")[0] == "text/event-stream"
        assert headers["Cache-Control"] == "no-cache"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["x-request-id"]
        chunks = list(stream)
        assert stream.done
    for chunk in chunks:
        shapes.check("completion_chunk", chunk)
        assert "usage" not in chunk
    check_order(chunks)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["prompt"][:10])
def test_sum_is_the_golden(client, golden):
    chunks = client.stream(golden["prompt"], temperature=0, max_tokens=48)
    assert joined(chunks) == {0: golden["greedy_text"]}


def test_tokens_come_one_by_one(client):
    """48 tokens of text do not come in a few bursts."""
    chunks = client.stream(temperature=0, max_tokens=48)
    assert len(chunks) >= 40


def test_text_comes_before_the_end(client):
    """The first event is here long before the answer is complete."""
    with client.open_stream(max_tokens=2000, ignore_eos=True, seed=1) as stream:
        started = time.monotonic()
        events = iter(stream)
        next(events)
        first = time.monotonic() - started
        for _ in events:
            pass
        whole = time.monotonic() - started
    assert first < whole / 4


def test_body_ends_with_done_and_the_connection_lives(client):
    with client.raw() as raw:
        body = b'{"prompt":"ROMEO:","max_tokens":3,"stream":true}'
        for _ in range(3):
            raw.send_request("POST", "/v1/completions", body, client.header_lines())
            status, headers = raw.read_head()
            assert status == 200 and headers["transfer-encoding"] == "chunked"
            payload = b""
            while True:
                size = int(raw.read_until(b"\r\n"), 16)
                payload += raw.read_exactly(size)
                assert raw.read_exactly(2) == b"\r\n"
                if size == 0:
                    break
            assert payload.endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.smoke
def test_include_usage(client):
    whole = client.complete(temperature=0, max_tokens=8)
    chunks = client.stream(temperature=0, max_tokens=8, stream_options={"include_usage": True})
    assert all("usage" in chunk for chunk in chunks)
    *middle, last = chunks
    assert all(chunk["usage"] is None for chunk in middle)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    check_order(middle)


def test_include_usage_false(client):
    chunks = client.stream(max_tokens=3, stream_options={"include_usage": False})
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_continuous_usage(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = client.stream(temperature=0, max_tokens=8, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[0] <= 2 and counts[-1] == 8
    assert chunks[-1]["choices"] == []
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1


@pytest.mark.parametrize("parameters", [
    {"n": 3, "seed": 11}, {"echo": True, "seed": 1}, {"echo": True, "max_tokens": 0}, {"max_tokens": 0},
    {"stop": "the", "seed": 3}, {"seed": 4, "temperature": 2}, {"return_token_ids": True, "seed": 2},
    {"prompt": ["ROMEO:", "To be, or not to be"], "n": 2, "seed": 5}, {"max_tokens": 1, "seed": 6},
    {"stop": ["I", "e "], "include_stop_str_in_output": True, "seed": 8}, {"prompt": "", "seed": 9},
], ids=str)
def test_stream_equals_whole(client, parameters):
    parameters = {"max_tokens": 40, **parameters}
    whole = client.complete(**parameters)
    chunks = client.stream(**parameters)
    texts = joined(chunks)
    for choice in whole["choices"]:
        index = choice["index"]
        assert texts[index] == choice["text"]
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1]["stop_reason"] == choice["stop_reason"]
        if "token_ids" in choice:
            assert [i for c in own for i in c.get("token_ids", [])] == choice["token_ids"]
            assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert len(texts) == len(whole["choices"])
    check_order(chunks, len(whole["choices"]))


@pytest.mark.parametrize("parameters", [{"logprobs": 3}, {"logprobs": 0}, {"logprobs": 2, "echo": True},
                                        {"logprobs": 2, "echo": True, "max_tokens": 0},
                                        {"logprobs": 1, "stop": "th"}], ids=str)
def test_logprobs_in_a_stream(client, parameters):
    parameters = {"max_tokens": 12, "temperature": 0, **parameters}
    (whole,) = client.complete("To be, or", **parameters)["choices"]
    chunks = client.stream("To be, or", **parameters)
    pieces = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for piece in pieces for item in piece[key]] == whole["logprobs"][key], key


def test_timings_in_a_stream(client):
    chunks = client.stream(max_tokens=3, timings=True)
    assert any(chunk.get("timings") for chunk in chunks[-2:])


# ---- characters are never split

NOISE = range(0x80, 0x100)
LATIN = [0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80]


@pytest.mark.parametrize("values", [NOISE, LATIN], ids=["noise", "pieces of characters"])
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.smoke), 1, 2, 3])
def test_random_bytes(client, values, seed):
    """Tokens that are single bytes above ASCII: events are valid UTF-8, their sum the whole text."""
    parameters = dict(allowed_token_ids=models.byte_ids(values), temperature=2, seed=seed,
                      max_tokens=200)
    whole = client.text("", **parameters)
    chunks = client.stream("", **parameters)
    assert joined(chunks) == {0: whole}
    assert "\ufffd" in whole
    if values is LATIN:
        assert "\u00e9" in whole


def test_a_whole_character_in_pieces(client):
    """Four tokens, one emoji: nothing is shown before it is complete, then all of it."""
    ids = models.byte_ids("\U0001f600".encode())
    seen = []
    for cut in range(1, 5):
        chunks = client.stream(ids[:cut], echo=True, max_tokens=0)
        seen.append(joined(chunks)[0])
    assert seen[3] == "\U0001f600"
    assert all("\U0001f600" not in text for text in seen[:3])


def test_error_before_the_stream_is_plain_json(client):
    answer = client.post("/v1/completions", {"prompt": "x", "stream": True, "temperature": 9})
    answer.error(400, param="temperature")
