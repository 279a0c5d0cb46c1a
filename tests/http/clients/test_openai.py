# SPDX-License-Identifier: Apache-2.0
"""The official openai client, as a user calls it: majors 1, 2 and 3 run the same tests."""

import asyncio
import concurrent.futures
import signal
import time

import openai
import pytest

from harness import models
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)[0]
HELLO = [{"role": "user", "content": "Speak, my lord."}]
CHAT = dict(model=DEMO, messages=HELLO, max_completion_tokens=20, seed=2)


@pytest.fixture
def api(client):
    with openai.OpenAI(base_url=client.url + "/v1", api_key=client.key or "none") as own:
        yield own


@pytest.mark.smoke
def test_whole(api):
    answer = api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=48, temperature=0)
    assert answer.choices[0].text == GOLDEN["greedy_text"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 50
    assert answer.object == "text_completion"
    assert answer._request_id


@pytest.mark.smoke
def test_streamed(api):
    stream = api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=48, temperature=0, stream=True,
                                    stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == GOLDEN["greedy_text"]
    assert chunks[-1].usage.completion_tokens == 48


def test_streams_share_a_connection(api):
    for _ in range(5):
        stream = api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=2, stream=True)
        assert list(stream)


def test_closing_a_stream_early(api):
    stream = api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=100000, stream=True)
    next(iter(stream))
    stream.close()
    assert api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=1)


def test_logprobs_and_extras(api):
    answer = api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=4, logprobs=2, echo=True,
                                    extra_body={"top_k": 5, "return_token_ids": True})
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 6
    assert len(answer.choices[0].token_ids) == 4


def test_models(api, served_models):
    assert [model.id for model in api.models.list()] == served_models
    assert api.models.retrieve(served_models[0]).id == served_models[0]


def test_errors(api):
    with pytest.raises(openai.NotFoundError) as caught:
        api.completions.create(model="nope", prompt="x")
    assert caught.value.code == "model_not_found" and caught.value.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model=DEMO, prompt="x", temperature=9)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError):
        api.completions.create(model=DEMO, prompt="x", temperature=9, stream=True)


@pytest.mark.smoke
def test_wrong_key(start):
    server = start("--api-key", "right")
    with openai.OpenAI(base_url=server.client.url + "/v1", api_key="wrong") as api:
        with pytest.raises(openai.AuthenticationError) as caught:
            api.models.list()
        assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=server.client.url + "/v1", api_key="right") as api:
        assert api.models.list().data


def test_full_queue_is_retried(start):
    """One slot, a queue of one: without retries some calls fail, with them all succeed."""
    server = start("--max-sessions", 1, "--max-queue", 1)
    parameters = dict(model=DEMO, prompt="ROMEO:", max_tokens=100, temperature=0, extra_body={"ignore_eos": True})

    def ask(retries):
        with openai.OpenAI(base_url=server.client.url + "/v1", api_key="x", max_retries=retries) as api:
            try:
                return api.completions.create(**parameters).choices[0].text
            except openai.RateLimitError as error:
                assert error.type == "rate_limit_exceeded"
                return None

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        none = list(pool.map(ask, [0] * 12))
        assert None in none and any(none)
        texts = list(pool.map(ask, [12] * 6))
    assert set(texts) == {server.client.greedy(max_tokens=100, ignore_eos=True)}


def test_draining_server_is_an_internal_error_to_clients(start):
    server = start()
    kept = openai.OpenAI(base_url=server.client.url + "/v1", api_key="x", max_retries=0)
    kept.models.list()
    with server.client.open_stream(max_tokens=10**6, ignore_eos=True) as stream:
        next(iter(stream))
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            kept.completions.create(model=DEMO, prompt="x", max_tokens=1)
    kept.close()
    assert server.wait(10) == 0


def test_async_client(client):
    async def run():
        async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key=client.key or "none") as api:
            answers = await asyncio.gather(*[
                api.completions.create(model=DEMO, prompt="ROMEO:", max_tokens=48, temperature=0) for _ in range(16)])
            return {answer.choices[0].text for answer in answers}

    assert asyncio.run(run()) == {GOLDEN["greedy_text"]}


# ---- chats


@pytest.mark.smoke
def test_chat(api):
    options = dict(CHAT, logprobs=True, top_logprobs=2)
    whole = api.chat.completions.create(**options)
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens <= 20
    assert whole.choices[0].logprobs.content[0].top_logprobs
    chunks = list(api.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_chat_events(api):
    whole = api.chat.completions.create(**CHAT)
    with api.chat.completions.stream(**CHAT) as events:
        seen = list(events)
    text = whole.choices[0].message.content
    assert "".join(event.delta for event in seen if event.type == "content.delta") == text
    assert [event.content for event in seen if event.type == "content.done"] == [text]


def test_chat_raw_answer(api):
    answer = api.chat.completions.with_raw_response.create(**CHAT)
    assert answer.headers["x-request-id"] and float(answer.headers["openai-processing-ms"]) >= 0
    assert answer.parse().choices[0].message.content


def test_chat_errors(api):
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model=DEMO, messages=[])
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(**CHAT, stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.value.param == "tools"


def test_async_chat_stream(client):
    async def run():
        async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key=client.key or "none") as api:
            whole = await api.chat.completions.create(**CHAT)
            stream = await api.chat.completions.create(**CHAT, stream=True)
            parts = [c.delta.content or "" async for chunk in stream for c in chunk.choices]
            return whole.choices[0].message.content, "".join(parts)

    text, streamed = asyncio.run(run())
    assert text and streamed == text
