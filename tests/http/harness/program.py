# SPDX-License-Identifier: Apache-2.0
"""The program under test: starts build/ssmd on a free port and stops it again.

SSMD_BINARY picks another build. SSMD_TIME_SCALE multiplies every waiting time, for sanitized
builds. Everything that the program prints is kept; a test that fails shows its end. It prints into
a file and not into a pipe that a thread here reads: what it wrote before it answered can be read
once the answer has come, however late that thread would have been.
"""

import ctypes
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from .client import Client

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("SSMD_BINARY", ROOT / "build" / "ssmd"))
SCALE = float(os.environ.get("SSMD_TIME_SCALE", "1"))
LISTENING = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):(\d+)\D")  # a line may be seen half written
SANITIZERS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def _end_with_parent():
    """A test run that is killed takes its servers with it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_until(condition, seconds, what):
    """Polls until condition() is true; the last falsy value is in the failure."""
    deadline = time.monotonic() + seconds * SCALE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * SCALE:g} s: {what} (last: {value!r})")
        time.sleep(0.01)


def behind_mounts(folder, mount):
    """A program, put into folder, that starts BINARY in a mount namespace in which the shell command
    `mount` was run; None if no such namespace can be made here."""
    inside = f'{mount} && exec "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", inside, "sh", "true"], check=False).returncode:
        return None
    wrapper = folder / "ssmd"
    wrapper.write_text(f"#!/bin/sh\nexec unshare -rm sh -c '{inside}' sh \"{BINARY}\" \"$@\"\n")
    wrapper.chmod(0o755)
    return wrapper


class Program:
    """A running `ssmd serve` with a Client of its own."""

    def __init__(self, *options, environment=None, binary=BINARY):
        command = [str(binary), "serve", "--port", "0", *map(str, options)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SSMD_")}
        self._output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**SANITIZERS, **inherited, **(environment or {})},
            cwd="/",  # nothing may depend on the directory it is started from
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            self.port = wait_until(self._listening, 60, f"{' '.join(command)} listens")
            self.client = Client("127.0.0.1", self.port)
            wait_until(self._is_ready, 60, "GET /readyz answers 200")
        except Exception as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.tail()}") from error

    def _listening(self):
        """The port, once it has said it."""
        running = self.is_running()  # asked first: what it printed before it ended is all there then
        found = LISTENING.search(self.log())
        if not found and not running:
            raise AssertionError("the program ended while starting")
        return found and int(found.group(1))

    def _is_ready(self):
        if not self.is_running():
            raise AssertionError("the program ended while starting")
        return self.client.get("/readyz").status == 200

    def log(self):
        """All that it has printed so far."""
        descriptor = self._output.fileno()  # its offset is the program's: it is not to move
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace")

    def tail(self, lines=40):
        return "".join(self.log().splitlines(keepends=True)[-lines:])

    def is_running(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds):
        """The exit status, once it has ended by itself."""
        return self.process.wait(seconds * SCALE)

    def stop(self, seconds=40):
        """SIGTERM, drain, exit: the status, or a failure with what it printed."""
        if self.is_running():
            self.signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end {seconds} s after SIGTERM:\n{self.tail()}") from None

    def kill(self):
        if self.is_running():
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self):
        """What all its threads have taken."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self, field="VmRSS"):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field}")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
