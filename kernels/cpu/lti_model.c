// SPDX-License-Identifier: Apache-2.0
// Loading S4D, S4 and H3. A thread owns blocks of d_model: the SSMs of their channels, and their
// rows of every projection.
//
// H3's channels are numbered h d + b throughout, inputs and outputs of the diagonal SSM alike, so
// that q, k, v and y of a head lie together. The original orders y by b heads + h: instead of
// moving activations, the columns of out_proj are moved here, once.
#include "lti.h"

#include <stdlib.h>
#include <string.h>

#include "lti_kernels.h"

// ---- before packing

// Columns from b heads + h to h head_dim + b, as a tensor to be freed.
static ssm_tensor reorder(const ssm_geometry *g, const ssm_tensor *from) {
    const size_t width = (size_t)g->d_model, size = ssm_dtype_bytes(from->dtype, 1);
    char *data = malloc(width * width * size);
    ssm_tensor to = *from;
    to.data = data;
    for (size_t row = 0; data && row < width; row++) {
        for (size_t c = 0; c < width; c++) {
            const size_t h = c / (size_t)g->head_dim, b = c % (size_t)g->head_dim;
            memcpy(data + (row * width + c) * size,
                   (const char *)from->data + (row * width + b * (size_t)g->n_heads + h) * size,
                   size);
        }
    }
    return to;
}

// To the numbers that the recurrence has: what a convolution makes of them, powers up to Ab^256, is
// then of the same poles. From the fp64 ones it would be nearer the truth, and farther from the
// recurrence that goes on from its state: after 65,536 tokens of shakespeare-s4d the two states
// were 3.1e-5 of the largest number apart.
static void round_to_fp32(double *x, size_t n) {
    for (size_t i = 0; x && i < n; i++)
        x[i] = (double)(float)x[i];
}

static void round_layer(lti_diagonal *d, lti_dense *s) {
    round_to_fp32(d->ab, 2 * d->channels * d->n);
    round_to_fp32(d->bb, 2 * d->channels * d->n);
    round_to_fp32(s->ab, s->channels * s->n * s->n);
    round_to_fp32(s->bb, s->channels * s->n);
}

int cpu_lti_discretise(cpu_model *m, ssm_error *err) {
    const size_t layers = (size_t)m->g.n_layers;
    int rc = 0;
    m->is_lower = true;
    m->diagonal = calloc(layers, sizeof *m->diagonal);
    m->dense = calloc(layers, sizeof *m->dense);
    m->lti_out = calloc(layers, sizeof *m->lti_out);
    if (!m->diagonal || !m->dense || !m->lti_out)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers");
    for (size_t i = 0; rc == 0 && i < layers; i++) {
        const ssm_layer *l = &m->weights->layers[i];
        rc = m->g.kind == SSM_BLOCK_S4 ? lti_dense_init(&m->dense[i], &m->g, l, err)
                                       : lti_diagonal_init(&m->diagonal[i], &m->g, l, err);
        if (rc == 0)
            round_layer(&m->diagonal[i], &m->dense[i]);
        if (rc == 0 && m->g.kind == SSM_BLOCK_S4)
            m->is_lower &= m->dense[i].is_lower;
        if (rc == 0 && m->g.kind == SSM_BLOCK_H3) {
            m->lti_out[i] = reorder(&m->g, &l->out_proj);
            if (!m->lti_out[i].data)
                rc = ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a projection");
        }
    }
    if (rc == 0)
        cpu_lti_choose_form(m);
    return rc;
}

void cpu_lti_forget(cpu_model *m) {
    for (int32_t i = 0; i < m->g.n_layers; i++) {
        if (m->diagonal)
            lti_diagonal_dispose(&m->diagonal[i]);
        if (m->dense)
            lti_dense_dispose(&m->dense[i]);
        if (m->lti_out)
            free((void *)m->lti_out[i].data);
    }
    free(m->diagonal);
    free(m->dense);
    free(m->lti_out);
    m->lti_out = NULL;
    m->diagonal = NULL;
    m->dense = NULL;
}

// ---- vectors

static float *take(cpu_arena *arena, size_t floats) {
    float *p = cpu_arena_take(arena, floats * sizeof *p);
    return p ? memset(p, 0, floats * sizeof *p) : NULL;
}

typedef struct owned {
    cpu_arena *arena;
    int32_t first, end; // channels
    size_t blocks;
} owned;

static owned owned_by(const cpu_model *m, cpu_thread *t) {
    const int32_t end = t->model.end * CPU_LANES;
    return (owned){&t->arena, t->model.first * CPU_LANES, end < m->g.d_model ? end : m->g.d_model,
                   (size_t)(t->model.end - t->model.first)};
}

// Where number i of `floats` of a channel lies among the thread's blocks.
static size_t place(const owned *o, int32_t channel, size_t floats, size_t i) {
    const size_t c = (size_t)(channel - o->first);
    return (c / CPU_LANES * floats + i) * CPU_LANES + c % CPU_LANES;
}

// Rows of `floats` numbers of a tensor, a channel each.
static float *pack_rows_of(const owned *o, const ssm_tensor *t, size_t floats) {
    float *out = take(o->arena, o->blocks * floats * CPU_LANES);
    for (int32_t c = o->first; out && c < o->end; c++) {
        for (size_t i = 0; i < floats; i++)
            out[place(o, c, floats, i)] = ssm_tensor_get(t, (size_t)c * floats + i);
    }
    return out;
}

// A channel's poles are those of SSM channel / per: H3's heads have head_dim channels.
static float *pack_poles(const owned *o, const lti_diagonal *s, int32_t per) {
    const size_t floats = s->n * LTI_POLE_FLOATS;
    float *out = take(o->arena, o->blocks * floats * CPU_LANES);
    for (int32_t c = o->first; out && c < o->end; c++) {
        for (size_t i = 0; i < s->n; i++) {
            const size_t at = 2 * ((size_t)(c / per) * s->n + i);
            const double pole[LTI_POLE_FLOATS] = {s->ab[at],     s->ab[at + 1], s->bb[at],
                                                  s->bb[at + 1], 2 * s->c[at],  -2 * s->c[at + 1]};
            for (size_t k = 0; k < LTI_POLE_FLOATS; k++)
                out[place(o, c, floats, i * LTI_POLE_FLOATS + k)] = (float)pole[k];
        }
    }
    return out;
}

static float *pack_direct(const owned *o, const double *d, int32_t per) {
    float *out = take(o->arena, o->blocks * CPU_LANES);
    for (int32_t c = o->first; out && c < o->end; c++)
        out[c - o->first] = (float)d[c / per];
    return out;
}

static void pack_dense(const owned *o, const lti_dense *s, cpu_lti_part *part) {
    const size_t n = s->n, rows = (n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS;
    float *ab = take(o->arena, o->blocks * rows * n * CPU_LANES);
    float *bb = take(o->arena, o->blocks * rows * CPU_LANES);
    float *c = take(o->arena, o->blocks * n * CPU_LANES);
    for (int32_t ch = o->first; ab && ch < o->end; ch++) {
        const double *from = s->ab + (size_t)ch * n * n;
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < n; j++) {
                const size_t at = (i / LTI_ROWS * n + j) * LTI_ROWS + i % LTI_ROWS;
                ab[place(o, ch, rows * n, at)] = (float)from[i * n + j];
            }
            bb[place(o, ch, rows, i)] = (float)s->bb[(size_t)ch * n + i];
            c[place(o, ch, n, i)] = (float)s->c[(size_t)ch * n + i];
        }
    }
    part->ab = ab;
    part->bb = bb;
    part->c = c;
}

// ---- projections

static cpu_matrix matrix_of(const cpu_model *m, const ssm_tensor *weight, const ssm_tensor *bias,
                            int32_t row) {
    return (cpu_matrix){.weight = weight,
                        .bias = bias,
                        .regions = {{row, m->g.d_model}},
                        .n_regions = 1,
                        .format = m->format};
}

static void pack_matrix(const cpu_model *m, cpu_thread *t, const ssm_tensor *weight,
                        const ssm_tensor *bias, int32_t row, cpu_slice *out) {
    const cpu_matrix matrix = matrix_of(m, weight, bias, row);
    cpu_pack(&t->arena, &matrix, t->model.first, t->model.end, out);
}

static void pack_h3(const cpu_model *m, cpu_thread *t, int32_t layer, cpu_lti_part *part) {
    const ssm_layer *l = &m->weights->layers[layer];
    const owned o = owned_by(m, t);
    const size_t n = (size_t)m->g.d_state;
    pack_matrix(m, t, &l->lti.q_proj, &l->lti.q_bias, 0, &part->q);
    pack_matrix(m, t, &l->lti.k_proj, &l->lti.k_bias, 0, &part->k);
    pack_matrix(m, t, &l->lti.v_proj, &l->lti.v_bias, 0, &part->v);
    part->shift_b = pack_rows_of(&o, &l->lti.shift_B, n);
    part->shift_c = pack_rows_of(&o, &l->lti.shift_C, n);
    part->shift_d = pack_rows_of(&o, &l->lti.shift_D, 1);
    pack_matrix(m, t, &m->lti_out[layer], &l->out_bias, 0, &part->out);
}

void cpu_lti_pack(const cpu_model *m, cpu_thread *t, int32_t layer) {
    const ssm_layer *l = &m->weights->layers[layer];
    cpu_lti_part *part = &t->parts[layer].lti;
    const owned o = owned_by(m, t);
    if (m->g.kind == SSM_BLOCK_H3) {
        pack_h3(m, t, layer, part);
    } else {
        pack_matrix(m, t, &l->out_proj, &l->out_bias, 0, &part->out_a);
        pack_matrix(m, t, &l->out_proj, &l->out_bias, m->g.d_model, &part->out_b);
    }
    if (m->g.kind == SSM_BLOCK_S4) {
        pack_dense(&o, &m->dense[layer], part);
        part->d = pack_direct(&o, m->dense[layer].d, 1);
    } else {
        const int32_t per = m->g.kind == SSM_BLOCK_H3 ? m->g.head_dim : 1;
        part->poles = pack_poles(&o, &m->diagonal[layer], per);
        part->d = pack_direct(&o, m->diagonal[layer].d, per);
    }
    t->failed |= !cpu_lti_pack_blocks(m, t, layer);
}
