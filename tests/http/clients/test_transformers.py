# SPDX-License-Identifier: Apache-2.0
"""transformers' own apply_chat_template against POST /apply-template, template by template.

tests/data/templates/cases.json, which the unit tests replay, was made by jinja2 in an environment
like transformers'; here transformers itself renders it, and then random conversations that the
server is asked for too. Both read the same folders.
"""

import datetime
import json
import random

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from harness import models
from harness.models import DEMO
from harness.program import ROOT

TEMPLATES = ROOT / "tests" / "data" / "templates"
STORED = json.loads((TEMPLATES / "cases.json").read_text())
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
END = "<|endoftext|>"
LETTERS = "abc XYZ 019 .,:;!?'\"\\/<>{}%#[]()|&\n\t\u00a0\u2003éßЯ世界😀\u200d\u0301"
MARKS = ["<|im_end|>", "[INST]", "</s>", "{{ x }}", "{% y %}", "\n\n", "  ", END]


def model_folder(parent, name, in_config):
    """The demonstration model with a chat template, kept in one of the two places."""
    folder = parent / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / file).symlink_to(models.folder(DEMO) / file)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    source = (TEMPLATES / f"{name}.jinja").read_text()
    if in_config:
        config["chat_template"] = source
    else:
        (folder / "chat_template.jinja").write_text(source)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folders(tmp_path):
    return {name: model_folder(tmp_path, name, in_config=i % 2 == 0) for i, name in enumerate(NAMES)}


def words(chance):
    """Text that is hard on templates: their own marks, braces, odd spaces, many scripts, nothing."""
    parts = [chance.choice(MARKS) if chance.random() < 0.1 else "".join(chance.choices(LETTERS, k=chance.randrange(9)))
             for _ in range(chance.randrange(12))]
    return "".join(parts)


def conversation(chance):
    messages = [{"role": "system", "content": words(chance)}] if chance.random() < 0.4 else []
    for i in range(chance.randrange(1, 8)):
        role = "user" if i % 2 == 0 else "assistant"
        if chance.random() < 0.05:  # which some templates refuse
            role = chance.choice(["system", "user", "assistant"])
        messages.append({"role": role, "content": words(chance)})
    return messages


def oracle(tokenizer, messages, **ends):
    """transformers' prompt, or None where the template refuses."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **ends)
    except TemplateError:
        return None


def test_random_conversations(start, folders):
    client = start(*[word for name, folder in folders.items() for word in ("--model", f"{name}={folder}")],
                   "--max-sessions", 1, "--cache-bytes", 0).client
    chance = random.Random(20)
    compared = refused = 0
    for name in NAMES:
        tokenizer = AutoTokenizer.from_pretrained(folders[name])
        assert tokenizer.chat_template == (TEMPLATES / f"{name}.jinja").read_text()
        for _ in range(60):
            messages = conversation(chance)
            ends = {"add_generation_prompt": chance.random() < 0.7}
            wanted = oracle(tokenizer, messages, **ends)
            answer = client.post("/apply-template", {"model": name, "messages": messages, **ends})
            if wanted is None:
                answer.error(400, param="messages")
                refused += 1
            else:
                assert answer.status == 200, (name, messages, answer)
                assert answer.json()["prompt"] == wanted, (name, messages)
                compared += 1
    assert compared > 400 and refused > 10


def test_continued_conversations(start, folders):
    """An assistant's last message goes on: its turn is not closed, what it ends in is kept or not."""
    name = "zephyr"
    client = start("--model", f"{name}={folders[name]}").client
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    for text in ("I begin", "I begin ", "I begin\n", "two\nlines", "</s>", "I"):
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": text}]
        wanted = oracle(tokenizer, messages, continue_final_message=True)
        answer = client.post("/apply-template", {"messages": messages, "continue_final_message": True})
        assert answer.json()["prompt"] == wanted, text


# ---- the corpus of the unit tests


class StandingClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(STORED["now"], datetime.timezone.utc)


def render(case):
    """As the case stores an answer: its text, what the template raised, or that it failed."""
    source = (TEMPLATES / case["file"]).read_text() if "file" in case else case["source"]
    try:
        return {"text": chat_template_utils._compile_jinja_template(source).render(**case["context"])}
    except TemplateError as error:
        return {"raised": error.message} if "raised" in case else {"fails": True}
    except Exception:
        return {"fails": True}


def test_the_stored_cases(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", StandingClock)
    cases = [case for case in STORED["cases"] if "context" in case]
    different = []
    for case in cases:
        stored = {key: case[key] for key in ("text", "raised") if key in case} or {"fails": True}
        if render(case) != stored:
            different.append((case.get("source") or case["file"], stored, render(case)))
    assert len(cases) > 400
    assert not different, f"{len(different)} of {len(cases)}: {different[:5]}"
