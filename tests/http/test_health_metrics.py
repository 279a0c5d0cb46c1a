# SPDX-License-Identifier: Apache-2.0
"""Health routes and metrics."""

import pytest

from harness import metrics, models, shapes
from harness.program import wait_until

NAMES = {
    "ssmd_requests_running": "gauge", "ssmd_requests_waiting": "gauge", "ssmd_requests": "counter",
    "ssmd_prompt_tokens": "counter", "ssmd_cached_prompt_tokens": "counter", "ssmd_generation_tokens": "counter",
    "ssmd_time_to_first_token_seconds": "histogram", "ssmd_time_per_output_token_seconds": "histogram",
    "ssmd_request_duration_seconds": "histogram", "ssmd_queue_time_seconds": "histogram",
    "ssmd_step_duration_seconds": "histogram", "ssmd_batch_rows": "histogram", "ssmd_slots_total": "gauge",
    "ssmd_slots_used": "gauge", "ssmd_state_bytes": "gauge", "ssmd_build_info": "gauge",
    "ssmd_cache_bytes": "gauge", "ssmd_cache_hits": "counter", "ssmd_cache_misses": "counter",
    "ssmd_cache_moves": "counter", "ssmd_cache_evictions": "counter", "ssmd_cache_saves": "counter",
    "ssmd_cache_restore_seconds": "histogram", "ssmd_session_load_seconds": "histogram",
}


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez"])
def test_health(client, path):
    answer = client.get(path)
    assert answer.status == 200
    shapes.check("status", answer.json())
    assert answer.json()["status"] == "ok"


@pytest.mark.smoke
def test_every_metric(client):
    client.complete(max_tokens=2)
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "version=0.0.4" in answer.headers["Content-Type"]
    found = metrics.families(client)
    for name, kind in NAMES.items():
        assert name in found, name
        assert found[name].type == kind, name
        assert found[name].documentation, name
        assert found[name].samples, name
    assert all(name.startswith("ssmd_") for name in found if not name.startswith("process_"))


def test_histograms_are_consistent(client):
    client.complete(max_tokens=4)
    for name, kind in NAMES.items():
        if kind != "histogram":
            continue
        series = {}
        for sample in metrics.families(client)[name].samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            entry = series.setdefault(labels, {"buckets": []})
            if sample.name.endswith("_bucket"):
                entry["buckets"].append((float(sample.labels["le"]), sample.value))
            else:
                entry[sample.name.rsplit("_", 1)[1]] = sample.value
        for entry in series.values():
            bounds, counts = zip(*entry["buckets"])
            assert list(bounds) == sorted(set(bounds)) and bounds[-1] == float("inf"), name
            assert list(counts) == sorted(counts) and counts[-1] == entry["count"], name
            assert entry["sum"] >= 0


def test_counters_count(client):
    names = ("ssmd_prompt_tokens_total", "ssmd_generation_tokens_total", "ssmd_time_to_first_token_seconds_count",
             "ssmd_request_duration_seconds_count")
    before = [metrics.total(client, name) for name in names]
    client.complete([5] * 30, max_tokens=7, ignore_eos=True)
    after = [metrics.total(client, name) for name in names]
    assert [b - a for a, b in zip(before, after)] == [30, 7, 1, 1]


def test_requests_by_status(client):
    def count(status):
        return metrics.total(client, "ssmd_requests_total", status=status)

    before = count("200"), count("400"), count("404")
    client.complete(max_tokens=1)
    client.post("/v1/completions", b"{")
    client.post("/v1/completions", {"model": "nope", "prompt": "x"})
    after = count("200"), count("400"), count("404")
    assert after[0] - before[0] >= 1
    assert (after[1] - before[1], after[2] - before[2]) == (1, 1)


def test_slots(client):
    assert metrics.total(client, "ssmd_slots_total") >= 64
    assert metrics.total(client, "ssmd_state_bytes") > 0
    assert metrics.slots_used(client) == 0


@pytest.mark.own_server
def test_the_cache_by_tier(client, start, tmp_path):
    """A row on the device, one on the host, the rest on the disk: each place says what it holds, how often it was
    asked and how long it took."""
    demo = next(m for m in client.get("/v1/models").json()["data"] if m["id"] == models.DEMO)
    row = demo["session_bytes"] + 4 * demo["vocab_size"]  # and the next token's logits
    own = start("--cache-bytes", row, "--cache-host-bytes", row, "--cache-dir", tmp_path,
                "--cache-disk-bytes", 64 * row, "--checkpoint-tokens", 0).client
    prompts = [[5 + i] * 40 for i in range(5)]

    def tiers(name, *of):
        return [metrics.total(own, name, tier=tier) for tier in of or ("device", "host", "disk")]

    def rest():
        """Once the disk has what is too much for the host."""
        wait_until(lambda: tiers("ssmd_cache_bytes", "host")[0] <= row, 10, "the host holds one state")

    for prompt in prompts:
        own.complete(prompt, max_tokens=0)
        rest()
    assert tiers("ssmd_cache_hits_total") == [0, 0, 0] and metrics.total(own, "ssmd_cache_misses_total") == 5
    assert tiers("ssmd_cache_moves_total", "host", "disk") == [4, 3]
    assert tiers("ssmd_cache_evictions_total") == [0, 0, 0]
    device, host, disk = tiers("ssmd_cache_bytes")
    assert device >= row and host == row and disk == 3 * row
    assert tiers("ssmd_state_bytes", "host", "disk") == [host, disk]
    assert tiers("ssmd_cache_restore_seconds_count") == [0, 0, 0]
    for asked, hits in ((4, [1, 0, 0]), (3, [1, 1, 0]), (0, [1, 1, 1])):
        own.complete(prompts[asked], max_tokens=1)
        assert tiers("ssmd_cache_hits_total") == hits
        rest()
    assert tiers("ssmd_cache_restore_seconds_count") == [1, 2, 1]  # what comes from the disk comes by way of the host
    assert all(seconds > 0 for seconds in tiers("ssmd_cache_restore_seconds_sum"))
    assert metrics.total(own, "ssmd_cache_misses_total") == 5
