// SPDX-License-Identifier: Apache-2.0
// Convolution and recurrence over a block of 16 channels; included once by each isa_*.c.
//
// The recurrence keeps up to SIMD_SCAN_STATES states of 16 channels in registers over all tokens of
// a segment, then takes the next states; y[t] carries the sum over states from one pass to the next
// in order, so a token's operations are the same whether it comes alone or in a prompt. A state
// passes through memory once a segment.
//
// Mamba-2 takes the same loop, with one decay for all states; in AVX-512 two blocks of a group
// together, so that every broadcast of B and C serves both. 16 channels, 16 states and a token are
// three operations a state, 48: 24 clocks of an Ice Lake core with its two product ports, 48 of a
// Zen 4 core with one. 64 tokens of 1,536 channels and 128 states on an Ice Lake core, best of a
// run on a shared machine, 2026-11-27; clocks a token, channels and states as above in the
// first-level cache:
//
//   a block, one chain of sums                       772 us
//   four chains                                      730         33 clocks
//   two blocks of 8 states, two chains of each       571         26
//   four blocks of 4 states                                      33
//
// Chunked products (SSD) were counted and left out, twice: of 64 channels and 128 states a token
// takes 3 x 8,192 operations here, by chunks of 64 tokens 8,192 to read the state, as many to write
// it and 2,048 to 4,096 inside the chunk. In fp32 that is a sixth to a quarter less of what is a
// seventh of a prefill (mamba2-130m, f32 activations, by profile; products are three quarters): 3%,
// and for it sums would depend on where a prompt is cut: answers with and without a cache, alone
// and in company, would no longer be equal bit for bit. So would they if the decay were taken out
// of the loop (h over the product of decays so far: two operations instead of three), unless that
// product were kept with every saved state. Products of bf16 pairs would halve the chunks, worth an
// eighth of a prefill with bf16 activations on Zen 4; that form alone could take them.

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

// What a chunk's passes over the states share, of each block.
typedef struct scan_chunk {
    float delta[2][CHUNK * CPU_LANES]; // Mamba-1: delta; Mamba-2: the decay itself
    float input[2][CHUNK * CPU_LANES]; // delta x
} scan_chunk;

static void scan_begin(const cpu_scan *s, scan_chunk *chunk, int32_t t0, int32_t count, int k) {
    const vf d = vf_load(s->d + k * CPU_LANES), a0 = vf_load(s->a + k * CPU_LANES); // Mamba-2's
    for (int32_t t = 0; t < count; t++) {
        const size_t at = (size_t)k * s->stride + (size_t)(t0 + t) * CPU_LANES;
        const vf delta = vf_load(s->delta + at), x = vf_load(s->x + at);
        vf_store(chunk->delta[k] + t * CPU_LANES,
                 s->per_state ? delta : vf_exp2(vf_mul(delta, a0)));
        vf_store(chunk->input[k] + t * CPU_LANES, vf_mul(delta, x));
        vf_store(s->y + at, vf_mul(d, x));
    }
}

static void scan_end(const cpu_scan *s, int32_t t0, int32_t count, int k) {
    const size_t first = (size_t)k * s->stride + (size_t)t0 * CPU_LANES;
    for (size_t at = first; at < first + (size_t)count * CPU_LANES; at += CPU_LANES)
        vf_store(s->y + at, vf_mul(vf_load(s->y + at), vf_silu(vf_load(s->z + at))));
}

// Chains in which a token's sum over so many states runs: one alone would wait for each product in
// turn, and a core does not look far enough ahead to fill the time with the next tokens.
#define CHAINS_OF(states) ((states) >= 16 ? 4 : (states) >= 8 ? 2 : 1)

// States [n, n + states) of `blocks` blocks from the k-th on over a chunk; their B and C lie in one
// block.
static inline __attribute__((always_inline)) void
scan_states(const cpu_scan *s, const scan_chunk *chunk, int32_t t0, int32_t count, int32_t n,
            bool zero, int k, const bool per_state, const int states, const int blocks) {
    const int chains = CHAINS_OF(states);
    vf h[2][SIMD_SCAN_STATES];
    const int32_t row = s->first[0] + n;
    const size_t at =
        (size_t)(row / CPU_LANES) * s->stride + (size_t)(row % CPU_LANES) + (size_t)t0 * CPU_LANES;
    const size_t h_step = (size_t)s->n * CPU_LANES;
    const float *a = s->a + (size_t)n * CPU_LANES, *b = s->b + at, *c = s->c + at;
    float *kept = s->h + (size_t)k * h_step + (size_t)n * CPU_LANES;
    float *y = s->y + (size_t)k * s->stride + (size_t)t0 * CPU_LANES;
    UNROLL for (int j = 0; j < blocks; j++) {
        UNROLL for (int i = 0; i < states; i++) h[j][i] =
            zero ? vf_set(0) : vf_load(kept + (size_t)j * h_step + i * CPU_LANES);
    }
    for (int32_t t = 0; t < count; t++) {
        vf delta[2], input[2], sum[2][4];
        UNROLL for (int j = 0; j < blocks; j++) {
            delta[j] = vf_load(chunk->delta[k + j] + t * CPU_LANES);
            input[j] = vf_load(chunk->input[k + j] + t * CPU_LANES);
            sum[j][0] = vf_load(y + (size_t)j * s->stride + (size_t)t * CPU_LANES);
        }
        UNROLL for (int i = 0; i < states; i++) {
            const vf b_i = vf_set(b[t * CPU_LANES + i]), c_i = vf_set(c[t * CPU_LANES + i]);
            UNROLL for (int j = 0; j < blocks; j++) {
                const vf decay =
                    per_state ? vf_exp2(vf_mul(delta[j], vf_load(a + i * CPU_LANES))) : delta[j];
                vf *const to = &sum[j][i % chains];
                h[j][i] = vf_fma(decay, h[j][i], vf_mul(input[j], b_i));
                *to = i > 0 && i < chains ? vf_mul(h[j][i], c_i) : vf_fma(h[j][i], c_i, *to);
            }
        }
        UNROLL for (int j = 0; j < blocks; j++) {
            vf *const of = sum[j];
            if (chains == 4)
                of[0] = vf_add(vf_add(of[0], of[1]), vf_add(of[2], of[3]));
            else if (chains == 2)
                of[0] = vf_add(of[0], of[1]);
            vf_store(y + (size_t)j * s->stride + (size_t)t * CPU_LANES, of[0]);
        }
    }
    UNROLL for (int j = 0; j < blocks; j++) {
        UNROLL for (int i = 0; i < states; i++)
            vf_store(kept + (size_t)j * h_step + i * CPU_LANES, h[j][i]);
    }
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
        const vf delta = vf_load(chunk->delta[0] + t * CPU_LANES);
        const vf decay =
            s->per_state ? vf_exp2(vf_mul(delta, vf_load(s->a + (size_t)n * CPU_LANES))) : delta;
        h = vf_fma(decay, h, vf_mul(vf_load(chunk->input[0] + t * CPU_LANES), vf_load(b)));
        vf_store(y + t * CPU_LANES, vf_fma(h, vf_load(c), vf_load(y + t * CPU_LANES)));
    }
    vf_store(kept, h);
}

#define SCAN_FUNCTION(name, per_state, states, blocks)                                             \
    static __attribute__((noinline)) void name(const cpu_scan *s, const scan_chunk *chunk,         \
                                               int32_t t0, int32_t count, int32_t n, bool zero,    \
                                               int k) {                                            \
        scan_states(s, chunk, t0, count, n, zero, k, per_state, states, blocks);                   \
    }
SCAN_FUNCTION(scan_mamba_wide, true, SIMD_SCAN_STATES, 1)
SCAN_FUNCTION(scan_mamba_one, true, 1, 1)
SCAN_FUNCTION(scan_mamba2_pair, false, SIMD_SCAN2_STATES, SIMD_SCAN2_BLOCKS)
SCAN_FUNCTION(scan_mamba2_wide, false, SIMD_SCAN2_STATES, 1)
SCAN_FUNCTION(scan_mamba2_one, false, 1, 1)

static void scan_chunk_states(const cpu_scan *s, const scan_chunk *chunk, int32_t t0,
                              int32_t count) {
    const bool zero = s->fresh && t0 == 0;
    const int32_t most = s->per_state ? SIMD_SCAN_STATES : SIMD_SCAN2_STATES;
    for (int32_t n = 0; n < s->n;) {
        const int32_t lane = (s->first[0] + n) % CPU_LANES;
        const bool is_wide = s->n - n >= most && lane + most <= CPU_LANES;
        if (s->mixed) {
            scan_mixed(s, chunk, t0, count, n++, zero);
            continue;
        }
        if (is_wide && s->blocks == 2 && SIMD_SCAN2_BLOCKS == 2) {
            scan_mamba2_pair(s, chunk, t0, count, n, zero, 0);
        } else {
            for (int k = 0; k < s->blocks; k++) {
                if (is_wide)
                    (s->per_state ? scan_mamba_wide : scan_mamba2_wide)(s, chunk, t0, count, n,
                                                                        zero, k);
                else
                    (s->per_state ? scan_mamba_one : scan_mamba2_one)(s, chunk, t0, count, n, zero,
                                                                      k);
            }
        }
        n += is_wide ? most : 1;
    }
}

static void scan(const cpu_scan *s) {
    scan_chunk chunk;
    assert(s->blocks == 1 || (s->blocks == 2 && !s->per_state && !s->mixed));
    for (int32_t t = 0; t < s->count; t += CHUNK) {
        const int32_t count = s->count - t < CHUNK ? s->count - t : CHUNK;
        for (int k = 0; k < s->blocks; k++)
            scan_begin(s, &chunk, t, count, k);
        scan_chunk_states(s, &chunk, t, count);
        for (int k = 0; k < s->blocks; k++)
            scan_end(s, t, count, k);
    }
}
