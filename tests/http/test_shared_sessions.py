# SPDX-License-Identifier: Apache-2.0
"""Two servers and one Redis: any of them goes on with any session, as one server would have, and
nothing that was answered is lost, whichever of the three is killed."""

import signal
import subprocess
import threading
import time

import pytest

from harness import models
from harness.metrics import families, total
from harness.program import BINARY, SCALE, wait_until
from harness.redis import Redis, need
from test_chat import chat

pytestmark = pytest.mark.own_server

PROMPT = "ROMEO:\nO, she doth teach the torches to burn bright!\n"
GREEDY = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def redis(tmp_path):
    need()
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def start_shared(start, redis):
    def start_one(*options):
        return start("--state-url", redis.url, *options)

    return start_one


@pytest.fixture
def pair(start_shared):
    return [start_shared("--durability", "sync").client for _ in range(2)]


def turn(client, prompt=" and", session="s", **parameters):
    return client.complete(prompt, session=session, return_token_ids=True, **{**GREEDY, **parameters})


def names(client):
    return [s["id"] for s in client.get("/v1/sessions").json()["data"]]


def state(client, session="s"):
    answer = client.get(f"/v1/sessions/{session}/state")
    assert answer.status == 200, answer
    return answer.body


@pytest.mark.smoke
@pytest.mark.parametrize("durability", ["sync", "async"])
def test_turns_at_two_servers_are_those_of_one(start, start_shared, durability):
    pair = [start_shared("--durability", durability).client for _ in range(2)]
    one = start().client
    for i, prompt in enumerate([PROMPT, " and", "\n\nJULIET:\n", "", " my", " lord"]):
        here, there = turn(pair[i % 2], prompt), turn(one, prompt)
        assert here["choices"] == there["choices"]
        assert here["usage"]["prompt_tokens"] == there["usage"]["prompt_tokens"]
        if durability == "sync":
            assert state(pair[0]) == state(pair[1]) == state(one)
    assert state(pair[1]) == state(one)  # the last turn was this one's
    info = [client.get("/v1/sessions/s").json() for client in (*pair, one)]
    assert info[0] == info[1]
    assert {key: info[0][key] for key in ("tokens", "bytes", "model")} == {
        key: info[2][key] for key in ("tokens", "bytes", "model")}


def test_chats_too(start, pair):
    one = start().client
    messages = []
    for i in range(5):
        messages.append({"role": "user", "content": f"Speak, my lord, once more, {i}."})
        options = {"session": "s", "temperature": 0, "max_tokens": 8}
        answers = [chat(client, messages, **options) for client in (pair[i % 2], one)]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert answers[0]["usage"] == answers[1]["usage"]
        messages.append(answers[0]["choices"][0]["message"])
    messages[0]["content"] = "Be silent."
    answer = pair[1].post("/v1/chat/completions", {"messages": messages, "session": "s"})
    answer.error(400, code="session_mismatch")


def test_lists_forks_files_and_deletion(pair):
    a, b = pair
    turn(a, PROMPT)
    assert names(b) == ["s"]
    assert b.post("/v1/sessions/s/fork", {"id": "t"}).status == 201
    a.post("/v1/sessions/s/fork", {"id": "t"}).error(400, "id")
    a.post("/v1/sessions/none/fork", {"id": "u"}).error(404, code="session_not_found")
    assert state(a) == state(b, "t")
    created = b.request("PUT", "/v1/sessions/u/state", state(a))
    assert created.status == 201 and created.json() == a.get("/v1/sessions/u").json()
    assert len({turn(c, session=name)["choices"][0]["text"] for c, name in ((a, "s"), (b, "t"), (a, "u"))}) == 1
    assert names(a) == names(b) == ["s", "t", "u"]
    assert a.request("DELETE", "/v1/sessions/s").status == 200
    b.request("DELETE", "/v1/sessions/s").error(404)
    b.get("/v1/sessions/s/state").error(404)
    assert names(b) == ["t", "u"]
    # A copy that is left behind is not used.
    fresh, again = turn(b, PROMPT), turn(a, PROMPT, session="new")
    assert fresh["choices"] == again["choices"] and fresh["usage"]["prompt_tokens"] == again["usage"]["prompt_tokens"]


def test_keys_do_not_meet(start_shared, redis):
    keys = ("--api-key", "first", "--api-key", "second")
    servers = [start_shared(*keys).client for _ in range(2)]
    turn(servers[0].with_key("first"), PROMPT)
    theirs = servers[1].with_key("second")
    theirs.get("/v1/sessions/s").error(404)
    theirs.get("/v1/sessions/s/state").error(404)
    theirs.request("DELETE", "/v1/sessions/s").error(404)
    assert names(theirs) == []
    turn(theirs, "ABC")
    assert names(servers[1].with_key("first")) == ["s"]
    for key in redis.keys("*"):  # nor do keys of Redis tell of names and owners
        assert b"first" not in key and not key.endswith(b":s"), key
    secret = redis.ask("GET", "ssmd:secret")
    assert len(secret) == 16


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_servers_race_for_one_session(start, start_shared, durability):
    pair = [start_shared("--durability", durability).client for _ in range(2)]
    turn(pair[0], PROMPT)
    wrong, used = [], []

    def run(client):
        for _ in range(5):
            answer = client.post("/v1/completions", {"prompt": " and", "session": "s", **GREEDY})
            if answer.status != 200:
                wrong.append(answer)
            used.append(answer.json().get("usage", {}).get("prompt_tokens"))

    threads = [threading.Thread(target=run, args=(pair[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(set(used)) == 40  # each found the session at another place
    one = start().client
    turn(one, PROMPT)
    for _ in range(41):
        turn(one)
    turn(pair[1])
    assert state(pair[1]) == state(one)
    assert sum(total(client, "ssmd_session_conflicts_total") for client in pair) == 0


def test_a_session_at_work_elsewhere(start_shared):
    a, b = (start_shared("--session-busy", word).client for word in ("wait", "409"))
    turn(b, PROMPT)
    before = state(b)
    with a.open_stream(" and", session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
        answer = b.post("/v1/completions", {"prompt": "a", "session": "s"})
        answer.error(409, code="session_busy")
        assert answer.headers["Retry-After"] == "1"
        b.request("PUT", "/v1/sessions/s/state", before).error(409, code="session_busy")
        assert state(b) == before  # as of the last turn that has ended
    def again():
        return b.post("/v1/completions", {"prompt": " and", "session": "s", **GREEDY}).status == 200
    wait_until(again, 10, "the claim of a client that left is given up")


@pytest.mark.timeout(120)
def test_a_server_that_is_killed_in_a_turn(start, start_shared):
    """The other one waits for the claim to lapse, then goes on from the last turn."""
    a, b = start_shared("--durability", "sync"), start_shared("--durability", "sync")
    one = start().client
    assert turn(a.client, PROMPT)["choices"] == turn(one, PROMPT)["choices"]
    with a.client.open_stream(" and", session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
        a.kill()
        began = time.monotonic()
        assert turn(b.client)["choices"] == turn(one)["choices"]
        assert time.monotonic() - began < 20 * SCALE
    assert state(b.client) == state(one)


@pytest.mark.timeout(240)
def test_redis_killed_in_mid_traffic(start, start_shared, redis):
    """Requests at sessions are answered 503 for a while, others as ever; what was answered is there."""
    servers = [start_shared("--durability", "sync", "--log-level", "info") for _ in range(2)]
    kept, lost, plain, wrong = {}, {}, [], []
    stop = threading.Event()

    def talk(name, client):
        while not stop.is_set():
            answer = client.post("/v1/completions", {"prompt": " and", "session": name, **GREEDY})
            if answer.status == 200:
                kept[name] = kept.get(name, 0) + 1
            elif answer.status == 503 and answer.headers["Retry-After"] == "1":
                lost[name] = lost.get(name, 0) + 1
                time.sleep(0.05)
            else:
                wrong.append(answer)

    def logged(words):  # of the store: each server looks once a second, and tells of what it sees then
        return [s.log().count(f"the store of sessions {words}") for s in servers]

    def complete(client):
        while not stop.is_set():
            plain.append(client.post("/v1/completions", {"prompt": "ROMEO:", **GREEDY}).status)

    threads = [threading.Thread(target=talk, args=(f"s{i}", servers[i % 2].client)) for i in range(4)]
    threads += [threading.Thread(target=complete, args=(s.client,)) for s in servers]
    for thread in threads:
        thread.start()
    try:
        for outages in ([1, 1], [2, 2]):
            wait_until(lambda: len(kept) == 4, 60, "all sessions go on")
            time.sleep(0.5)
            redis.kill()
            wait_until(lambda: all(total(s.client, "ssmd_store_up") == 0 for s in servers), 20, "metrics tell")
            for s in servers:
                health = s.client.get("/health")
                assert health.status == 200 and health.json()["session_store"] == "unavailable"
            wait_until(lambda: len(lost) == 4, 60, "requests at sessions are refused")
            before = len(plain)
            wait_until(lambda: len(plain) > before + 4, 60, "others are not")
            wait_until(lambda: logged("cannot be reached (") == outages, 10, "logs tell")
            redis.start()
            seen = dict(kept)
            wait_until(lambda: all(kept[name] > seen[name] for name in kept), 60, "all sessions go on again")
            wait_until(lambda: logged("is back") == outages, 10, "logs tell of that, too")
            lost.clear()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong and set(plain) == {200}
    one = start().client
    for i, (name, turns) in enumerate(sorted(kept.items())):
        client = servers[(i + 1) % 2].client
        tokens = client.get(f"/v1/sessions/{name}").json()["tokens"]
        done = 0
        while one.get(f"/v1/sessions/{name}").status != 200 or one.get(f"/v1/sessions/{name}").json()["tokens"] < tokens:
            turn(one, session=name)
            done += 1
        assert done >= turns  # one that was put and not acknowledged may be there
        assert state(client, name) == state(one, name)
    assert logged("cannot be reached (") == logged("is back") == [2, 2]  # a request's line has no bracket
    assert redis.keys("*:l:*") == []
    for upload in redis.keys("*:t:*"):  # one that Redis did not live to see the end of
        assert 0 < redis.ask("TTL", upload) <= 600


def test_a_turn_that_redis_cannot_take(start_shared, redis):
    client = start_shared("--durability", "sync").client
    turn(client, PROMPT)
    before = state(client)
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    answer = client.post("/v1/completions", {"prompt": " and", "session": "s", **GREEDY})
    answer.error(503, code="session_store")
    assert answer.headers["Retry-After"] == "1"
    assert total(client, "ssmd_store_failures_total") == 1 and total(client, "ssmd_store_up") == 1
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert state(client) == before
    turn(client)


def test_a_stream_ends_with_the_error(start_shared, redis):
    """The answer was there, its session could not be kept: its last event says so, and no [DONE]."""
    client = start_shared("--durability", "sync").client
    turn(client, PROMPT)
    with client.open_stream(" and", session="s", max_tokens=2000, ignore_eos=True) as events:
        stream = iter(events)
        next(stream)
        redis.kill()
        chunks = list(stream)
        assert not events.done
    assert chunks[-1]["error"]["code"] == "session_store"
    redis.start()
    wait_until(lambda: total(client, "ssmd_store_up") == 1, 20, "it is back")
    assert client.get("/v1/sessions/s").json()["tokens"] < 100


def test_damaged_values_are_set_aside(start_shared, redis):
    a, b = start_shared().client, start_shared().client
    turn(a, PROMPT)
    wait_until(lambda: names(b) == ["s"], 10, "it is written")
    (key,) = redis.keys("*:s:*")
    part = redis.ask("HGET", key, "0")
    redis.ask("HSET", key, "0", part[:5000] + bytes([part[5000] ^ 1]) + part[5001:])
    answer = b.post("/v1/completions", {"prompt": " and", "session": "s", **GREEDY})
    assert answer.status == 500, answer
    assert total(b, "ssmd_sessions_set_aside") == 1 and redis.keys("*:s:*") == []
    assert len(redis.keys("*:b:*")) == 1
    assert turn(b, PROMPT)["usage"]["prompt_tokens"] == turn(a, PROMPT, session="t")["usage"]["prompt_tokens"]


def test_limits_count_for_all(start_shared):
    options = ("--session-max", "2", "--durability", "sync")
    a, b = start_shared(*options).client, start_shared(*options).client
    turn(a, PROMPT, session="a")
    turn(b, PROMPT, session="b")
    for client in (a, b):
        answer = client.post("/v1/completions", {"prompt": "x", "session": "c", **GREEDY})
        answer.error(403, code="session_quota")
        client.post("/v1/sessions/a/fork", {"id": "c"}).error(403, code="session_quota")
    assert total(a, "ssmd_session_refusals_total") == 2
    assert b.request("DELETE", "/v1/sessions/a").status == 200
    turn(a, PROMPT, session="c")


def test_old_ones_go(start_shared, redis):
    a, b = (start_shared("--session-ttl", "2", "--durability", "sync").client for _ in range(2))
    turn(a, PROMPT)
    wait_until(lambda: names(b) == [], 20, "it goes")
    a.get("/v1/sessions/s").error(404)
    wait_until(lambda: total(b, "ssmd_sessions") == 0, 20, "it is not counted")
    assert redis.keys("*:s:*") == []


def test_what_an_operator_sees(start_shared, redis):
    server = start_shared()
    turn(server.client, PROMPT)
    found = families(server.client)
    for name, kind in {"ssmd_store_up": "gauge", "ssmd_store_connects": "counter", "ssmd_store_requests": "counter",
                       "ssmd_store_failures": "counter", "ssmd_store_seconds": "histogram",
                       "ssmd_session_conflicts": "counter"}.items():
        assert found[name].type == kind and found[name].samples
    wait_until(lambda: total(server.client, "ssmd_sessions") == 1, 10, "it is counted")
    assert total(server.client, "ssmd_store_requests_total") >= 2
    for path in ("/health", "/readyz"):
        assert server.client.get(path).json() == {"status": "ok", "session_store": "ok"}


def test_an_outage_between_two_looks_is_logged(start_shared, redis):
    """The connection is gone for some 50 ms, the log looks once a second."""
    server = start_shared("--log-level", "info")
    turn(server.client)
    began = total(server.client, "ssmd_store_connects_total")
    for i in range(1, 3):
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
        wait_until(lambda: total(server.client, "ssmd_store_connects_total") == began + i, 10, "it is there again")
        time.sleep(1.1 * SCALE)  # a look
    log = server.log()
    moments = log.count("the store of sessions was away for a moment (")
    seen = log.count("the store of sessions cannot be reached (")  # if a look came within
    assert moments + seen == 2 and log.count("the store of sessions is back") == seen, server.tail()


def test_a_turn_that_is_lost_is_logged(start_shared, redis):
    """Its session is gone from under it, and nobody has deleted it; nobody waits for its end to be stored."""
    server = start_shared("--durability", "async")
    turn(server.client, PROMPT)
    wait_until(lambda: names(server.client) == ["s"], 10, "it is written")
    (key,) = redis.keys("*:s:*")
    with server.client.open_stream(" and", session="s", max_tokens=400, ignore_eos=True) as events:
        stream = iter(events)
        next(stream)
        redis.ask("DEL", key)
        list(stream)
        assert events.done
    wait_until(lambda: "turns of sessions lost: 1 (" in server.log(), 10, "the log tells")
    assert total(server.client, "ssmd_session_turns_lost_total") == 1


def test_a_session_that_goes_while_a_request_for_it_is_in_line(start_shared):
    """It is told, instead of beginning another one; a chat has all of its conversation with it."""
    a = start_shared("--durability", "sync", "--max-sessions", "1").client
    b = start_shared("--durability", "sync").client
    messages = [{"role": "user", "content": "Speak, my lord."}]
    answer = chat(a, messages, session="c", max_tokens=4)
    messages += [answer["choices"][0]["message"], {"role": "user", "content": "Once more."}]
    turn(a, PROMPT)
    answers = {}

    def complete():
        answers["s"] = a.post("/v1/completions", {"prompt": " and", "session": "s", **GREEDY})

    def talk():
        answers["c"] = a.post("/v1/chat/completions", {"messages": messages, "session": "c", "max_tokens": 4})

    threads = [threading.Thread(target=complete), threading.Thread(target=talk)]
    with a.open_stream(PROMPT, max_tokens=1_000_000, ignore_eos=True) as events:
        next(iter(events))
        for thread in threads:
            thread.start()
        wait_until(lambda: total(a, "ssmd_requests_waiting") == 2, 10, "they are in line")
        time.sleep(0.3 * SCALE)  # they have asked for their sessions
        for name in ("s", "c"):
            assert b.request("DELETE", f"/v1/sessions/{name}").status == 200
    for thread in threads:
        thread.join()
    answers["s"].error(404, code="session_not_found")
    assert answers["c"].status == 200, answers["c"]
    assert names(b) == ["c"]


def test_a_redis_that_is_started_beside(start_shared, redis):
    """It answers half a second after the server has looked for it first."""
    redis.kill()
    over = threading.Event()

    def late():
        time.sleep(0.5)
        redis.start()
        over.wait()  # a child dies with the thread that began it

    thread = threading.Thread(target=late)
    thread.start()
    try:
        client = start_shared().client
        turn(client)
        assert names(client) == ["s"]
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("url, says", [
    ("redis://:hunter2@127.0.0.1:1", "Connection refused"),
    ("rediss://:hunter2@127.0.0.1", "TLS is not supported"),
    ("http://hunter2", "redis://"),
])
def test_a_start_that_cannot_be(url, says):
    need()
    folder = models.folder(models.DEMO)
    command = [BINARY, "serve", "--port", "0", "--model", folder, "--state-url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SCALE)
    assert done.returncode == 1 and says in done.stderr and "hunter2" not in done.stderr
    shown = subprocess.run([*command, "--print-config"], capture_output=True, text=True, timeout=60 * SCALE)
    assert '"state_url": "(set)"' in shown.stdout and "hunter2" not in shown.stdout


def test_one_place_is_enough(redis, tmp_path):
    folder = models.folder(models.DEMO)
    for options, says in ((("--state-dir", tmp_path / "x"), "one place"), (("--durability", "none"), "durability")):
        command = [BINARY, "serve", "--port", "0", "--model", folder, "--state-url", redis.url, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SCALE)
        assert done.returncode == 1 and says in done.stderr, done


def test_a_second_signal_does_not_wait_for_the_last_writes(start_shared, redis):
    server = start_shared()
    with server.client.open_stream(PROMPT, session="s", **{**GREEDY, "max_tokens": 40}) as stream:
        next(iter(stream))
        redis.pause(True)  # the turn has its claim and is answered; it cannot be written
        list(stream)
    server.signal(signal.SIGTERM)
    time.sleep(0.5 * SCALE)
    assert server.is_running()
    server.signal(signal.SIGTERM)
    assert server.wait(1) in (128 + signal.SIGTERM, -signal.SIGTERM), server.tail()


def test_calls_that_wait_for_the_store_hold_up_no_long_text(start_shared, redis):
    """More looks at sessions than the pool has threads, at a Redis that is silent: a text that takes a thread
    to tokenize is answered while all of them wait."""
    client = start_shared().client
    answers = []
    looks = [threading.Thread(target=lambda: answers.append(client.get("/v1/sessions/s"))) for _ in range(24)]
    redis.pause(True)
    try:
        for look in looks:
            look.start()
        time.sleep(0.5 * SCALE)  # they are on the pool, as many as it takes
        assert client.post("/tokenize", {"prompt": "All the world's a stage. " * 20_000}).json()["count"] > 20_000
        assert not answers
    finally:
        redis.pause(False)
        for look in looks:
            look.join()
    assert {answer.status for answer in answers} == {404}
    assert names(client) == []


def test_looks_in_line_end_with_their_clients(start_shared, redis):
    """What the store is asked once it answers again: by those that were on the pool, at most eight of a loop."""
    client = start_shared().client
    redis.pause(True)
    try:
        for _ in range(24):
            with client.raw() as connection:
                connection.send_request("GET", "/v1/sessions/s")
                time.sleep(0.02 * SCALE)  # it is read, and begins or joins the line, before it is gone
    finally:
        redis.pause(False)
    client.get("/v1/sessions/s").error(404)
    calls = [line for line in redis.ask("INFO", "commandstats").decode().split() if "cmdstat_hmget" in line]
    assert 1 < int(calls[0].split("calls=")[1].split(",")[0]) <= 9, calls
