// SPDX-License-Identifier: Apache-2.0
// Cases of the two kernels that carry a state: convolution and recurrence, against the reference
// token by token, over all their channels.
#include "op_cases.h"

#include "kernels/reference/ops.h"

// Copies [rows][16] per block of `from` [channels][rows] to lanes side by side.
static float *to_lanes(const float *from, size_t channels, size_t rows) {
    float *out = op_alloc(channels * rows);
    for (size_t c = 0; c < channels; c++) {
        for (size_t i = 0; i < rows; i++)
            out[(c / CPU_LANES * rows + i) * CPU_LANES + c % CPU_LANES] = from[c * rows + i];
    }
    return out;
}

// A slot's numbers before a run: as they were, or NaN where they must not be read.
static void reset(const op_case *c, float *slot, const float *start, size_t floats) {
    if (c->shape.fresh)
        memset(slot, 0xff, floats * sizeof *slot);
    else
        memcpy(slot, start, floats * sizeof *slot);
}

// ---- convolution

enum { CONV_WEIGHT, CONV_BIAS, CONV_X, CONV_START, CONV_TAIL, CONV_OUT, CONV_WANT, CONV_WANT_TAIL };

static void conv_run(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const size_t width = (size_t)s->k, step = (size_t)s->tokens * CPU_LANES;
    for (size_t b = 0; b < (size_t)s->n / CPU_LANES; b++) {
        const cpu_conv args = {.weight = (float *)c->arrays[CONV_WEIGHT] + b * width * CPU_LANES,
                               .bias = (float *)c->arrays[CONV_BIAS] + b * CPU_LANES,
                               .tail = (float *)c->arrays[CONV_TAIL] + b * (width - 1) * CPU_LANES,
                               .x = (float *)c->arrays[CONV_X] + b * step,
                               .out = (float *)c->arrays[CONV_OUT] + b * step,
                               .width = s->k,
                               .count = s->tokens,
                               .fresh = s->fresh};
        k->conv(&args);
    }
}

static double conv_error(op_case *c, const cpu_kernels *k) {
    const size_t n = (size_t)c->shape.n, tail = n * (size_t)(c->shape.k - 1);
    const size_t floats = n * (size_t)c->shape.tokens;
    reset(c, c->arrays[CONV_TAIL], c->arrays[CONV_START], tail);
    memset(c->arrays[CONV_OUT], 0xff, floats * sizeof(float));
    conv_run(c, k);
    const double moved = op_distance(c->arrays[CONV_TAIL], c->arrays[CONV_WANT_TAIL], tail);
    return op_worse(op_distance(c->arrays[CONV_OUT], c->arrays[CONV_WANT], floats),
                    moved != 0 ? INFINITY : 0); // raw inputs are moved as they are
}

void op_case_init_conv(op_case *c) {
    const op_shape *s = &c->shape;
    random_model r = {.state = 5};
    const size_t n = (size_t)s->n, width = (size_t)s->k, tokens = (size_t)s->tokens;
    float *weight = op_random(&r, n * width, 0, 1), *bias = op_random(&r, n, 0, 1);
    float *tail = op_random(&r, n * (width - 1), 0, 1), *x = op_random(&r, n * tokens, 0, 2);
    if (s->fresh)
        memset(tail, 0, n * (width - 1) * sizeof *tail);
    c->arrays[CONV_WEIGHT] = to_lanes(weight, n, width);
    c->arrays[CONV_BIAS] = bias;
    c->arrays[CONV_X] = op_blocked(x, s->n, s->tokens);
    c->arrays[CONV_START] = to_lanes(tail, n, width - 1);
    c->arrays[CONV_TAIL] = to_lanes(tail, n, width - 1);
    c->arrays[CONV_OUT] = op_alloc(n * tokens);
    for (size_t t = 0; t < tokens; t++)
        ref_conv_step(n, width, weight, bias, tail, x + t * n);
    c->arrays[CONV_WANT] = op_blocked(x, s->n, s->tokens);
    c->arrays[CONV_WANT_TAIL] = to_lanes(tail, n, width - 1);
    free(weight);
    free(tail);
    free(x);
    c->error = conv_error;
    c->run = conv_run;
    c->flops = 2.0 * (double)(n * tokens * width);
    c->bytes = sizeof(float) * (double)(n * (2 * tokens + width + 2 * (width - 1)));
}

// ---- recurrence

enum {
    SCAN_A,
    SCAN_D,
    SCAN_DELTA,
    SCAN_X,
    SCAN_Z,
    SCAN_B,
    SCAN_C,
    SCAN_START,
    SCAN_H,
    SCAN_Y,
    SCAN_WANT,
    SCAN_WANT_H
};

static int32_t n_groups(const op_shape *s) {
    return s->groups > 1 ? s->groups : 1;
}

static void scan_run(op_case *c, const cpu_kernels *k) {
    const op_shape *s = &c->shape;
    const size_t states = (size_t)s->k, step = (size_t)s->tokens * CPU_LANES;
    const bool is_paired = !s->per_state && n_groups(s) == 1;
    for (size_t b = 0, blocks; b < (size_t)s->n / CPU_LANES; b += blocks) {
        blocks = is_paired && b + 1 < (size_t)s->n / CPU_LANES ? 2 : 1;
        const size_t a = b * (s->per_state ? states : 1) * CPU_LANES;
        cpu_scan args = {.a = (float *)c->arrays[SCAN_A] + a,
                         .d = (float *)c->arrays[SCAN_D] + b * CPU_LANES,
                         .delta = (float *)c->arrays[SCAN_DELTA] + b * step,
                         .x = (float *)c->arrays[SCAN_X] + b * step,
                         .z = (float *)c->arrays[SCAN_Z] + b * step,
                         .b = c->arrays[SCAN_B],
                         .c = c->arrays[SCAN_C],
                         .stride = step,
                         .mixed = n_groups(s) > 1,
                         .h = (float *)c->arrays[SCAN_H] + b * states * CPU_LANES,
                         .y = (float *)c->arrays[SCAN_Y] + b * step,
                         .n = s->k,
                         .count = s->tokens,
                         .blocks = (int32_t)blocks,
                         .per_state = s->per_state,
                         .fresh = s->fresh};
        for (int32_t lane = 0; lane < CPU_LANES; lane++)
            args.first[lane] = lane / (CPU_LANES / n_groups(s)) * s->k;
        k->scan(&args);
    }
}

static double scan_error(op_case *c, const cpu_kernels *k) {
    const size_t n = (size_t)c->shape.n, states = n * (size_t)c->shape.k;
    const size_t floats = n * (size_t)c->shape.tokens;
    reset(c, c->arrays[SCAN_H], c->arrays[SCAN_START], states);
    memset(c->arrays[SCAN_Y], 0xff, floats * sizeof(float));
    scan_run(c, k);
    return op_worse(op_distance(c->arrays[SCAN_Y], c->arrays[SCAN_WANT], floats),
                    op_distance(c->arrays[SCAN_H], c->arrays[SCAN_WANT_H], states));
}

typedef struct scan_inputs { // [tokens][n], [tokens][groups * states], [n][states]
    float *a_log, *d, *delta, *x, *z, *b, *c, *h, *y;
} scan_inputs;

// The reference from the state on, token by token.
static void scan_reference(const op_shape *s, scan_inputs *in) {
    const size_t n = (size_t)s->n, states = (size_t)s->k, groups = (size_t)n_groups(s);
    for (size_t t = 0; t < (size_t)s->tokens; t++) {
        const size_t at = t * n, row = t * groups * states;
        if (s->per_state)
            ref_scan_mamba(n, states, in->a_log, in->d, in->delta + at, in->b + row, in->c + row,
                           in->x + at, in->h, in->y + at);
        else
            ref_scan_mamba2(n, 1, groups, states, in->a_log, in->d, in->delta + at, in->b + row,
                            in->c + row, in->x + at, in->h, in->y + at);
        for (size_t i = at; i < at + n; i++)
            in->y[i] *= ref_silu(in->z[i]);
    }
}

void op_case_init_scan(op_case *c) {
    const op_shape *s = &c->shape;
    random_model r = {.state = 7};
    const size_t n = (size_t)s->n, states = (size_t)s->k, tokens = (size_t)s->tokens;
    const size_t rates = s->per_state ? states : 1, bc = (size_t)n_groups(s) * states;
    scan_inputs in = {.a_log = op_random(&r, n * rates, 0, 2),
                      .d = op_random(&r, n, 1, 1),
                      .delta = op_alloc(n * tokens),
                      .x = op_random(&r, n * tokens, 0, 1),
                      .z = op_random(&r, n * tokens, 0, 3),
                      .b = op_random(&r, bc * tokens, 0, 1),
                      .c = op_random(&r, bc * tokens, 0, 1),
                      .h = op_random(&r, n * states, 0, 1),
                      .y = op_alloc(n * tokens)};
    for (size_t i = 0; i < n * tokens; i++) // log-uniform: decays from 1 - 1e-5 to 1e-6
        in.delta[i] = (float)exp(-4.5 + 5 * random_unit(&r));
    if (s->fresh)
        memset(in.h, 0, n * states * sizeof *in.h);
    float *a = op_alloc(n * rates);
    for (size_t i = 0; i < n * rates; i++)
        a[i] = (float)(-exp((double)in.a_log[i]) * 1.4426950408889634);
    c->arrays[SCAN_A] = to_lanes(a, n, rates);
    c->arrays[SCAN_D] = in.d;
    c->arrays[SCAN_DELTA] = op_blocked(in.delta, s->n, s->tokens);
    c->arrays[SCAN_X] = op_blocked(in.x, s->n, s->tokens);
    c->arrays[SCAN_Z] = op_blocked(in.z, s->n, s->tokens);
    c->arrays[SCAN_B] = op_blocked(in.b, (int32_t)bc, s->tokens);
    c->arrays[SCAN_C] = op_blocked(in.c, (int32_t)bc, s->tokens);
    c->arrays[SCAN_START] = to_lanes(in.h, n, states);
    c->arrays[SCAN_H] = to_lanes(in.h, n, states);
    c->arrays[SCAN_Y] = op_alloc(n * tokens);
    scan_reference(s, &in);
    c->arrays[SCAN_WANT] = op_blocked(in.y, s->n, s->tokens);
    c->arrays[SCAN_WANT_H] = to_lanes(in.h, n, states);
    float *done[] = {a, in.a_log, in.delta, in.x, in.z, in.b, in.c, in.h, in.y};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++)
        free(done[i]);
    c->error = scan_error;
    c->run = scan_run;
    c->flops = 6.0 * (double)(n * states * tokens);
    c->bytes = sizeof(float) * (double)(n * (4 * tokens + rates + 2 * states) + 2 * bc * tokens);
}
