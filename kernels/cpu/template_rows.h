// SPDX-License-Identifier: Apache-2.0
// Norms and changes of form, token by token; included once by each isa_*.c. A token's sum of
// squares runs over blocks in each lane, then over lanes in a fixed tree.

// The i-th number on of a tensor in the form CPU_X_BF16.
static inline void store_form_bf16(void *out, size_t i, vf v) {
#ifdef SIMD_HAS_BF16_DOT
    vf_store_bf16((uint16_t *)out + i, v);
#else
    vf_store((float *)out + i, vf_round_bf16(v));
#endif
}

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

// Blocks [first, end) of one token, n features; features past n are zero and stay it.
static void norm_blocks(const cpu_norm *a, int32_t t, int32_t to, int32_t first, int32_t end,
                        int32_t n) {
    const size_t step = (size_t)a->tokens * CPU_LANES, to_step = (size_t)a->out_tokens * CPU_LANES;
    const float *x = a->x + (size_t)first * step + (size_t)t * CPU_LANES;
    vf squares = vf_set(0);
    for (int32_t i = first; i < end; i++, x += step)
        squares = vf_fma(vf_load(x), vf_load(x), squares);
    const vf scale = vf_set(scale_of((double)vf_sum(squares), n, a->eps));
    x = a->x + (size_t)first * step + (size_t)t * CPU_LANES;
    size_t out = (size_t)first * to_step + (size_t)to * CPU_LANES;
    for (int32_t i = first; i < end; i++, x += step, out += to_step) {
        vf v = vf_mul(vf_load(x), scale);
        if (a->weight)
            v = vf_mul(v, vf_load(a->weight + (size_t)i * CPU_LANES));
        if (a->bf16)
            store_form_bf16(a->bf16, out, v);
        else
            vf_store(a->out + out, v);
    }
}

static void norm(const cpu_norm *a) {
    const int32_t width = a->n / a->groups, blocks = (a->n + CPU_LANES - 1) / CPU_LANES;
    for (int32_t i = 0; i < a->count; i++) {
        const int32_t t = a->first + i, to = a->out_first + i;
        if (a->groups == 1) {
            norm_blocks(a, t, to, 0, blocks, a->n);
        } else if (width % CPU_LANES == 0) {
            for (int32_t g = 0; g < a->groups; g++)
                norm_blocks(a, t, to, g * width / CPU_LANES, (g + 1) * width / CPU_LANES, width);
        } else {
            norm_uneven(a, t, to);
        }
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

// One token to integers of at most `top`, their bytes split at bit `split` after `offset` was
// added.
static float quantise(const float *x, int32_t blocks, size_t step, float top, int split,
                      int32_t offset, uint8_t *out) {
    vf largest = vf_set(0), poison = vf_set(0);
    for (int32_t b = 0; b < blocks; b++) {
        const vf v = vf_load(x + (size_t)b * step);
        largest = vf_max(largest, vf_abs(v));
        poison = vf_fma(v, vf_set(0), poison);
    }
    const float max = vf_max_lane(largest);
    if (vf_sum(poison) != 0) // the scale carries NaN and infinity into all outputs of this token
        return NAN;
    const vf inverse = vf_set(max > 0 ? top / max : 0);
    for (int32_t b = 0; b < blocks; b++) {
        const vi q =
            vi_sub(vi_from_float(vf_mul(vf_load(x + (size_t)b * step), inverse)), vi_set(-offset));
        uint8_t *bytes = out + (size_t)b * step * 2;
        vi_store_low_bytes(bytes, vi_shift_right(q, split));
        vi_store_low_bytes(bytes + CPU_LANES, q);
        if (split == 7) {
            for (int i = 0; i < CPU_LANES; i++)
                bytes[CPU_LANES + i] &= 127;
        }
    }
    return max > 0 ? max / top : 0;
}

static void group_sums(const uint8_t *bytes, int32_t blocks, size_t step, int32_t tokens,
                       int32_t *sum) {
    for (int32_t g = 0; g < (blocks + 1) / 2; g++) {
        int32_t total = 0;
        for (int i = 0; i < CPU_GROUP; i++) {
            const uint8_t *q = bytes + (size_t)(2 * g + i / CPU_LANES) * step + i % CPU_LANES;
            total += 128 * (int8_t)q[0] + q[CPU_LANES];
        }
        sum[(size_t)g * (size_t)tokens] = total;
    }
}

static void convert(cpu_form form, const float *x, int32_t blocks, int32_t tokens, int32_t first,
                    int32_t count, void *out, float *scale, int32_t *sum) {
    if (form == CPU_X_BF16) {
        to_bf16(x, blocks, tokens, first, count, out);
        return;
    }
    const size_t step = (size_t)tokens * CPU_LANES;
    for (int32_t t = first; t < first + count; t++) {
        uint8_t *bytes = (uint8_t *)out + (size_t)t * 2 * CPU_LANES;
        const float *xt = x + (size_t)t * CPU_LANES;
        if (form == CPU_X_Q16) {
            scale[t] = quantise(xt, blocks, step, 32767, 8, 32768, bytes);
        } else {
            scale[t] = quantise(xt, blocks, step, 16383, 7, 0, bytes);
            if (blocks % 2 != 0) // groups are of two blocks
                memset(bytes + (size_t)blocks * step * 2, 0, 2 * CPU_LANES);
            group_sums(bytes, blocks, 2 * step, tokens, sum + t);
        }
    }
}
