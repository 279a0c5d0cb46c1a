# SPDX-License-Identifier: Apache-2.0
"""One shared server for most tests; `start` gives a test a server of its own with other options.

With SSMD_TEST_URL (and SSMD_TEST_KEY) the shared server is one that runs already, such as a
container; tests that must start their own are then left out. With SSM_EXPECT_PYTHON=1 a skipped
test is a failed one: the machine was said to be able to run everything.
"""

import os

import pytest

from harness import models
from harness.client import Client
from harness.program import SCALE, Program

URL = os.environ.get("SSMD_TEST_URL")
EXPECT_ALL = os.environ.get("SSM_EXPECT_PYTHON") == "1"


def pytest_collection_modifyitems(config, items):
    for item in items:
        limit = item.get_closest_marker("timeout")
        seconds = limit.args[0] if limit else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * SCALE))
        if URL and (item.get_closest_marker("own_server") or "start" in item.fixturenames):
            item.add_marker(pytest.mark.skip(reason="starts a server of its own; SSMD_TEST_URL is set"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if EXPECT_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but SSM_EXPECT_PYTHON=1: {report.longrepr[-1]}"


@pytest.fixture(scope="session")
def program():
    """The shared server, or None if it is someone else's (SSMD_TEST_URL)."""
    if URL:
        yield None
        return
    server = Program(*models.served())
    yield server
    assert server.stop() == 0, server.tail()


@pytest.fixture(scope="session")
def shared_client(program):
    return Client.from_url(URL, os.environ.get("SSMD_TEST_KEY")) if URL else program.client


@pytest.fixture
def client(request, program, shared_client):
    """A client of the shared server, which must live and answer after the test too."""
    yield shared_client
    assert program is None or program.is_running(), f"the server died ({program.process.returncode}):\n{program.tail()}"
    assert shared_client.get("/livez").status == 200


@pytest.fixture(scope="session")
def served_models(shared_client):
    return [model["id"] for model in shared_client.get("/v1/models").json()["data"]]


@pytest.fixture
def need_model(served_models):
    """need_model(name): the name, if the server has that model."""

    def need(name):
        if name not in served_models:
            pytest.skip(f"the server does not serve {name}")
        return name

    return need


@pytest.fixture
def start():
    """start(*options): a server of the test's own, stopped after it; its exit status must be 0."""
    started = []

    def start_one(*options, **kwargs):
        if "--model" not in options:
            options = ("--model", f"{models.DEMO}={models.folder(models.DEMO)}", *options)
        server = Program(*options, **kwargs)
        started.append(server)
        return server

    yield start_one
    for server in started:
        if server.is_running():
            assert server.stop() == 0, server.tail()
