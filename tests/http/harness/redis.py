# SPDX-License-Identifier: Apache-2.0
"""A Redis or Valkey of a test's own, on a free port, keeping what it is told in a folder.

SSM_TEST_REDIS picks the program, by name or path; else redis-server serves, or valkey-server.
"""

import os
import shutil
import signal
import socket
import subprocess

import pytest

from .program import BINARY, SCALE, _end_with_parent, wait_until


def _find():
    wanted = os.environ.get("SSM_TEST_REDIS")
    names = (wanted,) if wanted else ("redis-server", "valkey-server")
    found = next(filter(None, map(shutil.which, names)), None)
    assert found or not wanted, f"SSM_TEST_REDIS={wanted}: there is no such program"
    return found


def need():
    """The server program. Its tests are left out where there is none, or where ssmd was built without hiredis."""
    found = _find()
    if not found:
        pytest.skip("there is neither redis-server nor valkey-server")
    version = subprocess.run([BINARY, "--version"], capture_output=True, text=True, timeout=30 * SCALE).stdout
    if "redis" not in version:
        pytest.skip(f"{BINARY} was built without hiredis")
    return found


def free_ports(n):
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Redis:
    def __init__(self, folder, *options):
        self.folder, self.options = folder, options
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [_find(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
             "--save", "", "--appendonly", "yes", "--appendfsync", "always", *self.options],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent)
        wait_until(self._answers, 30, "it answers")

    def _answers(self):
        assert self.process.poll() is None, f"{self.process.args[0]} has ended"
        try:
            return self.ask("PING") == b"PONG"
        except (OSError, RuntimeError):  # not yet; loading
            return False

    def ask(self, *words):
        """One command's answer: bytes, a number, None, or a list of them."""
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(b"*%d\r\n" % len(words) +
                               b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            return self._read(connection.makefile("rb"))

    def _read(self, stream):
        line = stream.readline()
        kind, rest = line[:1], line[1:].rstrip(b"\r\n")
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if int(rest) < 0:
            return None
        if kind == b"$":
            return stream.read(int(rest) + 2)[:-2]
        return [self._read(stream) for _ in range(int(rest))]

    def keys(self, pattern):
        return self.ask("KEYS", pattern)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self, paused):
        os.kill(self.process.pid, signal.SIGSTOP if paused else signal.SIGCONT)
