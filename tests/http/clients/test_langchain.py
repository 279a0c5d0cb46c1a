# SPDX-License-Identifier: Apache-2.0
"""LangChain's OpenAI classes (langchain-openai): completions and chats, whole, streamed, in batches."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI

from harness import models
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)[0]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Speak, my lord."}]
MESSAGES = [SystemMessage("Be brief."), HumanMessage("Speak, my lord.")]


def connection(client):
    return dict(base_url=client.url + "/v1", api_key=client.key or "none", model=DEMO, temperature=0)


@pytest.fixture
def text(client):
    return OpenAI(**connection(client), max_tokens=48)


@pytest.fixture
def chat(client):
    return ChatOpenAI(**connection(client), max_tokens=24)


@pytest.fixture
def answer(client):
    """What the chat must say, by a plain request."""
    whole = client.post("/v1/chat/completions", {"messages": CHAT, "temperature": 0, "max_tokens": 24})
    return whole.json()["choices"][0]["message"]["content"]


def test_text(text):
    assert text.invoke("ROMEO:") == GOLDEN["greedy_text"]


def test_text_streamed(text):
    parts = list(text.stream("ROMEO:"))
    assert len(parts) > 10 and "".join(parts) == GOLDEN["greedy_text"]


def test_text_batch(client, text):
    prompts = ["ROMEO:", "JULIET:", "First Citizen:", "ROMEO:"]
    assert text.batch(prompts) == [client.greedy(prompt, max_tokens=48) for prompt in prompts]


def test_text_generate(text):
    """Several prompts in one request, and what was used in all."""
    result = text.generate(["ROMEO:", "JULIET:"], stop=["\n\n"])
    assert len(result.generations) == 2
    assert all("\n\n" not in choice[0].text for choice in result.generations)
    usage = result.llm_output["token_usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_chat(chat, answer):
    message = chat.invoke(MESSAGES)
    assert isinstance(message, AIMessage) and message.content == answer
    assert message.response_metadata["finish_reason"] == "length"
    assert message.usage_metadata["output_tokens"] == 24


def test_chat_streamed(client, answer):
    whole = None
    for chunk in ChatOpenAI(**connection(client), max_tokens=24, stream_usage=True).stream(MESSAGES):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == answer
    assert whole.usage_metadata["output_tokens"] == 24


def test_chat_batch(chat, answer):
    assert [message.content for message in chat.batch([MESSAGES] * 5)] == [answer] * 5


def test_chat_async(chat, answer):
    async def run():
        whole = await chat.ainvoke(MESSAGES)
        parts = [chunk.content async for chunk in chat.astream(MESSAGES)]
        return whole.content, "".join(parts)

    assert asyncio.run(run()) == (answer, answer)


def test_chat_logprobs(client):
    chat = ChatOpenAI(**connection(client), max_tokens=4, logprobs=True, top_logprobs=2)
    entries = chat.invoke(MESSAGES).response_metadata["logprobs"]["content"]
    assert len(entries) == 4 and all(len(entry["top_logprobs"]) == 2 for entry in entries)


def test_a_chain(client, answer):
    prompt = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("user", "Speak, my {whom}.")])
    chain = prompt | ChatOpenAI(**connection(client), max_tokens=24) | StrOutputParser()
    assert chain.invoke({"how": "brief", "whom": "lord"}) == answer
