# SPDX-License-Identifier: Apache-2.0
"""ssmd session list|save|load|fork|rm against a running server."""

import json
import os
import subprocess

import pytest

from harness.program import BINARY, SANITIZERS, SCALE

pytestmark = pytest.mark.own_server

PROMPT = "ROMEO:\nO, she doth teach the torches to burn bright!\n"


class Command:
    """Runs `ssmd session` against a server; .out and .error are what it printed."""

    def __init__(self, server, **environment):
        self.environment = {"SSMD_PORT": str(server.port), **environment}

    def __call__(self, *words, status=0, stdin=b"", **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SSMD_") and "proxy" not in k.lower()}
        run = subprocess.run([str(BINARY), "session", *map(str, words)], input=stdin, capture_output=True,
                             timeout=60 * SCALE, env={**SANITIZERS, **clean, **self.environment, **environment})
        self.raw, self.error = run.stdout, run.stderr.decode()
        assert run.returncode == status, run
        return run.stdout.decode(errors="replace")


@pytest.fixture
def server(start):
    own = start()
    own.client.complete(PROMPT, session="s", max_tokens=8, temperature=0, ignore_eos=True)
    return own


def test_a_session_goes_out_and_in(server, tmp_path):
    session, client = Command(server), server.client
    file = tmp_path / "s.state"
    state = client.get("/v1/sessions/s/state").body
    assert session("save", "s", file) == f"s: {len(state)} bytes\n"
    assert file.read_bytes() == state and os.listdir(tmp_path) == ["s.state"]
    tokens = client.get("/v1/sessions/s").json()["tokens"]
    assert session("load", "t", file) == f"t: {tokens} tokens\n"
    assert session("fork", "s", "u") == f"u: {tokens} tokens\n"
    lines = session("list").splitlines()
    assert lines[0].split()[:3] == ["SESSION", "TOKENS", "BYTES"]
    assert [line.split()[0] for line in lines[1:]] == ["s", "t", "u"]
    assert all(int(line.split()[1]) == tokens for line in lines[1:])
    assert json.loads(session("list", "--json")) == client.get("/v1/sessions").json()
    assert session("rm", "t", "u") == "t: removed\nu: removed\n"
    assert [s["id"] for s in client.get("/v1/sessions").json()["data"]] == ["s"]
    session("save", "s", "-")
    assert session.raw == state
    session("load", "piped", "-", stdin=state)
    assert client.get("/v1/sessions/piped/state").body == state


def test_what_is_refused_is_said(server, tmp_path):
    session = Command(server)
    file = tmp_path / "s.state"
    file.write_bytes(b"older")
    session("save", "nobody", file, status=1)
    assert "no session 'nobody'" in session.error
    assert file.read_bytes() == b"older" and os.listdir(tmp_path) == ["s.state"]
    session("load", "s", file, status=1)
    assert "not a session" in session.error or "safetensors" in session.error
    session("fork", "s", "s", status=1)
    assert "exists" in session.error
    session("rm", "nobody", "s", "nobody", status=1)
    assert session.error.count("no session 'nobody'") == 2
    assert server.client.get("/v1/sessions").json()["data"] == []  # what could be removed was
    session("load", "s", tmp_path / "missing", status=1)
    assert "missing" in session.error and "No such file" in session.error
    session("load", "s", tmp_path, status=1)
    session("save", "s", tmp_path / "no" / "folder", status=1)
    assert "cannot write" in session.error


@pytest.mark.parametrize("words", [[], ["nothing"], ["list", "x"], ["save", "s"], ["load", "s"], ["fork", "s"], ["rm"],
                                   ["save", "a/b", "f"], ["rm", "good", "../bad"], ["fork", "s", ""],
                                   ["list", "--nothing"], ["list", "--timeout", "0"]], ids=" ".join)
def test_wrong_command_lines(server, words):
    session = Command(server)
    session(*words, status=2)
    assert session.error and session.raw == b""
    assert ("'nothing'" in session.error) == (words == ["nothing"])
    assert [s["id"] for s in server.client.get("/v1/sessions").json()["data"]] == ["s"]


def test_keys(start, tmp_path):
    server = start("--api-key", "first", "--api-key", "second")
    server.client.with_key("first").complete(PROMPT, session="s", max_tokens=1)
    session = Command(server)
    session("list", status=1)
    assert "SSMD_API_KEY" in session.error
    session("list", "--api-key", "wrong", status=1)
    keys = tmp_path / "keys"
    keys.write_text("# mine\n\nfirst\n")
    for environment, words in (({"SSMD_API_KEY": "first"}, []), ({}, ["--api-key-file", keys]), ({}, ["--api-key", "first"])):
        assert "\ns " in session("list", *words, **environment)
    assert "\ns " not in session("list", SSMD_API_KEY="second")
    session("save", "s", tmp_path / "f", status=1, SSMD_API_KEY="second")
    assert "no session" in session.error


def test_where_the_server_is(server):
    clean = Command(server)
    for words in (["--port", server.port], ["--url", f"http://127.0.0.1:{server.port}"],
                  ["--url", f"127.0.0.1:{server.port}/"], ["--host", "0.0.0.0", "--port", server.port]):
        assert "\ns " in clean("list", *words, SSMD_PORT="1")
    clean("list", "--port", 1, "--timeout", 1, status=1)
    assert "127.0.0.1:1" in clean.error
    clean("list", "--url", "ftp://127.0.0.1/", status=1)


def test_help():
    run = subprocess.run([str(BINARY), "session", "--help"], capture_output=True, text=True, timeout=30 * SCALE)
    assert run.returncode == 0
    for word in ("list", "save NAME FILE", "load NAME FILE", "fork NAME NEW", "rm NAME", "--api-key-file", "--url"):
        assert word in run.stdout
