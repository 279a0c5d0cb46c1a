# SPDX-License-Identifier: Apache-2.0
"""Every command of README.md, run as written but for the port, or said where it is run instead."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from harness.client import Client
from harness.metrics import total
from harness.program import BINARY, ROOT, SCALE, Program
from harness.redis import free_ports, need

TEXT = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:8080"

# Blocks that are no work of this file, by how a line of theirs begins.
ELSEWHERE = {
    "./run ": "builds, tests and measures, some of it for minutes; only that there is such a word is looked at here",
    "docker run --rm": "tests/container/run.sh, as written; with a folder of models, the same and a mount",
    "docker compose": "tests/container/run.sh, as written",
}


def blocks():
    """(language, text) of each block: fenced ones by their language, indented ones as sh."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    found = [(match[1], match[2]) for match in fenced.finditer(TEXT)]
    rest = fenced.sub("", TEXT)
    for match in re.finditer(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n", rest, re.M):
        text = re.sub(r"^ {4}", "", match[0], flags=re.M).strip("\n") + "\n"
        if not re.search(r"^\s+[-*] ", match[0], re.M):
            found.append(("sh", text))
    return found


def commands(word):
    """The indented blocks with a line that begins so."""
    return [text for language, text in blocks() if language == "sh" and re.search(rf"^{re.escape(word)}", text, re.M)]


def shell(text, url, folder=ROOT):
    """Runs it as bash would if it were typed in the checkout: its output; a failed command is a failure."""
    text = text.replace(ADDRESS, url.removeprefix("http://"))
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    bash = ["bash", "-euo", "pipefail", "-c", text]
    with subprocess.Popen(bash, cwd=folder, env=environment, text=True, start_new_session=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as typed:
        try:
            output, errors = typed.communicate(timeout=50 * SCALE)
        except subprocess.TimeoutExpired:
            os.killpg(typed.pid, signal.SIGKILL)  # and all that it has started
            raise
    assert typed.returncode == 0, f"{text}\n{output}\n{errors}"
    return output


def test_every_block_is_known():
    for language, text in blocks():
        known = (language in ("json", "python") or text.startswith(("curl ", "build/ssmd ", "post() ", "redis-server "))
                 or any(line.startswith(word) for line in text.splitlines() for word in ELSEWHERE))
        assert known, f"nobody runs this block of README.md:\n{text}"


def test_every_word_of_run_is_one():
    script = (ROOT / "run").read_text()
    words = re.findall(r"^    \./run ([\w-]+)", TEXT, re.M)
    assert {"serve", "test", "image"} <= set(words)
    for word in words:
        assert f"\nword_{word}() " in script, word


def test_the_answer_shown_is_the_answer(client):
    (shown,) = [json.loads(text) for language, text in blocks() if language == "json"]
    first = commands("curl http://127.0.0.1:8080/v1/completions")[0]
    answer = json.loads(shell(first, client.url))
    for own in (shown, answer):
        for name in ("id", "created", "system_fingerprint"):
            assert own.pop(name)
        own["usage"].pop("prompt_tokens_details")
    assert answer == shown


@pytest.mark.parametrize("text", commands("curl "))
def test_curl(client, text):
    output = shell(text, client.url)
    if "-N" in text:
        events = output.strip().split("\n\n")
        assert len(events) > 20 and events[-1] == "data: [DONE]"
    else:
        assert '"error"' not in output
        decoder, at, answers = json.JSONDecoder(), 0, []
        while at < len(output):
            answer, at = decoder.raw_decode(output, at)
            answers.append(answer)
        assert len(answers) == text.count("curl ")


def test_python(client):
    (text,) = [text for language, text in blocks() if language == "python"]
    text = text.replace(ADDRESS, client.url.removeprefix("http://"))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=50 * SCALE)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200


def test_a_book_and_ten_questions(start, tmp_path):
    """And what is kept of them; `ssmd session` finds the server by its port."""
    ask, keep = [text for text in commands("build/ssmd ") if "ssmd session" in text]
    (tmp_path / "book.txt").write_text((ROOT / "tests" / "data" / "heldout.txt").read_text())
    server = start()
    text = f"export SSMD_PORT={server.port}\n{ask}{keep}".replace("build/ssmd", str(BINARY))
    lines = shell(text, server.client.url, tmp_path).splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(answers) == 11 and not any("error" in answer for answer in answers)
    read = answers[0]["usage"]["prompt_tokens"]
    assert read > 1000
    for answer in answers[1:]:  # the book is not read again
        usage = answer["usage"]
        assert usage["prompt_tokens"] > read and usage["prompt_tokens_details"]["cached_tokens"] == read
    assert total(server.client, "ssmd_prompt_tokens_total") < read + 200
    assert [s["id"] for s in server.client.get("/v1/sessions").json()["data"]] == ["book"]
    assert (tmp_path / "book.state").stat().st_size > 100_000


@pytest.mark.own_server
def test_two_servers_and_a_redis(tmp_path):
    """As typed, on ports of its own, with time for the servers to come up."""
    redis = need()
    (text,) = commands("redis-server ")
    text = text.replace("redis-server", redis)
    ports = free_ports(3)
    for name, port in zip(("6379", "8080", "8081"), ports):
        text = text.replace(name, str(port))
    ready = "".join(f"until curl -sf http://127.0.0.1:{port}/readyz >&2; do sleep 0.1; done\n" for port in ports[1:])
    text = text.replace("build/ssmd", str(BINARY)).replace(" &\n", " >&2 &\n").replace("post() {", f"{ready}post() {{")
    lines = shell("trap 'kill $(jobs -p); wait' EXIT\n" + text, "", tmp_path).splitlines()
    first, second = (json.loads(line) for line in lines if line.startswith("{"))
    assert second["usage"]["prompt_tokens"] > first["usage"]["total_tokens"]
    assert any(line.startswith("play") for line in lines), lines


@pytest.mark.own_server
def test_without_a_server(tmp_path):
    (text,) = [text for text in commands("build/ssmd ") if "ssmd session" not in text]
    if BINARY != ROOT / "build" / "ssmd":
        text = text.replace("build/ssmd", str(BINARY))
    output = shell(text, "")
    assert len(output) > 400 and "mamba" in output


@pytest.mark.own_server
def test_the_default_port_is_the_one_in_the_text():
    done = subprocess.run([str(BINARY), "serve", "--print-config"], capture_output=True, text=True, timeout=30 * SCALE,
                          env={})
    config = json.loads(done.stdout)
    assert f"{config['host']}:{config['port']}" == ADDRESS


@pytest.mark.own_server
def test_the_demonstration_model_is_served_without_options():
    """As `./run serve` does, on a port of its own."""
    server = Program()
    try:
        assert Client("127.0.0.1", server.port).get("/v1/models").json()["data"][0]["id"] in TEXT
    finally:
        assert server.stop() == 0
