// SPDX-License-Identifier: Apache-2.0
// Arrays, and the cases of row-wise kernels: norm and softplus.
#include "op_cases.h"

#include <assert.h>

#include "kernels/reference/ops.h"

float *op_alloc(size_t floats) {
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    float *x = aligned_alloc(64, bytes > 0 ? bytes : 64);
    assert(x);
    memset(x, 0xff, bytes);
    return x;
}

float *op_random(random_model *r, size_t n, double mean, double spread) {
    float *x = op_alloc(n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(mean + spread * random_unit(r));
    return x;
}

float *op_blocked(const float *x, int32_t n, int32_t tokens) {
    const size_t blocks = (size_t)cpu_blocks(n), step = (size_t)tokens * CPU_LANES;
    float *out = op_alloc(blocks * step);
    memset(out, 0, blocks * step * sizeof *out);
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t i = 0; i < n; i++)
            out[(size_t)(i / CPU_LANES) * step + (size_t)(t * CPU_LANES + i % CPU_LANES)] =
                x[(size_t)t * (size_t)n + (size_t)i];
    }
    return out;
}

double op_distance(const float *got, const float *want, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double difference = (double)got[i] - (double)want[i];
        d += difference * difference;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(d / (norm > 0 ? norm : 1));
}

double op_worse(double a, double b) { // not fmax, which prefers a number to NaN
    return a > b || isnan(a) ? a : b;
}

op_case *op_case_new(const op_shape *shape) {
    op_case *c = calloc(1, sizeof *c);
    assert(c);
    c->shape = *shape;
    return c;
}

void op_case_free(op_case *c) {
    if (!c)
        return;
    for (size_t i = 0; i < sizeof c->arrays / sizeof c->arrays[0]; i++)
        free(c->arrays[i]);
    free(c);
}

// ---- norm

enum { NORM_X, NORM_WEIGHT, NORM_OUT, NORM_WANT };

static void norm_run(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const cpu_norm args = {.x = c->arrays[NORM_X],
                           .weight = c->arrays[NORM_WEIGHT],
                           .out = c->arrays[NORM_OUT],
                           .n = s->n,
                           .groups = s->k,
                           .tokens = s->tokens,
                           .out_tokens = s->tokens,
                           .count = s->tokens,
                           .eps = 1e-5f};
    k->norm(&args);
}

static double norm_error(op_case *c, const cpu_kernels *k) {
    const size_t floats = (size_t)cpu_blocks(c->shape.n) * (size_t)c->shape.tokens * CPU_LANES;
    memset(c->arrays[NORM_OUT], 0xff, floats * sizeof(float));
    norm_run(c, k);
    return op_distance(c->arrays[NORM_OUT], c->arrays[NORM_WANT], floats);
}

static void norm_init(op_case *c) {
    const op_shape *s = &c->shape;
    random_model r = {.state = 9};
    const size_t n = (size_t)s->n * (size_t)s->tokens, width = (size_t)(s->n / s->k);
    const size_t floats = (size_t)cpu_blocks(s->n) * (size_t)s->tokens * CPU_LANES;
    float *x = op_random(&r, n, 0, 3);
    float *weight = op_random(&r, (size_t)cpu_blocks(s->n) * CPU_LANES, 1, 0.5);
    c->arrays[NORM_X] = op_blocked(x, s->n, s->tokens);
    c->arrays[NORM_WEIGHT] = weight;
    c->arrays[NORM_OUT] = op_alloc(floats);
    for (size_t i = 0; i < n; i += width)
        ref_rms_norm(width, x + i, weight + i % (size_t)s->n, 1e-5f, x + i);
    c->arrays[NORM_WANT] = op_blocked(x, s->n, s->tokens);
    free(x);
    c->error = norm_error;
    c->run = norm_run;
    c->flops = 4.0 * (double)n;
    c->bytes = 2.0 * sizeof(float) * (double)floats;
}

// ---- softplus: the worst relative error over [-80, 40], clamped to [lo, hi]

enum { SOFTPLUS_X, SOFTPLUS_OUT };

static void softplus_run(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    k->softplus(c->arrays[SOFTPLUS_OUT], (size_t)s->n * (size_t)s->tokens, s->lo, s->hi);
}

static double softplus_error(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const size_t n = (size_t)s->n * (size_t)s->tokens;
    const float *x = c->arrays[SOFTPLUS_X], *out = c->arrays[SOFTPLUS_OUT];
    memcpy(c->arrays[SOFTPLUS_OUT], x, n * sizeof *x);
    softplus_run(c, k);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double want = x[i] > 40 ? (double)x[i] : log1p(exp((double)x[i]));
        want = want < (double)s->lo ? (double)s->lo : want > (double)s->hi ? (double)s->hi : want;
        worst = op_worse(worst, fabs((double)out[i] - want) / want);
    }
    return worst;
}

static void softplus_init(op_case *c) {
    const size_t n = (size_t)c->shape.n * (size_t)c->shape.tokens;
    float *x = op_alloc(n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(-80 + 120 * (double)i / (double)n);
    c->arrays[SOFTPLUS_X] = x;
    c->arrays[SOFTPLUS_OUT] = op_alloc(n);
    c->error = softplus_error;
    c->run = softplus_run;
    c->bytes = 2.0 * sizeof(float) * (double)n;
}

op_case *op_case_create(const op_shape *shape) {
    op_case *c = op_case_new(shape);
    switch (shape->kind) {
    case OP_CONVERT:
        op_case_init_convert(c);
        break;
    case OP_CONV:
        op_case_init_conv(c);
        break;
    case OP_SCAN:
        op_case_init_scan(c);
        break;
    case OP_NORM:
        norm_init(c);
        break;
    case OP_SOFTPLUS:
        softplus_init(c);
        break;
    case OP_PRODUCT:
        assert(!"op_case_create_product");
    }
    return c;
}
