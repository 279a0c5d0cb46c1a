# SPDX-License-Identifier: Apache-2.0
"""The log: where it goes, and that what was asked never stands in it."""

import re
import subprocess
import time

import pytest

from harness import models
from harness.client import Client
from harness.models import DEMO
from harness.program import BINARY, LISTENING, SCALE

LINE = re.compile(r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(error|warn|info|debug) msg=\S')


def serve(tmp_path, *options, environment=None):
    """Serves one request and ends: (standard output, standard error), each with its whole text."""
    paths = tmp_path / "out", tmp_path / "err"
    command = [str(BINARY), "serve", "--port", "0", "--model", f"{DEMO}={models.folder(DEMO)}", *options]
    with open(paths[0], "wb") as out, open(paths[1], "wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment or {})
        try:
            deadline = time.monotonic() + 30 * SCALE
            while not (found := LISTENING.search(paths[0].read_text())):
                assert process.poll() is None and time.monotonic() < deadline, paths[1].read_text()
                time.sleep(0.02)
            Client("127.0.0.1", int(found[1])).greedy("Unspeakable ROMEO:", max_tokens=2)
        finally:
            process.terminate()
        assert process.wait(40 * SCALE) == 0
    return tuple(path.read_text() for path in paths)


def logged(text):
    """The log's lines in a text: all that are not the two of the greeting."""
    lines = [line for line in text.splitlines() if not line.startswith(("ssmd ", "try: "))]
    for line in lines:
        assert LINE.match(line), line
    return lines


@pytest.mark.own_server
@pytest.mark.parametrize("options, environment, place", [
    ((), None, 1), (("--log-to", "stdout"), None, 0), (("--log-to", "stderr"), None, 1),
    ((), {"SSMD_LOG_TO": "stdout"}, 0)])
def test_the_log_goes_to(tmp_path, options, environment, place):
    texts = serve(tmp_path, *options, environment=environment)
    lines = logged(texts[place])
    assert any("msg=request" in line and "status=200" in line and "completion=2" in line for line in lines)
    assert any("draining" in line for line in lines)
    assert not logged(texts[1 - place])
    assert "ssmd " in texts[0], "the greeting is an answer to whoever started it: on standard output"
    assert not any("Unspeakable" in text for text in texts)


@pytest.mark.own_server
def test_a_level(tmp_path):
    out, err = serve(tmp_path, "--log-level", "error", "--log-to", "stdout")
    assert not logged(out) and not err


@pytest.mark.own_server
def test_another_place_is_refused():
    done = subprocess.run([str(BINARY), "serve", "--log-to", "syslog"], capture_output=True, text=True, timeout=30 * SCALE)
    assert done.returncode == 2 and "log-to" in done.stderr and "stderr" in done.stderr
