# SPDX-License-Identifier: Apache-2.0
"""The step of kernels/weights.h in float64 NumPy, token by token.

A second oracle beside transformers: it reads the checkpoint's own tensors, knows nothing of torch,
and gives the state in canonical form too. Formulas: Gu and Dao 2023 (algorithm 2), Dao and Gu 2024
(section 6), the official state-spaces code.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def rms(x, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


class Model:
    """tensors: canonical names ("layers.0.mixer.D", "embeddings.weight", ...) to arrays."""

    def __init__(self, config, tensors):
        self.c = config
        self.t = {k: np.asarray(v, np.float64) for k, v in tensors.items()}
        self.mamba2 = config["model_type"] == "mamba2"
        self.layers = config["num_hidden_layers"]
        self.n = config["state_size"]
        self.kernel = config["conv_kernel"]
        self.inner = int(config["expand"] * config["hidden_size"])
        self.groups = config.get("n_groups", 1)
        self.channels = self.inner + (2 * self.groups * self.n if self.mamba2 else 0)

    def zero_state(self):
        conv = np.zeros((self.layers, self.channels, self.kernel - 1))
        if self.mamba2:
            ssm = np.zeros((self.layers, self.c["num_heads"], self.c["head_dim"], self.n))
        else:
            ssm = np.zeros((self.layers, self.inner, self.n))
        return conv, ssm

    def get(self, layer, name):
        return self.t.get(f"layers.{layer}.{name}")

    def convolve(self, layer, raw, window):
        """One token through the convolution; window [channels][kernel - 1] moves on."""
        full = np.concatenate([window, raw[:, None]], axis=1)
        window[:] = full[:, 1:]
        out = np.sum(full * self.get(layer, "mixer.conv1d.weight")[:, 0, :], axis=1)
        bias = self.get(layer, "mixer.conv1d.bias")
        return silu(out if bias is None else out + bias)

    def linear(self, layer, name, x):
        out = self.get(layer, f"mixer.{name}.weight") @ x
        bias = self.get(layer, f"mixer.{name}.bias")
        return out if bias is None else out + bias

    def mixer1(self, layer, u, conv, h):
        x, z = np.split(self.linear(layer, "in_proj", u), 2)
        x = self.convolve(layer, x, conv)
        rank = self.c["time_step_rank"]
        dt, b, c = np.split(self.get(layer, "mixer.x_proj.weight") @ x, [rank, rank + self.n])
        if self.c["model_type"] == "falcon_mamba":
            dt, b, c = (rms(v, self.c["mixer_rms_eps"]) for v in (dt, b, c))
        delta = softplus(self.linear(layer, "dt_proj", dt))
        a = -np.exp(self.get(layer, "mixer.A_log"))
        h[:] = np.exp(delta[:, None] * a) * h + np.outer(delta * x, b)
        y = (h @ c + self.get(layer, "mixer.D") * x) * silu(z)
        return self.linear(layer, "out_proj", y)

    def mixer2(self, layer, u, conv, h):
        heads, width = self.c["num_heads"], self.c["head_dim"]
        z, xbc, dt = np.split(self.linear(layer, "in_proj", u), [self.inner, self.inner + self.channels])
        xbc = self.convolve(layer, xbc, conv)
        x, b, c = np.split(xbc, [self.inner, self.inner + self.groups * self.n])
        x = x.reshape(heads, width)
        b, c = (np.repeat(v.reshape(self.groups, self.n), heads // self.groups, 0) for v in (b, c))
        low, high = self.c["time_step_limit"]
        delta = np.clip(softplus(dt + self.get(layer, "mixer.dt_bias")), low, high)
        decay = np.exp(-delta * np.exp(self.get(layer, "mixer.A_log")))
        h[:] = decay[:, None, None] * h + (delta[:, None] * x)[:, :, None] * b[:, None, :]
        y = np.einsum("hpn,hn->hp", h, c) + self.get(layer, "mixer.D")[:, None] * x
        y = (y.reshape(-1) * silu(z)).reshape(self.groups, -1)
        y = rms(y, self.c["layer_norm_epsilon"]).reshape(-1) * self.get(layer, "mixer.norm.weight")
        return self.linear(layer, "out_proj", y)

    def step(self, token, state):
        conv, ssm = state
        eps = self.c["layer_norm_epsilon"]
        residual = self.t["embeddings.weight"][token].copy()
        for i in range(self.layers):
            u = rms(residual, eps) * self.get(i, "norm.weight")
            residual += (self.mixer2 if self.mamba2 else self.mixer1)(i, u, conv[i], ssm[i])
        head = self.t["embeddings.weight" if self.c["tie_word_embeddings"] else "lm_head.weight"]
        return head @ (rms(residual, eps) * self.t["norm_f.weight"])

    def run(self, ids):
        """Logits at every position, and the state after the last."""
        state = self.zero_state()
        return np.stack([self.step(i, state) for i in ids]), state
