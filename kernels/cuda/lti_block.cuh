// SPDX-License-Identifier: Apache-2.0
// What a block of a convolution (lti_block.cu) has in shared memory, and what it does with a tile
// of columns whatever kind its states are.
#ifndef SSM_KERNELS_CUDA_LTI_BLOCK_CUH
#define SSM_KERNELS_CUDA_LTI_BLOCK_CUH

#include "lti.cuh"

namespace ssm {

enum {
    PART = LTI_PART,
    THREADS = 128,
    WARPS = THREADS / 32,
    ROWS = 16, // of a warp at once
    SCAN_STEPS = 5,
};

struct block_args {
    pole_args p;                              // S4D
    const float *power, *in, *out, *c, *skip; // S4 [channel]: [j][i], [PART][n], [n][PART], [n]
    float *dense;                             // S4 [slot][channel][n]
    const float *u;                           // [channel][pitch]
    float *y;                                 // [channel][pitch]
    size_t pitch;
    float2 *carry; // S4D [piece][slot_pairs]
    const span *spans;
    const piece *pieces;
    bool split;
    int n_pieces;
    int numbers; // of a state, rounded up to ROWS
};

// Shared memory, in floats. COLS: columns at a time; a pitch of COLS + COLS / 32 keeps both ways of
// access free of conflicts but for pairs.
template <int COLS> struct layout {
    static constexpr int PITCH = COLS + COLS / 32;
    static constexpr int OUT = PART + 4; // of a row of Q
    float *in, *out, *k, *u, *s, *state, *powers;
    __device__ layout(float *p, int numbers)
        : in(p), out(in + PART * numbers), k(out + numbers * OUT), u(k + 2 * PART),
          s(u + PART * PITCH), state(s + numbers * COLS), powers(state + 2 * numbers) {
    }
    static size_t bytes(int numbers) {
        const size_t n = (size_t)numbers;
        return sizeof(float) *
               ((PART + OUT) * n + 2 * PART + PART * PITCH + n * COLS + 2 * n + n * SCAN_STEPS);
    }
};

// Tokens [0, left) of the tile; zeros after them.
template <int COLS>
__device__ __forceinline__ void read_inputs(const layout<COLS> &l, const float *from, int left) {
#pragma unroll 16
    for (int k = 0; k < PART * COLS / THREADS; k++) {
        const int i = k * THREADS + threadIdx.x;
        l.u[i % PART * l.PITCH + i / PART] = i < left ? from[i] : 0.f;
    }
}

// acc[row][column] += factors [k][stride], 16 rows from two places, times x [k][pitch].
template <int EACH>
__device__ __forceinline__ void multiply(float (&acc)[ROWS][EACH], const float *low,
                                         const float *high, int stride, const float *x, int pitch,
                                         int count) {
    const int lane = threadIdx.x & 31;
#pragma unroll 4
    for (int k = 0; k < count; k++) {
        float f[ROWS], v[EACH];
#pragma unroll
        for (int i = 0; i < ROWS / 2; i += 4) {
            *(float4 *)&f[i] = *(const float4 *)(low + k * stride + i);
            *(float4 *)&f[ROWS / 2 + i] = *(const float4 *)(high + k * stride + i);
        }
#pragma unroll
        for (int e = 0; e < EACH; e++)
            v[e] = x[k * pitch + lane * EACH + e];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int e = 0; e < EACH; e++)
                acc[i][e] = fmaf(f[i], v[e], acc[i][e]);
        }
    }
}

// S = P U
template <int COLS> __device__ __forceinline__ void leave(const layout<COLS> &l, int numbers) {
    constexpr int EACH = COLS / 32;
    const int lane = threadIdx.x & 31;
    for (int r = (threadIdx.x >> 5) * ROWS; r < numbers; r += WARPS * ROWS) {
        float acc[ROWS][EACH] = {};
        multiply<EACH>(acc, l.in + r, l.in + r + ROWS / 2, numbers, l.u, l.PITCH, PART);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int e = 0; e < EACH; e++)
                l.s[(r + i) * COLS + lane * EACH + e] = acc[i][e];
        }
    }
}

// acc += K U for eight rows from r on: K's numbers slide through registers.
template <int COLS, int EACH, int FROM>
__device__ __forceinline__ void convolve(const layout<COLS> &l, float (&acc)[ROWS][EACH], int r) {
    const int lane = threadIdx.x & 31;
    for (int j0 = 0; j0 <= r; j0 += 8) {
        float k[16];
#pragma unroll
        for (int i = 0; i < 16; i += 4)
            *(float4 *)&k[i] = *(const float4 *)(l.k + PART + r - j0 - 8 + i);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float v[EACH];
#pragma unroll
            for (int e = 0; e < EACH; e++)
                v[e] = l.u[(j0 + j) * l.PITCH + lane * EACH + e];
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int e = 0; e < EACH; e++)
                    acc[FROM + i][e] = fmaf(k[8 + i - j], v[e], acc[FROM + i][e]);
            }
        }
    }
}

// Y = K U + Q S over U. A warp has rows early and late: all warps have as much to do.
template <int COLS> __device__ __forceinline__ void answer(const layout<COLS> &l, int numbers) {
    constexpr int EACH = COLS / 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int early = warp * 8, late = PART - 8 - early;
    float acc[ROWS][EACH] = {};
    multiply<EACH>(acc, l.out + early, l.out + late, l.OUT, l.s, COLS, numbers);
    convolve<COLS, EACH, 0>(l, acc, early);
    convolve<COLS, EACH, 8>(l, acc, late);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int e = 0; e < EACH; e++)
            l.u[((i < 8 ? early : late - 8) + i) * l.PITCH + lane * EACH + e] = acc[i][e];
    }
}

// lti_turn.cu: the residual, normed, to u by channel; y by channel back to token rows
cudaError_t lti_by_channel(device *d, int layer, const batch &b);
cudaError_t lti_by_token(device *d, const batch &b);

} // namespace ssm

#endif
