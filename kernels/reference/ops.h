// SPDX-License-Identifier: Apache-2.0
// The operations of a step in plain C, one token at a time, sums in double: what every other
// kernel is measured against. Formulas: weights.h. Nothing is aligned, nothing overlaps unless
// said.
#ifndef SSM_KERNELS_REFERENCE_OPS_H
#define SSM_KERNELS_REFERENCE_OPS_H

#include <stddef.h>

// out[n] = x / sqrt(mean(x^2) + eps) * weight; weight NULL: 1. out may be x.
void ref_rms_norm(size_t n, const float *x, const float *weight, float eps, float *out);

// out[rows] = weight[rows][cols] x[cols] + bias[rows]; bias NULL: 0.
void ref_linear(size_t rows, size_t cols, const float *weight, const float *bias, const float *x,
                float *out);

float ref_silu(float x);
float ref_softplus(float x);

// One token through the causal depthwise convolution and SiLU, in place. weight[channels][width],
// bias[channels] or NULL; tail[channels][width - 1] are the last raw inputs, oldest first: moved
// on.
void ref_conv_step(size_t channels, size_t width, const float *weight, const float *bias,
                   float *tail, float *x);

// Mamba-1, one token: h[channels][n] = exp(delta A) h + delta x B; y = h . C + D x, A =
// -exp(A_log). a_log[channels][n], d, delta, x, y [channels]; b, c [n].
void ref_scan_mamba(size_t channels, size_t n, const float *a_log, const float *d,
                    const float *delta, const float *b, const float *c, const float *x, float *h,
                    float *y);

// Mamba-2, one token. a_log, d, delta [heads]; b, c [groups][n]; x, y [heads][head_dim];
// h[heads][head_dim][n].
void ref_scan_mamba2(size_t heads, size_t head_dim, size_t groups, size_t n, const float *a_log,
                     const float *d, const float *delta, const float *b, const float *c,
                     const float *x, float *h, float *y);

#endif
