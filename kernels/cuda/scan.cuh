// SPDX-License-Identifier: Apache-2.0
// What the tuned scans share (scan.cu, scan_roles.cu).
#ifndef SSM_KERNELS_CUDA_SCAN_CUH
#define SSM_KERNELS_CUDA_SCAN_CUH

#include "mamba.cuh"

namespace ssm {

enum { SCAN_STATES = 16 };

// log(1 + e^v) = max(v, 0) + log(1 + w), w = e^-|v|, by one exponential and a polynomial for
// log(1 + w) / w: relative error below 2e-6, without a branch.
__device__ __forceinline__ float softplus_straight(float v) {
    const float w = exp2_fast(fabsf(v) * -LOG2E);
    float p = 0.01414102f;
    p = p * w - 0.06640179f;
    p = p * w + 0.14922386f;
    p = p * w - 0.2350386f;
    p = p * w + 0.33109447f;
    p = p * w - 0.49986964f;
    p = p * w + 0.99999875f;
    return p * w + fmaxf(v, 0.f);
}

// Four values of each of four lanes to one sum a lane: lane q of them gets value q. ONE, TWO: the
// bits of a lane's number that are q's.
template <int ONE, int TWO> __device__ __forceinline__ float exchange4(const float (&v)[4], int q) {
    const bool two = q & 2, one = q & 1;
    float keep0 = two ? v[2] : v[0], keep1 = two ? v[3] : v[1];
    keep0 += __shfl_xor_sync(~0u, two ? v[0] : v[2], TWO);
    keep1 += __shfl_xor_sync(~0u, two ? v[1] : v[3], TWO);
    return (one ? keep1 : keep0) + __shfl_xor_sync(~0u, one ? keep0 : keep1, ONE);
}

// A warp's delta and delta x of a tile, 8 C channels. Two channels' places are swapped by row, so
// that a column of rows, which is what the matrix instruction leaves in eight lanes, does not fall
// into one bank.
template <int C> struct scan_pairs {
    float4 *two; // [TILE][C / 2][8] delta of channels k and k + 1, delta x of both
    float2 *odd; // [TILE][8] delta, delta x of the last if C is odd

    __device__ __forceinline__ explicit scan_pairs(float *at)
        : two((float4 *)at), odd((float2 *)(at + TILE * (C / 2) * 32)) {
    }
    __device__ __forceinline__ void put(int r, int channel, const float (&d)[C],
                                        const float (&dx)[C]) const {
#pragma unroll
        for (int k = 0; k + 1 < C; k += 2)
            two[(r * (C / 2) + k / 2) * 8 + (channel ^ (r & 1))] =
                make_float4(d[k], d[k + 1], dx[k], dx[k + 1]);
        if (C % 2)
            odd[r * 8 + channel] = make_float2(d[C - 1], dx[C - 1]);
    }
    __device__ __forceinline__ void get(int r, int channel, float (&d)[C], float (&dx)[C]) const {
#pragma unroll
        for (int k = 0; k + 1 < C; k += 2) {
            const float4 v = two[(r * (C / 2) + k / 2) * 8 + (channel ^ (r & 1))];
            d[k] = v.x, d[k + 1] = v.y, dx[k] = v.z, dx[k + 1] = v.w;
        }
        if (C % 2) {
            const float2 v = odd[r * 8 + channel];
            d[C - 1] = v.x, dx[C - 1] = v.y;
        }
    }
    __device__ __forceinline__ void clear(int n, int lane) const { // rows from n on
        for (int i = n * (C / 2) * 8 + lane; i < TILE * (C / 2) * 8; i += 32)
            two[i] = make_float4(0, 0, 0, 0);
        for (int i = n * 8 + lane; C % 2 && i < TILE * 8; i += 32)
            odd[i] = make_float2(0, 0);
    }
};

// scan.cu: bf16, 16 states, a width that the tuned scans take
bool scan_fits(const device *d);

// How whole prompts are scanned: channels a block, of which an SM holds one.
struct scan_form {
    int channels, most_rank;
    size_t shared;
    float cycles; // a token, measured
    cudaError_t (*run)(device *d, int layer, const batch &b);
};
// The one of fewer cycles for so many prompts; a may be NULL.
const scan_form *scan_better(const device *d, int32_t n_spans, const scan_form *a,
                             const scan_form *b);
// scan_wgmma.cu's best, or NULL.
const scan_form *scan_wgmma_form(const device *d, int32_t n_spans);

// scan_roles.cu: whole prompts, where that takes less than so many cycles a token.
bool scan_roles_win(const device *d, int32_t n_spans, float cycles);
cudaError_t scan_roles(device *d, int layer, const batch &b);

} // namespace ssm

#endif
