// SPDX-License-Identifier: Apache-2.0
// Norms and changes of form, token by token; included once by each isa_*.c. A token's sum of
// squares runs over blocks in each lane, then over lanes in a fixed tree.
//
// ROW_TOKENS go together. One by one, a window's blocks lie a multiple of 4 KB apart, all in one
// set of the first-level cache, so that every line came from the second level twice for its 64
// bytes. 192 tokens on an Ice Lake core, one by one and by eight: a norm of 768 66 and 42 us, Q16
// of 1,536 115 and 78 us, Q15 (whose sums were scalar) 533 and 102 us.

// The i-th number on of a tensor in the form CPU_X_BF16.
static inline void store_form_bf16(void *out, size_t i, vf v) {
#ifdef SIMD_HAS_BF16_DOT
    vf_store_bf16((uint16_t *)out + i, v);
#else
    vf_store((float *)out + i, vf_round_bf16(v));
#endif
}

enum { ROW_TOKENS = SIMD_ROW_TOKENS };

static float scale_of(double sum, int32_t n, float eps) {
    return (float)(1.0 / sqrt(sum / (double)n + (double)eps));
}

// Parts that are not whole blocks of channels: one by one.
static void norm_uneven(const cpu_norm *a, int32_t t, int32_t to) {
    const int32_t width = a->n / a->groups;
    for (int32_t g = 0; g < a->groups; g++) {
        double sum = 0;
        for (int32_t i = g * width; i < (g + 1) * width; i++) {
            const size_t at = ((size_t)(i / CPU_LANES) * (size_t)a->tokens + (size_t)t) * CPU_LANES;
            const double x = (double)a->x[at + (size_t)(i % CPU_LANES)];
            sum += x * x;
        }
        const float scale = scale_of(sum, width, a->eps);
        for (int32_t i = g * width; i < (g + 1) * width; i++) {
            const size_t block = (size_t)(i / CPU_LANES), lane = (size_t)(i % CPU_LANES);
            const float x = a->x[(block * (size_t)a->tokens + (size_t)t) * CPU_LANES + lane];
            a->out[(block * (size_t)a->out_tokens + (size_t)to) * CPU_LANES + lane] =
                x * scale * (a->weight ? a->weight[i] : 1.0f);
        }
    }
    const int32_t blocks = (a->n + CPU_LANES - 1) / CPU_LANES;
    float *last = a->out + ((size_t)(blocks - 1) * (size_t)a->out_tokens + (size_t)to) * CPU_LANES;
    for (int32_t i = a->n; i < blocks * CPU_LANES; i++)
        last[i % CPU_LANES] = 0;
}

// Blocks [first, end) of `count` tokens, n features; features past n are zero and stay it.
static inline __attribute__((always_inline)) void norm_blocks(const cpu_norm *a, int32_t t,
                                                              int32_t to, int32_t first,
                                                              int32_t end, int32_t n,
                                                              const int count) {
    const size_t step = (size_t)a->tokens * CPU_LANES, to_step = (size_t)a->out_tokens * CPU_LANES;
    const float *x = a->x + (size_t)first * step + (size_t)t * CPU_LANES;
    vf squares[ROW_TOKENS];
    float scale[ROW_TOKENS];
    UNROLL for (int j = 0; j < count; j++) squares[j] = vf_set(0);
    for (int32_t i = first; i < end; i++, x += step) {
        UNROLL for (int j = 0; j < count; j++) {
            const vf v = vf_load(x + j * CPU_LANES);
            squares[j] = vf_fma(v, v, squares[j]);
        }
    }
    UNROLL for (int j = 0; j < count; j++) scale[j] =
        scale_of((double)vf_sum(squares[j]), n, a->eps);
    x = a->x + (size_t)first * step + (size_t)t * CPU_LANES;
    size_t out = (size_t)first * to_step + (size_t)to * CPU_LANES;
    for (int32_t i = first; i < end; i++, x += step, out += to_step) {
        const vf weight = a->weight ? vf_load(a->weight + (size_t)i * CPU_LANES) : vf_set(1);
        UNROLL for (int j = 0; j < count; j++) {
            const size_t at = (size_t)j * CPU_LANES;
            const vf v = vf_mul(vf_mul(vf_load(x + at), vf_set(scale[j])), weight);
            if (a->bf16)
                store_form_bf16(a->bf16, out + at, v);
            else
                vf_store(a->out + out + at, v);
        }
    }
}

static __attribute__((noinline)) void norm_one(const cpu_norm *a, int32_t t, int32_t to,
                                               int32_t first, int32_t end, int32_t n) {
    norm_blocks(a, t, to, first, end, n, 1);
}

static __attribute__((noinline)) void norm_many(const cpu_norm *a, int32_t t, int32_t to,
                                                int32_t first, int32_t end, int32_t n) {
    norm_blocks(a, t, to, first, end, n, ROW_TOKENS);
}

static void norm(const cpu_norm *a) {
    const int32_t width = a->n / a->groups, blocks = (a->n + CPU_LANES - 1) / CPU_LANES;
    const bool is_even = a->groups == 1 || width % CPU_LANES == 0;
    for (int32_t i = 0; i < a->count;) {
        const int32_t t = a->first + i, to = a->out_first + i;
        const bool is_many = is_even && a->count - i >= ROW_TOKENS;
        for (int32_t g = 0; is_even && g < a->groups; g++)
            (is_many ? norm_many : norm_one)(a, t, to, g * width / CPU_LANES,
                                             a->groups == 1 ? blocks : (g + 1) * width / CPU_LANES,
                                             width);
        if (!is_even)
            norm_uneven(a, t, to);
        i += is_many ? ROW_TOKENS : 1;
    }
}

static void softplus(float *x, size_t n, float lo, float hi) {
    for (size_t i = 0; i < n; i += CPU_LANES) {
        const vf v = vf_softplus(vf_load(x + i));
        vf_store(x + i, vf_min(vf_set(hi), vf_max(vf_set(lo), v)));
    }
}

// ---- other forms

static void to_bf16(const float *x, int32_t blocks, int32_t tokens, int32_t first, int32_t count,
                    void *out) {
    for (int32_t b = 0; b < blocks; b++) {
        const size_t at = ((size_t)b * (size_t)tokens + (size_t)first) * CPU_LANES;
        for (size_t i = at; i < at + (size_t)count * CPU_LANES; i += CPU_LANES)
            store_form_bf16(out, i, vf_load(x + i));
    }
}

// `count` tokens to integers of at most `top`, their bytes split at bit `split` after `offset` was
// added (0: not split); if `sum` is not NULL, their sums by groups of two blocks go to it,
// `sum_step` apart.
static inline __attribute__((always_inline)) void quantise(const float *x, int32_t blocks,
                                                           size_t step, const float top,
                                                           const int split, const int32_t offset,
                                                           uint8_t *out, float *scale, int32_t *sum,
                                                           size_t sum_step, const int count) {
    vf largest[ROW_TOKENS], poison[ROW_TOKENS], group[ROW_TOKENS];
    float inverse[ROW_TOKENS];
    UNROLL for (int j = 0; j < count; j++) largest[j] = poison[j] = group[j] = vf_set(0);
    for (int32_t b = 0; b < blocks; b++) {
        UNROLL for (int j = 0; j < count; j++) {
            const vf v = vf_load(x + (size_t)b * step + j * CPU_LANES);
            largest[j] = vf_max(largest[j], vf_abs(v));
            poison[j] = vf_fma(v, vf_set(0), poison[j]);
        }
    }
    UNROLL for (int j = 0; j < count; j++) {
        const float max = vf_max_lane(largest[j]);
        // The scale carries NaN and infinity into all outputs of this token.
        const bool is_finite = vf_sum(poison[j]) == 0;
        scale[j] = is_finite ? max / top : NAN;
        inverse[j] = is_finite && max > 0 ? top / max : 0;
    }
    for (int32_t b = 0; b < blocks; b++) {
        uint8_t *bytes = out + (size_t)b * step * 2;
        UNROLL for (int j = 0; j < count; j++, bytes += 2 * CPU_LANES) {
            const vf v = vf_load(x + (size_t)b * step + j * CPU_LANES);
            const vf scaled = vf_mul(v, vf_set(inverse[j])); // NaN becomes some integer or other
            const vi q = vi_sub(vi_from_float(scaled), vi_set(-offset));
#ifdef SIMD_HAS_WORD_DOT
            if (split == 0) {
                vi_store_low_words(bytes, q);
                continue;
            }
#endif
            vi_store_low_bytes(bytes, vi_shift_right(q, split));
            vi_store_low_bytes(bytes + CPU_LANES, q);
            if (split == 7) {
                for (int i = 0; i < CPU_LANES; i++)
                    bytes[CPU_LANES + i] &= 127;
            }
            if (!sum)
                continue;
            group[j] = vf_add(group[j], vf_from_int(q)); // exact: 32 integers of 15 bits
            if (b % 2 == 1 || b == blocks - 1) {
                sum[(size_t)(b / 2) * sum_step + (size_t)j] =
                    scale[j] == scale[j] ? (int32_t)vf_sum(group[j]) : 0;
                group[j] = vf_set(0);
            }
        }
    }
}

static inline __attribute__((always_inline)) void convert_q(const cpu_form form, const float *x,
                                                            int32_t blocks, int32_t tokens,
                                                            int32_t t, uint8_t *out, float *scale,
                                                            int32_t *sum, const int count) {
    const size_t step = (size_t)tokens * CPU_LANES;
    uint8_t *bytes = out + (size_t)t * 2 * CPU_LANES;
    x += (size_t)t * CPU_LANES;
    if (form != CPU_X_Q15) {
        const bool is_word = form == CPU_X_WORD;
        quantise(x, blocks, step, is_word ? CPU_WORD_TOP : 32767, is_word ? 0 : 8,
                 is_word ? 0 : 32768, bytes, scale + t, NULL, 0, count);
        return;
    }
    quantise(x, blocks, step, 16383, 7, 0, bytes, scale + t, sum + t, (size_t)tokens, count);
    if (blocks % 2 != 0) // groups are of two blocks
        memset(bytes + (size_t)blocks * step * 2, 0, (size_t)count * 2 * CPU_LANES);
}

#define CONVERT_FUNCTION(name, form, count)                                                        \
    static __attribute__((noinline)) void name(const float *x, int32_t blocks, int32_t tokens,     \
                                               int32_t t, uint8_t *out, float *scale,              \
                                               int32_t *sum) {                                     \
        convert_q(form, x, blocks, tokens, t, out, scale, sum, count);                             \
    }
#ifdef SIMD_HAS_WORD_DOT
CONVERT_FUNCTION(to_word_one, CPU_X_WORD, 1)
CONVERT_FUNCTION(to_word_many, CPU_X_WORD, ROW_TOKENS)
#endif
CONVERT_FUNCTION(to_q16_one, CPU_X_Q16, 1)
CONVERT_FUNCTION(to_q16_many, CPU_X_Q16, ROW_TOKENS)
CONVERT_FUNCTION(to_q15_one, CPU_X_Q15, 1)
CONVERT_FUNCTION(to_q15_many, CPU_X_Q15, ROW_TOKENS)

typedef void convert_function(const float *x, int32_t blocks, int32_t tokens, int32_t t,
                              uint8_t *out, float *scale, int32_t *sum);

static void convert(cpu_form form, const float *x, int32_t blocks, int32_t tokens, int32_t first,
                    int32_t count, void *out, float *scale, int32_t *sum) {
    if (form == CPU_X_BF16) {
        to_bf16(x, blocks, tokens, first, count, out);
        return;
    }
    static convert_function *const functions[][2] = {
#ifdef SIMD_HAS_WORD_DOT
        [CPU_X_WORD] = {to_word_one, to_word_many},
#endif
        [CPU_X_Q16] = {to_q16_one, to_q16_many},
        [CPU_X_Q15] = {to_q15_one, to_q15_many}};
    assert(functions[form][0]);
    for (int32_t t = first; t < first + count;) {
        const bool is_many = first + count - t >= ROW_TOKENS;
        functions[form][is_many](x, blocks, tokens, t, out, scale, sum);
        t += is_many ? ROW_TOKENS : 1;
    }
}
