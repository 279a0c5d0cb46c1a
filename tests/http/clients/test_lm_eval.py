# SPDX-License-Identifier: Apache-2.0
"""lm-eval's local-completions: the held-out loss is transformers' (tests/golden/make_heldout.py)."""

import json
import math
import os

import pytest

from harness import models
from harness.models import DEMO
from harness.program import ROOT

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # before anything of theirs is imported
import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

DATA = ROOT / "tests" / "data"
HELDOUT = json.loads((DATA / "heldout.json").read_text())
END = "<|endoftext|>"
WHOLE = 1 << 16  # one window: these models have no longest prompt
WITHIN = 1e-3  # nats a token


@pytest.fixture
def open_model(client, tmp_path):
    """open_model(name): lm-eval's view of a served model, with the model's own tokenizer."""

    def open_one(name, **options):
        folder = tmp_path / name
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(models.folder(name) / "tokenizer.json"), eos_token=END)
        tokenizer.save_pretrained(folder)
        os.environ["OPENAI_API_KEY"] = client.key or "none"
        own = dict(tokenizer=str(folder), tokenizer_backend="huggingface", max_length=WHOLE)
        return LocalCompletionsAPI(base_url=client.url + "/v1/completions", model=name, **{**own, **options})

    return open_one


def rolling_task(tmp_path):
    """tests/data/heldout.txt as a task of lm-eval: one document, its loss."""
    rows = tmp_path / "heldout.jsonl"
    rows.write_text(json.dumps({"text": (DATA / "heldout.txt").read_text()}) + "\n")
    return ConfigurableTask(config={
        "task": "heldout", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}]})


@pytest.mark.parametrize("name, options", [
    (DEMO, {}), ("shakespeare-mamba2", {}),
    (DEMO, dict(tokenizer=None, tokenizer_backend="auto"))])  # by /tokenizer_info, with no tokenizer there
def test_heldout_loss(open_model, need_model, tmp_path, name, options):
    wanted = HELDOUT[need_model(name)]
    found = lm_eval.simple_evaluate(model=open_model(name, **options), tasks=[rolling_task(tmp_path)], bootstrap_iters=0,
                                    task_manager=TaskManager(include_defaults=False))  # seconds to list them
    bits = found["results"]["heldout"]["bits_per_byte,none"]
    difference = (bits - wanted["bits_per_byte"]) * math.log(2) * wanted["bytes"] / wanted["tokens"]
    print(f"{name}: {bits} bits a byte, {difference:.2e} nats a token from transformers'")
    assert abs(difference) <= WITHIN


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=own, idx=i) for i, own in enumerate(arguments)]


@pytest.mark.parametrize("options", [dict(num_concurrent=1), dict(num_concurrent=8), dict(batch_size=4)])
def test_choices(open_model, options):
    """The greedy continuation is found greedy and likelier than another; alone, at once, in lists."""
    golden = models.goldens(DEMO)[0]
    greedy = golden["greedy_text"]
    pairs = [(golden["prompt"], greedy), (golden["prompt"], greedy[:-1] + "q"), (golden["prompt"], "\nWhat")]
    right, wrong, other = open_model(DEMO, **options).loglikelihood(requests("loglikelihood", *pairs))
    assert right[1] is True and wrong[1] is False and other[1] is False
    assert right[0] > wrong[0]


def test_generation(open_model):
    golden = models.goldens(DEMO)[0]
    (text,) = open_model(DEMO, tokenizer=None, tokenizer_backend="auto").generate_until(requests(
        "generate_until", (golden["prompt"], {"until": ["\n\n"], "max_gen_toks": len(golden["greedy_ids"])})))
    assert text == golden["greedy_text"].split("\n\n")[0]
