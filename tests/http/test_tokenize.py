# SPDX-License-Identifier: Apache-2.0
"""/tokenize and /detokenize in both dialects."""

import random
import time

import pytest

from harness import models, shapes
from harness.models import DEMO
from harness.program import SCALE

GOLDEN = models.goldens(DEMO)


def tokenize(client, **body):
    answer = client.post("/tokenize", body)
    assert answer.status == 200, answer
    shapes.check("tokenize", answer.json())
    return answer.json()


def detokenize(client, tokens, **body):
    answer = client.post("/detokenize", {"tokens": tokens, **body})
    assert answer.status == 200, answer
    shapes.check("detokenize", answer.json())
    parsed = answer.json()
    assert parsed["content"] == parsed["prompt"]
    return parsed["content"]


@pytest.mark.smoke
@pytest.mark.parametrize("key", ["content", "prompt"])
def test_goldens(client, key):
    for golden in GOLDEN:
        answer = tokenize(client, **{key: golden["prompt"]})
        assert answer["tokens"] == golden["prompt_ids"]
        assert answer["count"] == len(golden["prompt_ids"])
        assert detokenize(client, golden["prompt_ids"] + golden["greedy_ids"]) == golden["prompt"] + golden["greedy_text"]


def test_round_trip_of_anything(client):
    chance = random.Random(1)
    for _ in range(50):
        points = [chance.choice([chance.randrange(0x20, 0x7F), chance.randrange(0xA0, 0xD800),
                                 chance.randrange(0xE000, 0x10000), chance.randrange(0x10000, 0x110000)])
                  for _ in range(chance.randrange(40))]
        text = "".join(map(chr, points))
        assert detokenize(client, tokenize(client, content=text)["tokens"]) == text


def test_empty(client):
    assert tokenize(client, content="")["tokens"] == []
    assert detokenize(client, []) == ""


def test_both_keys_must_agree(client):
    assert tokenize(client, content="a", prompt="a")["count"] == 1
    client.post("/tokenize", {"content": "a", "prompt": "b"}).error(400)


def test_pieces(client):
    """llama-server's form: objects with an id and the token's text, or its bytes."""
    tokens = tokenize(client, content="To be \U0001f600", with_pieces=True)["tokens"]
    ids = tokenize(client, content="To be \U0001f600")["tokens"]
    assert [token["id"] for token in tokens] == ids
    data = b"".join(bytes(t["piece"]) if isinstance(t["piece"], list) else t["piece"].encode() for t in tokens)
    assert data.decode() == "To be \U0001f600"


def test_token_strings(client):
    """vLLM's form: token_strs beside the ids."""
    answer = tokenize(client, prompt="To be", return_token_strs=True)
    assert len(answer["token_strs"]) == answer["count"]
    names = {i: piece for piece, i in models.vocabulary().items()}
    assert answer["token_strs"] == [names[i] for i in answer["tokens"]] or "".join(answer["token_strs"]) == "To be"


def test_special_tokens(client):
    end = "<|endoftext|>"
    assert tokenize(client, content=f"a{end}b")["tokens"][1] == 0
    assert detokenize(client, [0, *GOLDEN[0]["prompt_ids"]]) == end + "ROMEO:"
    assert detokenize(client, [0, *GOLDEN[0]["prompt_ids"]], skip_special_tokens=True) == "ROMEO:"
    for switch in ("add_special", "add_special_tokens"):
        assert tokenize(client, content="ROMEO:", **{switch: True})["tokens"] == GOLDEN[0]["prompt_ids"]


def test_of_another_model(client, need_model):
    name = need_model("induction-heads")
    assert tokenize(client, content="abc|", model=name)["tokens"] == [1, 2, 3, 0]
    assert detokenize(client, [1, 2, 3, 0], model=name) == "abc|"


@pytest.mark.parametrize("path, body, param", [
    ("/tokenize", {}, None), ("/tokenize", {"content": 5}, "content"), ("/tokenize", {"prompt": []}, "prompt"),
    ("/tokenize", {"content": "x", "with_pieces": 1}, "with_pieces"),
    ("/tokenize", {"content": "x", "add_special": "no"}, "add_special"),
    ("/tokenize", {"content": "x", "add_special_tokens": 0}, "add_special_tokens"),
    ("/tokenize", {"content": "x", "return_token_strs": 0}, "return_token_strs"),
    ("/detokenize", {}, "tokens"), ("/detokenize", {"tokens": "x"}, "tokens"), ("/detokenize", {"tokens": [1.5]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"), ("/detokenize", {"tokens": [1024]}, "tokens"),
    ("/detokenize", {"tokens": [10**12]}, "tokens"), ("/detokenize", {"tokens": [[1]]}, "tokens"),
    ("/detokenize", {"tokens": [1], "skip_special_tokens": "x"}, "skip_special_tokens"),
], ids=str)
def test_refused(client, path, body, param):
    error = client.post(path, body).error(400)
    if param:
        assert error["param"].split("[")[0] == param, error


def test_unknown_model(client):
    client.post("/tokenize", {"content": "x", "model": "nope"}).error(404, code="model_not_found")
    client.post("/detokenize", {"tokens": [1], "model": "nope"}).error(404, code="model_not_found")


def test_bytes_that_are_no_character(client):
    assert detokenize(client, models.byte_ids([0xFF])) == "\ufffd"
    assert detokenize(client, models.byte_ids("\U0001f600".encode())) == "\U0001f600"


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "\U0001f600" * 250_000], ids=["a", "spaces", "emoji"])
def test_a_megabyte(client, text):
    """In seconds, so linear; the shapes of a million items are not looked at here, that is slow."""
    started = time.monotonic()
    tokens = client.post("/tokenize", {"content": text}).json()["tokens"]
    assert client.post("/detokenize", {"tokens": tokens}).json()["content"] == text
    assert time.monotonic() - started < 6 * SCALE


def test_what_the_tokenizer_is(client):
    """The names are those that a client of /tokenize must know to make a prompt of its own."""
    info = client.get("/tokenizer_info").json()
    shapes.check("tokenizer_info", info)
    assert info["eos_token"] == "<|endoftext|>" and info["vocab_size"] == len(models.vocabulary())
    answer = tokenize(client, prompt=info["eos_token"], add_special_tokens=False)
    assert answer["tokens"] == [models.vocabulary()["<|endoftext|>"]]
    client.post("/tokenizer_info", {}).error(405)
