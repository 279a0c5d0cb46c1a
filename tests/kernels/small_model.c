// SPDX-License-Identifier: Apache-2.0
#include "small_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sampling/philox.h"

double small_uniform(uint64_t *state) {
    return philox_uniform(7, (*state)++);
}

static double normal(uint64_t *state) { // near enough: a sum of four uniforms
    double sum = 0;
    for (int i = 0; i < 4; i++)
        sum += small_uniform(state);
    return (sum - 2) * 1.7320508;
}

static uint16_t to_bf16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static uint16_t to_f16(float v) { // normal range only; rounds half up
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    const int exponent = (int)(bits >> 23 & 0xff) - 112;
    if (exponent <= 0)
        return (uint16_t)sign;
    return (uint16_t)(sign +
                      (((uint32_t)exponent << 10 | (bits & 0x7fffff) >> 13) + (bits >> 12 & 1)));
}

static void *keep(small_model *m, size_t bytes) {
    m->blocks = realloc(m->blocks, (size_t)(m->n_blocks + 1) * sizeof *m->blocks);
    return m->blocks[m->n_blocks++] = malloc(bytes);
}

typedef double (*maker)(uint64_t *state, int64_t col, double scale);

static double make_normal(uint64_t *state, int64_t col, double scale) {
    return normal(state) * scale;
}

static double make_near_one(uint64_t *state, int64_t col, double scale) {
    return 1 + 0.2 * normal(state);
}

static double make_a_log(uint64_t *state, int64_t col, double scale) {
    return log((double)col + 1) + 0.3 * normal(state);
}

static double make_dt_bias(uint64_t *state, int64_t col, double scale) { // softplus: 1e-3 to 0.3
    const double dt = exp(log(1e-3) + small_uniform(state) * log(300.0));
    return log(expm1(dt));
}

static ssm_tensor tensor(small_model *m, uint64_t *state, ssm_dtype type, int64_t rows,
                         int64_t cols, maker make, double scale) {
    const size_t n = (size_t)rows * (size_t)cols;
    ssm_tensor t = {keep(m, ssm_dtype_bytes(type, n)), type, rows, cols};
    for (size_t i = 0; i < n; i++) {
        const float v = (float)make(state, (int64_t)(i % (size_t)cols), scale);
        if (type == SSM_DTYPE_F32)
            ((float *)(uintptr_t)t.data)[i] = v;
        else
            ((uint16_t *)(uintptr_t)t.data)[i] = type == SSM_DTYPE_BF16 ? to_bf16(v) : to_f16(v);
    }
    return t;
}

static void make_layer(small_model *m, const small_shape *s, ssm_dtype type, uint64_t *state,
                       ssm_layer *l) {
    const ssm_geometry *g = &m->weights.geometry;
    const ssm_dtype f = SSM_DTYPE_F32;
    const bool mamba = s->kind == SSM_BLOCK_MAMBA;
    const int64_t in = mamba ? 2 * g->d_inner : g->d_inner + g->conv_dim + g->n_heads;
    const double by_model = 1 / sqrt(g->d_model), by_inner = 1 / sqrt(g->d_inner);
    *l = (ssm_layer){
        .norm = tensor(m, state, f, g->d_model, 1, make_near_one, 0),
        .in_proj = tensor(m, state, type, in, g->d_model, make_normal, by_model),
        .conv_weight = tensor(m, state, f, g->conv_dim, g->d_conv, make_normal, 0.5),
        .conv_bias = tensor(m, state, f, g->conv_dim, 1, make_normal, 0.1),
        .out_proj = tensor(m, state, type, g->d_model, g->d_inner, make_normal, by_inner),
    };
    if (s->biases) {
        l->in_bias = tensor(m, state, f, in, 1, make_normal, 0.2);
        l->out_bias = tensor(m, state, f, g->d_model, 1, make_normal, 0.2);
    }
    const int64_t rows = mamba ? g->d_inner : g->n_heads;
    l->dt_bias = tensor(m, state, f, rows, 1, make_dt_bias, 0);
    l->A_log = tensor(m, state, f, rows, mamba ? g->d_state : 1, make_a_log, 0);
    l->D = tensor(m, state, f, rows, 1, make_near_one, 0);
    if (mamba) {
        l->x_proj = tensor(m, state, type, g->dt_rank + 2 * g->d_state, g->d_inner, make_normal,
                           2 * by_inner);
        l->dt_proj =
            tensor(m, state, type, g->d_inner, g->dt_rank, make_normal, 0.5 / sqrt(g->dt_rank));
    } else {
        l->gate_norm = tensor(m, state, f, g->d_inner, 1, make_near_one, 0);
    }
}

void small_model_create(small_model *m, const small_shape *s, ssm_dtype type, uint64_t seed) {
    *m = (small_model){0};
    uint64_t state = seed << 32;
    const bool mamba = s->kind == SSM_BLOCK_MAMBA;
    m->weights.geometry = (ssm_geometry){
        .kind = s->kind,
        .n_layers = s->n_layers,
        .d_model = s->d_model,
        .d_inner = s->d_inner,
        .d_state = s->d_state,
        .d_conv = s->d_conv,
        .dt_rank = s->dt_rank,
        .n_heads = s->n_heads,
        .head_dim = mamba ? 0 : s->d_inner / s->n_heads,
        .n_groups = s->n_groups,
        .vocab_size = s->vocab_size,
        .conv_dim = mamba ? s->d_inner : s->d_inner + 2 * s->n_groups * s->d_state,
        .norm_eps = 1e-5f,
        .gate_eps = 1e-5f,
        .bc_dt_norm = s->bc_dt_norm,
        .bc_dt_eps = 1e-6f,
        .dt_min = 0,
        .dt_max = INFINITY,
    };
    m->layers = calloc((size_t)s->n_layers, sizeof *m->layers);
    m->weights.layers = m->layers;
    m->weights.embedding = tensor(m, &state, type, s->vocab_size, s->d_model, make_normal, 1);
    m->weights.norm_f = tensor(m, &state, SSM_DTYPE_F32, s->d_model, 1, make_near_one, 0);
    m->weights.lm_head = s->tied ? m->weights.embedding
                                 : tensor(m, &state, type, s->vocab_size, s->d_model, make_normal,
                                          1 / sqrt(s->d_model));
    for (int32_t i = 0; i < s->n_layers; i++)
        make_layer(m, s, type, &state, &m->layers[i]);
}

void small_model_free(small_model *m) {
    for (int i = 0; i < m->n_blocks; i++)
        free(m->blocks[i]);
    free(m->blocks);
    free(m->layers);
    *m = (small_model){0};
}
