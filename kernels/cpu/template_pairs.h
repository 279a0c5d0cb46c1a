// SPDX-License-Identifier: Apache-2.0
// A block of LTI_PAIRS tokens of one head of H3's diagonal SSM as a convolution between two exact
// states; included once by each isa_*.c, through template_lti.h.
//
// All pairs (a, b) of a head have the same kernel K, so that the convolutions of k'[a] v[b], heard
// by q[a], are one small triangular product, and states are products with coefficients that no pair
// changes (n real numbers a state, real parts, then imaginary ones):
//
//     y[b](t) = sum_j K(t - j) (q(t) . k'(j)) v[b](j)  +  sum_a,n q[a](t) O[n](t) S[a,b,n]
//     S'[a,b] = Ab^L S[a,b]  +  sum_j I[n](j) k'[a](j) v[b](j)
//
// Lanes are 16 tokens for y, numbers of a state for S', and never channels: what a lane multiplies
// by is one number for all of them, read from where it lies, whatever head_dim is, and nothing is
// laid beside the lanes as a scan must. SIMD_PAIR_ROWS channels b by SIMD_PAIR_TILES vectors stay
// in registers: with AVX-512 16 sums instead of 8 took 321 ticks to 233 (lti_block.c has the unit).
//
// Multiply-adds for a token and a channel, with d = head_dim and `rows` channels together: 24 (1 +
// (d + 1) / rows) for the triangle (16 tokens have 16 before them, 16 have 32), d n (1 + 1 / rows)
// to hear the old states, as much to make the new ones and 2 d n / L for their powers, where the
// scan has 4.5 d n on top of what it costs to pair up q, k' and v. The triangle grows with L, only
// the powers shrink: 32 is two vectors.

// mixed[j][t] = K(t - j) q(t) . k'(j) for some j from `j` on and some vectors of tokens t from
// `first` on; K before 0 is 0.
TEMPLATE void pairs_mix(const lti_pairs *a, int32_t first, int32_t j, const int tiles) {
    const float *q = a->q + first, *k = a->k + j;
    vf sum[SIMD_PAIR_ROWS][SIMD_PAIR_TILES];
    UNROLL for (int i = 0; i < SIMD_PAIR_ROWS; i++) {
        UNROLL for (int u = 0; u < tiles; u++) sum[i][u] = vf_set(0);
    }
    for (int32_t c = 0; c < a->dim; c++, q += LTI_PAIRS, k += LTI_PAIRS) {
        vf x[SIMD_PAIR_TILES];
        UNROLL for (int u = 0; u < tiles; u++) x[u] = vf_load(q + u * CPU_LANES);
        UNROLL for (int i = 0; i < SIMD_PAIR_ROWS; i++) {
            const vf y = vf_set(k[i]);
            UNROLL for (int u = 0; u < tiles; u++) sum[i][u] = vf_fma(x[u], y, sum[i][u]);
        }
    }
    const float *kernel = a->kernel + CPU_LANES + first - j;
    float *to = a->mixed + (size_t)j * LTI_PAIRS + first;
    UNROLL for (int i = 0; i < SIMD_PAIR_ROWS; i++) {
        UNROLL for (int u = 0; u < tiles; u++)
            vf_store(to + i * LTI_PAIRS + u * CPU_LANES,
                     vf_mul(sum[i][u], vf_load(kernel - i + u * CPU_LANES)));
    }
}

// sum += mixed[j] v(j) for j in [begin, end), vectors of tokens from `first` on.
TEMPLATE void pairs_apply(const lti_pairs *a, int32_t first, int32_t row, int32_t begin,
                          int32_t end, vf sum[SIMD_PAIR_ROWS][SIMD_PAIR_TILES], const int from,
                          const int tiles, const int rows) {
    const float *v = a->v + (size_t)row * LTI_PAIRS + begin;
    const float *mixed = a->mixed + (size_t)begin * LTI_PAIRS + first;
    for (int32_t j = begin; j < end; j++, v++, mixed += LTI_PAIRS) {
        vf x[SIMD_PAIR_TILES];
        UNROLL for (int u = from; u < tiles; u++) x[u] = vf_load(mixed + u * CPU_LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const vf y = vf_set(v[r * LTI_PAIRS]);
            UNROLL for (int u = from; u < tiles; u++) sum[r][u] = vf_fma(x[u], y, sum[r][u]);
        }
    }
}

// y of some channels at some vectors of tokens from `first` on.
TEMPLATE void pairs_hear(const lti_pairs *a, int32_t first, int32_t row, const int rows) {
    const int tiles = SIMD_PAIR_TILES;
    const size_t stride = (size_t)a->stride;
    vf sum[SIMD_PAIR_ROWS][SIMD_PAIR_TILES];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int u = 0; u < tiles; u++) sum[r][u] = vf_set(0);
    }
    for (int32_t c = 0; c < a->dim && !a->fresh; c++) {
        const float *s = a->s + ((size_t)c * (size_t)a->rows + (size_t)row) * stride;
        const float *output = a->output + first, *q = a->q + (size_t)c * LTI_PAIRS + first;
        vf weight[SIMD_PAIR_TILES], x[SIMD_PAIR_TILES];
        UNROLL for (int u = 0; u < tiles; u++) weight[u] = vf_load(q + u * CPU_LANES);
        for (int32_t i = 0; i < a->n; i++, s++, output += LTI_PAIRS) {
            UNROLL for (int u = 0; u < tiles; u++) x[u] =
                vf_mul(weight[u], vf_load(output + u * CPU_LANES));
            UNROLL for (int r = 0; r < rows; r++) {
                const vf y = vf_set(s[r * stride]);
                UNROLL for (int u = 0; u < tiles; u++) sum[r][u] = vf_fma(x[u], y, sum[r][u]);
            }
        }
    }
    const int32_t both = first + CPU_LANES;
    pairs_apply(a, first, row, 0, both, sum, 0, tiles, rows);
#if SIMD_PAIR_TILES > 1
    pairs_apply(a, first, row, both, both + CPU_LANES, sum, 1, tiles, rows);
#endif
    float *y = a->y + (size_t)row * LTI_PAIRS + first;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int u = 0; u < tiles; u++)
            vf_store(y + r * LTI_PAIRS + u * CPU_LANES, sum[r][u]);
    }
}

// 16 numbers from `at` on of the states of some pairs (c .., row ..) past the block. Number l goes
// on from itself and from number l + n / 2, the other part of its pole: a state's real parts are
// there twice, before and after the imaginary ones.
TEMPLATE void pairs_advance(const lti_pairs *a, int32_t c, int32_t row, size_t at, const int some,
                            const int rows) {
    const size_t stride = (size_t)a->stride, wide = (size_t)a->wide, half = (size_t)a->n / 2;
    const size_t next = (size_t)a->rows * stride;
    float *s = a->s + ((size_t)c * (size_t)a->rows + (size_t)row) * stride + at;
    const float *k = a->k + (size_t)c * LTI_PAIRS, *v = a->v + (size_t)row * LTI_PAIRS;
    const float *input = a->input + at;
    const vf same = vf_load(a->power + at), other = vf_load(a->power + wide + at);
    vf sum[SIMD_PAIR_ROWS][SIMD_PAIR_TILES];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int e = 0; e < some; e++) {
            const float *from = s + r * stride + e * next;
            sum[r][e] = vf_set(0);
            if (!a->fresh)
                sum[r][e] = vf_fma(same, vf_load(from), vf_mul(other, vf_load(from + half)));
        }
    }
    for (int32_t j = 0; j < LTI_PAIRS; j++, k++, v++, input += wide) {
        const vf in = vf_load(input);
        vf x[SIMD_PAIR_TILES];
        UNROLL for (int e = 0; e < some; e++) x[e] = vf_mul(in, vf_set(k[e * LTI_PAIRS]));
        UNROLL for (int r = 0; r < rows; r++) {
            const vf y = vf_set(v[r * LTI_PAIRS]);
            UNROLL for (int e = 0; e < some; e++) sum[r][e] = vf_fma(x[e], y, sum[r][e]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int e = 0; e < some; e++) vf_store(s + r * stride + e * next, sum[r][e]);
    }
}

// All numbers of those pairs, then the real ones again.
TEMPLATE void pairs_keep(const lti_pairs *a, int32_t c, int32_t row, const int some,
                         const int rows) {
    const size_t stride = (size_t)a->stride, half = (size_t)a->n / 2;
    for (size_t at = 0; at < (size_t)a->wide; at += CPU_LANES)
        pairs_advance(a, c, row, at, some, rows);
    for (int32_t e = c; e < c + some; e++) {
        float *s = a->s + ((size_t)e * (size_t)a->rows + (size_t)row) * stride;
        for (int r = 0; r < rows; r++, s += stride) {
            for (size_t i = 0; i < half; i += CPU_LANES)
                vf_store(s + 2 * half + i, vf_load(s + i));
        }
    }
}

static __attribute__((noinline)) void pairs_mix_all(const lti_pairs *a, int32_t first) {
    const int32_t both = first + CPU_LANES;
    for (int32_t j = 0; j < both; j += SIMD_PAIR_ROWS)
        pairs_mix(a, first, j, SIMD_PAIR_TILES);
    for (int32_t j = both; j < first + SIMD_PAIR_TILES * CPU_LANES; j += SIMD_PAIR_ROWS)
        pairs_mix(a, both, j, 1);
}

#define PAIRS_FUNCTIONS(rows)                                                                      \
    static __attribute__((noinline)) void pairs_hear_##rows(const lti_pairs *a, int32_t first,     \
                                                            int32_t row) {                         \
        pairs_hear(a, first, row, rows);                                                           \
    }                                                                                              \
    static __attribute__((noinline)) void pairs_keep_##rows(const lti_pairs *a, int32_t row) {     \
        int32_t c = 0;                                                                             \
        for (; c + SIMD_PAIR_TILES <= a->dim; c += SIMD_PAIR_TILES)                                \
            pairs_keep(a, c, row, SIMD_PAIR_TILES, rows);                                          \
        for (; c < a->dim; c++)                                                                    \
            pairs_keep(a, c, row, 1, rows);                                                        \
    }
#if SIMD_PAIR_ROWS >= 8
PAIRS_FUNCTIONS(8)
#endif
#if SIMD_PAIR_ROWS >= 4
PAIRS_FUNCTIONS(4)
#endif
PAIRS_FUNCTIONS(2)
PAIRS_FUNCTIONS(1)

typedef struct pairs_tile {
    int32_t rows;
    void (*hear)(const lti_pairs *a, int32_t first, int32_t row);
    void (*keep)(const lti_pairs *a, int32_t row);
} pairs_tile;

// Widest first; the last one fits whatever is left.
static const pairs_tile pairs_tiles[] = {
#if SIMD_PAIR_ROWS >= 8
    {8, pairs_hear_8, pairs_keep_8},
#endif
#if SIMD_PAIR_ROWS >= 4
    {4, pairs_hear_4, pairs_keep_4},
#endif
    {2, pairs_hear_2, pairs_keep_2},
    {1, pairs_hear_1, pairs_keep_1},
};

static const pairs_tile *pairs_next(int32_t left) {
    const pairs_tile *at = pairs_tiles;
    while (at->rows > left)
        at++;
    return at;
}

static void pairs(const lti_pairs *a) {
    for (int32_t first = 0; first < LTI_PAIRS; first += SIMD_PAIR_TILES * CPU_LANES) {
        pairs_mix_all(a, first);
        for (int32_t row = 0; row < a->rows; row += pairs_next(a->rows - row)->rows)
            pairs_next(a->rows - row)->hear(a, first, row);
    }
    for (int32_t row = 0; row < a->rows; row += pairs_next(a->rows - row)->rows)
        pairs_next(a->rows - row)->keep(a, row);
}
