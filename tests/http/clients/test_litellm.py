# SPDX-License-Identifier: Apache-2.0
"""litellm as a library: chats and texts, whole, streamed, asynchronous, and its errors."""

import asyncio
import os

import pytest

from harness import models
from harness.models import DEMO

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it asks the network for prices
import litellm  # noqa: E402

GOLDEN = models.goldens(DEMO)[0]
HELLO = [{"role": "user", "content": "Speak, my lord."}]


@pytest.fixture
def at(client):
    """Where the server is, as every call of litellm wants to be told."""
    return dict(api_base=client.url + "/v1", api_key=client.key or "none", temperature=0, num_retries=0)


@pytest.fixture
def chat(at):
    return dict(at, model=f"openai/{DEMO}", messages=HELLO, max_tokens=24)


@pytest.fixture
def text(at):
    return dict(at, model=f"text-completion-openai/{DEMO}", prompt="ROMEO:", max_tokens=48)


@pytest.fixture
def answer(client):
    """What the chat must say, by a plain request."""
    whole = client.post("/v1/chat/completions", {"messages": HELLO, "temperature": 0, "max_tokens": 24})
    return whole.json()["choices"][0]["message"]["content"]


def test_chat(chat, answer):
    whole = litellm.completion(**chat)
    assert whole.choices[0].message.content == answer
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24


def test_chat_streamed(chat, answer):
    chunks = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert chunks[-1].usage.completion_tokens == 24


def test_chat_async(chat, answer):
    async def run():
        whole = await asyncio.gather(*[litellm.acompletion(**chat) for _ in range(8)])
        stream = await litellm.acompletion(**chat, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return {one.choices[0].message.content for one in whole} | {"".join(parts)}

    assert asyncio.run(run()) == {answer}


def test_text(text):
    whole = litellm.text_completion(**text)
    assert whole.choices[0].text == GOLDEN["greedy_text"]
    assert whole.usage.total_tokens == 50


def test_text_streamed(text):
    parts = [chunk.choices[0].text or "" for chunk in litellm.text_completion(**text, stream=True)]
    assert "".join(parts) == GOLDEN["greedy_text"]


def test_text_async(text):
    assert asyncio.run(litellm.atext_completion(**text)).choices[0].text == GOLDEN["greedy_text"]


def test_sampling_parameters(client, chat):
    """What litellm knows of OpenAI's parameters, and what it passes on by extra_body."""
    options = dict(seed=3, top_p=0.9, n=2, stop=["\n"], presence_penalty=0.5, logit_bias={"5": -100})
    plain = {"messages": HELLO, "temperature": 0.8, "max_tokens": 24, "top_k": 9, **options}
    wanted = client.post("/v1/chat/completions", plain).json()["choices"]
    whole = litellm.completion(**{**chat, "temperature": 0.8}, **options, extra_body={"top_k": 9})
    assert [choice.message.content for choice in whole.choices] == [one["message"]["content"] for one in wanted]


def test_errors(chat):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**chat, "model": "openai/nope"})
    with pytest.raises(litellm.BadRequestError) as refused:
        litellm.completion(**{**chat, "temperature": 9})
    assert "temperature" in str(refused.value)
