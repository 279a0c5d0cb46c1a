# SPDX-License-Identifier: Apache-2.0
"""`./run image` picks the builder that is there: docker with an engine, else podman, else buildah.
What the images are built with is what ./run builds with."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = ["bash", "cat", "cut", "dirname", "env", "git", "id", "nproc", "sha256sum"]
BUILDER = """#!/bin/sh
[ "$1" != info ] || exit {engine}
echo "$0" "$@" >>"{log}"
pwd >>"{log}"
exit {status}
"""


@pytest.fixture
def image(tmp_path):
    """image(BUILDER..., arguments): ./run image on a machine with these; (exit status, what was called)."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))

    def run(*builders, arguments=(), engine=0, status=0):
        log, folder = tmp_path / "log", tmp_path / "builders"
        folder.mkdir()
        for name in builders:
            (folder / name).write_text(BUILDER.format(log=log, engine=engine, status=status))
            (folder / name).chmod(0o755)
        done = subprocess.run([str(ROOT / "run"), "image", *arguments], env={"PATH": f"{folder}:{tools}"}, cwd=tmp_path,
                              capture_output=True, text=True, timeout=30)
        lines = log.read_text().splitlines() if log.exists() else []
        if lines:
            command, where = lines
            assert where == str(ROOT), "the context is the checkout, wherever it is called from"
            return done.returncode, command.removeprefix(f"{folder}{os.sep}")
        return done.returncode, done.stderr

    return run


def test_docker_is_the_first_choice(image):
    status, command = image("docker", "podman", "buildah")
    assert status == 0 and command.startswith("docker build ")
    assert " -f docker/Dockerfile -t ssmd --build-arg COMMIT=" in command and command.endswith(" .")


def test_docker_without_an_engine_is_none(image):
    status, command = image("docker", "podman", "buildah", engine=1)
    assert status == 0 and command.startswith("podman build --format docker -f docker/Dockerfile -t ssmd ")


def test_the_image_for_gpus(image):
    _, command = image("podman", arguments=["cuda", "--build-arg", "ARCH=90a"])
    assert " -f docker/Dockerfile.cuda -t ssmd:cuda " in command and command.endswith(" --build-arg ARCH=90a .")


def test_podman(image):
    assert image("podman", "buildah")[1].startswith("podman build --format docker ")


def test_buildah(image):
    status, command = image("buildah")
    assert status == 0 and command.startswith("buildah bud --format docker --layers -f docker/Dockerfile -t ssmd ")


@pytest.mark.parametrize("builders, engine", [((), 0), (("docker",), 1)])
def test_none(image, builders, engine):
    status, complaint = image(*builders, engine=engine)
    assert status == 1 and "no docker, podman or buildah" in complaint


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_arguments_go_to_the_builder(image, builder):
    _, command = image(builder, arguments=["--no-cache", "-t", "mine:1"])
    assert command.endswith(" --no-cache -t mine:1 .")


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_a_failed_build_is_a_failure(image, builder):
    assert image(builder, status=3)[0] == 3


@pytest.mark.parametrize("name, more", [("Dockerfile", set()), ("Dockerfile.cuda", {"g++"})])
def test_an_image_is_built_with_the_packages_of_run(name, more):
    """But for libcurl, which run names apart: it is `ssmd session`'s alone."""
    wanted = re.search(r"^build_packages=\(([^)]*)\)", (ROOT / "run").read_text(), re.M)[1].split()
    stage = (ROOT / "docker" / name).read_text().split("\nFROM ")[1].replace("\\\n", "")
    installed = re.search(r"apt-get install -y --no-install-recommends ([^&]*)&&", stage)[1].split()
    assert set(installed) == set(wanted) | more
