# SPDX-License-Identifier: Apache-2.0
"""`./run test` as a flow: what runs beside what, what a failure does, what is left of a run that is killed.
The stages are stand-ins, put over run's own functions in a copy of it."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAIN = 'main "$@"\n'
# $FAILS, $HANGS: words of what fails, and of what does not end.
STANDINS = r"""
act() {
    echo "$1" >>"$TRACE"
    [[ " $HANGS " != *" $1 "* ]] || sleep 1000
    [[ " $FAILS " != *" $1 "* ]]
}
need_packages() { :; }
lower_by() { :; }
make_venv() { act venv; }
make_client() { act "layer-$1"; }
make_store() { act "layer-$1"; }
build_preset() { act "build-$1"; }
ctest() { act "ctest-$2" && echo "100% tests passed, 0 tests failed out of 1"; }
run_pytest() { act "pytest${SSMD_BINARY:+-sanitized}" && echo "1 passed in 0.1s"; }
run_client() { act "client-$1" && echo "2 passed in 0.1s"; }
run_store() { act "store-$1" && echo "3 passed in 0.1s"; }
container_test() { act "container${CT_ONLY_BASE:+-base}" && echo "container: 4 passed, 0 failed"; }
other_devices() { act other-devices; }
word_lint() { act lint && echo "lint: 5 files, 0 findings"; }
"""
CLIENTS = sorted(path.stem for path in (ROOT / "tests/http/clients").glob("*.txt"))
STAGES = ["ctest release", "pytest", *(f"client {name}" for name in CLIENTS), "store valkey", "container",
          "other devices", "lint", "ctest tsan", "pytest tsan", "ctest asan", "pytest asan"]


def answer_signals():
    """What an interactive shell's command starts with: nohup, and a shell's &, leave signals ignored, for good."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Flow:
    def __init__(self, folder, fails, hangs):
        (folder / "tests/http").mkdir(parents=True)
        (folder / "tests/http/clients").symlink_to(ROOT / "tests/http/clients")
        text = (ROOT / "run").read_text()
        assert text.endswith(MAIN)
        (folder / "run").write_text(text.removesuffix(MAIN) + STANDINS + MAIN)
        (folder / "run").chmod(0o755)
        self.trace = folder / "trace"
        self.trace.touch()
        self.output = folder / "output"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen([folder / "run", "test"], stdout=output, stderr=subprocess.STDOUT,
                                            preexec_fn=answer_signals, env={
                **{name: value for name, value in os.environ.items() if not name.startswith("SSM")},
                "TRACE": str(self.trace), "FAILS": fails, "HANGS": hangs})

    def acts(self):
        return self.trace.read_text().split()

    def results(self):
        """Stage -> its line in the table that ends the output."""
        table = self.output.read_text().rpartition("\n\n")[2]
        lines = (re.match(r"(\S+(?: \S+)?) +\d+ s  (.*)", line) for line in table.splitlines())
        return {line[1]: line[2] for line in lines if line}

    def left(self):
        """Processes that this run started and that live, PID to command: their environment tells them."""
        mark = f"TRACE={self.trace}".encode()
        found = {}
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = (process / "cmdline").read_bytes()
            except OSError:
                pass  # ended, or another user's
        return found


@pytest.fixture
def flow(tmp_path):
    flows = []

    def start(fails="", hangs=""):
        flows.append(Flow(tmp_path, fails, hangs))
        return flows[-1]

    yield start
    for one in flows:
        for process in one.left():
            os.kill(process, signal.SIGKILL)
        one.process.wait()


def test_all_pass(flow):
    run = flow()
    assert run.process.wait(50) == 0, run.output.read_text()
    results = run.results()
    assert list(results) == STAGES
    assert not [line for line in results.values() if "FAILED" in line]
    acts = run.acts()
    assert acts.index("build-release") < acts.index("ctest-release")
    for name in ("tsan", "asan"):  # prepared, then asked for once more
        assert acts.count(f"build-{name}") == 2 and acts.index(f"build-{name}") < acts.index(f"ctest-{name}")
    assert acts.count("pytest-sanitized") == 2
    assert not run.left()


@pytest.mark.parametrize("fails, expected", [
    ("ctest-release client-litellm container ctest-tsan", ["ctest release", "client litellm", "container", "ctest tsan"]),
    ("pytest layer-openai-1 store-valkey-9.1 other-devices lint build-asan",
     ["pytest", "store valkey", "other devices", "lint", "ctest asan"]),
    ("pytest-sanitized container-base", ["pytest tsan", "pytest asan"]),
    ("venv", ["ctest release", "ctest tsan", "ctest asan"]),
])
def test_a_failure_is_told_and_the_rest_runs(flow, fails, expected):
    run = flow(fails)
    assert run.process.wait(50) == 1, run.output.read_text()
    results = run.results()
    assert list(results) == STAGES
    assert [name for name, line in results.items() if "FAILED" in line] == expected
    assert run.output.read_text().endswith("run: tests failed\n")


@pytest.mark.parametrize("number, hangs", [
    (signal.SIGTERM, "venv"),
    (signal.SIGTERM, "lint ctest-tsan pytest-sanitized"),
    (signal.SIGINT, "ctest-release build-tsan"),
    (signal.SIGHUP, "ctest-tsan"),
])
def test_a_killed_run_leaves_nothing(flow, number, hangs):
    run = flow(hangs=hangs)
    deadline = time.monotonic() + 20
    while not set(hangs.split()) <= set(run.acts()):
        assert time.monotonic() < deadline, run.acts()
        time.sleep(0.05)
    assert len(run.left()) > 3  # the script, one beside it, a stage
    run.process.send_signal(number)
    assert run.process.wait(20) == -number
    deadline = time.monotonic() + 20
    while run.left():
        assert time.monotonic() < deadline, run.left()
        time.sleep(0.05)
