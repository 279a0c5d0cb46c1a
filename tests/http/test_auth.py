# SPDX-License-Identifier: Apache-2.0
"""Keys: who may ask what."""

import pytest

CLOSED = [("GET", "/v1/models", None), ("GET", "/metrics", None), ("GET", "/version", None),
          ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}), ("POST", "/tokenize", {"content": "x"}),
          ("POST", "/detokenize", {"tokens": [5]}), ("GET", "/tokenizer_info", None)]


@pytest.mark.smoke
def test_keys(start):
    client = start("--api-key", "secret-1", "--api-key", "secret-2").client
    for path in ("/health", "/readyz", "/livez"):
        assert client.get(path).status == 200
    for method, path, body in CLOSED:
        if path == "/version":
            continue
        for key in (None, "wrong", "secret", "secret-11", "SECRET-1"):
            answer = client.with_key(key).request(method, path, body=body)
            error = answer.error(401, code="invalid_api_key")
            assert error["type"] == "authentication_error"
            assert "secret" not in error["message"]
        for key in ("secret-1", "secret-2"):
            assert client.with_key(key).request(method, path, body=body).status == 200


@pytest.mark.parametrize("value", ["bearer secret", "Bearer  secret", "BEARER secret"])
def test_the_scheme_in_any_case(start, value):
    client = start("--api-key", "secret").client
    assert client.get("/v1/models", headers={"Authorization": value}).status == 200


@pytest.mark.parametrize("value", ["secret", "Basic secret", "Bearer", "Bearer ", "Bearersecret", "Bearer secret x"])
def test_what_is_no_bearer_key(start, value):
    client = start("--api-key", "secret").client
    client.get("/v1/models", headers={"Authorization": value}).error(401)


def test_key_file(start, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# who may ask\n\nalpha\r\n   \n#beta\ngamma")
    client = start("--api-key-file", path).client
    for key, status in (("alpha", 200), ("gamma", 200), ("beta", 401), ("#beta", 401), ("", 401)):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status == status, key


def test_public_metrics(start):
    client = start("--api-key", "secret", "--public-metrics").client
    assert client.get("/metrics").status == 200
    client.get("/v1/models").error(401)


def test_unauthorized_bodies_are_not_read(start):
    """A stranger's gigabyte is refused from its headers."""
    client = start("--api-key", "secret").client
    with client.raw() as raw:
        raw.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 "Content-Length: 15000000\r\n\r\n")
        assert raw.read_answer()[0] == 401


def test_preflight_needs_no_key(start):
    client = start("--api-key", "secret", "--cors-origin", "*").client
    answer = client.request("OPTIONS", "/v1/completions", headers={
        "Origin": "https://a.example", "Access-Control-Request-Method": "POST"})
    assert answer.status in (200, 204)


def test_key_from_the_environment(start):
    client = start(environment={"SSMD_API_KEY": "from-env"}).client
    client.get("/v1/models").error(401)
    assert client.with_key("from-env").get("/v1/models").status == 200
