// SPDX-License-Identifier: Apache-2.0
// Convolution and recurrence over a block of 16 channels; included once by each isa_*.c.
//
// The recurrence keeps up to SIMD_SCAN_STATES states of 16 channels in registers over all tokens of
// a segment, then takes the next states; y[t] carries the sum over states from one pass to the next
// in order, so a token's operations are the same whether it comes alone or in a prompt. A state
// passes through memory once a segment.
//
// Mamba-2 takes the same loop, with one decay for all states. Chunked products (SSD) were counted
// and left out: of 64 channels and 128 states a token takes 3 x 8,192 operations here, by chunks of
// 64 tokens 8,192 to read the state, as many to write it and 2,048 to 4,096 inside the chunk. In
// fp32 that is a sixth to a quarter less of what is a quarter of a prefill, and for it sums would
// depend on where a prompt is cut: answers with and without a cache, alone and in company, would no
// longer be equal bit for bit. Products of bf16 pairs would halve it, worth an eighth of a prefill
// with bf16 activations (mamba2-130m, by profile); that form alone could take them.

// Chains in which a token's sum over states runs: one alone would wait for each product in turn,
// and a core does not look far enough ahead to fill the time with the next tokens.
enum { CHAINS_OF_SUM = 4 };
enum { CHUNK = 64 }; // tokens whose decays and inputs are made ahead, in first-level cache

static inline __attribute__((always_inline)) void conv_chunk(const float *raw, const float *weight,
                                                             const float *bias, float *out,
                                                             int32_t count, const int32_t width) {
    const vf b = vf_load(bias);
    for (int32_t t = 0; t < count; t++, raw += CPU_LANES, out += CPU_LANES) {
        vf sum = b;
        for (int32_t j = 0; j < width; j++)
            sum = vf_fma(vf_load(weight + j * CPU_LANES), vf_load(raw + j * CPU_LANES), sum);
        vf_store(out, vf_silu(sum));
    }
}

enum { MAX_CONV_WIDTH = 64 };

static void conv(const cpu_conv *a) {
    float raw[(MAX_CONV_WIDTH + CHUNK) * CPU_LANES];
    const int32_t kept = a->width - 1;
    const size_t kept_bytes = (size_t)kept * CPU_LANES * sizeof(float);
    if (a->fresh)
        memset(raw, 0, kept_bytes);
    else
        memcpy(raw, a->tail, kept_bytes);
    for (int32_t t = 0; t < a->count; t += CHUNK) {
        const int32_t n = a->count - t < CHUNK ? a->count - t : CHUNK;
        memcpy(raw + (size_t)kept * CPU_LANES, a->x + (size_t)t * CPU_LANES,
               (size_t)n * CPU_LANES * sizeof(float));
        float *out = a->out + (size_t)t * CPU_LANES;
        if (a->width == 4)
            conv_chunk(raw, a->weight, a->bias, out, n, 4);
        else
            conv_chunk(raw, a->weight, a->bias, out, n, a->width);
        memmove(raw, raw + (size_t)n * CPU_LANES, kept_bytes);
    }
    memcpy(a->tail, raw, kept_bytes);
}

// What a chunk's passes over the states share.
typedef struct scan_chunk {
    float delta[CHUNK * CPU_LANES]; // Mamba-1: delta; Mamba-2: the decay itself
    float input[CHUNK * CPU_LANES]; // delta x
} scan_chunk;

static void scan_begin(const cpu_scan *s, scan_chunk *chunk, int32_t t0, int32_t count) {
    const vf d = vf_load(s->d), a0 = vf_load(s->a);
    for (int32_t t = 0; t < count; t++) {
        const size_t at = (size_t)(t0 + t) * CPU_LANES;
        const vf delta = vf_load(s->delta + at), x = vf_load(s->x + at);
        vf_store(chunk->delta + t * CPU_LANES, s->per_state ? delta : vf_exp2(vf_mul(delta, a0)));
        vf_store(chunk->input + t * CPU_LANES, vf_mul(delta, x));
        vf_store(s->y + at, vf_mul(d, x));
    }
}

static void scan_end(const cpu_scan *s, int32_t t0, int32_t count) {
    for (size_t at = (size_t)t0 * CPU_LANES; at < (size_t)(t0 + count) * CPU_LANES; at += CPU_LANES)
        vf_store(s->y + at, vf_mul(vf_load(s->y + at), vf_silu(vf_load(s->z + at))));
}

// States [n, n + states) over a chunk; their B and C lie in one block.
static inline __attribute__((always_inline)) void
scan_states(const cpu_scan *s, const scan_chunk *chunk, int32_t t0, int32_t count, int32_t n,
            bool zero, const bool per_state, const int states) {
    vf h[SIMD_SCAN_STATES];
    const int32_t row = s->first[0] + n;
    const size_t at =
        (size_t)(row / CPU_LANES) * s->stride + (size_t)(row % CPU_LANES) + (size_t)t0 * CPU_LANES;
    const float *a = s->a + (size_t)n * CPU_LANES, *b = s->b + at, *c = s->c + at;
    float *kept = s->h + (size_t)n * CPU_LANES, *y = s->y + (size_t)t0 * CPU_LANES;
    UNROLL for (int i = 0; i < states; i++) h[i] = zero ? vf_set(0) : vf_load(kept + i * CPU_LANES);
    for (int32_t t = 0; t < count; t++) {
        const vf delta = vf_load(chunk->delta + t * CPU_LANES);
        const vf input = vf_load(chunk->input + t * CPU_LANES);
        vf sum[CHAINS_OF_SUM] = {vf_load(y + t * CPU_LANES), vf_set(0), vf_set(0), vf_set(0)};
        UNROLL for (int i = 0; i < states; i++) {
            const vf decay = per_state ? vf_exp2(vf_mul(delta, vf_load(a + i * CPU_LANES))) : delta;
            const vf in = vf_mul(input, vf_set(b[t * CPU_LANES + i]));
            const vf c_i = vf_set(c[t * CPU_LANES + i]);
            const int chain = i % CHAINS_OF_SUM;
            h[i] = vf_fma(decay, h[i], in);
            sum[chain] =
                i > 0 && i < CHAINS_OF_SUM ? vf_mul(h[i], c_i) : vf_fma(h[i], c_i, sum[chain]);
        }
        if (states > 1)
            sum[0] = vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3]));
        vf_store(y + t * CPU_LANES, sum[0]);
    }
    UNROLL for (int i = 0; i < states; i++) vf_store(kept + i * CPU_LANES, h[i]);
}

// One state whose B and C differ by lane: channels of several groups share the block.
static void scan_mixed(const cpu_scan *s, const scan_chunk *chunk, int32_t t0, int32_t count,
                       int32_t n, bool zero) {
    float *kept = s->h + (size_t)n * CPU_LANES, *y = s->y + (size_t)t0 * CPU_LANES;
    vf h = zero ? vf_set(0) : vf_load(kept);
    for (int32_t t = 0; t < count; t++) {
        float b[CPU_LANES], c[CPU_LANES];
        for (int lane = 0; lane < CPU_LANES; lane++) {
            const int32_t row = s->first[lane] + n;
            const size_t at = (size_t)(row / CPU_LANES) * s->stride + (size_t)(row % CPU_LANES) +
                              (size_t)(t0 + t) * CPU_LANES;
            b[lane] = s->b[at], c[lane] = s->c[at];
        }
        const vf delta = vf_load(chunk->delta + t * CPU_LANES);
        const vf decay =
            s->per_state ? vf_exp2(vf_mul(delta, vf_load(s->a + (size_t)n * CPU_LANES))) : delta;
        h = vf_fma(decay, h, vf_mul(vf_load(chunk->input + t * CPU_LANES), vf_load(b)));
        vf_store(y + t * CPU_LANES, vf_fma(h, vf_load(c), vf_load(y + t * CPU_LANES)));
    }
    vf_store(kept, h);
}

#define SCAN_FUNCTION(name, per_state, states)                                                     \
    static __attribute__((noinline)) void name(const cpu_scan *s, const scan_chunk *chunk,         \
                                               int32_t t0, int32_t count, int32_t n, bool zero) {  \
        scan_states(s, chunk, t0, count, n, zero, per_state, states);                              \
    }
SCAN_FUNCTION(scan_mamba_wide, true, SIMD_SCAN_STATES)
SCAN_FUNCTION(scan_mamba_one, true, 1)
SCAN_FUNCTION(scan_mamba2_wide, false, SIMD_SCAN_STATES)
SCAN_FUNCTION(scan_mamba2_one, false, 1)

static void scan_chunk_states(const cpu_scan *s, const scan_chunk *chunk, int32_t t0,
                              int32_t count) {
    const bool zero = s->fresh && t0 == 0;
    for (int32_t n = 0; n < s->n;) {
        const int32_t lane = (s->first[0] + n) % CPU_LANES;
        if (s->mixed) {
            scan_mixed(s, chunk, t0, count, n++, zero);
        } else if (s->n - n >= SIMD_SCAN_STATES && lane + SIMD_SCAN_STATES <= CPU_LANES) {
            (s->per_state ? scan_mamba_wide : scan_mamba2_wide)(s, chunk, t0, count, n, zero);
            n += SIMD_SCAN_STATES;
        } else {
            (s->per_state ? scan_mamba_one : scan_mamba2_one)(s, chunk, t0, count, n++, zero);
        }
    }
}

static void scan(const cpu_scan *s) {
    scan_chunk chunk;
    for (int32_t t = 0; t < s->count; t += CHUNK) {
        const int32_t count = s->count - t < CHUNK ? s->count - t : CHUNK;
        scan_begin(s, &chunk, t, count);
        scan_chunk_states(s, &chunk, t, count);
        scan_end(s, t, count);
    }
}
