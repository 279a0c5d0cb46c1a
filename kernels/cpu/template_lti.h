// SPDX-License-Identifier: Apache-2.0
// Linear time-invariant recurrences over a block of 16 channels; included once by each isa_*.c.
//
// A pole is six numbers a channel and its state two; LTI_POLES poles stay in registers over all
// tokens of a piece, then the next ones come, y carrying the sum from pass to pass. Eight multiply-
// adds a pole and token, two of them in a chain: with one pole the chain (8 cycles on AVX-512) is
// what is waited for, with two the units are busy. A token's operations are the same whether it
// comes alone or in a prompt, so a prompt in any pieces and its tokens one by one leave the same
// bits.
#include "lti_kernels.h"

#if SIMD_SCAN_STATES >= 16
#define LTI_POLES 2 // 32 registers
#else
#define LTI_POLES 1
#endif

// Poles [n, n + poles) over the piece.
static inline __attribute__((always_inline)) void poles_pass(const lti_poles *a, int32_t n,
                                                             const int poles, const bool weighted) {
    vf re[LTI_POLES], im[LTI_POLES], k[LTI_POLES][LTI_POLE_FLOATS], minus[LTI_POLES];
    float *s = a->s + (size_t)n * 2 * CPU_LANES;
    UNROLL for (int i = 0; i < poles; i++) {
        const float *from = a->poles + (size_t)(n + i) * LTI_POLE_FLOATS * CPU_LANES;
        for (int j = 0; j < LTI_POLE_FLOATS; j++)
            k[i][j] = vf_load(from + j * CPU_LANES);
        minus[i] = vf_sub(vf_set(0), k[i][1]);
        re[i] = a->fresh ? vf_set(0) : vf_load(s + (2 * i) * CPU_LANES);
        im[i] = a->fresh ? vf_set(0) : vf_load(s + (2 * i + 1) * CPU_LANES);
    }
    for (int32_t t = 0; t < a->count; t++) {
        const vf u = vf_load(a->u + t * CPU_LANES);
        const vf w = weighted ? vf_load(a->weight + t * CPU_LANES) : u;
        vf sum = vf_load(a->y + t * CPU_LANES);
        UNROLL for (int i = 0; i < poles; i++) {
            const vf r = vf_fma(k[i][0], re[i], vf_fma(minus[i], im[i], vf_mul(k[i][2], u)));
            im[i] = vf_fma(k[i][0], im[i], vf_fma(k[i][1], re[i], vf_mul(k[i][3], u)));
            re[i] = r;
            if (weighted) {
                sum = vf_fma(w, vf_fma(k[i][4], r, vf_mul(k[i][5], im[i])), sum);
            } else {
                sum = vf_fma(k[i][4], r, sum);
                sum = vf_fma(k[i][5], im[i], sum);
            }
        }
        vf_store(a->y + t * CPU_LANES, sum);
    }
    UNROLL for (int i = 0; i < poles; i++) {
        vf_store(s + (2 * i) * CPU_LANES, re[i]);
        vf_store(s + (2 * i + 1) * CPU_LANES, im[i]);
    }
}

#define POLES_FUNCTION(name, poles, weighted)                                                      \
    static __attribute__((noinline)) void name(const lti_poles *a, int32_t n) {                    \
        poles_pass(a, n, poles, weighted);                                                         \
    }
POLES_FUNCTION(poles_some, LTI_POLES, false)
POLES_FUNCTION(poles_one, 1, false)
POLES_FUNCTION(poles_some_weighted, LTI_POLES, true)
POLES_FUNCTION(poles_one_weighted, 1, true)

static void poles(const lti_poles *a) {
    const vf d = vf_load(a->d);
    for (int32_t t = 0; t < a->count; t++) {
        const vf direct = vf_mul(d, vf_load(a->u + t * CPU_LANES));
        float *y = a->y + t * CPU_LANES;
        vf_store(y, a->weight ? vf_fma(vf_load(a->weight + t * CPU_LANES), direct, vf_load(y))
                              : direct);
    }
    int32_t n = 0;
    for (; n + LTI_POLES <= a->n; n += LTI_POLES)
        (a->weight ? poles_some_weighted : poles_some)(a, n);
    for (; n < a->n; n++)
        (a->weight ? poles_one_weighted : poles_one)(a, n);
}

// ---- dense

// A group of rows of the next state from the first `count` numbers of the old one.
static inline __attribute__((always_inline)) void
dense_rows(const float *ab, const float *bb, vf u, const float *s, int32_t count, float *next) {
    vf acc[LTI_ROWS];
    UNROLL for (int i = 0; i < LTI_ROWS; i++) acc[i] = vf_mul(vf_load(bb + i * CPU_LANES), u);
    for (int32_t j = 0; j < count; j++, ab += LTI_ROWS * CPU_LANES) {
        const vf x = vf_load(s + (size_t)j * CPU_LANES);
        UNROLL for (int i = 0; i < LTI_ROWS; i++) acc[i] =
            vf_fma(vf_load(ab + i * CPU_LANES), x, acc[i]);
    }
    UNROLL for (int i = 0; i < LTI_ROWS; i++) vf_store(next + i * CPU_LANES, acc[i]);
}

static void dense(const lti_dense_scan *a) {
    const size_t group = (size_t)a->n * LTI_ROWS * CPU_LANES;
    const size_t bytes = (size_t)a->n * CPU_LANES * sizeof(float);
    if (a->fresh)
        memset(a->s, 0, bytes);
    for (int32_t t = 0; t < a->count; t++) {
        const vf u = vf_load(a->u + (size_t)t * CPU_LANES);
        const float *ab = a->ab;
        for (int32_t i = 0; i < a->n; i += LTI_ROWS, ab += group) {
            const int32_t past = i + LTI_ROWS < a->n ? i + LTI_ROWS : a->n;
            dense_rows(ab, a->bb + (size_t)i * CPU_LANES, u, a->s, a->is_lower ? past : a->n,
                       a->next + (size_t)i * CPU_LANES);
        }
        vf sum = vf_mul(vf_load(a->d), u);
        for (int32_t i = 0; i < a->n; i++)
            sum = vf_fma(vf_load(a->c + (size_t)i * CPU_LANES),
                         vf_load(a->next + (size_t)i * CPU_LANES), sum);
        memcpy(a->s, a->next, bytes);
        vf_store(a->y + (size_t)t * CPU_LANES, sum);
    }
}

// ---- shift

static void shift(const lti_shift *a) {
    if (a->fresh)
        memset(a->s, 0, (size_t)a->n * CPU_LANES * sizeof(float));
    for (int32_t t = 0; t < a->count; t++) {
        const vf u = vf_load(a->u + (size_t)t * CPU_LANES);
        vf sum = vf_mul(vf_load(a->d), u);
        for (int32_t i = a->n - 1; i >= 0; i--) {
            float *s = a->s + (size_t)i * CPU_LANES;
            const vf before = i > 0 ? vf_load(s - CPU_LANES) : vf_set(0);
            const vf now = vf_fma(vf_load(a->b + (size_t)i * CPU_LANES), u, before);
            sum = vf_fma(vf_load(a->c + (size_t)i * CPU_LANES), now, sum);
            vf_store(s, now);
        }
        vf_store(a->u + (size_t)t * CPU_LANES, sum);
    }
}

// ---- pairs

// A run's number goes to all lanes from its first one on; the next run, or the next token, comes
// over what is not its own.
static void spread(const lti_spread *a) {
    float *to = a->to;
    for (int32_t t = 0; t < a->count; t++, to += CPU_LANES) {
        for (int32_t r = 0; r < a->runs; r++)
            vf_store(to + a->lane[r], vf_set(a->from[r][t * CPU_LANES]));
    }
    for (int32_t t = 0; a->v && t < a->count * CPU_LANES; t += CPU_LANES)
        vf_store(a->to + t, vf_mul(vf_load(a->to + t), vf_load(a->v + t)));
}

// ---- pointwise

// max(x, 0) - |x|/2 erfc(|x| / sqrt 2), which loses nothing on either side. erfc(z) = exp(-z^2)
// times a polynomial of degree 6 in 1 / (1 + 0.4 z) that was fitted so that z times its error is
// least: 7e-9 at most, so that fp32's rounding is what remains.
static inline vf vf_gelu(vf x) {
    const vf z = vf_mul(vf_abs(x), vf_set(0.70710678118654752f));
    const vf t = vf_div(vf_set(1), vf_fma(z, vf_set(0.4f), vf_set(1)));
    vf p = vf_set(-0.20648374029107877f);
    p = vf_fma(p, t, vf_set(0.7342188856949492f));
    p = vf_fma(p, t, vf_set(-0.41105016837820746f));
    p = vf_fma(p, t, vf_set(0.5002023811232492f));
    p = vf_fma(p, t, vf_set(0.14921111142533022f));
    p = vf_fma(p, t, vf_set(0.2339011809280703f));
    p = vf_mul(p, t);
    const vf square = vf_min(vf_set(100), vf_mul(z, z)); // 0 to fp32 from there on
    const vf erfc_z = vf_mul(p, vf_exp(vf_sub(vf_set(0), square)));
    const vf half = vf_mul(vf_abs(x), vf_set(0.5f));
    return vf_sub(vf_max(vf_set(0), x), vf_mul(half, erfc_z));
}

static void gelu(float *x, size_t n) {
    for (size_t i = 0; i < n; i += CPU_LANES)
        vf_store(x + i, vf_gelu(vf_load(x + i)));
}

static void gate(const float *a, const float *b, size_t n, float *to) {
    for (size_t i = 0; i < n; i += CPU_LANES) {
        const vf e = vf_exp(vf_min(vf_set(100), vf_sub(vf_set(0), vf_load(b + i))));
        const vf gated = vf_div(vf_load(a + i), vf_add(vf_set(1), e));
        vf_store(to + i, vf_add(vf_load(to + i), gated));
    }
}

#include "template_convolution.h"
#include "template_pairs.h"

static const cpu_lti_kernels lti_kernels = {
    .poles = poles,
    .dense = dense,
    .shift = shift,
    .spread = spread,
    .block_poles = block_poles,
    .block_dense = block_dense,
    .pairs = pairs,
    .gelu = gelu,
    .gate = gate,
};
