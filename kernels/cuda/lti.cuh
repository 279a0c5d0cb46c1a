// SPDX-License-Identifier: Apache-2.0
// What the files of the linear time-invariant layers share. See lti.cu for the design.
#ifndef SSM_KERNELS_CUDA_LTI_CUH
#define SSM_KERNELS_CUDA_LTI_CUH

#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { LTI_PART = 64, LTI_DENSE = 64 }; // tokens of a column (lti_block.cu); widest S4 state there
enum { LTI_PAIRS = 32 };                // tokens of a block (lti_pairs.cu)

// A layer's poles and where its states lie. S4D: a channel has its own poles and one state. H3: a
// channel (h, b) has the poles of head h and a state for every a.
struct pole_args {
    const float2 *ab, *bb, *c; // [d_model | heads][n]; c: 2 Re C, -2 Im C
    const float *skip;         // [d_model | heads]
    float2 *state;             // [slot] S4D [d_model][n], H3 [heads][head_dim][head_dim][n]
    int n;                     // pairs of poles
    int width, head_dim, heads;
    int slot_pairs; // of a slot in this layer
};

inline pole_args poles_of(const device *d, int layer) {
    const ssm_geometry &g = d->g;
    const lti_weights &w = d->layers[layer].lti;
    pole_args a = {};
    a.ab = (const float2 *)w.ab, a.bb = (const float2 *)w.bb, a.c = (const float2 *)w.c;
    a.skip = d->layers[layer].skip;
    a.n = g.d_state / 2, a.width = g.d_model, a.head_dim = g.head_dim, a.heads = g.n_heads;
    a.slot_pairs = g.d_inner * a.n;
    a.state = (float2 *)d->state + (size_t)layer * d->n_slots * a.slot_pairs;
    return a;
}

// The shift SSM's state of a layer, [slot][N][d_model].
inline float *shift_state(const device *d, int layer) {
    const size_t slot = (size_t)d->g.conv_dim * (d->g.d_conv - 1);
    return (float *)d->ring + (size_t)layer * d->n_slots * slot;
}

// s = ab s + bb u, and what C reads of it.
__device__ __forceinline__ float pole_step(float2 ab, float2 bb, float2 c, float u, float2 &s) {
    const float re = fmaf(ab.x, s.x, fmaf(-ab.y, s.y, bb.x * u));
    s.y = fmaf(ab.x, s.y, fmaf(ab.y, s.x, bb.y * u));
    s.x = re;
    return fmaf(c.x, s.x, c.y * s.y);
}

// ab^n in fp64: its rounding must not grow with n.
__device__ __forceinline__ double2 pole_power(float2 ab, int n) {
    double2 x = make_double2((double)ab.x, (double)ab.y), out = make_double2(1, 0);
    for (; n; n >>= 1) {
        if (n & 1)
            out = make_double2(out.x * x.x - out.y * x.y, out.x * x.y + out.y * x.x);
        x = make_double2(x.x * x.x - x.y * x.y, 2 * x.x * x.y);
    }
    return out;
}

// Sum of squares of a row of n numbers over a warp.
__device__ __forceinline__ float square_sum(const float *x, int n) {
    const int lane = threadIdx.x & 31;
    float sum = 0;
    if (n % 4 == 0) {
#pragma unroll 4
        for (int i = 4 * lane; i < n; i += 128) {
            const float4 v = *(const float4 *)(x + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
    } else {
        for (int i = lane; i < n; i += 32)
            sum += x[i] * x[i];
    }
    return warp_sum(sum);
}

__device__ __forceinline__ float gelu(float y) {
    return 0.5f * y * (1.f + erff(y * 0.70710678f));
}

__device__ __forceinline__ float gate(float a, float b) {
    return __fdividef(a, 1.f + exp2_fast(-LOG2E * b));
}

// lti_rows.cu, lti_dense.cu, lti_h3.cu: one token of each row, the norm before S4D's and S4's in it
cudaError_t lti_pole_rows(device *d, int layer, const batch &b);
cudaError_t lti_dense_rows(device *d, int layer, const batch &b);
cudaError_t lti_pair_rows(device *d, int layer, const batch &b);

// lti_scan.cu, lti_dense.cu, lti_h3.cu: spans
cudaError_t lti_norm(device *d, const float *weight, int32_t n);  // residual to lti_u, fp32
cudaError_t lti_pole_scan(device *d, int layer, const batch &b);  // S4D and H3
cudaError_t lti_dense_scan(device *d, int layer, const batch &b); // or what lti_convolve left
cudaError_t lti_carry(device *d, int layer, const batch &b); // pieces' ends to their beginnings
cudaError_t lti_shift(device *d, int layer, const batch &b); // k of xz to lti_u

// lti_block.cu: spans of S4D and S4 as a convolution
bool lti_block_fits(const device *d);
cudaError_t lti_convolve(device *d, int layer, const batch &b);

// lti_pairs.cu: spans of H3 as a convolution
bool lti_pairs_fit(const device *d);
cudaError_t lti_convolve_pairs(device *d, int layer, const batch &b);

// lti_few.cu: products for few rows, with what comes before and after
bool lti_few_fits(const device *d, int32_t n);
cudaError_t lti_few_in(device *d, int layer, const batch &b);
cudaError_t lti_few_out(device *d, int layer, const batch &b);
cudaError_t lti_few_head(device *d, const batch &b);
cudaError_t lti_gate(device *d, int layer, int32_t n); // after out_proj's both halves

} // namespace ssm

#endif
