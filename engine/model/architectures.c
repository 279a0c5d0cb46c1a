// SPDX-License-Identifier: Apache-2.0
// The table of architectures, and what their configs have in common.
//
// Keys of transformers' configs. A key that would change the arithmetic and is not supported is
// refused by name; keys that only steer training (initializer_range, time_step_min,
// rescale_prenorm_residual) or another program's execution (use_mambapy, chunk_size,
// residual_in_fp32: the residual is fp32 here) are passed over, as are unknown ones: transformers
// itself keeps those and does nothing with them.
#include "architecture.h"

#include <assert.h>
#include <string.h>

static const architecture *const table[] = {
    &architecture_mamba, &architecture_falcon_mamba, &architecture_mamba2,
    &architecture_s4d,   &architecture_s4,           &architecture_h3,
};

const char architecture_names[] = "mamba, falcon_mamba, mamba2, s4d, s4, h3";

// What must not be asked for: absent, null, false, 0 or empty.
static const char *const unsupported[] = {
    "quantization_config", "compression_config", "norm_before_gate",   "D_has_hdim",
    "attn_layer_idx",      "attn_cfg",           "d_intermediate",     "sliding_window",
    "num_experts",         "num_local_experts",  "is_encoder_decoder",
};

const architecture *architecture_find(const char *model_type) {
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(table[i]->name, model_type) == 0)
            return table[i];
    }
    return NULL;
}

static void refuse_unsupported(config *c) {
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
        if (config_asks(c, unsupported[i]))
            config_fail(c, SSM_EUNSUPPORTED, unsupported[i], "is not supported");
    }
    const char *act = config_string(c, "hidden_act", "silu");
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        config_fail(c, SSM_EUNSUPPORTED, "hidden_act", "%.32s is not supported: only silu is", act);
    if (!config_bool(c, "rms_norm", true))
        config_fail(c, SSM_EUNSUPPORTED, "rms_norm", "false (LayerNorm) is not supported");
}

void blueprint_read_family(config *c, blueprint *b, bool tied) {
    ssm_geometry *g = &b->geometry;
    refuse_unsupported(c);
    g->n_layers = config_int(c, "num_hidden_layers", 1, MAX_LAYERS, CONFIG_REQUIRED);
    g->d_model = config_int(c, "hidden_size", 1, MAX_WIDTH, CONFIG_REQUIRED);
    g->vocab_size = config_int(c, "vocab_size", 1, MAX_VOCAB, CONFIG_REQUIRED);
    g->d_state = config_int(c, "state_size", 1, MAX_STATE, CONFIG_REQUIRED);
    g->d_conv = config_int(c, "conv_kernel", 1, MAX_KERNEL, 4);
    g->norm_eps = (float)config_real(c, "layer_norm_epsilon", 0, 1, 1e-5);
    b->bias = config_bool(c, "use_bias", false);
    b->conv_bias = config_bool(c, "use_conv_bias", true);
    b->tied = config_bool(c, "tie_word_embeddings", tied);
}

int blueprint_read(blueprint *b, config *c) {
    *b = (blueprint){0};
    const char *type = config_string(c, "model_type", NULL);
    if (!type)
        config_fail(c, SSM_EFORMAT, "model_type", "is missing");
    b->architecture = type ? architecture_find(type) : NULL;
    if (!b->architecture)
        config_fail(c, SSM_EUNSUPPORTED, "model_type", "%.64s is not supported: only %s are",
                    type ? type : "", architecture_names);
    if (c->rc)
        return c->rc;
    b->architecture->read(c, b);
    return c->rc;
}

void layer_add(layer_tensor *list, int *n, layer_tensor tensor) {
    assert(*n < LAYER_MAX_TENSORS);
    list[(*n)++] = tensor;
}

void layer_add_biases(const blueprint *b, int64_t in_rows, layer_tensor *list, int *n) {
    const ssm_geometry *g = &b->geometry;
    const layer_tensor conv = {
        "mixer.conv1d.bias", LAYER_FIELD(conv_bias), {g->conv_dim}, FILL_ZERO};
    const layer_tensor in = {"mixer.in_proj.bias", LAYER_FIELD(in_bias), {in_rows}, FILL_ZERO};
    const layer_tensor out = {
        "mixer.out_proj.bias", LAYER_FIELD(out_bias), {g->d_model}, FILL_ZERO};
    if (b->conv_bias)
        layer_add(list, n, conv);
    if (b->bias) {
        layer_add(list, n, in);
        layer_add(list, n, out);
    }
}
