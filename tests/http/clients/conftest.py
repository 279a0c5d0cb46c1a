# SPDX-License-Identifier: Apache-2.0
"""Clients that other people wrote, unmodified, each against its own pinned packages.

SSMD_CLIENT names the one to test: NAME.txt here lists its packages, which `./run clients NAME` puts
into a folder before those of the tests' own environment. Without it the official client of that
environment (major 3) is tested, as a part of all HTTP tests.
"""

import importlib.metadata
import os
import pathlib
import re

import pytest

HERE = pathlib.Path(__file__).parent
CLIENT = os.environ.get("SSMD_CLIENT", "openai-3")
FILE = "test_openai.py" if CLIENT.startswith("openai-") else f"test_{CLIENT.replace('-', '_')}.py"

collect_ignore = sorted({path.name for path in HERE.glob("test_*.py")} - {FILE})


@pytest.fixture(autouse=True, scope="session")
def pinned():
    """What was asked for is what is imported: another version would test something else."""
    assert (HERE / FILE).exists(), f"no test of the client {CLIENT}"
    wanted = HERE / f"{CLIENT}.txt"
    lines = wanted.read_text().splitlines() if wanted.exists() else []
    for name, version in (re.split("==", line) for line in lines if not line.startswith("#")):
        assert importlib.metadata.version(name) == version, f"{name}: run ./run clients {CLIENT}"
    major = re.match(r"openai-(\d+)$", CLIENT)
    assert not major or importlib.metadata.version("openai").split(".")[0] == major[1]
