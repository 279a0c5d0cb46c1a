// SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

// ---- loading

typedef struct loader {
    size_t bytes;
    bool failed;
} loader;

static float *expand(loader *l, const ssm_tensor *tensor) {
    if (!tensor->data)
        return NULL;
    const size_t n = (size_t)tensor->rows * (size_t)tensor->cols;
    float *out = malloc(n * sizeof *out);
    if (!out) {
        l->failed = true;
        return NULL;
    }
    ssm_tensor_read(tensor, 0, n, out);
    l->bytes += n * sizeof *out;
    return out;
}

static void expand_layer(loader *l, const ssm_layer *from, ref_layer *to) {
    *to = (ref_layer){
        .norm = expand(l, &from->norm),
        .in_proj = expand(l, &from->in_proj),
        .in_bias = expand(l, &from->in_bias),
        .conv_weight = expand(l, &from->conv_weight),
        .conv_bias = expand(l, &from->conv_bias),
        .x_proj = expand(l, &from->x_proj),
        .dt_proj = expand(l, &from->dt_proj),
        .dt_bias = expand(l, &from->dt_bias),
        .a_log = expand(l, &from->A_log),
        .d = expand(l, &from->D),
        .gate_norm = expand(l, &from->gate_norm),
        .out_proj = expand(l, &from->out_proj),
        .out_bias = expand(l, &from->out_bias),
    };
}

static void free_layer(ref_layer *l) {
    float *all[] = {l->norm,      l->in_proj,  l->in_bias, l->conv_weight, l->conv_bias,
                    l->x_proj,    l->dt_proj,  l->dt_bias, l->a_log,       l->d,
                    l->gate_norm, l->out_proj, l->out_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static float *floats(loader *l, size_t n) {
    float *p = malloc(n * sizeof *p);
    l->failed |= p == NULL;
    return p;
}

static int init_lti(ref_model *m, const ssm_weights *w, ssm_error *err) {
    int rc = 0;
    m->lti = calloc((size_t)m->g.n_layers, sizeof *m->lti);
    if (!m->lti)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers");
    for (int32_t i = 0; rc == 0 && i < m->g.n_layers; i++) {
        rc = ref_lti_init(&m->lti[i], &m->g, &w->layers[i], err);
        m->bytes += m->lti[i].bytes;
    }
    return rc;
}

int ref_model_init(ref_model *m, const ssm_weights *w, ssm_error *err) {
    const ssm_geometry *g = &w->geometry;
    *m = (ref_model){.g = *g};
    loader l = {0};
    m->layers = calloc((size_t)g->n_layers, sizeof *m->layers);
    if (!m->layers)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers");
    for (int32_t i = 0; i < g->n_layers; i++)
        expand_layer(&l, &w->layers[i], &m->layers[i]);
    m->embedding = expand(&l, &w->embedding);
    m->norm_f = expand(&l, &w->norm_f);
    m->lm_head = w->lm_head.data == w->embedding.data ? m->embedding : expand(&l, &w->lm_head);
    m->bytes = l.bytes;
    m->in_rows = (size_t)w->layers[0].in_proj.rows;
    m->x_rows = g->kind == SSM_BLOCK_MAMBA ? (size_t)(g->dt_rank + 2 * g->d_state) : 1;
    m->residual = floats(&l, (size_t)g->d_model);
    m->u = floats(&l, (size_t)g->d_model);
    m->in = floats(&l, m->in_rows);
    m->y = floats(&l, (size_t)g->d_inner);
    m->dbc = floats(&l, m->x_rows);
    m->delta = floats(&l, (size_t)g->d_inner);
    int rc = 0;
    if (l.failed)
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    else if (ssm_block_is_lti(g->kind))
        rc = init_lti(m, w, err);
    if (rc != 0)
        ref_model_dispose(m);
    return rc;
}

void ref_model_dispose(ref_model *m) {
    for (int32_t i = 0; m->layers && i < m->g.n_layers; i++)
        free_layer(&m->layers[i]);
    for (int32_t i = 0; m->lti && i < m->g.n_layers; i++)
        ref_lti_dispose(&m->lti[i]);
    if (m->lm_head != m->embedding)
        free(m->lm_head);
    float *all[] = {m->embedding, m->norm_f, m->residual, m->u, m->in, m->y, m->dbc, m->delta};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    free(m->layers);
    free(m->lti);
    *m = (ref_model){0};
}

// ---- one token

static void gate(size_t n, float *y, const float *z) {
    for (size_t i = 0; i < n; i++)
        y[i] *= ref_silu(z[i]);
}

// From in_proj's output m->in to m->y. conv and h are this layer's state.
static void mix_mamba(ref_model *m, const ref_layer *l, float *conv, float *h) {
    const ssm_geometry *g = &m->g;
    const size_t inner = (size_t)g->d_inner, n = (size_t)g->d_state, rank = (size_t)g->dt_rank;
    float *x = m->in, *dt = m->dbc, *b = dt + rank, *c = b + n;
    ref_conv_step(inner, (size_t)g->d_conv, l->conv_weight, l->conv_bias, conv, x);
    ref_linear(m->x_rows, inner, l->x_proj, NULL, x, m->dbc);
    if (g->bc_dt_norm) {
        ref_rms_norm(rank, dt, NULL, g->bc_dt_eps, dt);
        ref_rms_norm(n, b, NULL, g->bc_dt_eps, b);
        ref_rms_norm(n, c, NULL, g->bc_dt_eps, c);
    }
    ref_linear(inner, rank, l->dt_proj, l->dt_bias, dt, m->delta);
    for (size_t i = 0; i < inner; i++)
        m->delta[i] = ref_softplus(m->delta[i]);
    ref_scan_mamba(inner, n, l->a_log, l->d, m->delta, b, c, x, h, m->y);
    gate(inner, m->y, m->in + inner);
}

static void mix_mamba2(ref_model *m, const ref_layer *l, float *conv, float *h) {
    const ssm_geometry *g = &m->g;
    const size_t inner = (size_t)g->d_inner, n = (size_t)g->d_state;
    const size_t groups = (size_t)g->n_groups, heads = (size_t)g->n_heads;
    float *z = m->in, *x = z + inner, *b = x + inner, *c = b + groups * n;
    const float *dt = c + groups * n;
    ref_conv_step((size_t)g->conv_dim, (size_t)g->d_conv, l->conv_weight, l->conv_bias, conv, x);
    for (size_t i = 0; i < heads; i++)
        m->delta[i] = fminf(fmaxf(ref_softplus(dt[i] + l->dt_bias[i]), g->dt_min), g->dt_max);
    ref_scan_mamba2(heads, (size_t)g->head_dim, groups, n, l->a_log, l->d, m->delta, b, c, x, h,
                    m->y);
    gate(inner, m->y, z);
    const size_t width = inner / groups;
    for (size_t i = 0; i < inner; i += width)
        ref_rms_norm(width, m->y + i, l->gate_norm + i, g->gate_eps, m->y + i);
}

static void mix_selective(ref_model *m, const ref_layer *l, float *conv, float *h) {
    const ssm_geometry *g = &m->g;
    ref_linear(m->in_rows, (size_t)g->d_model, l->in_proj, l->in_bias, m->u, m->in);
    if (g->kind == SSM_BLOCK_MAMBA)
        mix_mamba(m, l, conv, h);
    else
        mix_mamba2(m, l, conv, h);
    ref_linear((size_t)g->d_model, (size_t)g->d_inner, l->out_proj, l->out_bias, m->y, m->u);
}

void ref_model_forward(ref_model *m, int32_t token, float *state, float *logits) {
    const ssm_geometry *g = &m->g;
    const size_t dm = (size_t)g->d_model;
    const size_t conv_size = (size_t)g->conv_dim * (size_t)(g->d_conv - 1);
    const size_t ssm_size = (size_t)g->d_inner * (size_t)g->d_state;
    float *conv = state, *h = state + ssm_state_conv_floats(g);
    memcpy(m->residual, m->embedding + (size_t)token * dm, dm * sizeof(float));
    for (int32_t i = 0; i < g->n_layers; i++, conv += conv_size, h += ssm_size) {
        const ref_layer *l = &m->layers[i];
        ref_rms_norm(dm, m->residual, l->norm, g->norm_eps, m->u);
        if (m->lti)
            ref_lti_mix(&m->lti[i], g, conv, h, m->u);
        else
            mix_selective(m, l, conv, h);
        if (m->on_steps)
            m->on_steps(m->on_steps_ctx, i, m->delta,
                        (size_t)(g->kind == SSM_BLOCK_MAMBA ? g->d_inner : g->n_heads));
        for (size_t k = 0; k < dm; k++)
            m->residual[k] += m->u[k];
    }
    if (logits) {
        ref_rms_norm(dm, m->residual, m->norm_f, g->norm_eps, m->u);
        ref_linear((size_t)g->vocab_size, dm, m->lm_head, NULL, m->u, logits);
    }
}
