# SPDX-License-Identifier: Apache-2.0
"""GET /v1/models, /version."""

import pytest

from harness import models, shapes
from harness.models import DEMO


@pytest.mark.smoke
def test_list(client):
    listed = client.get("/v1/models").json()
    shapes.check("models", listed)
    names = [model["id"] for model in listed["data"]]
    assert len(set(names)) == len(names)


def test_one(client, served_models):
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    for name in served_models:
        one = client.get(f"/v1/models/{name}").json()
        shapes.check("model", one)
        assert one == listed[name]


def test_unknown(client):
    client.get("/v1/models/nothing").error(404, code="model_not_found")
    client.get("/v1/models/").error(404)


def test_facts_about_the_demonstration_model(client, need_model):
    model = client.get(f"/v1/models/{need_model(DEMO)}").json()
    assert model["architecture"] == "mamba"
    assert 3.7e6 < model["parameters"] < 3.8e6
    size = [value for key, value in model.items() if "byte" in key]
    assert size == [8 * 512 * (16 + 3) * 4] or size == [8 * 512 * (16 + 4) * 4], model


def test_one_model_under_several_names(start):
    folder = models.folder(DEMO)
    client = start("--model", folder, "--model", f"other={folder}").client
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [DEMO, "other"]
    assert client.greedy(model="other") == client.greedy(model=DEMO)


def test_no_model_named_serves_the_demonstration(start):
    from harness.program import Program

    server = Program()
    try:
        assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == [DEMO]
        assert server.client.greedy(max_tokens=48) == models.goldens(DEMO)[0]["greedy_text"]
    finally:
        assert server.stop() == 0


@pytest.mark.smoke
def test_version(client):
    answer = client.get("/version").json()
    shapes.check("version", answer)
    assert "cpu" in answer["backends"]
