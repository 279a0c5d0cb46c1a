# SPDX-License-Identifier: Apache-2.0
"""An HTTP client that hides nothing: status, headers and bytes as they came, events with shapes."""

import contextlib
import http.client
import json
import re

from . import shapes
from .raw import RawConnection


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        assert self.headers.get("Content-Type", "").startswith("application/json"), self
        return json.loads(self.body.decode("utf-8"))

    def error(self, status, param=..., code=...):
        """Asserts that this is an error answer in OpenAI's form; returns its error object."""
        assert self.status == status, self
        error = self.json()
        shapes.check("error", error)
        error = error["error"]
        if param is not ...:
            assert error["param"] == param, error
        if code is not ...:
            assert error["code"] == code, error
        return error

    def __repr__(self):
        return f"<{self.status} {dict(self.headers)} {self.body[:500]!r}>"


class Stream:
    """A completion's event stream, event by event: iterating gives parsed chunks up to [DONE]."""

    def __init__(self, connection, response):
        self.connection, self.response = connection, response
        self.done = False

    def raw_events(self):
        """(field lines) of each event, comments left out; strict about the format."""
        lines = []
        while True:
            line = self.response.readline()
            if not line:
                assert not lines, f"the body ended inside an event: {lines}"
                return
            text = line.decode("utf-8")  # strict: a split character fails here
            assert text.endswith("\n"), text
            text = text[:-1]
            if text.startswith(":"):
                continue
            if text == "":
                if lines:
                    yield lines
                lines = []
                continue
            lines.append(text)

    def __iter__(self):
        for lines in self.raw_events():
            assert len(lines) == 1 and lines[0].startswith("data: "), lines
            data = lines[0][len("data: "):]
            assert not self.done, f"an event after [DONE]: {data}"
            if data == "[DONE]":
                self.done = True
                continue
            yield json.loads(data)

    def close(self):
        self.connection.close()


class Client:
    def __init__(self, host, port, key=None, timeout=240):
        self.host, self.port, self.key, self.timeout = host, port, key, timeout

    @classmethod
    def from_url(cls, url, key=None):
        found = re.fullmatch(r"http://([^/:]+):(\d+)/?", url)
        assert found, f"not http://HOST:PORT: {url}"
        return cls(found.group(1), int(found.group(2)), key)

    def with_key(self, key):
        return Client(self.host, self.port, key, self.timeout)

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)

    def raw(self):
        return RawConnection(self.host, self.port)

    def headers(self, extra=None):
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {**own, **(extra or {})}

    def header_lines(self):
        return [f"{name}: {value}" for name, value in self.headers().items()]

    def request(self, method, path, body=None, headers=None, connection=None):
        """body: bytes as they are, or anything else as JSON."""
        extra = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None and not any(name.lower() == "content-type" for name in extra):
            extra["Content-Type"] = "application/json"
        own = connection or self.connect()
        try:
            own.request(method, path, body=body, headers=self.headers(extra))
            response = own.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            if connection is None:
                own.close()

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, body, **kwargs):
        return self.request("POST", path, body, **kwargs)

    def complete(self, prompt="ROMEO:", **parameters):
        """A whole completion that must succeed; its parsed answer, its shape checked."""
        answer = self.post("/v1/completions", {"prompt": prompt, **parameters})
        assert answer.status == 200, answer
        parsed = answer.json()
        shapes.check("completion", parsed)
        assert [c["index"] for c in parsed["choices"]] == list(range(len(parsed["choices"])))
        usage = parsed["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        return parsed

    def text(self, prompt="ROMEO:", **parameters):
        """The one choice's text."""
        (choice,) = self.complete(prompt, **parameters)["choices"]
        return choice["text"]

    def greedy(self, prompt="ROMEO:", **parameters):
        return self.text(prompt, temperature=0, **parameters)

    @contextlib.contextmanager
    def open_any(self, body):
        """Sends a completion request with `stream`: (200, Stream) or (status, Answer)."""
        connection = self.connect()
        try:
            connection.request("POST", "/v1/completions", body=json.dumps(body),
                               headers=self.headers({"Content-Type": "application/json"}))
            response = connection.getresponse()
            if response.status == 200:
                yield 200, Stream(connection, response)
            else:
                yield response.status, Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    @contextlib.contextmanager
    def open_stream(self, prompt="ROMEO:", **parameters):
        with self.open_any({"prompt": prompt, "stream": True, **parameters}) as (status, stream):
            assert status == 200, stream
            yield stream

    def stream(self, prompt="ROMEO:", **parameters):
        """All chunks of a stream that must succeed, shapes checked, ended by [DONE]."""
        with self.open_stream(prompt, **parameters) as stream:
            chunks = list(stream)
            assert stream.done, "no [DONE]"
        for chunk in chunks:
            shapes.check("completion_chunk", chunk)
        return chunks


def joined(chunks):
    """The texts of a stream's choices, put together: {index: text}."""
    texts = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts
