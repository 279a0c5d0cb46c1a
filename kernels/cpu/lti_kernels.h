// SPDX-License-Identifier: Apache-2.0
// Operations of the linear time-invariant layers on blocks of 16 channels: like kernels.h, one
// table an instruction set, from template_lti.h.
#ifndef SSM_KERNELS_CPU_LTI_KERNELS_H
#define SSM_KERNELS_CPU_LTI_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LTI_POLE_FLOATS =
        6,           // of a pole, each of 16 lanes: Ab, Bb, 2 C, real and imaginary, C's negated
    LTI_ROWS = 4,    // of a dense Ab that lie together
    LTI_BLOCK = 256, // tokens of a convolution
    LTI_PART = 32,   // tokens of a block that share one state: counts are multiples of it
    LTI_SPECTRUM_FLOATS = (LTI_BLOCK / 2 + 1) * 4, // of a channel
    LTI_PAIRS = 32, // tokens of a convolution of H3's pairs: two vectors
};

// Some tokens of a block of channels through a diagonal SSM. Without weights y = D u + sum_n 2 Re(C
// s); with them, H3's, that times weight is added to y.
typedef struct lti_poles {
    const float *poles;  // [n][6][16]
    const float *d;      // [16]
    const float *u;      // [count][16]
    const float *weight; // [count][16] or NULL
    float *y;            // [count][16], not u
    float *s;            // [n][2][16] in the slot
    int32_t n, count;
    bool fresh; // begins from zeros, s is not read
} lti_poles;

// The same through a dense one: Ab by groups of LTI_ROWS rows, each group [n][LTI_ROWS][16], the
// last one filled with zeros.
typedef struct lti_dense_scan {
    const float *ab, *bb, *c; // [groups][n][4][16], [groups * 4][16], [n][16]
    const float *d;           // [16]
    const float *u;           // [count][16]
    float *y;                 // [count][16], not u
    float *s;                 // [n][16] in the slot
    float *next;              // [groups * 4][16] of the thread
    int32_t n, count;
    bool is_lower, fresh;
} lti_dense_scan;

// H3's shift SSM, in place: s = (0, s_0, ..) + B u; u = C . s + D u.
typedef struct lti_shift {
    const float *b, *c; // [n][16]
    const float *d;     // [16]
    float *u;           // [count][16]
    float *s;           // [n][16] in the slot
    int32_t n, count;
    bool fresh;
} lti_shift;

// What H3's heads have in common laid beside the lanes of their channels: to[t][lane] = from[t] of
// the head whose run of lanes this is, times v if there is one. `to` has a vector more than count.
typedef struct lti_spread {
    const float *from[16]; // of each run, 16 floats from one token to the next
    int32_t lane[16];      // where it begins; ascending, the first one 0
    const float *v;        // [count][16] or NULL
    float *to;             // [count + 1][16]
    int32_t runs, count;
} lti_spread;

// Up to LTI_BLOCK tokens as a convolution: template_convolution.h. Either poles or a dense Ab.
typedef struct lti_block {
    const float *spectrum; // [LTI_BLOCK / 2 + 1][4][16], D in it
    const float *twiddles; // [LTI_BLOCK][2] e^(-2 pi i j / LTI_BLOCK)
    const float *poles;    // [n][6][16]
    const float *powers;   // [n][2][16] Ab^LTI_PART; dense: in groups of rows as Ab
    const float *input;    // dense [LTI_PART][n][16] Ab^r Bb
    const float *output;   // dense [LTI_PART][n][16] C Ab^(r + 1)
    float *u;              // [LTI_BLOCK][16]; zeros are written past count
    float *y;              // [LTI_BLOCK][16]
    float *work;           // [LTI_BLOCK][2][16]
    float *states;         // dense [LTI_BLOCK / LTI_PART + 3][n filled up to 4][16]
    float *s;              // [n][2][16] or [n][16] in the slot
    int32_t n, count;      // a multiple of LTI_PART
    bool is_lower, fresh;
} lti_block;

// LTI_PAIRS tokens of one head of H3's diagonal SSM as a convolution, for some of its channels b:
// template_pairs.h. `wide` is n filled up to 16. A pair's state is its n numbers, real parts, then
// imaginary ones, then the real ones again and room for whole vectors.
typedef struct lti_pairs {
    const float *kernel; // [16 zeros, LTI_PAIRS], D in it
    const float *output; // [n][LTI_PAIRS] C Ab^(t + 1), twice
    const float *input;  // [LTI_PAIRS][wide] Ab^(LTI_PAIRS - 1 - j) Bb
    const float *power;  // [2][wide] Ab^LTI_PAIRS, by the number itself and by its other part
    const float *q, *k;  // [dim][LTI_PAIRS], k past the shift SSM
    const float *v;      // [rows][LTI_PAIRS]
    float *y;            // [rows][LTI_PAIRS]
    float *mixed;        // [LTI_PAIRS][LTI_PAIRS] of the thread
    float *s;            // [dim][rows][stride] of the thread
    int32_t dim, rows, n, wide, stride;
    bool fresh; // begins from zeros, s is not read
} lti_pairs;

typedef struct cpu_lti_kernels {
    void (*poles)(const lti_poles *args);
    void (*dense)(const lti_dense_scan *args);
    void (*shift)(const lti_shift *args);
    void (*spread)(const lti_spread *args);
    void (*block_poles)(const lti_block *args);
    void (*block_dense)(const lti_block *args);
    void (*pairs)(const lti_pairs *args);
    // In place, n floats, a multiple of 16: x/2 (1 + erf(x / sqrt 2)).
    void (*gelu)(float *x, size_t n);
    // to += a / (1 + exp(-b)), n floats, a multiple of 16.
    void (*gate)(const float *a, const float *b, size_t n, float *to);
} cpu_lti_kernels;

#endif
