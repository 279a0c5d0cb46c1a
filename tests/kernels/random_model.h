// SPDX-License-Identifier: Apache-2.0
// Small models with random weights of any geometry, for tests of backends.
#ifndef SSM_TESTS_KERNELS_RANDOM_MODEL_H
#define SSM_TESTS_KERNELS_RANDOM_MODEL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/weights.h"

typedef struct random_model {
    ssm_weights weights;
    ssm_layer *layers;
    void *data[256]; // what tensors point into
    int n_data;
    uint64_t state;
} random_model;

// What varies; the rest follows. dt_rank for Mamba-1, head_dim and n_groups for Mamba-2.
typedef struct random_shape {
    const char *name;
    ssm_block_kind kind;
    int32_t n_layers, d_model, d_inner, d_state, d_conv, dt_rank, head_dim, n_groups, vocab_size;
    bool tied, biases, bc_dt_norm;
    ssm_dtype dtype;
    float dt_max;
} random_shape;

static inline double random_unit(random_model *m) { // splitmix64 to (-1, 1)
    uint64_t z = m->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)(int64_t)(z ^ z >> 31) * 0x1p-63;
}

static inline uint16_t random_f16(float x) { // of small normal numbers: cut
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = (int32_t)(bits >> 23 & 255) - 112;
    if (exponent <= 0)
        return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits >> 16 & 0x8000) | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
}

static inline ssm_tensor random_tensor(random_model *m, ssm_dtype dtype, int64_t rows, int64_t cols,
                                       double mean, double spread) {
    const size_t n = (size_t)(rows * cols), size = dtype == SSM_DTYPE_F32 ? 4 : 2;
    char *data = malloc(n * size);
    m->data[m->n_data++] = data;
    for (size_t i = 0; i < n; i++) {
        const float x = (float)(mean + spread * random_unit(m));
        uint32_t bits;
        memcpy(&bits, &x, 4);
        const uint16_t half = dtype == SSM_DTYPE_F16 ? random_f16(x) : (uint16_t)(bits >> 16);
        memcpy(data + i * size, size == 4 ? (const void *)&x : &half, size);
    }
    return (ssm_tensor){data, dtype, rows, cols};
}

static inline void random_layer(random_model *m, const random_shape *s, ssm_layer *l) {
    const ssm_geometry *g = &m->weights.geometry;
    const bool is_mamba = s->kind == SSM_BLOCK_MAMBA;
    const int64_t states = (int64_t)g->n_groups * g->d_state;
    const int64_t in = is_mamba ? 2 * g->d_inner : 2 * g->d_inner + 2 * states + g->n_heads;
    const double dm = sqrt(3.0 / g->d_model), di = sqrt(3.0 / g->d_inner);
    *l = (ssm_layer){
        .norm = random_tensor(m, SSM_DTYPE_F32, g->d_model, 1, 1, 0.3),
        .in_proj = random_tensor(m, s->dtype, in, g->d_model, 0, dm),
        .conv_weight = random_tensor(m, s->dtype, g->conv_dim, g->d_conv, 0.1, 0.7),
        .D = random_tensor(m, SSM_DTYPE_F32, is_mamba ? g->d_inner : g->n_heads, 1, 1, 0.3),
        .out_proj = random_tensor(m, s->dtype, g->d_model, g->d_inner, 0, di),
    };
    if (s->biases) {
        l->in_bias = random_tensor(m, s->dtype, in, 1, 0, 0.2);
        l->out_bias = random_tensor(m, s->dtype, g->d_model, 1, 0, 0.2);
    }
    if (s->biases || s->d_conv != 3)
        l->conv_bias = random_tensor(m, s->dtype, g->conv_dim, 1, 0, 0.2);
    if (is_mamba) { // delta from 1e-3 to 3: decays from 1 - 1e-3 to e^-50
        l->x_proj = random_tensor(m, s->dtype, g->dt_rank + 2 * g->d_state, g->d_inner, 0, di);
        l->dt_proj = random_tensor(m, s->dtype, g->d_inner, g->dt_rank, 0, 1 / sqrt(g->dt_rank));
        l->dt_bias = random_tensor(m, SSM_DTYPE_F32, g->d_inner, 1, -2.5, 4);
        l->A_log = random_tensor(m, SSM_DTYPE_F32, g->d_inner, g->d_state, 0.5, 2.3);
    } else {
        l->dt_bias = random_tensor(m, SSM_DTYPE_F32, g->n_heads, 1, -2.5, 4);
        l->A_log = random_tensor(m, SSM_DTYPE_F32, g->n_heads, 1, 0.5, 2.3);
        l->gate_norm = random_tensor(m, SSM_DTYPE_F32, g->d_inner, 1, 1, 0.3);
    }
}

static inline void random_model_init(random_model *m, const random_shape *s, uint64_t seed) {
    *m = (random_model){.state = seed};
    const bool is_mamba = s->kind == SSM_BLOCK_MAMBA;
    m->weights.geometry = (ssm_geometry){
        .kind = s->kind,
        .n_layers = s->n_layers,
        .d_model = s->d_model,
        .d_inner = s->d_inner,
        .d_state = s->d_state,
        .d_conv = s->d_conv,
        .dt_rank = s->dt_rank,
        .n_heads = is_mamba ? 0 : s->d_inner / s->head_dim,
        .head_dim = s->head_dim,
        .n_groups = s->n_groups,
        .vocab_size = s->vocab_size,
        .conv_dim = is_mamba ? s->d_inner : s->d_inner + 2 * s->n_groups * s->d_state,
        .norm_eps = 1e-5f,
        .gate_eps = 1e-5f,
        .bc_dt_norm = s->bc_dt_norm,
        .bc_dt_eps = 1e-6f,
        .dt_min = 0.001f,
        .dt_max = s->dt_max > 0 ? s->dt_max : INFINITY,
    };
    m->layers = calloc((size_t)s->n_layers, sizeof *m->layers);
    for (int32_t i = 0; i < s->n_layers; i++)
        random_layer(m, s, &m->layers[i]);
    ssm_weights *w = &m->weights;
    w->layers = m->layers;
    w->embedding = random_tensor(m, s->dtype, s->vocab_size, s->d_model, 0, 1);
    w->norm_f = random_tensor(m, SSM_DTYPE_F32, s->d_model, 1, 1, 0.3);
    w->lm_head =
        s->tied ? w->embedding
                : random_tensor(m, s->dtype, s->vocab_size, s->d_model, 0, sqrt(3.0 / s->d_model));
}

static inline void random_model_dispose(random_model *m) {
    for (int i = 0; i < m->n_data; i++)
        free(m->data[i]);
    free(m->layers);
}

#endif
