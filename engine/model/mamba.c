// SPDX-License-Identifier: Apache-2.0
// Mamba (Gu and Dao 2023) as transformers stores it: MambaForCausalLM. falcon_mamba.c shares both
// functions. Names and defaults: configuration_mamba.py and modeling_mamba.py of transformers 4.39
// and later.
#include "mamba.h"

#include <string.h>

static int32_t read_dt_rank(config *c, const ssm_geometry *g) {
    const json_t *v = config_get(c, "time_step_rank");
    if (!v || (json_is_string(v) && strcmp(json_string_value(v), "auto") == 0))
        return (g->d_model + 15) / 16;
    return config_int(c, "time_step_rank", 1, MAX_INNER, CONFIG_REQUIRED);
}

void mamba_read(config *c, blueprint *b) {
    ssm_geometry *g = &b->geometry;
    blueprint_read_family(c, b, true);
    g->kind = SSM_BLOCK_MAMBA;
    const double expand = config_real(c, "expand", 0, 64, 2);
    const int64_t inner = (int64_t)(expand * g->d_model); // cut, as Python's int() does
    g->d_inner = config_int(c, "intermediate_size", 1, MAX_INNER, inner);
    g->dt_rank = read_dt_rank(c, g);
    g->conv_dim = g->d_inner;
}

int mamba_layer(const blueprint *b, layer_tensor *out) {
    const ssm_geometry *g = &b->geometry;
    const int64_t width = g->d_model, inner = g->d_inner, n = g->d_state, rank = g->dt_rank;
    const layer_tensor always[] = {
        {"norm.weight", LAYER_FIELD(norm), {width}, FILL_ONE},
        {"mixer.in_proj.weight", LAYER_FIELD(in_proj), {2 * inner, width}, FILL_LINEAR},
        {"mixer.conv1d.weight", LAYER_FIELD(conv_weight), {inner, 1, g->d_conv}, FILL_CONV},
        {"mixer.x_proj.weight", LAYER_FIELD(x_proj), {rank + 2 * n, inner}, FILL_LINEAR},
        {"mixer.dt_proj.weight", LAYER_FIELD(dt_proj), {inner, rank}, FILL_DT_PROJ},
        {"mixer.dt_proj.bias", LAYER_FIELD(dt_bias), {inner}, FILL_DT_BIAS},
        {"mixer.A_log", LAYER_FIELD(A_log), {inner, n}, FILL_A_ORDINAL},
        {"mixer.D", LAYER_FIELD(D), {inner}, FILL_ONE},
        {"mixer.out_proj.weight", LAYER_FIELD(out_proj), {width, inner}, FILL_RESIDUAL},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof always / sizeof always[0]; i++)
        layer_add(out, &count, always[i]);
    layer_add_biases(b, 2 * inner, out, &count);
    return count;
}

const architecture architecture_mamba = {
    .name = "mamba",
    .read = mamba_read,
    .layer = mamba_layer,
};
