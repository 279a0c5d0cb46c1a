// SPDX-License-Identifier: Apache-2.0
// INT4, INT5 and INT6: nearest codes in groups of 32 inputs, with that scale of some 20 which
// leaves the least squared error. A scale is a whole number of 127ths of the row's largest and
// takes one byte, so that a weight takes 4.25, 5.25 or 6.25 bits, and a row four bytes more. Scales
// are chosen after they were rounded, so their own rounding costs next to nothing: with fp32 ones
// (5 bits a weight, until 2026-11-28) int4 was 2% better. A row needs nothing but itself, so that
// packing does not depend on threads.
//
// What it costs: the divergence (KL) of the next token's distribution from that of weights as
// stored, 5,582 held-out tokens, in_proj, out_proj and the head so rounded, the rest as stored:
//
//                                             bits    shakespeare-mamba    shakespeare-mamba2
//   int8, a scale a row                       8       7.7e-5               9.4e-5
//   int6                                      6.25    6.7e-4               8.1e-4
//   int5                                      5.25    2.7e-3               3.3e-3
//   int4                                      4.25    1.09e-2              1.28e-2
//   groups of 16: int4, int5                  +0.25   8.5e-3, 2.0e-3       9.7e-3, 2.3e-3
//   groups of 64: int4, int5, int6            -0.125  1.29e-2, 3.2e-3,     1.52e-2, 3.9e-3,
//                                                     8.2e-4               1.0e-3
//   a minimum and a scale a group, both fp16  5       8.4e-3               1.02e-2
//   16 uneven levels (IQ4_NL's)               4.25    9.9e-3               1.16e-2
//   what llama.cpp's Q4_K does                4.5     8.6e-3               1.05e-2
//   what its q4_0 does                        4.5     1.26e-2              1.43e-2
//
// So a bit is worth a factor of four, and no trick at the same size comes near one: int4 leaves
// 0.48% of the weights' squares as error, and 4.25 bits cannot leave less than 0.28% of a
// Gaussian's. Who wants less divergence than int4's takes int5, for a quarter more bytes.
//
// Mixtures gain nothing over that. In int4 alone (fp32 scales), the head gives 1.6e-3 (1.5e-3),
// in_proj 5.3e-3 (6.0e-3), out_proj 3.8e-3 (5.1e-3): each about what its share of the weights is,
// so none can be paid for out of the others. (x_proj and dt_proj 6e-5 each; 4% of the bytes, they
// stay as stored.) Layers differ more, the first four give 6.1e-3 of 9.3e-3 (8.5e-3 of 11.3e-3): in
// int5 they would bring int4 to some 6e-3 for 4.7 bits, which lies between int4 and int5 on the
// same curve.
//
// Knowing the inputs is worth a quarter of a bit. Weighting errors by the squares of the norm's
// weights, which are the inputs' second moments but for their correlations: 5.33e-3 to 5.36e-3
// (in_proj), 1.62e-3 to 1.62e-3 (head). By the second moments themselves: nothing (1.06e-2 to
// 1.08e-2). Errors carried over to later inputs (GPTQ), with the second moments of 4,096 random
// tokens 8.4e-3, of 4,096 and 16,384 that the model wrote 7.7e-3 and 7.5e-3, where nearest codes
// give 1.06e-2 (shakespeare-mamba). It would take a pass of the model over its own text before
// packing, and products of d_inner^2 a token and layer.
//
// Packing takes 30 ns a weight and core, of mamba-130m 2 s on two (it was 80, by calls of lrintf;
// busy machine, CPU time).
#include "quantise.h"

#include <math.h>
#include <stdbool.h>

enum { LANES = 8, TRIES = 20 };

static float extreme_of(const float *x, int64_t n) { // with its sign
    float extreme = 0;
    for (int64_t i = 0; i < n; i++)
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    return extreme;
}

static int32_t half_range(cpu_format format) {
    return 8 << cpu_bits_above(format);
}

float cpu_group_unit(const float *row, int64_t cols, cpu_format format) {
    return fabsf(extreme_of(row, cols)) / (float)half_range(format) / 127;
}

// Nearest code of x / scale, half a range below what is stored. Without calls or branches, so that
// groups go through vectors; lanes are added in a fixed order.
static inline float code_of(float x, float inverse, float half) {
    const float magic = 12582912.0f; // of numbers below 2^22, adding it leaves the nearest integer
    float v = x * inverse;
    v = v > -half ? v : -half; // NaN too
    v = v < half - 1 ? v : half - 1;
    return (v + magic) - magic;
}

static float group_error(const float *x, float scale, float half) {
    const float inverse = 1 / scale;
    float error[LANES] = {0};
    for (int i = 0; i < CPU_GROUP; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            const float e = x[i + j] - scale * code_of(x[i + j], inverse, half);
            error[j] += e * e;
        }
    }
    return ((error[0] + error[4]) + (error[2] + error[6])) +
           ((error[1] + error[5]) + (error[3] + error[7]));
}

static int32_t best_scale(const float *x, float unit, float half) {
    // The lowest code is one further from the middle than the highest: the extreme takes it.
    const float plain = extreme_of(x, CPU_GROUP) / -half / unit;
    int32_t best = 0, last = 0;
    float least = INFINITY;
    for (int i = 0; i < TRIES; i++) {
        const float k = rintf(plain * (0.75f + 0.025f * (float)i));
        const int32_t scale = (int32_t)fmaxf(-127, fminf(127, k));
        if (scale == last)
            continue;
        last = scale;
        const float error = group_error(x, (float)scale * unit, half);
        if (error < least) {
            least = error;
            best = scale;
        }
    }
    return best;
}

void cpu_quantise_group(const float x[CPU_GROUP], float unit, cpu_format format, cpu_group *out) {
    const float half = (float)half_range(format);
    // Where a unit is nothing, or not finite, the row is nothing, or poisoned by its unit.
    const bool is_usable = unit > 1e-30f && unit < 1e30f;
    out->scale = is_usable ? (int8_t)best_scale(x, unit, half) : 0;
    const float scale = (float)out->scale * unit, inverse = out->scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < CPU_GROUP; i++)
        out->codes[i] = (uint8_t)(code_of(x[i], inverse, half) + half);
}
