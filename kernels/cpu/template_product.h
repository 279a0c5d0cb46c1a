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
// A core with two fp32 products a clock and 10 GB/s of memory (Ice Lake, AVX-512 with VNNI) shows
// what a tile waits for: the first of a panel for memory, the others for activations, which the
// second-level cache does not hold if a token is wide. So tiles fetch what comes next, wide tokens
// pass all panels in parts of PASS_BYTES, and bf16 panels are expanded to fp32 (shifts and masks
// are an eighth of such a tile). 192 tokens, one thread, share of the product ceiling, best of a
// run on a shared machine, 2026-11-27:
//
//                                            fp32 weights    bf16            int8
//   inputs                                   768    1,536    768    1,536    768    1,536
//   before                                   84%    74%      83%    83%      82%    77%
//   next panel fetched, tokens in parts      91     79       85     85       83     76
//   next activations fetched too             95     94       85     85       89     91
//   bf16 panels expanded                                     91     87
//
// By profile of a prefill of 512 there, one thread, mamba-130m / mamba2-130m with f32 activations:
// tiles 79 / 73%, panels expanded 6 / 6%, the recurrence 10 / 15%, convolution 2 / 3%, softplus 1 /
// 0%, norms 1 / 3%; int8: tiles 73 / 63%, the recurrence 16 / 24%, conversions 3 / 2%, the rest 8 /
// 11%.
//
// 16-bit activations there. A core without bf16 products that has VNNI multiplies pairs of 16-bit
// integers, twice as many a clock as fp32 numbers. So --activation-dtype bf16 means integers there:
// weights 16 bits of their row's largest, or fewer so that a sum over 256 inputs stays below 2^31
// (11 bits of normal weights, 9 of equal ones), activations 15 bits of their token's largest. Sums
// of 256 are exact, so nothing depends on company. KL against bf16 weights with fp32 activations
// 4.9e-7 (shakespeare-mamba) and 6.1e-7 (shakespeare-mamba2); bf16 activations have 7e-6. Beside
// llama.cpp in bf16, alternating, medians of 3 rounds, two Ice Lake cores (2026-11-28), prompts of
// 512 / 2,048 tokens: 4.8 / 5.2 times it with fp32 activations, 8.0 / 8.2 with these (1,463 and
// 1,611 tokens a second). bf16 weights kept as they are and made integers in registers, or a panel
// at a time: 7.3 / 5.6.
//
// Tried and dropped: windows of 64, 96 and 128 tokens (3, 2 and 1% slower); prefetching 6 to 16 KB
// ahead, and into the second level first (no change that the noise would let one see).
#include <assert.h>

#include "template_tile.h"

// Activations that pass all panels together: with a panel and the next one they stay in a second-
// level cache of 1 MB or more.
enum { PASS_BYTES = 768 << 10 };
// Tiles of a panel from which on they fetch the next one, each a part; from which on a bf16 panel
// is expanded.
enum { FETCHING_TILES = 4, EXPANDING_TILES = 12 };

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
    [CPU_W_WORD] = {tiles_word, SIMD_TILE_TOKENS, 64, 2, 32},
    [CPU_W_INT8] = {tiles_int8, 4, 64, 4, 32},
    [CPU_W_INT4] = {tiles_int4, 2, 64, 8, 32},
    [CPU_W_INT5] = {tiles_int5, 2, 64, 8, 32},
    [CPU_W_INT6] = {tiles_int6, 2, 64, 8, 32},
};

// Bytes of one block of 16 rows over all inputs.
static size_t block_bytes(const cpu_slice *s) {
    const product_form *f = &product_forms[s->format];
    const size_t inputs = (size_t)s->k_blocks * CPU_LANES;
    if (s->format >= CPU_W_INT4)
        return cpu_groups_bytes(s->format, inputs / CPU_GROUP);
    return inputs / f->inputs * f->vector;
}

// A bf16 panel as fp32 for as many tiles as make up for it: a core that does two fp32 products a
// clock is held up by every shift and mask, one with bf16 products would not use them.
static bool is_expanded(const cpu_slice *s, const cpu_input *x, size_t bytes, int32_t tiles) {
    return SIMD_EXPANDS_BF16 && x->scratch && s->format == CPU_W_BF16 && tiles >= EXPANDING_TILES &&
           2 * bytes <= CPU_SCRATCH_BYTES;
}

static void expand_panel(const char *panel, size_t bytes, size_t step, char *out) {
    for (const char *end = panel + bytes; panel < end; panel += step, out += 2 * step) {
        for (size_t i = 0; i < step; i += 64) {
            vf_store((float *)(out + i), vf_load_bf16_even((const uint16_t *)(panel + i)));
            vf_store((float *)(out + i + step), vf_load_bf16_odd((const uint16_t *)(panel + i)));
        }
    }
}

// Tokens [t, end) with the panel that begins at block `first`; `next` is the panel after it.
static void panel_product(const cpu_slice *s, const cpu_input *x, const cpu_output *out,
                          int32_t first, int32_t t, int32_t end, const char *next) {
    const product_form *f = &product_forms[s->format];
    const int32_t left = s->n_blocks - first, k_blocks = s->k_blocks;
    const int blocks = left < CPU_PANEL_BLOCKS ? left : CPU_PANEL_BLOCKS;
    const size_t bytes = (size_t)blocks * block_bytes(s);
    const char *panel = (const char *)s->data + (size_t)first * block_bytes(s);
    tile p = {.w_step = (size_t)blocks * f->vector,
              .x_step = (size_t)x->tokens * f->token,
              .k_blocks = k_blocks,
              .ahead = next};
    int32_t groups = (end - t + f->max_tokens - 1) / f->max_tokens;
    if (is_expanded(s, x, bytes, groups)) {
        expand_panel(panel, bytes, p.w_step, x->scratch);
        panel = x->scratch;
        f = &product_forms[CPU_W_F32];
    }
    if (groups >= FETCHING_TILES)
        p.ahead_step = (bytes / (size_t)groups / (size_t)k_blocks / 64 + 1) * 64;
    for (; t < end; groups--) {
        const int tokens = (end - t + groups - 1) / groups;
        p.x = (const char *)x->data + (size_t)t * f->token;
        for (int b = 0; b < blocks;) {
            const int rest = blocks - b, widest = SIMD_TILE_BLOCKS(tokens);
            const int width = rest < widest ? rest : widest;
            p.w = panel + (size_t)b * f->vector;
            f->tiles[tokens - 1][width - 1](s, x, out, &p, first + b, t);
            b += width;
        }
        t += tokens;
        p.ahead += p.ahead_step * (size_t)k_blocks;
        if (p.ahead >= next + bytes)
            p.ahead_step = 0;
    }
}

// Tokens that pass all panels together.
static int32_t tokens_of_pass(const cpu_slice *s, const cpu_input *x) {
    const size_t bytes = (size_t)s->k_blocks * product_forms[s->format].token * (size_t)x->tokens;
    const int32_t passes = (int32_t)((bytes + PASS_BYTES - 1) / PASS_BYTES);
    const int32_t tiles = (x->tokens + MAX_TOKENS - 1) / MAX_TOKENS;
    return passes < 2 ? x->tokens : (tiles + passes - 1) / passes * MAX_TOKENS;
}

static void product(const cpu_slice *s, const cpu_input *x, const cpu_output *out) {
#ifndef SIMD_HAS_BF16_DOT
    assert(s->format != CPU_W_BF16_DOT);
#endif
#ifndef SIMD_HAS_WORD_DOT
    assert(s->format != CPU_W_WORD);
#endif
    const int32_t tokens = tokens_of_pass(s, x);
    for (int32_t t = 0; t < x->tokens; t += tokens) {
        const int32_t end = x->tokens - t < tokens ? x->tokens : t + tokens;
        for (int32_t first = 0; first < s->n_blocks; first += CPU_PANEL_BLOCKS) {
            // After the last one, the first again or what was packed behind this matrix.
            const bool is_last = first + CPU_PANEL_BLOCKS >= s->n_blocks && end < x->tokens;
            const size_t next = is_last ? 0 : (size_t)(first + CPU_PANEL_BLOCKS) * block_bytes(s);
            panel_product(s, x, out, first, t, end, (const char *)s->data + next);
        }
    }
}
