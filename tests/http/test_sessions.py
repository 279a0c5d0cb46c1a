# SPDX-License-Identifier: Apache-2.0
"""Sessions and saved prompts over HTTP: what continues, what is kept apart, what is refused."""

import pytest

from harness.metrics import total
from harness.program import wait_until

pytestmark = pytest.mark.own_server

PROMPT = "ROMEO:\nO, she doth teach the torches to burn bright!\n"
GREEDY = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def ids_of(client, text):
    return client.post("/tokenize", {"content": text}).json()["tokens"]


def turn(client, prompt, session="s", **parameters):
    return client.complete(prompt, session=session, return_token_ids=True, **{**GREEDY, **parameters})


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def keyed(start):
    return start("--api-key", "first", "--api-key", "second")


def test_a_repeated_prompt_runs_no_token(server):
    client = server.client
    before = client.complete(PROMPT, **GREEDY)
    ran = total(client, "ssmd_prompt_tokens_total")
    after = client.complete(PROMPT, **GREEDY)
    assert after["choices"] == before["choices"]
    assert cached(before) == 0 and cached(after) == after["usage"]["prompt_tokens"]
    assert total(client, "ssmd_prompt_tokens_total") == ran
    assert cached(client.complete(PROMPT, cache_prompt=False, **GREEDY)) == 0
    assert cached(client.complete(PROMPT, cache_salt="mine", **GREEDY)) == 0
    assert cached(client.complete(PROMPT, cache_salt="mine", **GREEDY)) > 0


def test_turns_continue_the_whole_conversation(server):
    client = server.client
    whole = []
    for text in (PROMPT, "\n\nJULIET:\n", "", " and "):
        ids = ids_of(client, text)
        if whole or ids:
            answer = turn(client, ids or "")
            whole += ids
            (expected,) = client.complete(whole, cache_prompt=False, **GREEDY)["choices"]
            assert answer["choices"][0]["text"] == expected["text"]
            assert answer["usage"]["prompt_tokens"] == len(whole)
            whole += answer["choices"][0]["token_ids"]
    info = client.get("/v1/sessions/s").json()
    assert info["tokens"] == len(whole) and info["object"] == "session"
    assert cached(turn(client, "x")) == len(whole) - 1


def test_a_stop_string_keeps_what_was_read(server):
    client = server.client
    ids = ids_of(client, PROMPT)
    (full,) = client.complete(ids, return_token_ids=True, **GREEDY)["choices"]
    stop = full["text"][10:13]
    # Far to the end: the engine, which does not know of stop strings, must not get there first.
    (cut,) = turn(client, ids, stop=[stop], max_tokens=20000)["choices"]
    assert cut["finish_reason"] == "stop" and stop not in cut["text"]
    kept = client.get("/v1/sessions/s").json()["tokens"] - len(ids)
    assert 0 < kept < 24
    (next_turn,) = turn(client, ids)["choices"]
    past = ids + full["token_ids"][:kept] + ids
    (expected,) = client.complete(past, cache_prompt=False, **GREEDY)["choices"]
    assert next_turn["text"] == expected["text"]


def test_what_is_kept_does_not_depend_on_who_is_faster(server):
    """The engine, which knows no stop strings, gets to its own end while the stop is on its way."""
    client = server.client
    ids = ids_of(client, PROMPT)
    (full,) = client.complete(ids, return_token_ids=True, **GREEDY)["choices"]
    stop = full["text"][10:13]
    kept = set()
    for i in range(30):
        session = f"s{i}"
        read = len(turn(client, ids, session, stop=[stop], max_tokens=20000)["choices"][0]["token_ids"])
        (cut,) = turn(client, ids, f"t{i}", stop=[stop], max_tokens=read + i % 3)["choices"]
        assert cut["finish_reason"] == "stop" and stop not in cut["text"]
        kept |= {client.get(f"/v1/sessions/{name}{i}").json()["tokens"] - len(ids) for name in "st"}
    assert kept == {read}


def test_a_client_that_leaves_changes_nothing(server):
    client = server.client
    turn(client, PROMPT)
    before = client.get("/v1/sessions/s").json()["tokens"]
    stream = client.open_stream(" and", session="s", max_tokens=100000, ignore_eos=True)
    with stream as events:
        next(iter(events))
    after = turn(client, "x", max_tokens=1)  # waits for the slot of the one that left
    assert client.get("/v1/sessions/s").json()["tokens"] == before + 2
    assert cached(after) == before - 1


def test_forks_and_files_continue_alike(server):
    client = server.client
    turn(client, PROMPT)
    assert client.post("/v1/sessions/s/fork", {"id": "t"}).status == 201
    client.post("/v1/sessions/s/fork", {"id": "t"}).error(400, "id")
    client.post("/v1/sessions/s/fork", {"id": "a/b"}).error(400, "id")
    client.post("/v1/sessions/nobody/fork", {"id": "u"}).error(404, code="session_not_found")
    state = client.get("/v1/sessions/s/state")
    assert state.status == 200 and state.headers["Content-Type"] == "application/octet-stream"
    assert client.get("/v1/sessions/t/state").body == state.body
    assert client.request("PUT", "/v1/sessions/u/state", state.body).status == 201
    texts = {turn(client, " and", session=name)["choices"][0]["text"] for name in "stu"}
    assert len(texts) == 1
    names = [s["id"] for s in client.get("/v1/sessions").json()["data"]]
    assert names == ["s", "t", "u"]
    assert client.request("DELETE", "/v1/sessions/t").json() == {
        "id": "t", "object": "session", "deleted": True}
    client.request("DELETE", "/v1/sessions/t").error(404, code="session_not_found")


def test_keys_do_not_meet(keyed):
    first, second = keyed.client.with_key("first"), keyed.client.with_key("second")
    turn(first, PROMPT)
    second.get("/v1/sessions/s").error(404, code="session_not_found")
    second.get("/v1/sessions/s/state").error(404)
    second.request("DELETE", "/v1/sessions/s").error(404)
    second.post("/v1/sessions/s/fork", {"id": "t"}).error(404)
    assert second.get("/v1/sessions").json()["data"] == []
    assert cached(second.complete(PROMPT, **GREEDY)) == 0
    assert cached(second.complete(PROMPT, **GREEDY)) > 0
    turn(second, "ABC", session="s")
    assert first.get("/v1/sessions/s").json()["tokens"] != second.get("/v1/sessions/s").json()["tokens"]


@pytest.mark.parametrize("parameters", [
    {"session": "a b"}, {"session": ""}, {"session": "x" * 129}, {"session": "../x"},
    {"session": "s", "n": 2}, {"session": "s", "prompt": ["a", "b"]},
    {"session": "s", "echo": True, "logprobs": 1},
])
def test_what_no_session_can_do(server, parameters):
    server.client.post("/v1/completions", {"prompt": "a", **parameters}).error(400, "session")


def test_busy_sessions_answer_409_where_told(start):
    client = start("--session-busy", "409").client
    with client.open_stream(PROMPT, session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
        answer = client.post("/v1/completions", {"prompt": "a", "session": "s"})
        answer.error(409, code="session_busy")
        assert answer.headers["Retry-After"] == "1"


def test_a_killed_server_has_lost_nothing_it_answered(start, tmp_path):
    options = ("--state-dir", str(tmp_path / "states"), "--durability", "sync")
    server = start(*options)
    for _ in range(3):
        turn(server.client, PROMPT, max_tokens=5)
    state = server.client.get("/v1/sessions/s/state").body
    server.kill()
    again = start(*options).client
    assert again.get("/v1/sessions/s/state").body == state
    assert cached(turn(again, "x")) > 0


def test_one_session_too_many_is_refused(start):
    server = start("--api-key", "first", "--api-key", "second", "--session-key-max", "2", "--session-max", "3")
    first, second = server.client.with_key("first"), server.client.with_key("second")
    for name in ("a", "b", "a"):
        turn(first, PROMPT, session=name, max_tokens=1)
    for client, name in ((first, "c"), (second, "a"), (second, "b")):
        answer = client.post("/v1/completions", {"prompt": "x", "session": name, "max_tokens": 1})
        if (client, name) == (second, "a"):
            assert answer.status == 200
        else:
            answer.error(403, code="session_quota")
    first.post("/v1/sessions/a/fork", {"id": "c"}).error(403, code="session_quota")
    state = first.get("/v1/sessions/a/state").body
    first.request("PUT", "/v1/sessions/c/state", state).error(403, code="session_quota")
    assert total(first, "ssmd_session_refusals_total") == 4
    assert first.request("DELETE", "/v1/sessions/a").status == 200
    turn(first, PROMPT, session="c", max_tokens=1)


def test_old_sessions_go(start):
    client = start("--session-ttl", "1").client
    turn(client, PROMPT, max_tokens=1)
    wait_until(lambda: client.get("/v1/sessions/s").status == 404, 30, "it is too old")
    assert client.get("/v1/sessions").json()["data"] == []
    assert total(client, "ssmd_sessions_expired_total") == 1


def test_a_folder_has_one_server(start, tmp_path):
    folder = str(tmp_path / "states")
    holder = start("--state-dir", folder)
    turn(holder.client, PROMPT, max_tokens=1)
    with pytest.raises(AssertionError, match=f"in use by process {holder.process.pid}"):
        start("--state-dir", folder)


def test_a_disk_that_takes_nothing_is_in_the_log(start, tmp_path):
    server = start("--state-dir", tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    folder.rename(tmp_path / "away")
    server.client.complete(PROMPT, session="s", **GREEDY)
    wait_until(lambda: "writes of sessions have failed" in server.log(), 30, "it says so")
    assert "No such file" in server.log()
    (tmp_path / "away").rename(folder)
    wait_until(lambda: list(folder.glob("*.session")), 30, "it is written")
    folder.rename(tmp_path / "away")
    server.client.complete(" and", session="s", **GREEDY)
    assert server.stop() == 0
    assert "the last turns of 1 sessions could not be written and are lost" in server.log()
