# SPDX-License-Identifier: Apache-2.0
"""Bodies that are no request: each gets its status, and the server goes on (see `client`)."""

import json

import pytest

PATH = "/v1/completions"

BROKEN = [
    b"", b"{", b"}", b"nonsense", b'{"prompt"', b'{"prompt":', b'{"prompt":"x"', b'{"prompt":"x",}',
    b'{"prompt":"x"}}', b'{"prompt":"x"} {"prompt":"y"}', b"{'prompt':'x'}", b'{"prompt":"x" "n":1}',
    b'{"prompt":"\\ud800"}', b'{"prompt":"\\u12"}', b'{"prompt":"\\x41"}', b'{"prompt":"a\nb"}',
    b'{"n":01,"prompt":"x"}', b'{"n":+1,"prompt":"x"}', b'{"temperature":.5,"prompt":"x"}',
    b'{"temperature":NaN,"prompt":"x"}', b'{"temperature":Infinity,"prompt":"x"}',
    b'{"prompt":[1,2,]}', b'{"prompt":[1 2]}', b'{"prompt":[1,2}', b'{"prompt":[1,2]', b'{"prompt":[1,]}',
    b'{"prompt":[01]}', b'{"prompt":[0x10]}', b'{"prompt":[1.]}', b'{"prompt":[--1]}', b'{"prompt":[,1]}',
    b'{"prompt":[[1],[2]}', b'{"prompt":[[1][2]]}', b"\x00", b"\xef\xbb\xbf{}x", b'{"prompt":tru}',
]

INVALID_UTF8 = [
    b'{"prompt":"\xff"}', b'{"prompt":"\xc3"}', b'{"prompt":"\xc0\xaf"}', b'{"prompt":"\xed\xa0\x80"}',
    b'{"prompt":"\xf4\x90\x80\x80"}', b'{"prompt":"\xe4\xb8"}', b'{"\xff":1,"prompt":"x"}',
    b'{"prompt":["ok","\x80"]}', b'{"prompt":"x","user":"\xfe"}', b'{"prompt":"x","stop":"\xf0\x9f"}',
]


@pytest.mark.smoke
@pytest.mark.parametrize("path", [PATH, "/tokenize", "/detokenize"])
def test_broken_json(client, path):
    connection = client.connect()
    for body in BROKEN:
        answer = client.post(path, body, connection=connection)
        assert answer.status == 400, (body, answer)
        error = answer.error(400)
        assert error["type"] == "invalid_request_error", (body, error)
    connection.close()


@pytest.mark.smoke
@pytest.mark.parametrize("path", [PATH, "/tokenize", "/detokenize"])
def test_invalid_utf8(client, path):
    for body in INVALID_UTF8:
        if path == "/tokenize":
            body = body.replace(b'"prompt"', b'"content"')
        answer = client.post(path, body)
        assert answer.status == 400, (body, answer)
        answer.error(400)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null", b"true", b"[1,2]", b'[{"prompt":"x"}]'])
def test_json_that_is_no_object(client, body):
    client.post(PATH, body).error(400)


BOMBS = {
    "arrays": b"[" * 200_000,
    "closed arrays": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"a":' * 100_000,
    "closed objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "prompt": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unknown parameter": b'{"prompt":"x","max_tokens":1,"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "mixed": b'{"prompt":' + b'[{"a":' * 50_000,
    "metadata": b'{"prompt":"x","metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", BOMBS)
def test_nesting(client, name):
    client.post(PATH, BOMBS[name]).error(400)


def test_many_keys(client):
    """A hundred thousand unknown parameters: accepted, as one is, or refused; quickly either way."""
    body = {"prompt": "x", "max_tokens": 1, **{f"key{i}": i for i in range(100_000)}}
    assert client.post(PATH, body).status in (200, 400)


def test_same_key_twice(client):
    assert client.post(PATH, b'{"prompt":"x","max_tokens":1,"prompt":"y"}').status in (200, 400)


def test_messages_are_bounded_and_printable(client):
    for body in (b'{"prompt":' + b"\x01" * 5000, b"\xff" * 5000, b'{"' + b"k" * 100_000):
        answer = client.post(PATH, body)
        message = answer.error(400)["message"]
        assert len(message) <= 1000 and message.isprintable(), message


def test_large_numbers_of_ids(client):
    ids = b"[" + b",".join([b"5"] * 300_000) + b"]"
    answer = client.post(PATH, b'{"max_tokens":0,"model":"nope","prompt":%s}' % ids)
    answer.error(404, code="model_not_found")


def test_whitespace_in_json(client):
    body = b' \t\r\n{ "prompt" : [ 859 ,\n 26 ] , "max_tokens" : 1 } \n'
    assert client.post(PATH, body).status == 200


def test_escapes_in_json(client):
    body = b'{"\\u0070rompt":"\\ud83d\\ude00\\u00e9\\/\\n","max_tokens":0,"echo":true}'
    assert client.post(PATH, body).json()["choices"][0]["text"] == "\U0001f600\u00e9/\n"


def test_ids_in_every_spelling_of_a_list(client):
    for text in ("[859,26]", "[ 859, 26 ]", "[[859,26]]", "[ [ 859 , 26 ] ]"):
        answer = client.post(PATH, b'{"prompt":%s,"max_tokens":2,"temperature":0}' % text.encode())
        assert answer.json()["choices"][0]["text"] == client.greedy("ROMEO:", max_tokens=2)


@pytest.mark.parametrize("token", ["4294967295", "4294968155", "2147483648", "9223372036854775807",
                                   "18446744073709551617", "-0", "1e2", "859.0"])
def test_ids_that_would_wrap(client, token):
    """An id past 32 bits is refused, never cut to one that exists."""
    answer = client.post(PATH, b'{"prompt":[%s],"max_tokens":1}' % token.encode())
    assert answer.status == (200 if token == "-0" else 400) or (token == "-0" and answer.status == 400)
    if answer.status == 400:
        answer.error(400)


@pytest.mark.parametrize("form", ["tokens", "prompt"])
def test_prompt_over_the_limit(start, form):
    client = start("--max-prompt-tokens", 10).client
    ok = client.complete([5] * 10, max_tokens=1)
    assert ok["usage"]["prompt_tokens"] == 10
    error = client.post(PATH, {"prompt": [5] * 11 if form == "tokens" else "a b c d e f g h i j k l m n"}
                        ).error(400, code="context_length_exceeded")
    assert "10" in error["message"]
    assert any(word.strip(".,").isdigit() and int(word.strip(".,")) > 10 for word in error["message"].split())


def test_too_many_prompts(start):
    client = start("--max-prompts", 4).client
    assert client.complete(["a"] * 4, max_tokens=1)
    client.post(PATH, {"prompt": ["a"] * 5, "max_tokens": 1}).error(400, param="prompt")


# ---- bodies over the limit

LIMIT = 100_000


@pytest.fixture(scope="module")
def small(program):
    from harness.models import DEMO, folder
    from harness.program import Program

    if program is None:
        pytest.skip("starts a server of its own; SSMD_TEST_URL is set")
    server = Program("--model", f"{DEMO}={folder(DEMO)}", "--max-body-bytes", LIMIT)
    yield server.client
    assert server.stop() == 0, server.tail()


def chunk(size):
    return b"%x\r\n%s\r\n" % (size, b"x" * size)


@pytest.mark.smoke
def test_content_length_over_the_limit(small):
    """Refused from its header: no byte of the body is waited for."""
    with small.raw() as raw:
        raw.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 f"Content-Length: 10000000000\r\n\r\n")
        status, headers, body = raw.read_answer()
        assert status == 413
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_body_at_the_limit(small):
    head = b'{"max_tokens":1,"prompt":"a","user":"'
    fill = LIMIT - len(head) - 2
    assert small.post(PATH, head + b"x" * fill + b'"}').status == 200
    small.post(PATH, head + b"x" * (fill + 1) + b'"}').error(413)


def chunked_head():
    return (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n")


def test_chunked_body(small):
    with small.raw() as raw:
        raw.send(chunked_head())
        for piece in (b'{"prompt":', b'"ROMEO:","max', b'_tokens":1}'):
            raw.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        raw.send(b"0\r\n\r\n")
        assert raw.read_answer()[0] == 200


def test_chunked_body_over_the_limit(small):
    """Read and thrown away up to 1 MiB more, then answered."""
    with small.raw() as raw:
        raw.send(chunked_head())
        for _ in range(10):
            raw.send(chunk(50_000))
        raw.send(b"0\r\n\r\n")
        status, _, body = raw.read_answer()
        assert status == 413
        assert json.loads(body)["error"]["message"]


def test_chunked_body_without_end(small):
    """Far past the limit: answered or not, the connection is closed."""
    with small.raw() as raw:
        raw.send(chunked_head())
        try:
            for _ in range(200):
                raw.send(chunk(50_000))
        except (ConnectionError, TimeoutError):
            pass
        assert raw.is_closed(5)
    assert small.greedy(max_tokens=1)


def test_memory_of_requests_is_bounded(start):
    """Past --max-request-memory a request is told to come later, and one after it is served."""
    client = start("--max-request-memory", "256K").client
    answer = client.post(PATH, {"prompt": "x", "max_tokens": 1, "user": "u" * 2_000_000})
    answer.error(503)
    assert int(answer.headers["Retry-After"]) >= 0
    assert client.greedy(max_tokens=1)
