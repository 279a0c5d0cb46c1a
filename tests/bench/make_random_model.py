#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A folder with a Mamba model of a published geometry and random bf16 weights, to put a load on a
server without a checkpoint: make_random_model.py mamba-130m FOLDER. Needs numpy.

Weights repeat one block of 16 Mi random numbers: speed does not depend on what they are. The
tokenizer has a piece for every id, so that sampling runs over the whole vocabulary."""

import json
import math
import pathlib
import struct
import sys

import numpy

GEOMETRIES = {"mamba-130m": (24, 768), "mamba-370m": (48, 1024), "mamba-790m": (48, 1536),
              "mamba-1.4b": (48, 2048), "mamba-2.8b": (64, 2560),
              "mamba2-130m": (24, 768), "mamba2-370m": (48, 1024), "mamba2-780m": (48, 1536),
              "mamba2-1.3b": (48, 2048), "mamba2-2.7b": (64, 2560)}
VOCAB, CONV = 50280, 4
STATES, STATES2, HEAD = 16, 128, 64  # of Mamba-1; of Mamba-2, whose heads have so many channels


def tensors(n_layers, d_model, mamba2):
    """Name, dtype, shape, and how it is filled, in file order."""
    inner, rank = 2 * d_model, math.ceil(d_model / 16)
    heads, convolved = inner // HEAD, inner + (2 * STATES2 if mamba2 else 0)
    yield "backbone.embeddings.weight", "BF16", [VOCAB, d_model], "random"
    yield "backbone.norm_f.weight", "F32", [d_model], "ones"
    for i in range(n_layers):
        layer = f"backbone.layers.{i}."
        yield layer + "norm.weight", "F32", [d_model], "ones"
        rows = inner + convolved + heads if mamba2 else 2 * inner
        yield layer + "mixer.in_proj.weight", "BF16", [rows, d_model], "random"
        yield layer + "mixer.conv1d.weight", "BF16", [convolved, 1, CONV], "random"
        yield layer + "mixer.conv1d.bias", "BF16", [convolved], "random"
        if mamba2:
            yield layer + "mixer.dt_bias", "F32", [heads], "steps"
            yield layer + "mixer.A_log", "F32", [heads], "decays"
            yield layer + "mixer.norm.weight", "F32", [inner], "ones"
        else:
            yield layer + "mixer.x_proj.weight", "BF16", [rank + 2 * STATES, inner], "random"
            yield layer + "mixer.dt_proj.weight", "BF16", [inner, rank], "random"
            yield layer + "mixer.dt_proj.bias", "F32", [inner], "steps"
            yield layer + "mixer.A_log", "F32", [inner, STATES], "decays"
        yield layer + "mixer.D", "F32", [heads if mamba2 else inner], "ones"
        yield layer + "mixer.out_proj.weight", "BF16", [d_model, inner], "random"


def fill(kind, shape, block, generator):
    n = math.prod(shape)
    if kind == "random":
        return numpy.resize(block, n)
    if kind == "ones":
        return numpy.ones(n, numpy.float32)
    if kind == "decays":  # A = -1 .. -N, and again
        return numpy.resize(numpy.log(numpy.arange(1, STATES + 1, dtype=numpy.float32)), n)
    step = numpy.exp(generator.uniform(math.log(1e-3), math.log(1e-1), n))  # softplus(bias) = step
    return numpy.log(numpy.expm1(step)).astype(numpy.float32)


def write_weights(path, listed):
    generator = numpy.random.default_rng(1)
    normal = generator.standard_normal(1 << 24, dtype=numpy.float32) * 0.02
    block = (normal.view(numpy.uint32) >> 16).astype(numpy.uint16)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, _ in listed:
        size = math.prod(shape) * (2 if dtype == "BF16" else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, shape, kind in listed:
            fill(kind, shape, block, generator).tofile(file)


def byte_letters():
    """The letters that byte-level vocabularies write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(odd))]


def tokenizer():
    letters = byte_letters()
    pieces = letters + [f"t{i}" for i in range(VOCAB - len(letters))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": []}}


def main():
    n_layers, d_model = GEOMETRIES[sys.argv[1]]
    mamba2 = sys.argv[1].startswith("mamba2-")
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    family = ({"model_type": "mamba2", "state_size": STATES2, "num_heads": 2 * d_model // HEAD,
               "head_dim": HEAD, "n_groups": 1, "chunk_size": 256} if mamba2 else
              {"model_type": "mamba", "state_size": STATES, "intermediate_size": 2 * d_model,
               "time_step_rank": math.ceil(d_model / 16)})
    config = {**family, "hidden_size": d_model, "num_hidden_layers": n_layers, "expand": 2,
              "conv_kernel": CONV, "vocab_size": VOCAB, "hidden_act": "silu",
              "layer_norm_epsilon": 1e-5, "rms_norm": True, "use_bias": False, "use_conv_bias": True,
              "residual_in_fp32": True, "tie_word_embeddings": True,
              "torch_dtype": "bfloat16", "bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    write_weights(folder / "model.safetensors", list(tensors(n_layers, d_model, mamba2)))


if __name__ == "__main__":
    main()
