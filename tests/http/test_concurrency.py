# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: each gets what it would get alone; those who leave free their slots."""

import concurrent.futures
import json
import random
import select
import time

import pytest

from harness import models
from harness.client import joined
from harness.metrics import slots_used, total
from harness.models import DEMO
from harness.program import wait_until

PROMPTS = [g["prompt"] for g in models.goldens(DEMO)] + [
    "O", "Be", "a b", "What light through yonder window breaks?", "\n", "KING", "Exeunt.\n\n",
    "First Murderer:\nWhere is he?\n\nSecond Murderer:\n",
]
ENDLESS = dict(max_tokens=10**6, ignore_eos=True)


def at_once(function, items, workers=64):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def job(i):
    """Request i: its parameters, greedy and seeded ones mixed, lengths and forms all different."""
    parameters = {"prompt": PROMPTS[i % len(PROMPTS)], "max_tokens": 5 + i % 37}
    parameters.update({"temperature": 0} if i % 2 else {"seed": i, "temperature": 1.2, "top_p": 0.95})
    return parameters


def answer_to(client, i, stream):
    parameters = job(i)
    return joined(client.stream(**parameters))[0] if stream else client.text(**parameters)


def idle(client, seconds=20):
    wait_until(lambda: slots_used(client) == 0, seconds, "no slot is used")
    assert total(client, "ssmd_requests_running") == 0
    assert total(client, "ssmd_requests_waiting") == 0


def test_64_clients_as_one_alone(client):
    alone = [answer_to(client, i, False) for i in range(64)]
    for _ in range(2):
        assert at_once(lambda i: answer_to(client, i, i % 3 == 0), range(64)) == alone


@pytest.mark.smoke
def test_12_clients_as_one_alone(client):
    alone = [answer_to(client, i, False) for i in range(12)]
    assert at_once(lambda i: answer_to(client, i, i % 3 == 0), range(12)) == alone
    idle(client)


def test_more_clients_than_slots(client):
    """200 requests on 64 slots: the rest wait, all are answered."""
    alone = {i: answer_to(client, i, False) for i in range(20)}
    texts = at_once(lambda i: answer_to(client, i % 20, i % 2), range(200), workers=100)
    assert texts == [alone[i % 20] for i in range(200)]


def test_in_the_company_of_other_models(client, served_models):
    alone = client.greedy(max_tokens=48)
    texts = at_once(lambda i: client.complete("abc|defgh|", model=served_models[i % len(served_models)],
                                              max_tokens=20, seed=i) if i % 2 else client.greedy(max_tokens=48),
                    range(24), workers=24)
    assert all(text == alone for text in texts[::2])


# ---- long texts


LONG_TEXT = b'{"content":"%s"}' % (b"What light through yonder window breaks? " * 100_000)


def send_texts(client, n):
    texts = [client.raw() for _ in range(n)]
    for raw in texts:
        raw.send_request("POST", "/tokenize", LONG_TEXT, client.header_lines())
    return texts


def test_long_texts_do_not_hold_up_sessions(start):
    """Twelve texts of 4 MB are in line; a session is looked at and forked before most are read."""
    client = start("--max-request-memory", "2G").client
    client.complete("ROMEO:", session="beside", max_tokens=1)
    texts = send_texts(client, 12)
    assert client.get("/v1/sessions/beside").status == 200
    assert client.post("/v1/sessions/beside/fork", {"id": "besides"}).status == 201
    answered = select.select([raw.socket for raw in texts], [], [], 0)[0]
    for raw in texts:
        assert raw.read_answer()[0] == 200
        raw.close()
    assert len(answered) < 8


def test_texts_in_line_leave_with_their_clients(start):
    """Of twelve texts of 4 MB all but one lose their clients: those that are in line are not read."""
    server = start("--max-request-memory", "2G")

    def seconds(stay):
        before = server.cpu_seconds()
        texts = send_texts(server.client, 12)
        for raw in texts[stay:]:
            raw.close()
        for raw in texts[:stay]:
            assert raw.read_answer()[0] == 200
            raw.close()
        taken = [server.cpu_seconds()]
        while len(taken) < 4 or taken[-1] > taken[-4]:  # what had begun goes on
            time.sleep(0.1)
            taken.append(server.cpu_seconds())
        return taken[-1] - before

    seconds(1)
    assert min(seconds(1) for _ in range(3)) < 0.75 * min(seconds(12) for _ in range(2))


@pytest.mark.smoke
@pytest.mark.parametrize("path, body", [
    ("/tokenize", '{"content":"%s"}'), ("/v1/completions", '{"prompt":"%s","max_tokens":1}'),
    ("/v1/chat/completions", '{"messages":[{"role":"user","content":"%s"}],"max_tokens":1}'),
    ("/apply-template", '{"messages":[{"role":"user","content":"%s"}]}')])
def test_clients_leave_a_line_of_texts(start, path, body):
    """Sixteen texts of 400 KB, and nobody is there to have them: the server goes on, and ends as always."""
    server = start("--max-request-memory", "2G")
    assert server.client.post(path, (body % "ROMEO:").encode()).status == 200
    text = (body % ("What light through yonder window breaks? " * 10_000)).encode()
    texts = [server.client.raw() for _ in range(16)]
    for raw in texts:
        raw.send_request("POST", path, text, server.client.header_lines())
    for raw in texts[::2] + texts[1::2]:
        raw.close()
    assert server.client.get("/livez").status == 200
    idle(server.client)


@pytest.mark.parametrize("path, body", [
    ("/tokenize", '{"content":"%s"}'), ("/apply-template", '{"messages":[{"role":"user","content":"%s"}]}')])
def test_who_waits_in_line_for_longer_than_a_ping_is_answered(start, path, body):
    """There is no stream to keep awake: a text waits behind eight others, is idle meanwhile, and has its answer."""
    client = start("--max-request-memory", "2G", "--ping-interval", "0.1").client
    texts = send_texts(client, 8)
    with client.raw() as raw:
        text = "What light through yonder window breaks? " * 2_000
        raw.send_request("POST", path, (body % text).encode(), client.header_lines())
        assert raw.read_answer()[0] == 200
    for raw in texts:
        assert raw.read_answer()[0] == 200
        raw.close()


def test_long_lists_that_nobody_reads_take_bounded_memory(start):
    """Texts, their ids and answers count until they are sent: what does not fit is told to come again."""
    server = start("--max-request-memory", "64M", "--cache-bytes", "16M")
    texts = send_texts(server.client, 16)
    answers = [raw.read_answer() for raw in texts]
    assert {status for status, *_ in answers} == {200, 503}
    for raw in texts:
        raw.close()
    assert server.resident_bytes("VmHWM") < 192 << 20
    wait_until(lambda: server.client.post("/tokenize", LONG_TEXT).status == 200, 10, "one fits again")


def test_many_ids_do_not_hold_up_others(client):
    """A million ids become text beside the loop: others wait for less than half of that time."""
    ids = client.post("/tokenize", {"content": PROMPTS[0]}).json()["tokens"]
    body = json.dumps({"tokens": ids * (10**6 // len(ids))}).encode()

    def longest_wait():
        with client.raw() as raw, client.raw() as quick:
            began = time.monotonic()
            raw.send_request("POST", "/detokenize", body, client.header_lines())
            waits = [0.0]
            while not select.select([raw.socket], [], [], 0)[0]:
                asked = time.monotonic()
                quick.send_request("GET", "/livez")
                assert quick.read_answer()[0] == 200
                waits.append(time.monotonic() - asked)
            took = time.monotonic() - began
            assert raw.read_answer()[0] == 200
            return max(waits) / took

    assert min(longest_wait() for _ in range(3)) < 0.5


# ---- leaving


def raw_request(client, stream):
    raw = client.raw()
    raw.send_request("POST", "/v1/completions", b'{"prompt":"a","max_tokens":1000000,"ignore_eos":true,"stream":%s}'
                     % (b"true" if stream else b"false"), client.header_lines())
    return raw


LEAVING = {"close": lambda raw: raw.close(), "reset": lambda raw: raw.reset(),
           "half-close": lambda raw: raw.half_close()}


@pytest.mark.smoke
@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_leaving_frees_the_slot(client, stream, how):
    idle(client)
    with raw_request(client, stream) as raw:
        wait_until(lambda: slots_used(client) == 1, 10, "the request has its slot")
        LEAVING[how](raw)
        wait_until(lambda: slots_used(client) == 0, 10, "its slot is free again")
    idle(client)


@pytest.mark.parametrize("how", LEAVING)
def test_leaving_while_waiting(start, how):
    """A client that leaves before its turn is forgotten."""
    client = start("--max-sessions", 1).client
    with raw_request(client, True) as holder:
        wait_until(lambda: slots_used(client) == 1, 10, "one holds the slot")
        with raw_request(client, False) as raw:
            wait_until(lambda: total(client, "ssmd_requests_waiting") == 1, 10, "one waits")
            LEAVING[how](raw)
            wait_until(lambda: total(client, "ssmd_requests_waiting") == 0, 10, "none waits")
        assert slots_used(client) == 1
        holder.close()
        wait_until(lambda: slots_used(client) == 0, 10, "no slot is used")


def test_leaving_with_many_choices(client):
    idle(client)
    with client.open_stream(n=16, **ENDLESS) as stream:
        next(iter(stream))
        wait_until(lambda: slots_used(client) == 16, 10, "16 choices run")
    wait_until(lambda: slots_used(client) == 0, 10, "all 16 slots are free")


def test_leaving_in_a_long_prompt(client, need_model):
    model = need_model("induction-heads")
    body = b'{"model":"%s","max_tokens":1,"prompt":"%s"}' % (model.encode(), b"ab" * 400_000)
    with client.raw() as raw:
        raw.send_request("POST", "/v1/completions", body, client.header_lines())
        wait_until(lambda: slots_used(client) == 1, 10, "the prompt is being read")
        raw.close()
        wait_until(lambda: slots_used(client) == 0, 2, "its slot is free again")
    idle(client)


def test_a_client_that_does_not_read(client):
    """Its stream waits for it; others go on; when it leaves, its slot is free."""
    with raw_request(client, True) as raw:
        raw.read_head()
        assert client.greedy(max_tokens=8)
        raw.close()
    idle(client)


def test_cancellation_storm(client, program):
    """Hundreds of clients that leave at random moments: no slot lost, answers still right."""
    idle(client)
    want = client.greedy(max_tokens=24)
    files = program.open_files() if program else 0

    def come_and_leave(i):
        chance = random.Random(i)
        try:
            with raw_request(client, chance.random() < 0.5) as raw:
                time.sleep(chance.random() * 0.05)
                chance.choice([raw.close, raw.reset, raw.half_close])()
        except ConnectionError:
            pass
        return client.greedy(max_tokens=24) if i % 20 == 0 else want

    assert set(at_once(come_and_leave, range(400), workers=48)) == {want}
    idle(client)
    if program:
        wait_until(lambda: program.open_files() <= files + 4, 10, "its files are closed")


def test_who_left_is_closed_beside_an_idle_connection(client, program):
    """Streams' sockets are given back at once, though somebody has been quiet for longer."""
    with client.raw() as quiet:
        quiet.send_request("GET", "/livez")
        assert quiet.read_answer()[0] == 200
        files = program.open_files() if program else 0

        def leave(i):
            with raw_request(client, True) as raw:
                assert raw.read_head()[0] == 200
                list(LEAVING.values())[i % 3](raw)

        at_once(leave, range(48), workers=8)
        idle(client)
        if program:
            wait_until(lambda: program.open_files() <= files + 4, 10, "its files are closed")
        quiet.send_request("GET", "/livez")
        assert quiet.read_answer()[0] == 200


@pytest.mark.timeout(120)
def test_thousands_of_requests(client, program):
    """3,000 requests on kept connections: same answer, no growth, no descriptor lost."""
    body = {"prompt": "ROMEO:", "max_tokens": 1, "temperature": 0}
    want = client.greedy(max_tokens=1)

    def run(count):
        connection = client.connect()
        try:
            for _ in range(count):
                answer = client.post("/v1/completions", body, connection=connection)
                assert answer.status == 200 and answer.json()["choices"][0]["text"] == want
        finally:
            connection.close()

    at_once(run, [100] * 8, workers=8)
    idle(client)
    before, files = (program.resident_bytes(), program.open_files()) if program else (0, 0)
    at_once(run, [275] * 8, workers=8)
    idle(client)
    if program:
        assert program.resident_bytes() < before + 8e6
        wait_until(lambda: program.open_files() <= files + 1, 10, "its files are closed")
