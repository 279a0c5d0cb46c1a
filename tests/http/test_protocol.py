# SPDX-License-Identifier: Apache-2.0
"""HTTP itself: routes, methods, headers, kept connections, halves of requests, floods."""

import contextlib
import json
import time

import pytest

from harness import shapes
from harness.program import SCALE

PATH = "/v1/completions"
BODY = b'{"prompt":"ROMEO:","max_tokens":2,"temperature":0}'


# ---- routes and methods


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/", "/v1/completion", "/v1/completions/x", "/v2/models",
                                  "//v1/models", "/v1/models/../x", "/%00", "/V1/MODELS"])
def test_unknown_path(client, path):
    for method in ("GET", "POST"):
        error = client.request(method, path, body=b"{}" if method == "POST" else None).error(404)
        assert error["type"] == "invalid_request_error"
        assert "/v1/chat/completions" in error["message"] and (path == "/%00" or f"at {path}: " in error["message"])


METHODS = [("/v1/completions", "GET", "POST"), ("/v1/completions", "PUT", "POST"), ("/v1/completions", "DELETE", "POST"),
           ("/v1/models", "POST", "GET"), ("/v1/models/shakespeare-mamba", "DELETE", "GET"), ("/tokenize", "GET", "POST"),
           ("/detokenize", "GET", "POST"), ("/health", "POST", "GET"), ("/metrics", "DELETE", "GET"),
           ("/version", "PATCH", "GET"), ("/v1/completions", "BREW", "POST")]


@pytest.mark.smoke
@pytest.mark.parametrize("path, method, allowed", METHODS)
def test_wrong_method(client, path, method, allowed):
    answer = client.request(method, path, body=b"{}" if method in ("POST", "PUT", "PATCH") else None)
    error = answer.error(405)
    assert error["message"] == f"{path} takes {answer.headers['Allow']}, not {method}"
    allow = {name.strip() for name in answer.headers["Allow"].split(",")}
    assert allowed in allow and method not in allow
    assert "OPTIONS" in allow and ("HEAD" in allow) == ("GET" in allow)


def test_query_strings_are_allowed(client):
    assert client.get("/v1/models?x=1&y=%20").status == 200
    assert client.post(PATH + "?api-version=2024-01-01", BODY).status == 200


def test_escapes_in_a_path(client, served_models):
    name = served_models[0]
    assert client.get("/v1/models/" + name.replace("-", "%2D")).json()["id"] == name


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/version", "/metrics", "/livez", "/readyz"])
def test_head(client, path):
    with client.raw() as raw:
        raw.send_request("HEAD", path, headers=client.header_lines())
        status, headers, _ = raw.read_answer(head_only=True)
        assert status == 200
        raw.send_request("GET", path, headers=client.header_lines())
        status, with_body, body = raw.read_answer()
        assert status == 200 and body  # and so the HEAD had none
        assert headers["content-type"] == with_body["content-type"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health"])
def test_options(client, path):
    answer = client.request("OPTIONS", path)
    assert answer.status in (200, 204) and answer.body == b""
    assert "OPTIONS" in answer.headers["Allow"]


# ---- headers


@pytest.mark.smoke
def test_request_id(client):
    for path, body in ((PATH, BODY), ("/nothing", b"{}"), (PATH, b"{")):
        answer = client.post(path, body, headers={"X-Request-Id": "abc-123_x"})
        assert answer.headers["x-request-id"] == "abc-123_x"
        made = {client.post(path, body).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3 and all(made)


def test_request_id_is_bounded(client):
    answer = client.post(PATH, BODY, headers={"X-Request-Id": "x" * 5000})
    assert answer.status == 200
    assert 0 < len(answer.headers["x-request-id"]) <= 512


def test_processing_time(client):
    assert float(client.post(PATH, BODY).headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("value", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON",
                                   "application/json;charset=UTF-8"])
def test_content_types(client, value):
    assert client.post(PATH, BODY, headers={"Content-Type": value}).status == 200


@pytest.mark.parametrize("value", ["multipart/form-data; boundary=x", "image/png", "application/xml",
                                   "application/x-www-form-urlencoded", "application/json; charset=latin-1"])
def test_unsupported_content_types(client, value):
    refused = client.post(PATH, BODY, headers={"Content-Type": value}).error(415, code="unsupported_media_type")
    assert f"not '{value}'" in refused["message"]


@pytest.mark.parametrize("value, shown", [(b"x/" + b"y" * 5000, "x/" + "y" * 78), (b'a\xff\x01 \xc3\xa9"c', 'a\ufffd\x01 \xe9"c')])
def test_a_strange_content_type_is_shown_cut_and_clean(client, value, shown):
    with client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n".encode()
                 + "".join(line + "\r\n" for line in client.header_lines()).encode()
                 + b"Content-Type: " + value + b"\r\n\r\n" + BODY)
        status, _, body = raw.read_answer()
        assert status == 415 and json.loads(body)["error"]["message"].endswith(f", not '{shown}'")


def test_no_content_type(client):
    with client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n" + "".join(line + "\r\n" for line in client.header_lines())
                 + f"Content-Length: {len(BODY)}\r\n\r\n".encode().decode())
        raw.send(BODY)
        assert raw.read_answer()[0] == 200


def test_content_encoding_is_refused(client):
    client.post(PATH, BODY, headers={"Content-Encoding": "gzip"}).error(415)


def test_expect_continue(client):
    with client.raw() as raw:
        raw.send_request("POST", PATH, headers=["Expect: 100-continue", *client.header_lines()])
    with client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
                 + "".join(line + "\r\n" for line in client.header_lines()) + f"Content-Length: {len(BODY)}\r\n\r\n")
        status, _ = raw.read_head()
        assert status == 100
        raw.send(BODY)
        assert raw.read_answer()[0] == 200


def test_expect_continue_of_a_body_that_is_too_long(client):
    with client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
                 + "".join(line + "\r\n" for line in client.header_lines()) + "Content-Length: 99999999999\r\n\r\n")
        assert raw.read_answer()[0] == 413


@pytest.mark.smoke
def test_huge_headers(client):
    for head in ("X-Big: " + "x" * 200_000, "\r\n".join(f"X-{i}: y" for i in range(20_000))):
        with client.raw() as raw:
            try:
                raw.send(f"GET /health HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n")
                assert raw.read_head()[0] == 431
            except ConnectionError:
                pass  # closed while it was still being sent
    with client.raw() as raw:
        raw.send("GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + "x" * 40_000 + "\r\n\r\n")
        assert raw.read_head()[0] in (200, 431)


def test_long_path(client):
    with client.raw() as raw:
        try:
            raw.send("GET /" + "x" * 100_000 + " HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.read_head()[0] in (404, 414, 431)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused and closed while it was still being sent


# ---- connections


@pytest.mark.smoke
def test_kept_after_every_kind_of_answer(client):
    """One connection, never closed by the server: answers good and bad, in turn."""
    with client.raw() as raw:
        for method, path, body, want in [
                ("POST", PATH, BODY, 200), ("POST", PATH, b"{", 400), ("GET", "/nothing", b"", 404),
                ("GET", PATH, b"", 405), ("POST", PATH, b'{"model":"no","prompt":"x"}', 404),
                ("GET", "/health", b"", 200), ("POST", PATH, b'{"prompt":"x","n":0}', 400),
                ("POST", "/tokenize", b'{"content":"x"}', 200), ("POST", PATH, BODY, 200)]:
            raw.send_request(method, path, body, client.header_lines())
            status, headers, _ = raw.read_answer()
            assert status == want, (method, path, body)
            assert headers.get("connection", "").lower() != "close"


def test_connection_close_is_obeyed(client):
    with client.raw() as raw:
        raw.send_request("GET", "/health", headers=["Connection: close"])
        status, headers, _ = raw.read_answer()
        assert status == 200 and headers["connection"].lower() == "close"
        assert raw.is_closed(2)


GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD_OF_POST = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n"
LAST_WORDS = {  # and how many answers they get
    "a request": (GET, 1), "requests": (GET * 3, 3), "half a request after one": (GET + GET[:20], 1),
    "headers": (f"{HEAD_OF_POST}\r\n".encode(), 0), "half a body": (f"{HEAD_OF_POST}\r\n{{".encode(), 0),
    "chunks": (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n".encode(), 0),
    "a body that is refused": (f"{HEAD_OF_POST}Content-Encoding: x\r\n\r\n{{".encode(), 0)}


@pytest.mark.smoke
@pytest.mark.parametrize("what", LAST_WORDS)
def test_an_end_in_the_last_bytes_packet(client, what):
    """Whole requests are answered, and the connection is closed at once, not by --header-timeout."""
    data, answers = LAST_WORDS[what]
    with client.raw() as raw:
        raw.send(GET)
        assert raw.read_answer()[0] == 200  # the first read of a connection is followed by another anyway
        raw.send_last(data)
        assert [raw.read_answer()[0] for _ in range(answers)] == [200] * answers
        assert raw.is_closed(10 * SCALE)
        assert raw.buffer == b""


def test_http_1_0(client):
    with client.raw() as raw:
        raw.send("GET /health HTTP/1.0\r\n\r\n")
        assert raw.read_answer()[0] == 200
        assert raw.is_closed(2)


def test_stream_over_http_1_0(client):
    """No chunks in 1.0: the body ends with the connection."""
    body = b'{"prompt":"x","max_tokens":3,"stream":true}'
    with client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.0\r\nContent-Type: application/json\r\n"
                 + "".join(line + "\r\n" for line in client.header_lines()) + f"Content-Length: {len(body)}\r\n\r\n")
        raw.send(body)
        status, headers = raw.read_head()
        assert status == 200 and "transfer-encoding" not in headers
        assert raw.is_closed(5)
        assert raw.buffer.endswith(b"data: [DONE]\n\n")


@pytest.mark.smoke
def test_pipelining(client):
    lines = client.header_lines()
    with client.raw() as raw:
        raw.send_request("POST", PATH, BODY, lines)
        raw.send_request("GET", "/health", headers=lines)
        raw.send_request("POST", PATH, b"{", lines)
        raw.send_request("POST", PATH, BODY, lines)
        answers = [raw.read_answer() for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 400, 200]
    shapes.check("completion", json.loads(answers[0][2]))
    assert json.loads(answers[0][2])["choices"] == json.loads(answers[3][2])["choices"]


def test_a_request_byte_by_byte(client):
    with client.raw() as raw:
        head = "".join(line + "\r\n" for line in client.header_lines())
        for byte in (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}"
                     f"Content-Length: {len(BODY)}\r\n\r\n").encode() + BODY:
            raw.send(bytes([byte]))
        assert raw.read_answer()[0] == 200


GARBAGE = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
           b"\r\n" * 500, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"G" * 10_000,
           b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
           b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5x\r\n\r\nabcde",
           b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
           b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
           b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
           b"GET /health HTTP/1.1\r\nHost: x\r\n\xff\xfe: \x01\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n"]


@pytest.mark.smoke
@pytest.mark.parametrize("i", range(len(GARBAGE)))
def test_garbage(client, i):
    """Whatever comes of it, the next client is served."""
    with client.raw() as raw:
        try:
            raw.send(GARBAGE[i])
            raw.half_close()
            raw.is_closed(1)
        except ConnectionError:
            pass
        if raw.buffer:
            assert raw.buffer.startswith(b"HTTP/1."), raw.buffer[:100]
            assert int(raw.buffer.split()[1]) >= 400 or GARBAGE[i].startswith(b"GET /health"), raw.buffer[:100]


# ---- halves of requests


@pytest.mark.smoke
def test_half_a_request_does_not_hold_others_up(client):
    with client.raw() as head, client.raw() as body, client.raw() as nothing:
        head.send("POST /v1/compl")
        body.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{\"prompt\"")
        started = time.monotonic()
        assert client.greedy(max_tokens=1)
        assert time.monotonic() - started < 20 * SCALE  # those have a minute
        del nothing


def test_stalled_requests_are_closed(start):
    """--header-timeout ends what stalls: in the first line, in the headers, in the body, before it."""
    server = start("--header-timeout", 1)
    pieces = {
        "nothing": "", "line": "POST /v1/comp", "headers": "GET /health HTTP/1.1\r\nHost: x\r\n",
        "body": f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{",
        "chunks": f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    }
    stalled = {name: server.client.raw() for name in pieces}
    for name, text in pieces.items():
        stalled[name].send(text)
    for name, raw in stalled.items():
        assert raw.is_closed(10 * SCALE), name
        raw.close()
    assert server.client.greedy(max_tokens=1)


def test_a_trickle_does_not_hold_a_connection_for_ever(start):
    """A header byte every 0.2 s is closed too, not only silence."""
    server = start("--header-timeout", 1)
    with server.client.raw() as raw:
        raw.send("GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        deadline = time.monotonic() + 10 * SCALE
        closed = False
        while time.monotonic() < deadline and not closed:
            try:
                raw.send("x")
            except ConnectionError:
                closed = True
                break
            closed = raw.is_closed(0.2)
        assert closed


def test_a_trickling_body_is_late(start):
    """So is a body byte every 0.2 s, and the log says who ended it."""
    server = start("--header-timeout", 1)
    with server.client.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n")
        deadline = time.monotonic() + 10 * SCALE
        while time.monotonic() < deadline and "status=499" not in server.log():
            with contextlib.suppress(ConnectionError):
                raw.send(" ")
            time.sleep(0.2)
    assert "cut=timeout" in server.log() and "cut=client" not in server.log(), server.tail()


def test_a_running_answer_is_no_stall(start):
    """The timeout is the client's, not the model's: long answers come whole."""
    client = start("--header-timeout", 1).client
    started = time.monotonic()
    count = 1000
    while time.monotonic() - started < 1.5 and count < 100_000:
        started = time.monotonic()
        answer = client.complete(max_tokens=count, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == count
        count *= 2


def test_many_idle_connections(client):
    """500 connections that say nothing change nothing for the 501st."""
    idle = [client.raw() for _ in range(500)]
    try:
        assert client.greedy(max_tokens=2)
        for raw in idle[::50]:
            raw.send_request("POST", PATH, BODY, client.header_lines())
            assert raw.read_answer()[0] == 200
    finally:
        for raw in idle:
            raw.close()


def test_ping(start):
    """A stream that is silent gets comments; here a long prompt is read before the first token, for seconds."""
    from harness.models import folder, induction_prompt

    server = start("--model", f"induction-heads={folder('induction-heads')}", "--ping-interval", 0.1)
    prompt, letter = induction_prompt(250_000, 1)
    body = json.dumps({"prompt": prompt, "max_tokens": 1, "stream": True, "temperature": 0}).encode()
    with server.client.raw() as raw:
        raw.send_request("POST", PATH, body, ["Connection: close"])
        assert raw.is_closed(50)
    assert b": ping\n\n" in raw.buffer
    assert raw.buffer.index(b": ping\n\n") < raw.buffer.index(b"data: ")
    assert f'"text":"{letter}"'.encode() in raw.buffer.replace(b'": "', b'":"')


# ---- pages of other origins


def test_cors(start):
    client = start("--cors-origin", "https://example.org").client
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "authorization,content-type"}
    answer = client.request("OPTIONS", PATH, headers=ask)
    assert answer.status in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed and "content-type" in allowed
    answer = client.post(PATH, BODY, headers={"Origin": "https://example.org"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "origin" in answer.headers.get("Vary", "").lower()
    answer = client.post(PATH, BODY, headers={"Origin": "https://evil.example"})
    assert answer.headers.get("Access-Control-Allow-Origin") is None


def test_cors_for_any(start):
    client = start("--cors-origin", "*").client
    answer = client.post(PATH, BODY, headers={"Origin": "https://a.example"})
    assert answer.headers["Access-Control-Allow-Origin"] in ("*", "https://a.example")


def test_no_cors_unless_asked(client):
    answer = client.post(PATH, BODY, headers={"Origin": "https://a.example"})
    assert answer.headers.get("Access-Control-Allow-Origin") is None
