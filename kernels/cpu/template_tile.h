// SPDX-License-Identifier: Apache-2.0
// Tiles of products, a function for every format and size: some blocks of 16 rows by some tokens,
// in registers for all inputs. Included by template_product.h, which has the figures.

#define TEMPLATE    static inline __attribute__((always_inline))
#define UNROLL      _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch((const char *)(p) + 4096)

typedef struct tile {
    const char *w; // of the tile's first block at the first input
    size_t w_step; // bytes from one vector of a block to its next
    const char *x; // of the tile's first token
    size_t x_step; // bytes from one block of 16 inputs to the next
    int32_t k_blocks;
    const char *ahead; // the part of the next panel that this tile fetches
    size_t ahead_step; // bytes of it for each block of inputs
} tile;

#define MAX_BLOCKS CPU_PANEL_BLOCKS
#define MAX_TOKENS SIMD_TILE_TOKENS

// In the i-th block of inputs: what comes next of activations to the first level, of weights to the
// second. A few tokens are read in one pass over the weights, which PREFETCH sees to.
TEMPLATE void tile_fetch(const tile *p, const char *x, int32_t i, const size_t token_bytes,
                         const int tokens) {
    if (tokens == 1)
        return;
    for (size_t n = 0; n < (size_t)tokens * token_bytes; n += 64)
        __builtin_prefetch(x + p->x_step + n);
    const char *at = p->ahead + (size_t)i * p->ahead_step;
    for (size_t n = 0; n < p->ahead_step; n += 64)
        __builtin_prefetch(at + n, 0, 2);
}

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

// Vectors of weights, of the i-th block of inputs. TSan takes twenty times as long over one as a
// tile does: it hears of a tile's first block, since weights are written before the first step, as
// a whole, or not at all.
#ifdef SIMD_HAS_UNWATCHED
#define WEIGHTS(load, type, p, i) ((i) > 0 ? load##_unwatched(p) : load((const type *)(p)))
#else
#define WEIGHTS(load, type, p, i) load((const type *)(p))
#endif

TEMPLATE void tile_f32(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                       const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        tile_fetch(p, x, i, 64, tokens);
        for (int k = 0; k < CPU_LANES; k++, w += p->w_step) {
            vf wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = WEIGHTS(vf_load, float, w + 64 * b, i);
            }
            tile_add(acc, wk, (const float *)x + k, blocks, tokens);
        }
    }
}

TEMPLATE void tile_f16(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                       const int tokens) {
    const char *w = p->w, *x = p->x;
    for (int32_t i = 0; i < p->k_blocks; i++, x += p->x_step) {
        tile_fetch(p, x, i, 64, tokens);
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
        tile_fetch(p, x, i, 64, tokens);
        for (int k = 0; k < CPU_LANES; k += 2, w += p->w_step) {
            vf wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(w + 64 * b);
                wk[b] = WEIGHTS(vf_load_bf16_even, uint16_t, w + 64 * b, i);
            }
            tile_add(acc, wk, (const float *)x + k, blocks, tokens);
            UNROLL for (int b = 0; b < blocks; b++) wk[b] =
                WEIGHTS(vf_load_bf16_odd, uint16_t, w + 64 * b, i);
            tile_add(acc, wk, (const float *)x + k + 1, blocks, tokens);
        }
    }
}

// ---- two inputs of 16 bits at a time: bf16 into fp32 sums, or integers into integer ones

#ifdef SIMD_HAS_PAIR_DOT
// Blocks of inputs [i, end): w and x go on behind them.
TEMPLATE void tile_pairs(const tile *p, int32_t i, int32_t end, const char **w, const char **x,
                         vpair acc[MAX_BLOCKS][MAX_TOKENS], const int blocks, const int tokens) {
    for (; i < end; i++, *x += p->x_step) {
        tile_fetch(p, *x, i, 32, tokens);
        for (int k = 0; k < CPU_LANES / 2; k++, *w += p->w_step) {
            vi wk[MAX_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                PREFETCH(*w + 64 * b);
                wk[b] = vi_load(*w + 64 * b);
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                const vi xt = vi_broadcast4(*x + 32 * t + 4 * k);
                UNROLL for (int b = 0; b < blocks; b++) acc[b][t] = vpair_dot(acc[b][t], wk[b], xt);
            }
        }
    }
}
#endif

#ifdef SIMD_HAS_BF16_DOT
TEMPLATE void tile_bf16_dot(const tile *p, vf acc[MAX_BLOCKS][MAX_TOKENS], const int blocks,
                            const int tokens) {
    const char *w = p->w, *x = p->x;
    tile_pairs(p, 0, p->k_blocks, &w, &x, acc, blocks, tokens);
}
#endif

#ifdef SIMD_HAS_WORD_DOT
// Sums of a group are integers and exact, those of groups fp32.
TEMPLATE void tile_word(const cpu_slice *s, const tile *p, const float *x_scale, int32_t block,
                        vf out[MAX_BLOCKS][MAX_TOKENS], const int blocks, const int tokens) {
    const char *w = p->w, *x = p->x;
    vi acc[MAX_BLOCKS][MAX_TOKENS];
    tile_clear(out, blocks, tokens);
    for (int32_t i = 0, end; i < p->k_blocks; i = end) {
        const int32_t group = CPU_WORD_GROUP / CPU_LANES;
        end = p->k_blocks - i < group ? p->k_blocks : i + group;
        UNROLL for (int b = 0; b < blocks; b++) {
            UNROLL for (int t = 0; t < tokens; t++) acc[b][t] = vi_set(0);
        }
        tile_pairs(p, i, end, &w, &x, acc, blocks, tokens);
        UNROLL for (int b = 0; b < blocks; b++) {
            UNROLL for (int t = 0; t < tokens; t++) out[b][t] =
                vf_add(out[b][t], vf_from_int(acc[b][t]));
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        const vf unit = vf_load(s->scale + (size_t)(block + b) * CPU_LANES);
        UNROLL for (int t = 0; t < tokens; t++) out[b][t] =
            vf_mul(out[b][t], vf_mul(unit, vf_set(x_scale[t])));
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
        tile_fetch(p, x, i, 32, tokens);
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

// One vector of 8 inputs' codes: those of the first four, of the last four. `above` bits of each
// lie outside of the nibbles, in the group's first vectors.
TEMPLATE void load_codes(const char *w, const char *bits, size_t panel, const int i,
                         const int above, vi *first, vi *second) {
    const vi nibbles = vi_load(w);
    *first = vi_low_nibbles(nibbles);
    *second = vi_high_nibbles(nibbles);
    if (above > 0) {
        const int from = 2 * i * above % 8, mask = ((1 << above) - 1) << 4;
        const vi more = vi_load(bits + (size_t)(2 * i * above / 8) * panel);
        *first = vi_add_bits(*first, more, from, mask);
        *second = vi_add_bits(*second, more, from + above, mask);
    }
}

// Constant shifts where those are single instructions; elsewhere this would only cost compile time.
#if SIMD_TILE_TOKENS > 4
#define UNROLL_GROUP UNROLL
#else
#define UNROLL_GROUP
#endif

// Q15: (u - middle) . q = 128 (u . high) + u . low - middle sum(q), exact in int32 for a group.
TEMPLATE void tile_group(const tile *p, const char *w, const char *x, const int32_t *x_sum,
                         vf sum[MAX_BLOCKS][MAX_TOKENS], const int above, const int blocks,
                         const int tokens) {
    const size_t panel = p->w_step;
    const char *bits = w;
    vi high[MAX_BLOCKS][MAX_TOKENS], low[MAX_BLOCKS][MAX_TOKENS];
    UNROLL for (int b = 0; b < blocks; b++) {
        UNROLL for (int t = 0; t < tokens; t++) {
            high[b][t] = vi_set(0);
            low[b][t] = vi_set(-(8 << above) * x_sum[t]);
        }
        UNROLL for (int i = 0; i < above; i++) PREFETCH(w + (size_t)i * panel + 64 * b);
    }
    w += (size_t)above * panel;
    UNROLL_GROUP for (int i = 0; i < CPU_GROUP / 8; i++, w += panel) {
        const char *xi = x + (i / 2) * p->x_step + i % 2 * 8;
        UNROLL for (int b = 0; b < blocks; b++) {
            PREFETCH(w + 64 * b);
            vi first, second;
            load_codes(w + 64 * b, bits + 64 * b, panel, i, above, &first, &second);
            UNROLL for (int t = 0; t < tokens; t++) {
                const char *xt = xi + 32 * t;
                high[b][t] = vi_dot(high[b][t], first, vi_broadcast4(xt));
                low[b][t] = vi_dot(low[b][t], first, vi_broadcast4(xt + 16));
                high[b][t] = vi_dot(high[b][t], second, vi_broadcast4(xt + 4));
                low[b][t] = vi_dot(low[b][t], second, vi_broadcast4(xt + 20));
            }
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        UNROLL for (int t = 0; t < tokens; t++) sum[b][t] =
            vf_fma(vf_from_int(high[b][t]), vf_set(128), vf_from_int(low[b][t]));
    }
}

TEMPLATE void tile_groups(const cpu_slice *s, const tile *p, const cpu_input *in, int32_t token,
                          int32_t block, vf acc[MAX_BLOCKS][MAX_TOKENS], const int above,
                          const int blocks, const int tokens) {
    const char *w = p->w, *x = p->x, *scales = w;
    const int32_t *x_sum = in->sum + token;
    const size_t panel = p->w_step;
    tile_clear(acc, blocks, tokens);
    for (int32_t g = 0; g < p->k_blocks / 2; g++, x_sum += in->tokens, x += 2 * p->x_step) {
        tile_fetch(p, x + p->x_step, 2 * g, 32, tokens);
        tile_fetch(p, x + 2 * p->x_step, 2 * g + 1, 32, tokens);
        if (g % CPU_STRETCH == 0) {
            scales = w;
            UNROLL for (int b = 0; b < blocks; b++) PREFETCH(w + 64 * b);
            w += panel;
        }
        vf sum[MAX_BLOCKS][MAX_TOKENS];
        tile_group(p, w, x, x_sum, sum, above, blocks, tokens);
        w += (size_t)(above + CPU_GROUP / 8) * panel;
        UNROLL for (int b = 0; b < blocks; b++) {
            const char *at = scales + 64 * b + g % CPU_STRETCH * CPU_LANES;
            const vf scale = vf_load_s8((const int8_t *)at);
            UNROLL for (int t = 0; t < tokens; t++) acc[b][t] = vf_fma(scale, sum[b][t], acc[b][t]);
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        const vf unit = vf_load(s->scale + (size_t)(block + b) * CPU_LANES);
        UNROLL for (int t = 0; t < tokens; t++) acc[b][t] =
            vf_mul(acc[b][t], vf_mul(unit, vf_set(in->scale[token + t])));
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
    case CPU_W_WORD:
#ifdef SIMD_HAS_WORD_DOT
        tile_word(s, p, x->scale + token, block, acc, blocks, tokens);
#endif
        break;
    case CPU_W_INT8:
        tile_int8(s, p, x->scale + token, block, acc, blocks, tokens);
        break;
    case CPU_W_INT4:
        tile_groups(s, p, x, token, block, acc, 0, blocks, tokens);
        break;
    case CPU_W_INT5:
        tile_groups(s, p, x, token, block, acc, 1, blocks, tokens);
        break;
    case CPU_W_INT6:
        tile_groups(s, p, x, token, block, acc, 2, blocks, tokens);
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
// NULL, and not compiled, where no product asks for it: AVX2's tiles of a format have 126 vectors
// of sums, those of them that are used 36. Portable kernels took four times as long to compile.
#define TILE_USED(name, B, T) (B <= SIMD_TILE_BLOCKS(T) ? name##_##B##x##T : NULL)
#define TILE_ROW(name, T)                                                                          \
    { TILE_USED(name, 1, T), TILE_USED(name, 2, T), TILE_USED(name, 3, T) }

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
#define TILE_TABLE_GROUPS(name, format)                                                            \
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
#ifdef SIMD_HAS_WORD_DOT
TILE_TABLE(tiles_word, CPU_W_WORD)
#else
#define tiles_word tiles_bf16
#endif
TILE_TABLE_INT8(tiles_int8, CPU_W_INT8)
TILE_TABLE_GROUPS(tiles_int4, CPU_W_INT4)
TILE_TABLE_GROUPS(tiles_int5, CPU_W_INT5)
TILE_TABLE_GROUPS(tiles_int6, CPU_W_INT6)
