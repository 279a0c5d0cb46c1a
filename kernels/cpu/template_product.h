// SPDX-License-Identifier: Apache-2.0
// Products of packed weights and blocked activations; included once by each isa_*.c.
//
// A tile holds some blocks of 16 rows by some tokens in registers for all inputs: every weight
// vector is loaded once a tile and multiplied by broadcast activations, no sum crosses lanes. One
// token makes the tile a matrix-vector product that reads one linear stream per panel; a step's
// tokens beyond a tile take further tiles from the panel while it lies in the second-level cache,
// so that memory is read once a step whatever the batch.
//
// Bytes: mamba-130m's bf16 weights are 258 MB; at the read ceiling of 60 GB/s (2 Zen 4 cores,
// measured in the same runs) a token cannot take less than 4.3 ms. Products: 0.18 Gflop a prompt
// token, so 0.77 ms at 235 Gflop/s (fp32) and 0.39 ms at 470 (bf16, int8). Best of a run, 2
// threads, 2026-11-22; the machine was shared, medians are 5 to 20% worse:
//
//                                                     1 row     8 rows    prefill, tokens/s
//   4 blocks x 6 tokens, f32 activations              4.57 ms   12.4 ms   976 (512 at once)
//   the same, windows of 192 tokens                                       1,110
//   3 blocks x 8 tokens: one pass for 8 rows          4.65      11.2      1,125
//   bf16 activations, 4 x 6, then 3 x 8               4.8       9.9, 8.3  1,516, then 1,880
//   int8, two bytes an activation, intrinsics         2.6       13.0      904
//   the same with the byte product in assembly                  7.5       1,878
//   weights prefetched 4 KB ahead instead of 2        4.45
//
// With bf16 x_proj and dt_proj, shorter exp2 and weights fetched while the recurrence runs (idle
// machine, alternating runs): prefill of 512 with bf16 activations 1,880 to 2,050 tokens
// a second, 8 rows 8.4 to 7.8 ms (9.9 to 9.2 where memory gives 35 GB/s, 94% of it). By profile of
// a prefill, bf16 / f32 activations: full tiles 79 / 82%, at 96 to 100% of the product ceiling; the
// recurrence 12 / 9%; norms, convolution, softplus and conversions 6 / 5%; waits 2 / 3%. One row is
// 86 to 93% of the read ceiling, the rest waits at barriers. Eight rows with f32 activations are
// bound by products (8.8 ms).
//
// Against libraries (tests/bench/bench_libraries, one thread, packed weights, mamba-130m's and
// 2.8b's in_proj and out_proj, time by theirs): OpenBLAS 0.3.21 fp32 1.2 to 1.7 at 64 and 192
// tokens, oneDNN 2.6 fp32 1.00 to 1.15, bf16 0.99 to 1.17; at 512 tokens, which no window has, 0.92
// to 1.13. Ours stays: nothing to gain, sums that depend on neither tokens nor threads, and
// activations in the layout that the recurrence walks.
//
// Tried and dropped: windows of 64, 96 and 128 tokens (3, 2 and 1% slower); prefetching 6 to 16 KB
// ahead, and into the second level first (no change that the noise would let one see).
#include <assert.h>

#define TEMPLATE    static inline __attribute__((always_inline))
#define UNROLL      _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch((const char *)(p) + 4096)

typedef struct tile {
    const char *w; // of the tile's first block at the first input
    size_t w_step; // bytes from one vector of a block to its next
    const char *x; // of the tile's first token
    size_t x_step; // bytes from one block of 16 inputs to the next
    int32_t k_blocks;
} tile;

#define MAX_BLOCKS CPU_PANEL_BLOCKS
#define MAX_TOKENS SIMD_TILE_TOKENS

TEMPLATE void tile_clear(vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks, const int tokens) {
    UNROLL for (int b = 0; b < blocks; b++) {
        UNROLL for (int t = 0; t < tokens; t++) acc[b][t] = vf_set(0);
    }
}

TEMPLATE void tile_add(vf acc[MAX_BLOCKS][MAX_TOKENS], const vf *w, const float *x,
                       const int blocks, const int tokens) {
    UNROLL for (int t = 0; t < tokens; t++) {
        const vf xt = vf_set(x[t * CPU_LANES]);
        UNROLL for (int b = 0; b < blocks; b++) acc[b][t] = vf_fma(w[b], xt, acc[b][t]);
    }
}

TEMPLATE void tile_f32(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                       const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        for (int k = 0; k < CPU_LANES; k++, w += p->w_step) {
            vf wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = vf_load((const float *)(w + 64 * b));
            }
            tile_add(acc, wk, (const float *)x + k, blocks, tokens);
        }
    }
}

TEMPLATE void tile_f16(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                       const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        for (int k = 0; k < CPU_LANES; k++, w += p->w_step) {
            vf wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 32 * b);
                wk[b] = vf_load_f16((const uint16_t *)(w + 32 * b));
            }
            tile_add(acc, wk, (const float *)x + k, blocks, tokens);
        }
    }
}

TEMPLATE void tile_bf16(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                        const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        for (int k = 0; k < CPU_LANES; k += 2, w += p->w_step) {
            __builtin_prefetch(x + p->x_step + 32 * k);
            vf wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = vf_load_bf16_even((const uint16_t *)(w + 64 * b));
            }
            tile_add(acc, wk, (const float *)x + k, blocks, tokens);
            UNROLL for (int b = 0; b < blocks; b++) wk[b] =
                vf_load_bf16_odd((const uint16_t *)(w + 64 * b));
            tile_add(acc, wk, (const float *)x + k + 1, blocks, tokens);
        }
    }
}

#ifdef SIMD_HAS_BF16_DOT
TEMPLATE void tile_bf16_dot(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                            const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        for (int k = 0; k < CPU_LANES / 2; k++, w += p->w_step) {
            __builtin_prefetch(x + p->x_step + 32 * k);
            vi wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = vi_load(w + 64 * b);
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                const vi xt = vi_broadcast4(x + 32 * t + 4 * k);
                UNROLL for (int b = 0; b < blocks; b++) acc[b][t] =
                    vf_dot_bf16(acc[b][t], wk[b], xt);
            }
        }
    }
}
#endif

TEMPLATE void tile_store(const cpu_slice *s, const cpu_output *out, int32_t block, int32_t token,
                         vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks, const int tokens) {
    UNROLL for (int b = 0; b < blocks; b++) {
        const vf bias = vf_load(s->bias + (size_t)(block + b) * CPU_LANES);
        float *to = out->data + (size_t)(s->first_block + block + b) * out->block_stride +
                    (size_t)token * out->token_stride;
        UNROLL for (int t = 0; t < tokens; t++, to += out->token_stride) {
            const vf v = vf_add(acc[b][t], bias);
            vf_store(to, out->add ? vf_add(vf_load(to), v) : v);
        }
    }
}

// ---- integers: two bytes an activation, so that the product's error is the weights'

// Q16: w . (32768 + q) = 256 (w . high) + w . low.
TEMPLATE void tile_int8(const cpu_slice *s, const tile *p, const float *x_scale, int32_t block,
                        vf out[MAX_BLOCKS][MAX_TOKENS], const int blocks, const int tokens) {
    const char *w = p->w, *x = p->x;
    vi high[MAX_BLOCKS][MAX_TOKENS], low[MAX_BLOCKS][MAX_TOKENS];
    UNROLL for (int b = 0; b < blocks; b++) {
        UNROLL for (int t = 0; t < tokens; t++) high[b][t] = low[b][t] = vi_set(0);
    }
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        for (int k = 0; k < CPU_LANES; k += 4, w += p->w_step) {
            vi wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = vi_load(w + 64 * b);
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                const vi xh = vi_broadcast4(x + 32 * t + k);
                const vi xl = vi_broadcast4(x + 32 * t + 16 + k);
                UNROLL for (int b = 0; b < blocks; b++) {
                    high[b][t] = vi_dot(high[b][t], xh, wk[b]);
                    low[b][t] = vi_dot(low[b][t], xl, wk[b]);
                }
            }
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        const size_t row = (size_t)(block + b) * CPU_LANES;
        const vf scale = vf_load(s->scale + row);
        const vi offset = vi_load(s->sum + row); // 128 times the sum of the row's weights
        UNROLL for (int t = 0; t < tokens; t++) {
            const vf h = vf_from_int(vi_sub(high[b][t], offset));
            const vf sum = vf_fma(h, vf_set(256), vf_from_int(low[b][t]));
            out[b][t] = vf_mul(sum, vf_mul(scale, vf_set(x_scale[t])));
        }
    }
}

// Q15: (u - 8) . q = 128 (u . high) + u . low - 8 sum(q), exact in int32 and in fp32 for a group.
TEMPLATE void tile_int4(const tile *p, const float *x_scale, const int32_t *x_sum,
                        size_t x_sum_step, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                        const int tokens) {
    const char *w = p->w, *x = p->x;
    const size_t panel = p->w_step; // a step holds the blocks' vectors; scales are as wide
    tile_clear(acc, blocks, tokens);
    for (int32_t g = 0; g < p->k_blocks / 2; g++, x_sum += x_sum_step) {
        const char *scales = w;
        vi high[MAX_BLOCKS][MAX_TOKENS], low[MAX_BLOCKS][MAX_TOKENS];
        UNROLL for (int b = 0; b < blocks; b++) {
            UNROLL for (int t = 0; t < tokens; t++) {
                high[b][t] = vi_set(0);
                low[b][t] = vi_set(-8 * x_sum[t]);
            }
        }
        w += panel;
        for (int k = 0; k < CPU_GROUP; k += 8, w += panel) {
            const char *xk = x + (k / CPU_LANES) * p->x_step + k % CPU_LANES;
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                const vi bytes = vi_load(w + 64 * b);
                const vi first = vi_low_nibbles(bytes), second = vi_high_nibbles(bytes);
                UNROLL for (int t = 0; t < tokens; t++) {
                    const char *xt = xk + 32 * t;
                    high[b][t] = vi_dot(high[b][t], first, vi_broadcast4(xt));
                    low[b][t] = vi_dot(low[b][t], first, vi_broadcast4(xt + 16));
                    high[b][t] = vi_dot(high[b][t], second, vi_broadcast4(xt + 4));
                    low[b][t] = vi_dot(low[b][t], second, vi_broadcast4(xt + 20));
                }
            }
        }
        x += 2 * p->x_step;
        UNROLL for (int b = 0; b < blocks; b++) {
            const vf scale = vf_load((const float *)(scales + 64 * b));
            UNROLL for (int t = 0; t < tokens; t++) {
                const vf sum = vf_fma(vf_from_int(high[b][t]), vf_set(128), vf_from_int(low[b][t]));
                acc[b][t] = vf_fma(scale, sum, acc[b][t]);
            }
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        UNROLL for (int t = 0; t < tokens; t++) acc[b][t] = vf_mul(acc[b][t], vf_set(x_scale[t]));
    }
}

// ---- one tile of any format

TEMPLATE void run_tile(const cpu_slice *s, const cpu_input *x, const cpu_output *out, const tile *p,
                       int32_t block, int32_t token, const cpu_format format, const int blocks,
                       const int tokens) {
    vf acc[MAX_BLOCKS][MAX_TOKENS];
    switch (format) {
    case CPU_W_F32:
        tile_clear(acc, blocks, tokens);
        tile_f32(p, acc, blocks, tokens);
        break;
    case CPU_W_F16:
        tile_clear(acc, blocks, tokens);
        tile_f16(p, acc, blocks, tokens);
        break;
    case CPU_W_BF16:
        tile_clear(acc, blocks, tokens);
        tile_bf16(p, acc, blocks, tokens);
        break;
    case CPU_W_BF16_DOT:
#ifdef SIMD_HAS_BF16_DOT
        tile_clear(acc, blocks, tokens);
        tile_bf16_dot(p, acc, blocks, tokens);
#endif
        break;
    case CPU_W_INT8:
        tile_int8(s, p, x->scale + token, block, acc, blocks, tokens);
        break;
    case CPU_W_INT4:
        tile_int4(p, x->scale + token, x->sum + token, (size_t)x->tokens, acc, blocks, tokens);
        break;
    }
    tile_store(s, out, block, token, acc, blocks, tokens);
}

// A function for every size of tile, so that each is unrolled with its accumulators in registers.
#define TILE_FUNCTION(name, format, B, T)                                                          \
    static __attribute__((noinline)) void name##_##B##x##T(const cpu_slice *s, const cpu_input *x, \
                                                           const cpu_output *out, const tile *p,   \
                                                           int32_t block, int32_t token) {         \
        run_tile(s, x, out, p, block, token, format, B, T);                                        \
    }
#define TILE_FUNCTIONS_OF(name, format, T)                                                         \
    TILE_FUNCTION(name, format, 1, T)                                                              \
    TILE_FUNCTION(name, format, 2, T)                                                              \
    TILE_FUNCTION(name, format, 3, T)
#define TILE_ROW(name, T)                                                                          \
    { name##_1x##T, name##_2x##T, name##_3x##T }

typedef void tile_function(const cpu_slice *, const cpu_input *, const cpu_output *, const tile *,
                           int32_t, int32_t);

#if SIMD_TILE_TOKENS == 8
#define TILE_TABLE(name, format)                                                                   \
    TILE_FUNCTIONS_OF(name, format, 1)                                                             \
    TILE_FUNCTIONS_OF(name, format, 2)                                                             \
    TILE_FUNCTIONS_OF(name, format, 3)                                                             \
    TILE_FUNCTIONS_OF(name, format, 4)                                                             \
    TILE_FUNCTIONS_OF(name, format, 5)                                                             \
    TILE_FUNCTIONS_OF(name, format, 6)                                                             \
    TILE_FUNCTIONS_OF(name, format, 7)                                                             \
    TILE_FUNCTIONS_OF(name, format, 8)                                                             \
    static tile_function *const name[8][CPU_PANEL_BLOCKS] = {                                      \
        TILE_ROW(name, 1), TILE_ROW(name, 2), TILE_ROW(name, 3), TILE_ROW(name, 4),                \
        TILE_ROW(name, 5), TILE_ROW(name, 6), TILE_ROW(name, 7), TILE_ROW(name, 8)};
#elif SIMD_TILE_TOKENS == 6
#define TILE_TABLE(name, format)                                                                   \
    TILE_FUNCTIONS_OF(name, format, 1)                                                             \
    TILE_FUNCTIONS_OF(name, format, 2)                                                             \
    TILE_FUNCTIONS_OF(name, format, 3)                                                             \
    TILE_FUNCTIONS_OF(name, format, 4)                                                             \
    TILE_FUNCTIONS_OF(name, format, 5)                                                             \
    TILE_FUNCTIONS_OF(name, format, 6)                                                             \
    static tile_function *const name[6][CPU_PANEL_BLOCKS] = {                                      \
        TILE_ROW(name, 1), TILE_ROW(name, 2), TILE_ROW(name, 3),                                   \
        TILE_ROW(name, 4), TILE_ROW(name, 5), TILE_ROW(name, 6)};
#else
#define TILE_TABLE(name, format)                                                                   \
    TILE_FUNCTIONS_OF(name, format, 1)                                                             \
    TILE_FUNCTIONS_OF(name, format, 2)                                                             \
    TILE_FUNCTIONS_OF(name, format, 3)                                                             \
    TILE_FUNCTIONS_OF(name, format, 4)                                                             \
    static tile_function *const name[4][CPU_PANEL_BLOCKS] = {                                      \
        TILE_ROW(name, 1), TILE_ROW(name, 2), TILE_ROW(name, 3), TILE_ROW(name, 4)};
#endif
#define TILE_TABLE_INT8(name, format)                                                              \
    TILE_FUNCTIONS_OF(name, format, 1)                                                             \
    TILE_FUNCTIONS_OF(name, format, 2)                                                             \
    TILE_FUNCTIONS_OF(name, format, 3)                                                             \
    TILE_FUNCTIONS_OF(name, format, 4)                                                             \
    static tile_function *const name[4][CPU_PANEL_BLOCKS] = {                                      \
        TILE_ROW(name, 1), TILE_ROW(name, 2), TILE_ROW(name, 3), TILE_ROW(name, 4)};
#define TILE_TABLE_INT4(name, format)                                                              \
    TILE_FUNCTIONS_OF(name, format, 1)                                                             \
    TILE_FUNCTIONS_OF(name, format, 2)                                                             \
    static tile_function *const name[2][CPU_PANEL_BLOCKS] = {TILE_ROW(name, 1), TILE_ROW(name, 2)};

TILE_TABLE(tiles_f32, CPU_W_F32)
TILE_TABLE(tiles_f16, CPU_W_F16)
TILE_TABLE(tiles_bf16, CPU_W_BF16)
#ifdef SIMD_HAS_BF16_DOT
TILE_TABLE(tiles_bf16_dot, CPU_W_BF16_DOT)
#else
#define tiles_bf16_dot tiles_bf16
#endif
TILE_TABLE_INT8(tiles_int8, CPU_W_INT8)
TILE_TABLE_INT4(tiles_int4, CPU_W_INT4)

typedef struct product_form {
    tile_function *const (*tiles)[CPU_PANEL_BLOCKS]; // [tokens - 1][blocks - 1]
    int max_tokens;
    size_t vector, inputs; // bytes of a vector, inputs that it holds
    size_t token;          // bytes of one token in a block of activations
} product_form;

static const product_form product_forms[] = {
    [CPU_W_F32] = {tiles_f32, SIMD_TILE_TOKENS, 64, 1, 64},
    [CPU_W_F16] = {tiles_f16, SIMD_TILE_TOKENS, 32, 1, 64},
    [CPU_W_BF16] = {tiles_bf16, SIMD_TILE_TOKENS, 64, 2, 64},
    [CPU_W_BF16_DOT] = {tiles_bf16_dot, SIMD_TILE_TOKENS, 64, 2, 32},
    [CPU_W_INT8] = {tiles_int8, 4, 64, 4, 32},
    [CPU_W_INT4] = {tiles_int4, 2, 64, 8, 32},
};

// Bytes of one block of 16 rows over all inputs.
static size_t block_bytes(const cpu_slice *s) {
    const product_form *f = &product_forms[s->format];
    const size_t inputs = (size_t)s->k_blocks * CPU_LANES;
    const size_t scales = s->format == CPU_W_INT4 ? inputs / CPU_GROUP * 64 : 0;
    return inputs / f->inputs * f->vector + scales;
}

static void panel_product(const cpu_slice *s, const cpu_input *x, const cpu_output *out,
                          int32_t first, int blocks) {
    const product_form *f = &product_forms[s->format];
    tile p = {.w_step = (size_t)blocks * f->vector,
              .x_step = (size_t)x->tokens * f->token,
              .k_blocks = s->k_blocks};
    const char *panel = (const char *)s->data + (size_t)first * block_bytes(s);
    int32_t groups = (x->tokens + f->max_tokens - 1) / f->max_tokens;
    for (int32_t t = 0; t < x->tokens; groups--) {
        const int tokens = (x->tokens - t + groups - 1) / groups;
        p.x = (const char *)x->data + (size_t)t * f->token;
        for (int b = 0; b < blocks;) {
            const int left = blocks - b, widest = SIMD_TILE_BLOCKS(tokens);
            const int width = left < widest ? left : widest;
            p.w = panel + (size_t)b * f->vector;
            f->tiles[tokens - 1][width - 1](s, x, out, &p, first + b, t);
            b += width;
        }
        t += tokens;
    }
}

static void product(const cpu_slice *s, const cpu_input *x, const cpu_output *out) {
#ifndef SIMD_HAS_BF16_DOT
    assert(s->format != CPU_W_BF16_DOT);
#endif
    for (int32_t first = 0; first < s->n_blocks; first += CPU_PANEL_BLOCKS) {
        const int32_t left = s->n_blocks - first;
        panel_product(s, x, out, first, left < CPU_PANEL_BLOCKS ? left : CPU_PANEL_BLOCKS);
    }
}
