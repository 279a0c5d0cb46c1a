// SPDX-License-Identifier: Apache-2.0
// The operations of the CPU backend: one table an instruction set, all compiled from the same
// templates (template_*.h) over the sixteen lanes of simd_*.h.
//
// Activations are blocked: a tensor of `n` features and `tokens` tokens is [ceil(n /
// 16)][tokens][16] fp32, features past n zero. A block's tokens lie together, so that a scan walks
// one stream and a product reads six tokens of sixteen inputs from six lines in a row.
//
// Order of sums. Every output of a product is one chain of fused multiply-adds over its inputs in
// order (integers: exact sums, by groups of inputs in order), then its bias; every other operation
// works on one token or along one channel's time. So results do not depend on how many tokens or
// threads take part, or on how a sequence was cut.
#ifndef SSM_KERNELS_CPU_KERNELS_H
#define SSM_KERNELS_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CPU_LANES = 16,
    CPU_PANEL_BLOCKS = 3,
    CPU_GROUP = 32,
    CPU_STRETCH = 4,
    CPU_SCRATCH_BYTES = 320 << 10
};
enum { CPU_WORD_GROUP = 256, CPU_WORD_TOP = 16383 }; // inputs; of an activation

// How a matrix is packed: panels of up to 3 blocks of 16 rows; a panel is one stream over its
// inputs in order, each vector holding some inputs of 16 rows, the blocks' vectors in turn.
typedef enum cpu_format {
    CPU_W_F32,      // 64-byte vectors: 1 input
    CPU_W_F16,      // 32 bytes: 1 input
    CPU_W_BF16,     // 64 bytes: 2 inputs; multiplied as fp32
    CPU_W_BF16_DOT, // the same bytes, multiplied by bf16 activations, two products at a time
    CPU_W_WORD,     // 64 bytes: 2 inputs, 16-bit integers; a scale a row, so large that no sum over
                    // CPU_WORD_GROUP inputs passes 31 bits, whatever the activations are
    CPU_W_INT8,     // 64 bytes: 4 inputs; scale and sum a row
    // By groups of 32 inputs, a scale each: four vectors of nibbles, 8 inputs each, the low ones
    // (4) first. INT5 and INT6 have 1 and 2 vectors before them with the bits above the nibbles:
    // byte i of vector v holds those of byte i of the 8 or 4 times 4 inputs from 32 v or 16 v on,
    // lowest first. Codes are biased by half of their range. Before each stretch of 4 groups (or
    // the last ones) a vector of their scales, [4][16] signed bytes in units of the row's scale.
    CPU_W_INT4,
    CPU_W_INT5,
    CPU_W_INT6,
} cpu_format;

// Bits of a code above its nibble, and bytes of 16 rows of n groups.
static inline int cpu_bits_above(cpu_format format) {
    return (int)format - CPU_W_INT4;
}
static inline size_t cpu_groups_bytes(cpu_format format, size_t n) {
    const size_t vectors = (size_t)(CPU_GROUP / 8 + cpu_bits_above(format));
    return (n * vectors + (n + CPU_STRETCH - 1) / CPU_STRETCH) * 64;
}

// One thread's rows of a matrix.
typedef struct cpu_slice {
    const void *data;   // packed
    size_t bytes;       // of it
    const float *bias;  // [n_blocks * 16], zeros if the model has none
    const float *scale; // WORD, INT8 to INT6 [n_blocks * 16]
    const int32_t *sum; // INT8 [n_blocks * 16] of the row's weights
    int32_t first_block, n_blocks;
    int32_t k_blocks; // of 16 inputs; INT4 to INT6: even
    cpu_format format;
} cpu_slice;

// The forms in which products take activations.
typedef enum cpu_form {
    CPU_X_F32,  // blocked fp32
    CPU_X_BF16, // blocked bf16, 32 bytes a token and block
    CPU_X_WORD, // blocked s16 = x / scale, 32 bytes a token and block; CPU_WORD_TOP at most
    CPU_X_Q16,  // blocked u16 = 32768 + x / scale: 16 high bytes, then 16 low bytes
    CPU_X_Q15,  // blocked s15 = x / scale: 16 high signed bytes (of 128), 16 low 7-bit ones
} cpu_form;

typedef struct cpu_input {
    const void *data;
    const float *scale; // WORD, Q16, Q15: [tokens]
    const int32_t *sum; // Q15: [k_blocks / 2][tokens] of each group of 32 inputs
    void *scratch;      // CPU_SCRATCH_BYTES that no other thread uses, or NULL
    int32_t tokens;
} cpu_input;

// Where a product goes: out[block * block_stride + token * token_stride + lane].
typedef struct cpu_output {
    float *data; // of the matrix's block 0
    size_t block_stride, token_stride;
    bool add; // to what is there
} cpu_output;

// One segment of one channel block through the convolution.
typedef struct cpu_conv {
    const float *weight; // [width][16]
    const float *bias;   // [16]
    float *tail;         // [width - 1][16] in the slot, oldest first
    const float *x;      // [count][16] raw
    float *out;          // [count][16] silu(conv)
    int32_t width, count;
    bool fresh; // begins from zeros, tail is not read
} cpu_conv;

// One segment of a block of 16 channels, or of two in a row, through the recurrence; the second's
// numbers follow the first's: of a and d, of h by n * 16, of delta, x, z and y by `stride`. With
// `per_state` the decay is exp2(delta * a[n]) (Mamba-1), else exp2(delta * a[0]) for all states
// (Mamba-2).
typedef struct cpu_scan {
    const float *a;     // -exp(A_log) log2 e: [n][16] or [1][16]
    const float *d;     // [16]
    const float *delta; // [count][16]
    const float *x;     // [count][16]
    const float *z;     // [count][16] y is multiplied by silu of it
    const float *b,
        *c; // state n of token t: [(first + n) / 16 * stride + t * 16 + (first + n) % 16]
    size_t stride;
    int32_t first[16]; // of each lane (its group's); all the same but in odd geometries
    bool mixed;        // lanes differ in `first`
    float *h;          // [n][16] in the slot
    float *y;          // [count][16]
    int32_t n, count;
    int32_t blocks; // 1; 2 only where neither per_state nor mixed, and `first` is the same
    bool per_state, fresh;
} cpu_scan;

typedef struct cpu_norm {
    const float *x;      // [blocks][tokens][16]
    const float *weight; // [blocks * 16] padded with zeros, or NULL: 1
    float *out;          // [blocks][out_tokens][16]; may be x when out_tokens == tokens
    void *bf16;          // the same as CPU_X_BF16, instead of out; or NULL
    int32_t n, groups;   // features; RMS over each of `groups` equal parts
    int32_t tokens, out_tokens;
    int32_t first, count; // tokens of x to do
    int32_t out_first;    // where the first of them goes
    float eps;
} cpu_norm;

typedef struct cpu_kernels {
    const char *name;
    bool has_bf16_dot;
    bool has_word_dot; // CPU_W_WORD
    void (*product)(const cpu_slice *w, const cpu_input *x, const cpu_output *out);
    void (*conv)(const cpu_conv *args);
    void (*scan)(const cpu_scan *args);
    void (*norm)(const cpu_norm *args);
    // In place on n floats, a multiple of 16: softplus, then clamped to [lo, hi].
    void (*softplus)(float *x, size_t n, float lo, float hi);
    // Tokens [first, first + count) of [blocks][tokens][16] fp32 to another form.
    void (*convert)(cpu_form form, const float *x, int32_t blocks, int32_t tokens, int32_t first,
                    int32_t count, void *out, float *scale, int32_t *sum);

    const struct cpu_lti_kernels *lti; // lti_kernels.h

    // The machine's ceilings (template_ceiling.h): reads `bytes`, a multiple of 256; runs products
    // in registers and returns the multiply-adds done.
    float (*read_stream)(const void *data, size_t bytes);
    double (*product_rounds)(cpu_format format, int64_t rounds, float *sink);
} cpu_kernels;

// The best table for this machine no better than `limit` (a table's name; NULL: no limit). The
// names: "portable" (SSE2), "neon" (the same on aarch64), "avx2", "avx512", "avx512vnni"
// (and byte products), "avx512bf16" (and bf16 products). NULL: unknown name or not for this
// machine.
const cpu_kernels *cpu_kernels_choose(const char *limit);

#endif
