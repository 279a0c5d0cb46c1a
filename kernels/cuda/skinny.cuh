// SPDX-License-Identifier: Apache-2.0
// What follows a product whose sums a block holds itself (skinny.cu, medium.cu): bias, convolution
// and SiLU after in_proj, the residual after out_proj.
#ifndef SSM_KERNELS_CUDA_SKINNY_CUH
#define SSM_KERNELS_CUDA_SKINNY_CUH

#include "cuda.h"
#include "util.cuh"

namespace ssm {

enum epilogue { AFTER_IN, AFTER_X, AFTER_OUT, AFTER_HEAD };

struct skinny_args {
    const bf16 *weight; // [n_rows][n_cols]
    const void *x;      // bf16 [batch][n_cols], or with a norm fp32
    const float *norm;  // [n_cols], with a norm
    float eps;
    int n_rows, n_cols, batch; // batch: token rows
    int rows_a_block;          // 0: an even split over the grid; otherwise tiles
    epilogue after;
    const float *bias; // [n_rows] or NULL
    // AFTER_IN
    bf16 *xz, *xc, *ring;
    const row *rows;
    const float *conv_weight, *conv_bias; // [d_conv][channels], [channels]
    int conv_first, channels, width;      // rows of the convolution, d_conv
    // AFTER_X, AFTER_OUT, AFTER_HEAD
    float *out;           // [batch][n_rows]; X: [split][SPLIT_ROWS][n_rows]
    const float *squares; // OUT, MAMBA2: [batch][heads], scale of the sums
    int heads;
};

// One output's convolution: raw inputs that the ring holds, and the taps.
struct taps {
    float before[3], weight[4], bias;
};

__device__ const uint4 nothing = {}; // read where there is nothing, so that no load needs a branch

__device__ __forceinline__ void load_weights(const skinny_args &a, int c, taps &t) {
    const int kept = a.width - 1;
#pragma unroll
    for (int j = 0; j < 4; j++)
        t.weight[j] = j < a.width ? a.conv_weight[(size_t)(kept - j) * a.channels + c] : 0.f;
    t.bias = a.conv_bias[c];
}

// Raw: a conversion would wait for its load.
__device__ __forceinline__ void load_before(const skinny_args &a, const row &r, int c,
                                            bf16 (&before)[3]) {
    const int kept = a.width - 1;
    const bf16 *entries = a.ring + (size_t)r.slot * kept * a.channels + c;
#pragma unroll
    for (int j = 1; j < 4; j++) {
        const int e = r.ring - j < 0 ? r.ring - j + kept : r.ring - j;
        const bool there = r.slot >= 0 && j <= kept && !r.fresh;
        const bf16 *at = there ? entries + (size_t)e * a.channels : (const bf16 *)&nothing;
        before[j - 1] = *at;
    }
}

__device__ __forceinline__ taps load_taps(const skinny_args &a, const row &r, int c) {
    taps t;
    bf16 before[3];
    load_weights(a, c, t);
    load_before(a, r, c, before);
#pragma unroll
    for (int j = 0; j < 3; j++)
        t.before[j] = to_float(before[j]);
    return t;
}

__device__ __forceinline__ float convolve(const skinny_args &a, const row &r, int c, float raw,
                                          const taps &t) {
    const int kept = a.width - 1;
    bf16 *entries = a.ring + (size_t)r.slot * kept * a.channels + c;
    raw = to_float(from_float<bf16>(raw)); // what the ring will give back
    float sum = t.bias + t.weight[0] * raw;
#pragma unroll
    for (int j = 1; j < 4; j++)
        sum += t.weight[j] * t.before[j - 1];
    for (int e = 0; e < kept; e++) {
        if (e == r.ring)
            entries[(size_t)e * a.channels] = from_float<bf16>(raw);
        else if (r.fresh)
            entries[(size_t)e * a.channels] = from_float<bf16>(0.f);
    }
    return silu(sum);
}

// What follows an output needs from memory, asked for before the sums are ready.
struct ahead {
    bool conv;
    row r;
    taps t;
    float residual;
};

__device__ __forceinline__ ahead look_ahead(const skinny_args &a, int n, int token) {
    ahead p = {};
    if (a.after == AFTER_IN) {
        p.r = a.rows[token];
        p.conv = p.r.slot >= 0 && n >= a.conv_first && n < a.conv_first + a.channels;
        if (p.conv)
            p.t = load_taps(a, p.r, n - a.conv_first);
    }
    return p;
}

__device__ __forceinline__ void finish(const skinny_args &a, const ahead &p, int n, int token,
                                       float sum) {
    if (a.bias)
        sum += a.bias[n];
    switch (a.after) {
    case AFTER_IN:
        if (p.conv)
            a.xc[(size_t)token * a.channels + n - a.conv_first] =
                from_float<bf16>(convolve(a, p.r, n - a.conv_first, sum, p.t));
        else if (n < a.conv_first || n >= a.conv_first + a.channels)
            a.xz[(size_t)token * a.n_rows + n] = from_float<bf16>(sum);
        break;
    case AFTER_X:
        a.out[((size_t)blockIdx.y * SPLIT_ROWS + token) * a.n_rows + n] = sum;
        break;
    case AFTER_OUT:
        a.out[(size_t)token * a.n_rows + n] = p.residual + sum;
        break;
    case AFTER_HEAD:
        a.out[(size_t)token * a.n_rows + n] = sum;
        break;
    }
}

// ---- host side

inline skinny_args skinny_arguments(const device *d, const batch &b, const void *weight,
                                    const void *x, int32_t rows, int32_t cols, epilogue after) {
    skinny_args a = {};
    a.weight = (const bf16 *)weight, a.x = x, a.n_rows = rows, a.n_cols = cols;
    a.batch = b.n, a.after = after, a.eps = d->g.norm_eps;
    return a;
}

// What in_proj's sums go through.
inline void skinny_in_fill(const device *d, int layer, const batch &b, skinny_args *p) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    skinny_args &a = *p;
    a.bias = w.in_bias;
    a.xz = (bf16 *)d->xz, a.xc = (bf16 *)d->xc, a.rows = b.rows;
    a.ring = (bf16 *)d->ring + (size_t)layer * d->n_slots * (g.d_conv - 1) * g.conv_dim;
    a.conv_weight = w.conv_weight, a.conv_bias = w.conv_bias;
    a.conv_first = g.kind == SSM_BLOCK_MAMBA2 ? g.d_inner : 0;
    a.channels = g.conv_dim, a.width = g.d_conv;
}

} // namespace ssm

#endif
