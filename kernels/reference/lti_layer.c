// SPDX-License-Identifier: Apache-2.0
#include "lti_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

// ---- loading

static double *doubles_of(ref_lti_layer *l, const ssm_tensor *t, bool *failed) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    double *out = malloc(n * sizeof *out);
    for (size_t i = 0; out && i < n; i++)
        out[i] = (double)ssm_tensor_get(t, i);
    *failed |= !out;
    l->bytes += n * sizeof *out;
    return out;
}

static float *floats_of(ref_lti_layer *l, const ssm_tensor *t, bool *failed) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    float *out = malloc(n * sizeof *out);
    if (out)
        ssm_tensor_read(t, 0, n, out);
    *failed |= !out;
    l->bytes += n * sizeof *out;
    return out;
}

static void load_h3(ref_lti_layer *l, const ssm_lti *from, bool *failed) {
    l->shift_b = doubles_of(l, &from->shift_B, failed);
    l->shift_c = doubles_of(l, &from->shift_C, failed);
    l->shift_d = doubles_of(l, &from->shift_D, failed);
    l->q = floats_of(l, &from->q_proj, failed);
    l->k = floats_of(l, &from->k_proj, failed);
    l->v = floats_of(l, &from->v_proj, failed);
    l->q_bias = floats_of(l, &from->q_bias, failed);
    l->k_bias = floats_of(l, &from->k_bias, failed);
    l->v_bias = floats_of(l, &from->v_bias, failed);
}

int ref_lti_init(ref_lti_layer *l, const ssm_geometry *g, const ssm_layer *from, ssm_error *err) {
    bool failed = false;
    *l = (ref_lti_layer){0};
    int rc = g->kind == SSM_BLOCK_S4 ? lti_dense_init(&l->dense, g, from, err)
                                     : lti_diagonal_init(&l->diagonal, g, from, err);
    if (rc != 0)
        return rc;
    if (g->kind == SSM_BLOCK_H3)
        load_h3(l, &from->lti, &failed);
    l->out = floats_of(l, &from->out_proj, &failed);
    l->out_bias = floats_of(l, &from->out_bias, &failed);
    l->work = malloc(4 * (size_t)g->d_state * sizeof *l->work);
    l->inputs = malloc(4 * (size_t)g->d_model * sizeof *l->inputs);
    if (!failed && l->work && l->inputs)
        return 0;
    ref_lti_dispose(l);
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a layer");
}

void ref_lti_dispose(ref_lti_layer *l) {
    void *all[] = {l->shift_b, l->shift_c, l->shift_d, l->q,        l->k,    l->v,     l->q_bias,
                   l->k_bias,  l->v_bias,  l->out,     l->out_bias, l->work, l->inputs};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    lti_diagonal_dispose(&l->diagonal);
    lti_dense_dispose(&l->dense);
    *l = (ref_lti_layer){0};
}

// ---- one token

static ref_ssm diagonal_channel(const ref_lti_layer *l, size_t ch) {
    const lti_diagonal *s = &l->diagonal;
    const size_t at = 2 * ch * s->n;
    return (ref_ssm){REF_DIAGONAL, s->n, s->ab + at, s->bb + at, s->c + at, s->d[ch], l->work};
}

static ref_ssm dense_channel(const ref_lti_layer *l, size_t ch) {
    const lti_dense *s = &l->dense;
    const size_t at = ch * s->n;
    return (ref_ssm){REF_DENSE, s->n, s->ab + at * s->n, s->bb + at, s->c + at, s->d[ch], l->work};
}

// S4D and S4: a state a channel, gelu, a gated projection.
static void mix_gated(ref_lti_layer *l, const ssm_geometry *g, float *s, float *u) {
    const size_t width = (size_t)g->d_model, n = (size_t)g->d_state;
    float *y = l->inputs, *ab = y + width;
    for (size_t ch = 0; ch < width; ch++) {
        const ref_ssm m = g->kind == SSM_BLOCK_S4 ? dense_channel(l, ch) : diagonal_channel(l, ch);
        y[ch] = (float)ref_gelu(ref_ssm_step(&m, s + ch * n, (double)u[ch]));
    }
    ref_linear(2 * width, width, l->out, l->out_bias, y, ab);
    for (size_t ch = 0; ch < width; ch++)
        u[ch] = (float)((double)ab[ch] / (1 + exp(-(double)ab[width + ch])));
}

static void mix_h3(ref_lti_layer *l, const ssm_geometry *g, float *shift, float *s, float *u) {
    const size_t width = (size_t)g->d_model, n = (size_t)g->d_state;
    const size_t heads = (size_t)g->n_heads, dim = (size_t)g->head_dim;
    float *q = l->inputs, *k = q + width, *v = k + width, *y = v + width;
    ref_linear(width, width, l->q, l->q_bias, u, q);
    ref_linear(width, width, l->k, l->k_bias, u, k);
    ref_linear(width, width, l->v, l->v_bias, u, v);
    for (size_t ch = 0; ch < width; ch++) {
        const ref_ssm m = {REF_SHIFT,      n,      NULL, l->shift_b + ch * n, l->shift_c + ch * n,
                           l->shift_d[ch], l->work};
        k[ch] = (float)ref_ssm_step(&m, shift + ch * n, (double)k[ch]);
    }
    for (size_t h = 0; h < heads; h++) {
        const ref_ssm m = diagonal_channel(l, h);
        for (size_t b = 0; b < dim; b++) {
            double sum = 0;
            for (size_t a = 0; a < dim; a++) {
                const double kv = (double)k[h * dim + a] * (double)v[h * dim + b];
                float *own = s + ((h * dim + a) * dim + b) * n;
                sum += (double)q[h * dim + a] * ref_ssm_step(&m, own, kv);
            }
            y[b * heads + h] = (float)sum;
        }
    }
    ref_linear(width, width, l->out, l->out_bias, y, u);
}

void ref_lti_mix(ref_lti_layer *l, const ssm_geometry *g, float *shift, float *s, float *u) {
    if (g->kind == SSM_BLOCK_H3)
        mix_h3(l, g, shift, s, u);
    else
        mix_gated(l, g, s, u);
}
