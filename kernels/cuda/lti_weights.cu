// SPDX-License-Identifier: Apache-2.0
// A linear time-invariant layer's weights: discretised on the host in fp64 by the code that all
// backends share, rounded to fp32, laid out for the kernels.
#include <stdlib.h>
#include <string.h>

#include "lti.cuh"

extern "C" {
#include "kernels/lti.h"
}

namespace ssm {

// Host numbers on their way up; `failed` once and for all.
struct vector {
    float *data;
    size_t n;
};

static int take(vector *v, size_t n, ssm_error *err) {
    *v = {(float *)malloc(n * sizeof(float)), n};
    return v->data ? 0 : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a layer");
}

static int give(uploader *u, vector *v, const float **out) {
    void *p = NULL;
    int rc = device_check(u->d, cudaMalloc(&p, v->n * sizeof(float)), "cudaMalloc", u->err);
    *out = (const float *)p;
    if (rc == 0)
        rc =
            device_check(u->d, cudaMemcpy(p, v->data, v->n * sizeof(float), cudaMemcpyHostToDevice),
                         "cudaMemcpy", u->err);
    u->d->weight_bytes += v->n * sizeof(float);
    free(v->data);
    v->data = NULL;
    return rc;
}

// out[i] = (float)(scale * in[i]); odd: of odd i, imaginary parts.
static int upload_doubles(uploader *u, const double *in, size_t n, double even, double odd,
                          const float **out) {
    vector v;
    SSM_TRY(take(&v, n, u->err));
    for (size_t i = 0; i < n; i++)
        v.data[i] = (float)((i % 2 ? odd : even) * in[i]);
    return give(u, &v, out);
}

static int upload_transposed(uploader *u, const lti_dense *s, const float **out) {
    const size_t n = s->n;
    vector v;
    SSM_TRY(take(&v, s->channels * n * n, u->err));
    for (size_t ch = 0; ch < s->channels; ch++) {
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < n; j++)
                v.data[(ch * n + j) * n + i] = (float)s->ab[(ch * n + i) * n + j];
        }
    }
    return give(u, &v, out);
}

// ---- S4's convolution: powers of Ab as the recurrence has it, rounded to fp32, made in fp64

struct tables {
    vector power, in, out; // [channel] [j][i], [LTI_PART][n], [n][LTI_PART]
    double *ab, *square, *x, *row, *next;
};

static void advance_column(size_t n, const double *ab, double *x, double *next) { // x = Ab x
    for (size_t i = 0; i < n; i++) {
        next[i] = 0;
        for (size_t j = 0; j < n; j++)
            next[i] += ab[i * n + j] * x[j];
    }
    memcpy(x, next, n * sizeof *x);
}

static void advance_row(size_t n, const double *ab, double *x, double *next) { // x = x Ab
    memset(next, 0, n * sizeof *next);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            next[j] += x[i] * ab[i * n + j];
    }
    memcpy(x, next, n * sizeof *x);
}

static void make_channel(const lti_dense *s, size_t ch, tables *t) {
    const size_t n = s->n;
    for (size_t i = 0; i < n * n; i++)
        t->ab[i] = (double)(float)s->ab[ch * n * n + i];
    for (size_t i = 0; i < n; i++) {
        t->x[i] = (double)(float)s->bb[ch * n + i];
        t->row[i] = (double)(float)s->c[ch * n + i];
    }
    for (size_t r = 0; r < LTI_PART; r++) {
        advance_row(n, t->ab, t->row, t->next);
        for (size_t i = 0; i < n; i++) {
            t->in.data[(ch * LTI_PART + LTI_PART - 1 - r) * n + i] = (float)t->x[i];
            t->out.data[(ch * n + i) * LTI_PART + r] = (float)t->row[i];
        }
        advance_column(n, t->ab, t->x, t->next);
    }
    for (size_t r = 1; r < LTI_PART; r *= 2) {
        lti_multiply(n, t->ab, t->ab, t->square);
        memcpy(t->ab, t->square, n * n * sizeof *t->ab);
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            t->power.data[(ch * n + j) * n + i] = (float)t->ab[i * n + j];
    }
}

static int upload_tables(uploader *u, const lti_dense *s, lti_weights *to) {
    const size_t n = s->n;
    tables t = {};
    double *work = (double *)malloc((2 * n * n + 3 * n) * sizeof *work);
    int rc = work ? 0 : ssm_error_set(u->err, SSM_ENOMEM, NULL, "no memory for a layer");
    if (rc == 0)
        rc = take(&t.power, s->channels * n * n, u->err);
    if (rc == 0)
        rc = take(&t.in, s->channels * LTI_PART * n, u->err);
    if (rc == 0)
        rc = take(&t.out, s->channels * n * LTI_PART, u->err);
    if (rc == 0) {
        t.ab = work, t.square = t.ab + n * n, t.x = t.square + n * n;
        t.row = t.x + n, t.next = t.row + n;
        for (size_t ch = 0; ch < s->channels; ch++)
            make_channel(s, ch, &t);
        rc = give(u, &t.power, &to->power);
        if (rc == 0)
            rc = give(u, &t.in, &to->in);
        if (rc == 0)
            rc = give(u, &t.out, &to->out);
    }
    free(work);
    free(t.power.data);
    free(t.in.data);
    free(t.out.data);
    return rc;
}

static int upload_dense(uploader *u, const ssm_layer *from, lti_weights *to) {
    lti_dense s;
    SSM_TRY(lti_dense_init(&s, &u->d->g, from, u->err));
    const size_t n = s.channels * s.n;
    to->lower = s.is_lower;
    int rc = upload_transposed(u, &s, &to->ab);
    if (rc == 0)
        rc = upload_doubles(u, s.bb, n, 1, 1, &to->bb);
    if (rc == 0)
        rc = upload_doubles(u, s.c, n, 1, 1, &to->c);
    if (rc == 0 && s.n <= LTI_DENSE && u->d->options.prompt_form != SSM_PROMPT_SCAN)
        rc = upload_tables(u, &s, to);
    lti_dense_dispose(&s);
    return rc;
}

// ---- H3's convolution: a head's powers of its poles as the recurrence has them

struct pair_tables {
    vector in, out, kernel; // [head] [L][N], [N][L], [L]
};

static void make_pole(const lti_diagonal *s, size_t head, size_t i, pair_tables *t,
                      double kernel[LTI_PAIRS]) {
    const size_t at = 2 * (head * s->n + i), numbers = 2 * s->n;
    const double ab[2] = {(double)(float)s->ab[at], (double)(float)s->ab[at + 1]};
    const double bb[2] = {(double)(float)s->bb[at], (double)(float)s->bb[at + 1]};
    const double c[2] = {2 * s->c[at], -2 * s->c[at + 1]};
    float *in = t->in.data + head * LTI_PAIRS * numbers + 2 * i;
    float *out = t->out.data + (head * numbers + 2 * i) * LTI_PAIRS;
    double re = 1, im = 0; // Ab^l
    for (size_t l = 0; l < LTI_PAIRS; l++) {
        const double x = re * bb[0] - im * bb[1], y = re * bb[1] + im * bb[0];
        in[(LTI_PAIRS - 1 - l) * numbers] = (float)x;
        in[(LTI_PAIRS - 1 - l) * numbers + 1] = (float)y;
        kernel[l] += c[0] * x + c[1] * y;
        const double next = re * ab[0] - im * ab[1];
        im = re * ab[1] + im * ab[0];
        re = next;
        out[l] = (float)(c[0] * re + c[1] * im);
        out[LTI_PAIRS + l] = (float)(c[1] * re - c[0] * im);
    }
}

static int upload_pairs(uploader *u, const lti_diagonal *s, lti_weights *to) {
    pair_tables t = {};
    int rc = take(&t.in, s->channels * 2 * s->n * LTI_PAIRS, u->err);
    if (rc == 0)
        rc = take(&t.out, s->channels * 2 * s->n * LTI_PAIRS, u->err);
    if (rc == 0)
        rc = take(&t.kernel, s->channels * LTI_PAIRS, u->err);
    for (size_t h = 0; rc == 0 && h < s->channels; h++) {
        double kernel[LTI_PAIRS] = {s->d[h]};
        for (size_t i = 0; i < s->n; i++)
            make_pole(s, h, i, &t, kernel);
        for (size_t l = 0; l < LTI_PAIRS; l++)
            t.kernel.data[h * LTI_PAIRS + l] = (float)kernel[l];
    }
    if (rc == 0)
        rc = give(u, &t.in, &to->in);
    if (rc == 0)
        rc = give(u, &t.out, &to->out);
    if (rc == 0)
        rc = give(u, &t.kernel, &to->kernel);
    free(t.in.data);
    free(t.out.data);
    free(t.kernel.data);
    return rc;
}

static int upload_diagonal(uploader *u, const ssm_layer *from, lti_weights *to) {
    lti_diagonal s;
    SSM_TRY(lti_diagonal_init(&s, &u->d->g, from, u->err));
    const size_t n = 2 * s.channels * s.n;
    int rc = upload_doubles(u, s.ab, n, 1, 1, &to->ab);
    if (rc == 0)
        rc = upload_doubles(u, s.bb, n, 1, 1, &to->bb);
    if (rc == 0)
        rc = upload_doubles(u, s.c, n, 2, -2, &to->c);
    const bool is_h3 = u->d->g.kind == SSM_BLOCK_H3;
    if (rc == 0 && is_h3 && u->d->options.prompt_form != SSM_PROMPT_SCAN)
        rc = upload_pairs(u, &s, to);
    lti_diagonal_dispose(&s);
    return rc;
}

// [channel][N] to [N][channel].
static int upload_by_number(uploader *u, const ssm_tensor *t, const float **out) {
    const size_t channels = (size_t)u->d->g.d_model, n = (size_t)u->d->g.d_state;
    vector v;
    SSM_TRY(take(&v, channels * n, u->err));
    for (size_t c = 0; c < channels; c++) {
        for (size_t i = 0; i < n; i++)
            v.data[i * channels + c] = ssm_tensor_get(t, c * n + i);
    }
    return give(u, &v, out);
}

// K_l = sum over n < N - l of B_n C_{n + l}, and D where l = 0.
static int upload_shift_kernel(uploader *u, const ssm_lti *l, const float **out) {
    const size_t channels = (size_t)u->d->g.d_model, n = (size_t)u->d->g.d_state;
    vector v;
    SSM_TRY(take(&v, channels * n, u->err));
    for (size_t c = 0; c < channels; c++) {
        for (size_t lag = 0; lag < n; lag++) {
            double sum = lag ? 0 : (double)ssm_tensor_get(&l->shift_D, c);
            for (size_t i = 0; i + lag < n; i++)
                sum += (double)ssm_tensor_get(&l->shift_B, c * n + i) *
                       (double)ssm_tensor_get(&l->shift_C, c * n + i + lag);
            v.data[lag * channels + c] = (float)sum;
        }
    }
    return give(u, &v, out);
}

// q, k and v one below the other.
static int upload_qkv(uploader *u, const ssm_lti *l, layer_weights *to) {
    device *d = u->d;
    const ssm_tensor *weights[] = {&l->q_proj, &l->k_proj, &l->v_proj};
    const ssm_tensor *biases[] = {&l->q_bias, &l->k_bias, &l->v_bias};
    const size_t rows = (size_t)d->g.d_model, each = rows * rows * type_bytes(d->weight_type);
    void *w = NULL, *b = NULL;
    SSM_CUDA(d, cudaMalloc(&w, 3 * each + 256), u->err);
    to->in_proj = w;
    SSM_CUDA(d, cudaMalloc(&b, 3 * rows * sizeof(float)), u->err);
    to->in_bias = (const float *)b;
    d->weight_bytes += 3 * (each + rows * sizeof(float));
    for (int i = 0; i < 3; i++) {
        SSM_TRY(upload_into(u, weights[i], d->weight_type, (char *)w + i * each));
        SSM_TRY(upload_into(u, biases[i], SSM_DTYPE_F32, (float *)b + i * rows));
    }
    return 0;
}

int lti_upload_layer(uploader *u, const ssm_layer *from, layer_weights *to) {
    if (u->d->g.kind == SSM_BLOCK_S4)
        SSM_TRY(upload_dense(u, from, &to->lti));
    else
        SSM_TRY(upload_diagonal(u, from, &to->lti));
    if (u->d->g.kind == SSM_BLOCK_H3) {
        SSM_TRY(upload_qkv(u, &from->lti, to));
        SSM_TRY(upload_by_number(u, &from->lti.shift_B, &to->lti.shift_b));
        SSM_TRY(upload_by_number(u, &from->lti.shift_C, &to->lti.shift_c));
        SSM_TRY(upload_shift_kernel(u, &from->lti, &to->lti.shift_k));
    }
    SSM_TRY(upload_vector(u, &from->D, &to->skip));
    SSM_TRY(upload(u, &from->out_proj, u->d->weight_type, &to->out_proj));
    return upload_vector(u, &from->out_bias, &to->out_bias);
}

void lti_free_layer(const layer_weights *w) {
    const float *all[] = {w->lti.ab,      w->lti.bb,    w->lti.c,  w->lti.shift_b, w->lti.shift_c,
                          w->lti.shift_k, w->lti.power, w->lti.in, w->lti.out,     w->lti.kernel};
    for (const float *p : all)
        cudaFree((void *)p);
}

} // namespace ssm
