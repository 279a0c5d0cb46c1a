#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes corpus/model, corpus/config and corpus/safetensors: whole tiny models and their two files,
so that mutations start from what is accepted.

    python3 tests/fuzz/make_corpus.py
"""

import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"
SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def safetensors(shapes, dtype):
    header, offset = {}, 0
    for name, shape in shapes.items():
        count = 1
        for n in shape:
            count *= n
        size = count * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def mamba_shapes(d=4, inner=8, state=2, rank=1, conv=4, vocab=8):
    layer = "backbone.layers.0."
    return {
        "backbone.embeddings.weight": [vocab, d],
        layer + "norm.weight": [d],
        layer + "mixer.in_proj.weight": [2 * inner, d],
        layer + "mixer.conv1d.weight": [inner, 1, conv],
        layer + "mixer.conv1d.bias": [inner],
        layer + "mixer.x_proj.weight": [rank + 2 * state, inner],
        layer + "mixer.dt_proj.weight": [inner, rank],
        layer + "mixer.dt_proj.bias": [inner],
        layer + "mixer.A_log": [inner, state],
        layer + "mixer.D": [inner],
        layer + "mixer.out_proj.weight": [d, inner],
        "backbone.norm_f.weight": [d],
    }


def mamba2_shapes(d=4, inner=8, state=2, heads=2, groups=1, conv=4, vocab=8):
    layer = "backbone.layers.0."
    channels = inner + 2 * groups * state
    return {
        "backbone.embeddings.weight": [vocab, d],
        layer + "norm.weight": [d],
        layer + "mixer.in_proj.weight": [inner + channels + heads, d],
        layer + "mixer.conv1d.weight": [channels, 1, conv],
        layer + "mixer.conv1d.bias": [channels],
        layer + "mixer.dt_bias": [heads],
        layer + "mixer.A_log": [heads],
        layer + "mixer.D": [heads],
        layer + "mixer.norm.weight": [inner],
        layer + "mixer.out_proj.weight": [d, inner],
        "backbone.norm_f.weight": [d],
    }


COMMON = {"hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8, "conv_kernel": 4, "expand": 2,
          "state_size": 2, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "rms_norm": True,
          "residual_in_fp32": True, "use_bias": False, "use_conv_bias": True,
          "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": [0, 1]}
MAMBA = {**COMMON, "model_type": "mamba", "intermediate_size": 8, "time_step_rank": 1}
FALCON = {**MAMBA, "model_type": "falcon_mamba", "mixer_rms_eps": 1e-6, "time_step_rank": 1}
MAMBA2 = {**COMMON, "model_type": "mamba2", "head_dim": 4, "num_heads": 2, "n_groups": 1,
          "chunk_size": 8, "time_step_limit": [0.0, float("inf")]}


def main():
    for part in ("model", "config", "safetensors"):
        (CORPUS / part).mkdir(parents=True, exist_ok=True)
    untied = {**mamba_shapes(), "lm_head.weight": [8, 4]}
    cases = {
        "mamba": (MAMBA, mamba_shapes(), "F32"),
        "mamba-bf16": (MAMBA, mamba_shapes(), "BF16"),
        "mamba-untied": ({**MAMBA, "tie_word_embeddings": False}, untied, "F16"),
        "falcon": (FALCON, mamba_shapes(), "F32"),
        "mamba2": (MAMBA2, mamba2_shapes(), "F32"),
    }
    for name, (config, shapes, dtype) in cases.items():
        text, tensors = json.dumps(config).encode(), safetensors(shapes, dtype)
        (CORPUS / "model" / name).write_bytes(text + b"\0" + tensors)
        (CORPUS / "config" / name).write_bytes(text)
        (CORPUS / "safetensors" / name).write_bytes(tensors)


main()
