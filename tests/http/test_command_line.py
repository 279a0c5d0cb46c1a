# SPDX-License-Identifier: Apache-2.0
"""The program's other words, and how options come together."""

import json
import os
import subprocess

import pytest

from harness import models
from harness.models import DEMO
from harness.program import BINARY, ROOT, SANITIZERS, SCALE

pytestmark = pytest.mark.own_server
GOLDEN = models.goldens(DEMO)[0]


def ssmd(*words, status=0, environment=None):
    """Standard output of `ssmd WORDS`, which must end with this status."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SSMD_")}
    run = subprocess.run([str(BINARY), *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                         timeout=30 * SCALE, cwd="/", env={**SANITIZERS, **clean, **(environment or {})})
    assert run.returncode == status, (words, run)
    ssmd.error = run.stderr.decode()
    return run.stdout.decode()


def config(*words, **kwargs):
    return json.loads(ssmd("serve", *words, "--print-config", **kwargs))


@pytest.mark.smoke
def test_version_and_help():
    assert ssmd("--version").startswith("ssmd ")
    assert "serve" in ssmd("--help")
    for word in ("serve", "inspect", "health", "generate"):
        assert "--help" in ssmd(word, "--help")
    said = ssmd("serve", "--help")
    assert all(len(line) <= 100 for line in said.splitlines())
    assert "(default 4G, 0 or more)" in " ".join(said.split()) and "e+" not in said


@pytest.mark.parametrize("words", [["nothing"], ["serve", "--nothing"], ["serve", "--port", "x"], ["serve", "--port", "70000"],
                                   ["serve", "--port"], ["serve", "--loops", "0"], ["serve", "--device", "abacus"],
                                   ["serve", "stray"], ["inspect"], ["inspect", "/nonexistent"], ["serve", "--model", "/nonexistent"],
                                   ["serve", "--api-key-file", "/nonexistent"], ["serve", "--config", "/nonexistent"]], ids=" ".join)
def test_what_is_wrong_is_said(words):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SSMD_")}
    run = subprocess.run([str(BINARY), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=30 * SCALE,
                         env={**SANITIZERS, **clean})
    assert run.returncode in (1, 2), run
    culprit = words[-1] if len(words) < 3 or words[1] != "--port" else "port"
    said = run.stderr.decode()
    assert any(word.strip("-") in said for word in (culprit, words[min(1, len(words) - 1)])), said
    assert len(said) < 4000


@pytest.mark.smoke
def test_generate():
    folder = models.folder(DEMO)
    text = ssmd("generate", "--model", folder, "--temperature", 0, "--max-tokens", 48, GOLDEN["prompt"])
    assert GOLDEN["greedy_text"] in text
    assert "template" not in ssmd.error, "what chats would be given is the server's to say"
    one = ssmd("generate", "--model", folder, "--seed", 5, "--max-tokens", 20, "ROMEO:")
    assert one == ssmd("generate", "--model", folder, "--seed", 5, "--max-tokens", 20, "ROMEO:")


@pytest.mark.smoke
def test_inspect():
    text = ssmd("inspect", models.folder(DEMO))
    assert "mamba" in text
    facts = json.loads(ssmd("inspect", "--json", models.folder(DEMO)))
    assert facts["architecture"] == "mamba"


@pytest.mark.parametrize("name", [DEMO, "shakespeare-mamba2"])
def test_what_a_text_makes_of_memory(name, tmp_path):
    folder = models.folder(name)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    text = "O Romeo, Romeo! wherefore art thou Romeo?\nDeny thy father and refuse thy name;\n"
    path = tmp_path / "text"
    path.write_text(text * 40)
    facts = {key: json.loads(ssmd("inspect", "--memory", "--json", *words, folder)) for key, words in
             {"own": [], "text": ["--text", text], "file": ["--text-file", path]}.items()}
    for key, found in facts.items():
        assert found["memory_quantiles"] == [0.05, 0.25, 0.5, 0.75, 0.95]
        assert 10 < found["memory_tokens"] <= 256 and (found["memory_tokens"] == 256) == (key == "file")
        assert len(found["memory"]) == layers
        for layer in found["memory"]:
            assert abs(sum(layer["shares"]) - 1) < 1e-6
            for values in (layer["delta"], layer["decay"], layer["half_life"]):
                assert len(values) == 5 and values == sorted(values) and values[0] > 0
            assert layer["decay"][-1] < 1
            for decay, half_life in zip(layer["decay"], layer["half_life"]):
                assert abs(decay ** half_life - 0.5) < 1e-6
    assert facts["own"]["memory"] != facts["text"]["memory"] != facts["file"]["memory"]
    printed = ssmd("inspect", "--memory", "--text", text, folder)
    assert f"memory over {facts['text']['memory_tokens']} tokens" in printed and len(printed.splitlines()) > layers
    for words, said in ((["--text", ""], "empty"), (["--text", "a", "--text-file", path], "exclude"),
                        (["--text-file", tmp_path / "none"], "cannot read"), (["--text-file", tmp_path], "cannot read")):
        ssmd("inspect", "--memory", *words, folder, status=1)
        assert said in ssmd.error


def test_poles_need_no_text():
    facts = json.loads(ssmd("inspect", "--memory", "--json", models.folder("copying-s4d")))
    assert [0.99 < layer["radius"] < 1 for layer in facts["memory"]] == [True, True]
    assert "memory_tokens" not in facts


def test_health(start):
    server = start()
    ssmd("health", server.client.url)
    ssmd("health", "--port", server.port)
    ssmd("health", "http://127.0.0.1:1", status=1)
    assert server.stop() == 0
    ssmd("health", server.client.url, status=1)


def test_flags_beat_the_environment_beats_the_file_beats_defaults(tmp_path):
    path = tmp_path / "ssmd.json"
    path.write_text(json.dumps({"max_queue": 11, "loops": 2, "port": 1111}))
    found = config("--config", path, "--port", "3333", environment={"SSMD_MAX_QUEUE": "22", "SSMD_PORT": "2222"})
    assert (found["port"], found["max_queue"], found["loops"]) == (3333, 22, 2)
    assert found["drain_timeout"] == 30


def test_a_file_with_faults_is_refused(tmp_path):
    for text, name in (('{"max_queu": 1}', "max_queu"), ('{"max_queue": "many"}', "max_queue"), ('{"max_queue": 0}', "max_queue"),
                       ("{", "ssmd.json"), ("[]", "ssmd.json")):
        path = tmp_path / "ssmd.json"
        path.write_text(text)
        ssmd("serve", "--config", path, "--print-config", status=2)
        assert name.replace("_", "-") in ssmd.error or name in ssmd.error


def test_keys_are_never_printed():
    assert "hunter2" not in ssmd("serve", "--api-key", "hunter2", "--print-config")


def test_the_file_of_defaults_is_the_table():
    stored = json.loads((ROOT / "config" / "ssmd.json").read_text())
    assert stored == config()
    schema = json.loads((ROOT / "config" / "ssmd.schema.json").read_text())
    assert schema == json.loads(ssmd("serve", "--print-schema"))


def test_the_readme_lists_the_options():
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- options -->")[1].split("<!-- /options -->")[0]
    assert table.strip() == ssmd("serve", "--print-reference").strip()
