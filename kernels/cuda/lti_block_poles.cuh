// SPDX-License-Identifier: Apache-2.0
// Poles in a block of a convolution (lti_block.cu): S4D. Powers are made here, in fp64 by squaring;
// the states of columns are a shuffle scan.
#ifndef SSM_KERNELS_CUDA_LTI_BLOCK_POLES_CUH
#define SSM_KERNELS_CUDA_LTI_BLOCK_POLES_CUH

#include "lti_block.cuh"

namespace ssm {

__device__ __forceinline__ double2 times(double2 a, double2 b) {
    return make_double2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

__device__ __forceinline__ float2 times_add(float2 a, float2 b, float2 c) {
    return make_float2(fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y)));
}

template <int COLS>
__device__ __forceinline__ void make_pole_factors(const block_args &a, const layout<COLS> &l) {
    const int ch = blockIdx.x, n = a.p.n;
    enum { EACH = 16 }; // powers a thread makes one from the other
    for (int item = threadIdx.x; item < n * (PART / EACH); item += THREADS) {
        const int i = item % n, r0 = item / n * EACH;
        const float2 abf = a.p.ab[ch * n + i], bbf = a.p.bb[ch * n + i], c = a.p.c[ch * n + i];
        const double2 ab = make_double2((double)abf.x, (double)abf.y);
        const double2 bb = make_double2((double)bbf.x, (double)bbf.y);
        double2 w = make_double2(1, 0), square = ab;
        for (int e = r0; e; e >>= 1, square = times(square, square)) {
            if (e & 1)
                w = times(w, square);
        }
        for (int r = r0; r < r0 + EACH; r++) { // w = ab^r
            const double2 b = times(w, bb);
            float *in = l.in + (PART - 1 - r) * a.numbers + 2 * i;
            in[0] = (float)b.x, in[1] = (float)b.y;
            w = times(w, ab);
            l.out[2 * i * l.OUT + r] = (float)((double)c.x * w.x + (double)c.y * w.y);
            l.out[(2 * i + 1) * l.OUT + r] = (float)((double)c.y * w.x - (double)c.x * w.y);
        }
        if (r0 + EACH == PART) { // w = ab^PART
            for (int k = 0; k < SCAN_STEPS; k++, w = times(w, w)) {
                l.powers[(i * SCAN_STEPS + k) * 2] = (float)w.x;
                l.powers[(i * SCAN_STEPS + k) * 2 + 1] = (float)w.y;
            }
        }
    }
}

// S from what each of `whole` columns leaves to what each begins with; the state moves on past
// them. A warp takes some poles together: their shuffles wait side by side.
template <int COLS>
__device__ __forceinline__ void carry_poles(const block_args &a, const layout<COLS> &l, int whole) {
    enum { TOGETHER = 4 };
    const int lane = threadIdx.x & 31;
    for (int i0 = (threadIdx.x >> 5) * TOGETHER; i0 < a.p.n; i0 += WARPS * TOGETHER) {
        float2 old[TOGETHER], x[TOGETHER], w[TOGETHER][SCAN_STEPS];
        int at[TOGETHER]; // past the last pole: the last one again, with the same outcome
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            at[p] = min(i0 + p, a.p.n - 1);
            old[p] = ((const float2 *)l.state)[at[p]];
#pragma unroll
            for (int k = 0; k < SCAN_STEPS; k++)
                w[p][k] = ((const float2 *)l.powers)[at[p] * SCAN_STEPS + k];
        }
        for (int c0 = 0; c0 < COLS; c0 += 32) {
            const int last = min(max(whole - c0, 0), 32) - 1; // of these columns; -1: none
#pragma unroll
            for (int p = 0; p < TOGETHER; p++) {
                const float *s = l.s + 2 * at[p] * COLS + c0 + lane;
                x[p] = make_float2(s[0], s[COLS]);
                if (lane == 0)
                    x[p] = times_add(w[p][0], old[p], x[p]);
            }
#pragma unroll
            for (int k = 0; k < SCAN_STEPS; k++) {
#pragma unroll
                for (int p = 0; p < TOGETHER; p++) {
                    const float2 before = make_float2(__shfl_up_sync(~0u, x[p].x, 1 << k),
                                                      __shfl_up_sync(~0u, x[p].y, 1 << k));
                    if (lane >= 1 << k)
                        x[p] = times_add(w[p][k], before, x[p]);
                }
            }
#pragma unroll
            for (int p = 0; p < TOGETHER; p++) {
                const float2 begins =
                    make_float2(__shfl_up_sync(~0u, x[p].x, 1), __shfl_up_sync(~0u, x[p].y, 1));
                float *s = l.s + 2 * at[p] * COLS + c0 + lane;
                s[0] = lane ? begins.x : old[p].x;
                s[COLS] = lane ? begins.y : old[p].y;
                const float2 after = make_float2(__shfl_sync(~0u, x[p].x, max(last, 0)),
                                                 __shfl_sync(~0u, x[p].y, max(last, 0)));
                if (last >= 0)
                    old[p] = after;
            }
        }
#pragma unroll
        for (int p = 0; p < TOGETHER; p++) {
            if (lane == 0)
                ((float2 *)l.state)[at[p]] = old[p];
        }
    }
}

// Poles' states over the tokens of a last column that is not whole.
template <int COLS>
__device__ __forceinline__ void finish_poles(const block_args &a, const layout<COLS> &l, int column,
                                             int count) {
    for (int i = threadIdx.x; i < a.p.n; i += THREADS) {
        const int at = blockIdx.x * a.p.n + i;
        float2 s = ((float2 *)l.state)[i];
        const float2 ab = a.p.ab[at], bb = a.p.bb[at];
        for (int t = 0; t < count; t++)
            pole_step(ab, bb, make_float2(0, 0), l.u[t * l.PITCH + column], s);
        ((float2 *)l.state)[i] = s;
    }
}

} // namespace ssm

#endif
