# SPDX-License-Identifier: Apache-2.0
"""Sessions belong to the API key that made them: to every other key they are not there, in what is
answered, in how long it takes, and after a restart."""

import statistics
import time

import pytest

from test_chat import chat

pytestmark = pytest.mark.own_server

PROMPT = "ROMEO:\nO, she doth teach the torches to burn bright!\n"
GREEDY = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
KEYS = ("--api-key", "first", "--api-key", "second")
VOLATILE = {"date", "x-request-id", "openai-processing-ms"}

# Every way to a session by its name.
ROUTES = {
    "look": ("GET", "/v1/sessions/{}", None),
    "look at the head": ("HEAD", "/v1/sessions/{}", None),
    "read": ("GET", "/v1/sessions/{}/state", None),
    "read the head": ("HEAD", "/v1/sessions/{}/state", None),
    "fork": ("POST", "/v1/sessions/{}/fork", {"id": "mine"}),
    "delete": ("DELETE", "/v1/sessions/{}", None),
}


def ask(client, route, name):
    method, path, body = ROUTES[route]
    return client.request(method, path.format(name), body)


def seen(answer, name):
    headers = sorted((k.lower(), v) for k, v in answer.headers.items() if k.lower() not in VOLATILE)
    return answer.status, headers, answer.body.replace(name.encode(), b"NAME")


@pytest.fixture
def server(start):
    return start(*KEYS)


@pytest.fixture
def first(server):
    client = server.client.with_key("first")
    client.complete(PROMPT, session="theirs", **GREEDY)
    return client


@pytest.fixture
def second(server):
    return server.client.with_key("second")


@pytest.mark.parametrize("route", ROUTES)
def test_another_keys_session_is_none(first, second, route):
    state = first.get("/v1/sessions/theirs/state").body
    info = first.get("/v1/sessions/theirs").json()
    theirs, absent = ask(second, route, "theirs"), ask(second, route, "absent")
    assert theirs.status == 404
    assert seen(theirs, "theirs") == seen(absent, "absent"), "not a byte tells one from the other"
    assert first.get("/v1/sessions/theirs").json() == info
    assert first.get("/v1/sessions/theirs/state").body == state
    assert second.get("/v1/sessions").json()["data"] == []
    assert ask(first, route, "theirs").status in (200, 201), "the route is a way to one's own"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("key", [None, "", "wrong", "firs", "first1", "FIRST"])
def test_no_key_no_answer(server, first, route, key):
    answer = ask(server.client.with_key(key), route, "theirs")
    assert answer.status == 401
    assert first.get("/v1/sessions/theirs").status == 200


def test_equal_names_are_two_sessions(first, second):
    state = first.get("/v1/sessions/theirs/state").body
    tokens = first.get("/v1/sessions/theirs").json()["tokens"]
    answer = second.complete("ABC", session="theirs", **GREEDY)  # begins anew
    assert answer["usage"]["prompt_tokens"] < 5 and answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second.post("/v1/sessions/theirs/fork", {"id": "fork"}).status == 201
    first.post("/v1/sessions/theirs/fork", {"id": "fork"})  # nor is a target in the way
    assert second.request("PUT", "/v1/sessions/theirs/state", state).status == 201
    assert second.get("/v1/sessions/theirs").json()["tokens"] == tokens  # its own, from bytes it was given
    second.complete(" more", session="theirs", **GREEDY)
    assert first.get("/v1/sessions/theirs/state").body == state
    assert second.request("DELETE", "/v1/sessions/theirs").status == 200
    assert first.get("/v1/sessions/theirs/state").body == state
    assert [s["id"] for s in second.get("/v1/sessions").json()["data"]] == ["fork"]


def test_chats_do_not_meet(server, second):
    first = server.client.with_key("first")
    hello = [{"role": "user", "content": "Speak, my lord."}]
    one = chat(first, hello, session="talk", **GREEDY)
    said = [*hello, {"role": "assistant", "content": one["choices"][0]["message"]["content"]},
            {"role": "user", "content": "And then?"}]
    other = chat(second, said, session="talk", **GREEDY)  # another conversation of the same name
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = chat(first, said, session="talk", **GREEDY)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_after_a_restart(start, tmp_path):
    options = (*KEYS, "--state-dir", tmp_path / "states", "--durability", "sync")
    server = start(*options)
    server.client.with_key("first").complete(PROMPT, session="theirs", **GREEDY)
    server.kill()
    client = start(*options).client
    first, second = client.with_key("first"), client.with_key("second")
    for route in ROUTES:
        assert seen(ask(second, route, "theirs"), "theirs") == seen(ask(second, route, "absent"), "absent")
    assert [s["id"] for s in first.get("/v1/sessions").json()["data"]] == ["theirs"]
    files = [path.name for path in (tmp_path / "states").rglob("*") if path.is_file()]
    assert not any("theirs" in name or "first" in name for name in files), "names are hashed on the disk"


@pytest.mark.parametrize("route", ["look", "read", "fork", "delete"])
def test_time_tells_nothing(first, second, route):
    """Medians of alternating requests: to look for another's session costs what a miss costs."""
    took = {"theirs": [], "absent": []}
    connection = second.connect()
    method, path, body = ROUTES[route]
    for i in range(600):
        name = ("theirs", "absent")[i % 2]
        started = time.perf_counter()
        answer = second.request(method, path.format(name), body, connection=connection)
        took[name].append(time.perf_counter() - started)
        assert answer.status == 404
    connection.close()
    ratio = statistics.median(took["theirs"]) / statistics.median(took["absent"])
    assert 0.7 < ratio < 1.4, ratio
