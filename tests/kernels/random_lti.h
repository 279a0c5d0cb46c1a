// SPDX-License-Identifier: Apache-2.0
// Random S4D, S4 and H3 models of any shape, scaled as trained ones are: radii from 0.9 to 0.9999.
#ifndef SSM_TESTS_KERNELS_RANDOM_LTI_H
#define SSM_TESTS_KERNELS_RANDOM_LTI_H

#include "kernels/lti.h"
#include "random_model.h"

typedef struct lti_shape {
    const char *name;
    ssm_block_kind kind;
    int32_t n_layers, d_model, d_state, head_dim, vocab_size; // head_dim: H3
    ssm_rule rule;
    bool is_full; // S4: an A with numbers above its diagonal, not HiPPO's
} lti_shape;

static inline ssm_tensor random_vector(random_model *m, int64_t n, double mean, double spread) {
    return random_tensor(m, SSM_DTYPE_F32, n, 1, mean, spread);
}

static inline ssm_tensor random_square(random_model *m, ssm_dtype type, int64_t rows,
                                       int64_t cols) {
    return random_tensor(m, type, rows, cols, 0, sqrt(3.0 / (double)cols));
}

// Frequencies pi n, as S4D-Lin has them, and a little off.
static inline void random_poles(random_model *m, int64_t channels, int64_t n, ssm_layer *l) {
    l->lti.log_dt = random_vector(m, channels, -4.5, 2);
    l->A_log = random_tensor(m, SSM_DTYPE_F32, channels, n, -0.7, 0.5);
    l->lti.A_imag = random_tensor(m, SSM_DTYPE_F32, channels, n, 0, 0.3);
    for (int64_t i = 0; i < channels * n; i++)
        ((float *)(uintptr_t)l->lti.A_imag.data)[i] += (float)(M_PI * (double)(i % n));
    l->lti.C = random_tensor(m, SSM_DTYPE_F32, channels, 2 * n, 0, 2 / sqrt((double)n));
    l->D = random_vector(m, channels, 1, 0.5);
}

// HiPPO's A and B, or -1/2 on the diagonal and a skew part: stable, and not triangular.
static inline void random_dense(random_model *m, const lti_shape *s, ssm_layer *l) {
    const size_t n = (size_t)s->d_state;
    double *a = malloc((n * n + n) * sizeof *a), *b = a + n * n;
    l->lti.log_dt = random_vector(m, s->d_model, -4.5, 1.5);
    l->lti.A = random_tensor(m, SSM_DTYPE_F32, s->d_state, s->d_state, 0, 2);
    l->lti.B = random_vector(m, s->d_state, 0, 1);
    float *to = (float *)(uintptr_t)l->lti.A.data;
    lti_hippo_legs(n, a, b);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            const float skew = to[i * n + j];
            to[i * n + j] = s->is_full ? (i == j ? -0.5f : skew) : (float)a[i * n + j];
            if (i != j)
                to[j * n + i] = s->is_full ? -skew : 0;
        }
        if (!s->is_full)
            ((float *)(uintptr_t)l->lti.B.data)[i] = (float)b[i];
    }
    free(a);
    l->lti.C = random_tensor(m, SSM_DTYPE_F32, s->d_model, s->d_state, 0, 1);
    l->D = random_vector(m, s->d_model, 1, 0.5);
}

static inline void random_pairs(random_model *m, const lti_shape *s, ssm_dtype type, ssm_layer *l) {
    const int64_t width = s->d_model, heads = width / s->head_dim, n = s->d_state;
    random_poles(m, heads, n / 2, l);
    l->lti.B = random_tensor(m, SSM_DTYPE_F32, heads, n, 0, 1);
    l->lti.q_proj = random_square(m, type, width, width);
    l->lti.k_proj = random_square(m, type, width, width);
    l->lti.v_proj = random_square(m, type, width, width);
    l->lti.q_bias = random_vector(m, width, 0, 0.2);
    l->lti.k_bias = random_vector(m, width, 0, 0.2);
    l->lti.v_bias = random_vector(m, width, 0, 0.2);
    l->lti.shift_B = random_tensor(m, SSM_DTYPE_F32, width, n, 0, 1);
    l->lti.shift_C = random_tensor(m, SSM_DTYPE_F32, width, n, 0, 2 / sqrt((double)n));
    l->lti.shift_D = random_vector(m, width, 0, 1);
}

static inline void random_lti_init(random_model *m, const lti_shape *s, ssm_dtype type,
                                   uint64_t seed) {
    *m = (random_model){.state = seed};
    const bool is_h3 = s->kind == SSM_BLOCK_H3;
    const int32_t width = s->d_model, out = is_h3 ? width : 2 * width;
    m->weights.geometry = (ssm_geometry){.kind = s->kind,
                                         .n_layers = s->n_layers,
                                         .d_model = width,
                                         .d_inner = is_h3 ? width * s->head_dim : width,
                                         .d_state = s->d_state,
                                         .d_conv = is_h3 ? s->d_state + 1 : 1,
                                         .n_heads = is_h3 ? width / s->head_dim : 0,
                                         .head_dim = s->head_dim,
                                         .vocab_size = s->vocab_size,
                                         .conv_dim = width,
                                         .rule = s->rule,
                                         .norm_eps = 1e-5f};
    m->layers = calloc((size_t)s->n_layers, sizeof *m->layers);
    m->weights.layers = m->layers;
    for (int32_t i = 0; i < s->n_layers; i++) {
        ssm_layer *l = &m->layers[i];
        l->norm = random_vector(m, width, 1, 0.3);
        if (is_h3)
            random_pairs(m, s, type, l);
        else if (s->kind == SSM_BLOCK_S4)
            random_dense(m, s, l);
        else
            random_poles(m, width, s->d_state / 2, l);
        l->out_proj = random_square(m, type, out, width);
        l->out_bias = random_vector(m, out, 0, 0.2);
    }
    m->weights.embedding = random_tensor(m, type, s->vocab_size, width, 0, 1);
    m->weights.norm_f = random_vector(m, width, 1, 0.3);
    m->weights.lm_head = m->weights.embedding;
}

#endif
