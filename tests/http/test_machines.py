# SPDX-License-Identifier: Apache-2.0
"""Machines of every kind: one core, a quota, more threads than cores, 64 threads, old instruction
sets. The answer is the golden's, and the start line says which kernels run on how many threads."""

import os
import pathlib
import re

import pytest

from harness import models
from harness.program import Program, behind_mounts

GOLDEN = models.goldens(models.DEMO)[0]
START = re.compile(r"cpu (portable|neon|avx2|avx512|avx512vnni|avx512bf16), (\d+) threads?, ")
CORES = len(os.sched_getaffinity(0))
pytestmark = pytest.mark.own_server
FLAGS = set(re.search(r"^(?:flags|Features)\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(),
                      re.MULTILINE).group(1).split())


def best_kernels():
    """From the kernel's list of instructions, not from the program."""
    if os.uname().machine == "aarch64":
        return "neon"
    if not {"avx2", "fma", "f16c"} <= FLAGS:
        return "portable"
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= FLAGS:
        return "avx2"
    if "avx512_vnni" not in FLAGS:
        return "avx512"
    return "avx512bf16" if "avx512_bf16" in FLAGS else "avx512vnni"


def check(server, kernels=None, threads=None):
    found = START.search(server.tail())
    assert found, f"no start line that names kernels:\n{server.tail()}"
    assert found.group(1) == (kernels or best_kernels())
    if threads:
        assert int(found.group(2)) == threads
    answer = server.client.complete(GOLDEN["prompt"], temperature=0, return_token_ids=True,
                                    max_tokens=len(GOLDEN["greedy_ids"]))
    (choice,) = answer["choices"]
    assert choice["token_ids"] == GOLDEN["greedy_ids"]
    assert choice["text"] == GOLDEN["greedy_text"]


def test_as_it_is(start):
    check(start())


@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512", "avx512vnni"])
def test_older_instructions(start, kernels):
    """A machine without what this one has: no better kernels than these are taken."""
    order = ["portable", "avx2", "avx512", "avx512vnni", "avx512bf16"]
    if best_kernels() not in order:
        pytest.skip("x86 alone has tables to choose from")
    best = min(kernels, best_kernels(), key=order.index)
    check(start(environment={"SSM_CPU_ISA": kernels}), kernels=best)


def test_unknown_instructions():
    with pytest.raises(AssertionError, match="no kernels called avx3"):
        Program("--model", models.folder(models.DEMO), environment={"SSM_CPU_ISA": "avx3"})


def test_one_core():
    """By affinity, as taskset and Kubernetes' static policy give it: one thread, on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # of this thread, which the program inherits
    try:
        server = Program("--model", models.folder(models.DEMO))
    finally:
        os.sched_setaffinity(0, before)
    check(server, threads=1)
    assert server.stop() == 0, server.tail()


@pytest.mark.parametrize("threads", [1, CORES + 1, 64])
def test_threads(start, threads):
    """Also more than cores: they sleep at barriers instead of spinning the others off."""
    check(start("--threads", threads), threads=threads)


@pytest.mark.parametrize("file, quota", [("cpu.max", "50000 100000\n"),
                                         ("cpu/cpu.cfs_quota_us", "50000\n")])
def test_quota(tmp_path, file, quota):
    """Half a core by quota, which the mask does not show: one thread. The files are those that a
    container of cgroup version 2 or 1 sees, in a mount namespace of the server's own."""
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(quota)
    if file.startswith("cpu/"):
        (tmp_path / "cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    wrapper = behind_mounts(tmp_path, f'mount --bind "{tmp_path}/cgroup" /sys/fs/cgroup')
    if not wrapper:
        pytest.xfail("no mount namespace can be made here")
    server = Program("--model", models.folder(models.DEMO), binary=wrapper)
    check(server, threads=1)
    assert server.stop() == 0, server.tail()
