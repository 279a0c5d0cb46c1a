# SPDX-License-Identifier: Apache-2.0
"""Leaving: running work ends first, new work is refused, the second signal does not wait."""

import json
import signal
import threading
import time

import pytest

from harness.client import joined
from harness.metrics import slots_used
from harness.program import SCALE, wait_until

pytestmark = pytest.mark.own_server
ENDLESS = dict(max_tokens=10**6, ignore_eos=True)


def drain(server):
    """The first signal, until it has been understood."""
    server.signal(signal.SIGTERM)
    wait_until(lambda: "draining" in server.log(), 30, "it says that it drains")


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle(start, number):
    server = start()
    server.signal(number)
    assert server.wait(15) == 0, server.tail()


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_work_ends(start, number):
    server = start("--drain-timeout", 30 * SCALE)
    client = server.client
    whole = []
    thread = threading.Thread(target=lambda: whole.append(client.complete(max_tokens=600, ignore_eos=True)))
    with client.open_stream(max_tokens=600, ignore_eos=True, seed=1) as stream:
        thread.start()
        wait_until(lambda: slots_used(client) == 2, 10, "both run")
        server.signal(number)
        chunks = list(stream)
        assert stream.done
    thread.join()
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(joined(chunks)[0]) > 600
    assert whole[0]["usage"]["completion_tokens"] == 600
    assert server.wait(15) == 0, server.tail()


def test_new_work_is_refused_while_draining(start):
    server = start()
    client = server.client
    with client.open_stream(**ENDLESS) as stream:
        next(iter(stream))
        kept = client.connect()
        assert client.get("/health", connection=kept).status == 200
        drain(server)
        answer = client.get("/health", connection=kept)
        assert answer.status == 503
    kept.close()
    assert server.wait(15) == 0, server.tail()


def test_completions_are_refused_while_draining(start):
    server = start()
    client = server.client
    kept = client.connect()
    assert client.get("/livez", connection=kept).status == 200
    with client.open_stream(**ENDLESS) as stream:
        next(iter(stream))
        drain(server)
        answer = client.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, connection=kept)
        error = answer.error(503)
        assert error["type"] == "server_error"
        assert int(answer.headers["Retry-After"]) >= 0
    kept.close()
    assert server.wait(15) == 0, server.tail()


@pytest.mark.smoke
def test_second_signal_leaves_at_once(start):
    server = start()
    with server.client.open_stream(**ENDLESS) as stream:
        next(iter(stream))
        drain(server)
        time.sleep(0.1)
        assert server.is_running()
        server.signal(signal.SIGTERM)
        server.wait(15)  # a drain has 30 s


def test_drain_has_a_limit(start):
    server = start("--drain-timeout", 1)
    with server.client.open_stream(**ENDLESS) as stream:
        next(iter(stream))
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait(15)
        assert time.monotonic() - started > 0.9
    assert "cut=shutdown" in server.log() and "cut=client" not in server.log(), server.tail()


def test_calls_at_sessions_outlive_the_drain(start):
    """Threads of the pool may ask an engine for a session when the drain's time is over."""
    server = start("--drain-timeout", 0, environment={"UV_THREADPOOL_SIZE": "1"})
    client = server.client
    client.complete(max_tokens=1, session="s")
    long = json.dumps({"prompt": "O, she doth teach the torches. " * (1 << 17), "max_tokens": 1}).encode()
    raws = [client.raw() for _ in range(5)]
    for raw in raws[:4]:  # in front of it for a while
        raw.send_request("POST", "/v1/completions", long)
    assert client.get("/livez").status == 200
    raws[4].send_request("GET", "/v1/sessions/s")
    assert client.get("/livez").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(60) == 0, server.tail()
    for raw in raws:
        raw.close()


def test_the_last_client_leaving_ends_the_drain(start):
    server = start()
    with server.client.open_stream(**ENDLESS) as stream:
        next(iter(stream))
        drain(server)
        time.sleep(0.1)
        assert server.is_running()
    assert server.wait(15) == 0, server.tail()


def test_idle_kept_connections_do_not_hold_it(start):
    server = start()
    kept = [server.client.raw() for _ in range(5)]
    for raw in kept[1:]:
        raw.send_request("GET", "/health")
        assert raw.read_answer()[0] == 200
    server.signal(signal.SIGTERM)
    assert server.wait(15) == 0, server.tail()
    for raw in kept:
        raw.close()
