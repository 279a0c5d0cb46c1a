// SPDX-License-Identifier: Apache-2.0
// Mamba-2 (Dao and Gu 2024) as transformers stores it: Mamba2ForCausalLM, Codestral Mamba included.
//
// The gated norm runs over groups of d_inner / n_groups, as in the official code (mamba_ssm,
// RMSNormGated with group_size) and as Codestral was trained; a plain run of transformers without
// the official kernels norms over all of d_inner and differs when n_groups > 1.
#include "architecture.h"

#include <math.h>

static void read_heads(config *c, ssm_geometry *g) {
    const double expand = config_real(c, "expand", 0, 64, 2);
    const int64_t inner = (int64_t)(expand * g->d_model); // cut, as Python's int() does
    g->n_heads = config_int(c, "num_heads", 1, MAX_INNER, 128);
    g->head_dim = config_int(c, "head_dim", 1, MAX_INNER, 64);
    g->n_groups = config_int(c, "n_groups", 1, MAX_GROUPS, 8);
    if ((int64_t)g->n_heads * g->head_dim != inner || inner < 1 || inner > MAX_INNER)
        config_fail(c, SSM_EFORMAT, "num_heads",
                    "x head_dim = %d x %d must equal expand x hidden_size = %lld, at most %d",
                    g->n_heads, g->head_dim, (long long)inner, MAX_INNER);
    if (g->n_heads % g->n_groups != 0)
        config_fail(c, SSM_EFORMAT, "n_groups", "%d must divide num_heads %d", g->n_groups,
                    g->n_heads);
}

static void read(config *c, blueprint *b) {
    ssm_geometry *g = &b->geometry;
    blueprint_read_family(c, b, false);
    g->kind = SSM_BLOCK_MAMBA2;
    read_heads(c, g);
    if (c->rc)
        return;
    g->d_inner = g->n_heads * g->head_dim;
    g->conv_dim = g->d_inner + 2 * g->n_groups * g->d_state;
    g->gate_eps = g->norm_eps;
    g->dt_max = INFINITY;
    config_pair(c, "time_step_limit", &g->dt_min, &g->dt_max);
}

static int layer(const blueprint *b, layer_tensor *out) {
    const ssm_geometry *g = &b->geometry;
    const int64_t width = g->d_model, inner = g->d_inner, heads = g->n_heads, conv = g->conv_dim;
    const layer_tensor always[] = {
        {"norm.weight", LAYER_FIELD(norm), {width}, FILL_ONE},
        {"mixer.in_proj.weight", LAYER_FIELD(in_proj), {inner + conv + heads, width}, FILL_LINEAR},
        {"mixer.conv1d.weight", LAYER_FIELD(conv_weight), {conv, 1, g->d_conv}, FILL_CONV},
        {"mixer.dt_bias", LAYER_FIELD(dt_bias), {heads}, FILL_DT_BIAS},
        {"mixer.A_log", LAYER_FIELD(A_log), {heads}, FILL_A_UNIFORM},
        {"mixer.D", LAYER_FIELD(D), {heads}, FILL_ONE},
        {"mixer.norm.weight", LAYER_FIELD(gate_norm), {inner}, FILL_ONE},
        {"mixer.out_proj.weight", LAYER_FIELD(out_proj), {width, inner}, FILL_RESIDUAL},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof always / sizeof always[0]; i++)
        layer_add(out, &count, always[i]);
    layer_add_biases(b, inner + conv + heads, out, &count);
    return count;
}

const architecture architecture_mamba2 = {
    .name = "mamba2",
    .read = read,
    .layer = layer,
};
