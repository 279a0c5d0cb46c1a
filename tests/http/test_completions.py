# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions, whole: the answer's form, prompts in all their forms, counts."""

import pytest

from harness import models, shapes
from harness.models import DEMO

GOLDEN = models.goldens(DEMO)


@pytest.mark.smoke
def test_answer(client):
    answer = client.post("/v1/completions", {"model": DEMO, "prompt": "ROMEO:", "max_tokens": 8,
                                             "temperature": 0})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert float(answer.headers["openai-processing-ms"]) >= 0
    parsed = answer.json()
    shapes.check("completion", parsed)
    assert parsed["model"] == DEMO
    (choice,) = parsed["choices"]
    assert choice["text"] == "\nI am affrighted forth"[: len(choice["text"])] and choice["text"]
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] is None
    assert choice["logprobs"] is None
    assert parsed["usage"]["prompt_tokens"] == 2
    assert parsed["usage"]["completion_tokens"] == 8


def test_ids_differ(client):
    assert client.complete(max_tokens=1)["id"] != client.complete(max_tokens=1)["id"]


def test_default_max_tokens(client):
    assert client.complete(ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_default_model_is_the_first(client, served_models):
    assert client.complete(max_tokens=1)["model"] == served_models[0]


def test_unknown_model(client):
    answer = client.post("/v1/completions", {"model": "gpt-9", "prompt": "x"})
    error = answer.error(404, code="model_not_found")
    assert "gpt-9" in error["message"]


def test_unknown_model_name_is_not_echoed_without_bound(client):
    answer = client.post("/v1/completions", {"model": "x" * 100000, "prompt": "x"})
    answer.error(404, code="model_not_found")
    assert len(answer.body) < 2000


def test_unknown_parameters_are_accepted(client):
    plain = client.greedy(max_tokens=4)
    assert client.greedy(max_tokens=4, never_heard_of={"a": [1, None]}, other=1.5) == plain


NULLABLE = [
    "model", "max_tokens", "top_p", "n", "best_of", "stream", "stream_options", "logprobs", "echo",
    "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "suffix", "user",
    "metadata", "response_format", "top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos", "min_tokens",
    "stop_token_ids", "include_stop_str_in_output", "allowed_token_ids", "bad_words",
    "return_token_ids", "skip_special_tokens", "add_special_tokens", "cache_prompt", "cache_salt",
    "session", "priority", "timings", "return_tokens_as_token_ids",
]


@pytest.mark.parametrize("name", NULLABLE)
def test_null_means_absent(client, name):
    client.complete(temperature=0)  # whoever comes first finds no saved state
    answer = client.complete(temperature=0, **{name: None})
    plain = client.complete(temperature=0)
    assert answer["choices"] == plain["choices"]
    assert answer["usage"] == plain["usage"]


def test_null_temperature_is_one(client):
    assert client.text(seed=5, temperature=None) == client.text(seed=5, temperature=1)


# ---- prompts


@pytest.mark.smoke
def test_prompt_of_ids(client):
    golden = GOLDEN[0]
    answer = client.complete(golden["prompt_ids"], temperature=0, max_tokens=48)
    assert answer["choices"][0]["text"] == golden["greedy_text"]
    assert answer["usage"]["prompt_tokens"] == len(golden["prompt_ids"])


def test_several_strings(client):
    prompts = [golden["prompt"] for golden in GOLDEN]
    answer = client.complete(prompts, temperature=0, max_tokens=48)
    assert [c["text"] for c in answer["choices"]] == [g["greedy_text"] for g in GOLDEN]
    assert answer["usage"]["prompt_tokens"] == sum(len(g["prompt_ids"]) for g in GOLDEN)
    assert answer["usage"]["completion_tokens"] == 48 * len(GOLDEN)


def test_several_lists_of_ids(client):
    answer = client.complete([g["prompt_ids"] for g in GOLDEN], temperature=0, max_tokens=48)
    assert [c["text"] for c in answer["choices"]] == [g["greedy_text"] for g in GOLDEN]


def test_one_string_in_a_list(client):
    assert client.greedy(["ROMEO:"]) == client.greedy("ROMEO:")


def test_several_prompts_n_of_each(client):
    """Choices come prompt by prompt, n of each; greedy, so the n are the same."""
    prompts = [golden["prompt"] for golden in GOLDEN[:3]]
    answer = client.complete(prompts, temperature=0, max_tokens=12, n=2)
    alone = [client.greedy(prompt, max_tokens=12) for prompt in prompts]
    assert [c["text"] for c in answer["choices"]] == [text for text in alone for _ in range(2)]


@pytest.mark.parametrize("prompt", ["", [""]])
def test_empty_prompt(client, prompt):
    answer = client.complete(prompt, max_tokens=4, temperature=0, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] in (0, 1)  # 1: the beginning-of-text token


def test_empty_prompt_of_a_model_without_beginning(client, need_model):
    answer = client.complete("", model=need_model("induction-heads"), max_tokens=3, seed=1)
    assert answer["usage"] ["prompt_tokens"] == 0
    assert answer["usage"]["completion_tokens"] == 3


def test_text_with_nul_and_every_plane(client):
    prompt = "a\x00b \u00e9 \u4e2d \U0001f600 \ud7ff \ue000 \uffff"
    assert client.complete(prompt, max_tokens=0, echo=True)["choices"][0]["text"] == prompt


def test_prompt_tokens_as_tokenize_counts(client):
    text = "O Romeo, Romeo! wherefore art thou Romeo?"
    tokens = client.post("/tokenize", {"prompt": text}).json()
    answer = client.complete(text, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == tokens["count"] == len(tokens["tokens"])


# ---- echo, scoring, extras


@pytest.mark.smoke
def test_echo(client):
    golden = GOLDEN[2]
    text = client.greedy(golden["prompt"], echo=True, max_tokens=48)
    assert text == golden["prompt"] + golden["greedy_text"]


def test_echo_of_ids(client):
    golden = GOLDEN[0]
    assert client.greedy(golden["prompt_ids"], echo=True, max_tokens=1).startswith(golden["prompt"])


def test_max_tokens_zero(client):
    answer = client.complete("ROMEO:", max_tokens=0)
    (choice,) = answer["choices"]
    assert choice["text"] == ""
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert client.text("ROMEO:", max_tokens=0, echo=True) == "ROMEO:"


def test_return_token_ids(client):
    golden = GOLDEN[1]
    answer = client.complete(golden["prompt"], temperature=0, max_tokens=48, return_token_ids=True)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == golden["greedy_ids"]
    assert choice["prompt_token_ids"] == golden["prompt_ids"]
    assert "token_ids" not in client.complete(max_tokens=1)["choices"][0]


def test_timings(client):
    timings = client.complete(max_tokens=4, timings=True)["timings"]
    assert len(timings) >= 2
    assert "timings" not in client.complete(max_tokens=1)


def test_suffix(client):
    plain = client.greedy(max_tokens=4)
    assert client.greedy(max_tokens=4, suffix="") == plain
    answer = client.post("/v1/completions", {"prompt": "x", "suffix": "the end"})
    answer.error(400, param="suffix")


def test_response_format(client):
    """Text is what there is; whoever asks for JSON is told that it would not come, whole and in a stream."""
    plain = client.greedy(max_tokens=4)
    assert client.greedy(max_tokens=4, response_format={"type": "text"}) == plain
    for stream in (False, True):
        body = {"prompt": "x", "max_tokens": 1, "stream": stream, "response_format": {"type": "json_object"}}
        error = client.post("/v1/completions", body).error(400, param="response_format")
        assert error["message"] == "response_format: only the type text is supported, got 'json_object'"


def test_any_model_takes_every_name(start):
    client = start("--any-model").client
    refused = {"prompt": "x", "max_tokens": 1, "response_format": {"type": "json_object"}}
    client.post("/v1/completions", refused).error(400, param="response_format")
    assert client.complete(model="gpt-9", max_tokens=1)
    assert client.complete(suffix="the end", max_tokens=1)
    model = client.get("/v1/models/gpt-9")
    assert model.status == 200


def test_user_metadata_cache_and_priority_are_accepted(client):
    plain = client.greedy(max_tokens=4)
    assert plain == client.greedy(max_tokens=4, user="u", metadata={"k": "v"}, cache_prompt=True,
                                  cache_salt="s", priority=3)


# ---- special tokens

END = "<|endoftext|>"


def test_skip_special_tokens(client):
    bias = {"0": 100}
    plain = client.complete(temperature=0, logit_bias=bias, ignore_eos=True, max_tokens=3)
    shown = client.complete(temperature=0, logit_bias=bias, ignore_eos=True, max_tokens=3,
                            skip_special_tokens=False)
    assert plain["choices"][0]["text"] == ""
    assert shown["choices"][0]["text"] == END * 3


def test_add_special_tokens_is_a_switch(client):
    """This tokenizer adds none, so both ways give the same ids."""
    for switch in (True, False):
        answer = client.complete("ROMEO:", max_tokens=1, add_special_tokens=switch,
                                 return_token_ids=True)
        assert answer["choices"][0]["prompt_token_ids"] == GOLDEN[0]["prompt_ids"]


def test_added_token_in_the_prompt(client):
    answer = client.complete(f"a{END}b", max_tokens=1, return_token_ids=True)
    assert 0 in answer["choices"][0]["prompt_token_ids"]
