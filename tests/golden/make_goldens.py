#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/goldens: small models in odd geometries and what they must answer.

Run once, with torch and transformers installed; its output is committed, so that tests need
neither. Made with torch 2.15.0 and transformers 5.23.0 on a CPU.

    python tests/golden/make_goldens.py tests/data/goldens

What is taken as truth: transformers' full-sequence forward without a cache, for each answer, the
greedy ids included. Traps of the library that this avoids:
- cached decoding of mamba2 does not clamp delta to time_step_limit; the full forward does;
- some versions norm the gated output of mamba2 over all of d_inner whatever n_groups, without the
  official kernels. The definition is the official code's: over groups of d_inner / n_groups. The
  norm is replaced here (group_norm) so that any version follows it;
- its fp32 forward is itself off by up to 3e-5 on these models, a third of the tests' tolerance. It
  is run in float64 here, casts to fp32 inside the library redirected (in_float64).
Each model is also run by official.py, an independent float64 token loop; both must agree at every
position, and the canonical state in the goldens is that loop's.
"""

import contextlib
import json
import math
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from transformers import FalconMambaConfig, FalconMambaForCausalLM, Mamba2Config
from transformers import Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
from transformers.models.mamba2 import modeling_mamba2

import official

LENGTHS = [1, 2, 3, 4, 5, 7, 64, 65, 100, 300]
FULL = 65  # the length whose logits are kept at every position
STATES = [2, 65]  # lengths whose final state is kept
GREEDY = 12
AGREE = 1e-9  # transformers in float64 against official.py, logits of about 10

CLASSES = {
    "mamba": (MambaConfig, MambaForCausalLM),
    "falcon_mamba": (FalconMambaConfig, FalconMambaForCausalLM),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM),
}

MODELS = {
    # what is odd about it; config; how it is stored
    "mamba-kernel3-expand3": (
        dict(model_type="mamba", hidden_size=24, state_size=8, conv_kernel=3, expand=3,
             time_step_rank=5, vocab_size=61, num_hidden_layers=2),
        dict(),
    ),
    "mamba-untied-biased": (
        dict(model_type="mamba", hidden_size=32, state_size=32, conv_kernel=2, expand=2,
             time_step_rank=2, vocab_size=50, num_hidden_layers=2, use_bias=True,
             use_conv_bias=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
        dict(),
    ),
    "mamba-kernel1-state5": (
        dict(model_type="mamba", hidden_size=20, state_size=5, conv_kernel=1, expand=2,
             time_step_rank=1, vocab_size=33, num_hidden_layers=3),
        dict(),
    ),
    "mamba-f16-unaligned": (
        dict(model_type="mamba", hidden_size=36, state_size=16, conv_kernel=4, expand=2,
             time_step_rank=3, vocab_size=47, num_hidden_layers=2),
        dict(dtype="f16", odd_header=True),
    ),
    "mamba-bf16-sharded": (
        dict(model_type="mamba", hidden_size=32, state_size=16, conv_kernel=4, expand=2,
             time_step_rank="auto", vocab_size=64, num_hidden_layers=3),
        dict(dtype="bf16", small="f32", shards=3, tied_head=True),
    ),
    "falcon-mamba-untied": (
        dict(model_type="falcon_mamba", hidden_size=28, state_size=16, conv_kernel=4, expand=2,
             time_step_rank=7, vocab_size=53, num_hidden_layers=2, tie_word_embeddings=False,
             mixer_rms_eps=1e-2),
        dict(dtype="bf16"),
    ),
    "mamba2-groups2-kernel3": (
        dict(model_type="mamba2", hidden_size=20, state_size=32, conv_kernel=3, expand=3,
             num_heads=4, head_dim=15, n_groups=2, chunk_size=16, vocab_size=59,
             num_hidden_layers=2, tie_word_embeddings=True),
        dict(),
    ),
    "mamba2-groups8-codestral": (
        dict(model_type="mamba2", hidden_size=32, state_size=8, conv_kernel=4, expand=2,
             num_heads=16, head_dim=4, n_groups=8, chunk_size=32, vocab_size=40,
             num_hidden_layers=3, tie_word_embeddings=False),
        dict(dtype="f16", small="f32", prefix="model.backbone.", embedding="embedding"),
    ),
    "mamba2-limited-biased": (
        dict(model_type="mamba2", hidden_size=18, state_size=16, conv_kernel=2, expand=2,
             num_heads=4, head_dim=9, n_groups=1, chunk_size=64, vocab_size=37,
             num_hidden_layers=2, use_bias=True, use_conv_bias=False, tie_word_embeddings=True,
             time_step_limit=(0.02, 0.3)),
        dict(),
    ),
}  # fmt: skip


def group_norm(self, hidden_states, gate=None):
    """RMSNormGated of the official code: the gate first, then RMS over each group."""
    x = hidden_states
    if gate is not None:
        x = x * torch.nn.functional.silu(gate)
    groups = x.unflatten(-1, (self.groups, -1))
    groups = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * groups.flatten(-2)


@contextlib.contextmanager
def in_float64():
    """Makes the library's own casts to fp32 casts to float64."""
    kept = torch.Tensor.float, torch.float32
    torch.Tensor.float, torch.float32 = torch.Tensor.double, torch.float64
    try:
        yield
    finally:
        torch.Tensor.float, torch.float32 = kept


def draw(name, shape, rng):
    """Weights of a model that uses everything it has: states that remember, logits of about 5."""
    normal = rng.standard_normal(shape)
    if name.endswith("A_log"):
        return np.log(rng.uniform(0.3, 16, shape))
    if name.endswith("dt_bias") or name.endswith("dt_proj.bias"):
        dt = np.exp(rng.uniform(math.log(5e-3), math.log(0.5), shape))
        return dt + np.log(-np.expm1(-dt))
    if name.endswith(".D") or "norm" in name:
        return 1 + 0.3 * normal
    if "embedding" in name:
        return 0.7 * normal
    if name.endswith("lm_head.weight"):
        return normal
    if name.endswith("bias"):
        return 0.3 * normal
    if "conv1d" in name:
        return 0.6 * normal
    return normal / math.sqrt(shape[-1])


NUMPY = {"f32": np.float32, "f16": np.float16}


def rounded(values, dtype):
    """The values as the file's type will hold them, in fp32."""
    if dtype == "bf16":
        return torch.tensor(values, dtype=torch.float32).bfloat16().float().numpy()
    return values.astype(NUMPY[dtype]).astype(np.float32)


def is_small(name):
    return any(part in name for part in ("A_log", ".D", "dt_bias", "dt_proj.bias", "norm"))


def dtype_of(name, storage):
    dtype = storage.get("dtype", "f32")
    return storage.get("small", dtype) if is_small(name) else dtype


def encode(name, values, storage):
    """(dtype name, bytes) of one tensor in a file."""
    dtype = dtype_of(name, storage)
    if dtype == "bf16":
        bits = torch.tensor(values).bfloat16().view(torch.int16).numpy()
        return "BF16", bits.tobytes()
    return dtype.upper(), values.astype(NUMPY[dtype]).tobytes()


def write_file(path, tensors, storage):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        dtype, raw = encode(name, values, storage)
        header[name] = {"dtype": dtype, "shape": list(values.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}  # fmt: skip
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    want = 1 if storage.get("odd_header") else 0
    text += b" " * ((want - len(text)) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def stored_name(name, storage):
    """The name in the file of one of transformers' parameters ("backbone.layers.0...")."""
    if not name.startswith("backbone."):
        return name
    name = storage.get("prefix", "backbone.") + name.removeprefix("backbone.")
    return name.replace("embeddings", storage.get("embedding", "embeddings"))


def write_model(folder, config, tensors, storage):
    config = dict(config, architectures=["Golden"], bos_token_id=0, eos_token_id=[1, 2])
    config.setdefault("tie_word_embeddings", True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {stored_name(k, storage): v for k, v in tensors.items()}
    if storage.get("tied_head"):
        stored["lm_head.weight"] = tensors["backbone.embeddings.weight"]
    shards = storage.get("shards", 1)
    if shards == 1:
        write_file(folder / "model.safetensors", stored, storage)
        return
    names = sorted(stored)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {k: stored[k] for k in names[i::shards]}
        write_file(folder / file, part, storage)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make_model(config, storage, rng):
    config_class, model_class = CLASSES[config["model_type"]]
    arguments = {k: v for k, v in config.items() if k != "model_type"}
    model = model_class(config_class(pad_token_id=None, **arguments)).float().eval()
    tensors = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            tensors[name] = rounded(draw(name, tuple(p.shape), rng), dtype_of(name, storage))
            p.copy_(torch.tensor(tensors[name]))
        model.tie_weights()
        model.double()
        for module in model.modules():
            if isinstance(module, modeling_mamba2.MambaRMSNormGated):
                module.groups = config["n_groups"]
    return model, tensors


def logits_of(model, ids):
    with torch.no_grad(), in_float64():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    assert logits.dtype == np.float64
    return logits


def numbers(values):
    return [round(float(v), 6) for v in np.asarray(values).reshape(-1)]


def make_prompt(model, oracle, ids):
    logits = logits_of(model, ids)
    ours, state = oracle.run(ids)
    error = np.max(np.abs(ours - logits))
    assert error <= AGREE, f"transformers and the official definition differ by {error}"
    greedy, margin = list(ids), math.inf
    for _ in range(GREEDY):
        last = logits_of(model, greedy)[-1]
        second, first = np.sort(last)[-2:]
        margin = min(margin, float(first - second))
        greedy.append(int(np.argmax(last)))
    out = {"prompt_ids": ids, "greedy_ids": greedy[len(ids) :], "margin": round(margin, 6),
           "last_logits": numbers(logits[-1])}  # fmt: skip
    if len(ids) == FULL:
        out["logits"] = numbers(logits)
    if len(ids) in STATES:
        out["conv_state"], out["ssm_state"] = (numbers(part) for part in state)
    return out, error


def make_golden(out, name, config, storage, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    model, tensors = make_model(config, storage, rng)
    write_model(folder, config, tensors, storage)
    full = dict(config, **{"layer_norm_epsilon": model.config.layer_norm_epsilon,
                           "time_step_rank": model.config.time_step_rank,
                           "tie_word_embeddings": config.get("tie_word_embeddings", True)})  # fmt: skip
    full.setdefault("time_step_limit", (0.0, math.inf))
    oracle = official.Model(full, {k.removeprefix("backbone."): v for k, v in tensors.items()})
    prompts, worst = [], 0.0
    for n in LENGTHS:
        while True:  # a near tie of the two best would make the greedy ids a matter of rounding
            ids = rng.integers(0, config["vocab_size"], n).tolist()
            prompt, error = make_prompt(model, oracle, ids)
            if prompt["margin"] > 2e-3:
                break
        prompts.append(prompt)
        worst = max(worst, float(error))
    made = {"torch": torch.__version__, "transformers": transformers.__version__,
            "precision": "float64, full-sequence forward",
            "gated_norm": "groups of d_inner / n_groups (the official definition)",
            "seed": seed, "worst_difference_to_official_py": worst}  # fmt: skip
    (folder / "golden.json").write_text(json.dumps({"made_with": made, "prompts": prompts}) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size // 1024} KB, off official.py by {worst:.1e}")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    modeling_mamba2.MambaRMSNormGated.forward = group_norm
    out = pathlib.Path(sys.argv[1])
    only = sys.argv[2:]
    for seed, (name, (config, storage)) in enumerate(MODELS.items()):
        if not only or name in only:
            make_golden(out, name, config, storage, seed)


if __name__ == "__main__":
    main()
