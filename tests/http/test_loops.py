# SPDX-License-Identifier: Apache-2.0
"""Several event loops behind one port: the same answers, whichever loop a connection meets."""

import concurrent.futures

import pytest

from harness import models
from harness.client import joined
from harness.metrics import slots_used, total
from harness.models import DEMO
from harness.program import wait_until

GOLDEN = models.goldens(DEMO)


@pytest.mark.parametrize("loops", [pytest.param(2, marks=pytest.mark.smoke), 3])
def test_loops(start, loops):
    server = start("--loops", loops)
    client = server.client

    def ask(i):
        golden = GOLDEN[i % len(GOLDEN)]
        if i % 5 == 4:
            client.post("/v1/completions", {"prompt": "x", "n": 0}).error(400, param="n")
        if i % 2:
            text = joined(client.stream(golden["prompt"], temperature=0, max_tokens=48))[0]
        else:
            text = client.greedy(golden["prompt"], max_tokens=48)
        assert text == golden["greedy_text"]
        assert client.get("/health").status == 200

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))
    assert total(client, "ssmd_request_duration_seconds_count") >= 64  # counted over all loops

    streams = [client.raw() for _ in range(12)]
    for raw in streams:
        raw.send_request("POST", "/v1/completions", b'{"prompt":"a","max_tokens":1000000,"ignore_eos":true,"stream":true}')
    wait_until(lambda: slots_used(client) == 12, 10, "12 streams run")
    for raw in streams:
        raw.close()
    wait_until(lambda: slots_used(client) == 0, 10, "no slot is used")
    assert server.stop() == 0, server.tail()
