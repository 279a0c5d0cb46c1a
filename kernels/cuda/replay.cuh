// SPDX-License-Identifier: Apache-2.0
// How replay lays out a slot's memory, and what its entries weigh: see replay.cu.
#ifndef SSM_KERNELS_CUDA_REPLAY_CUH
#define SSM_KERNELS_CUDA_REPLAY_CUH

#include "cuda.h"
#include "util.cuh"

namespace ssm {

enum { REPLAY_P = 64, REPLAY_N = 128 }; // the head that this takes: P rows of N states

// An item is 16 KB of a head's base, R rows of it.
//
// Rows go through the matrix units 16 at a time. Row a of such a tile is row 2 a of the head's 16,
// row a + 8 is 2 a + 1: a lane's two results are neighbours. Earlier x lie in the ring in that
// order.
template <class S> struct replay_shape {
    static constexpr int V = 16 / (int)sizeof(S);  // states a vector
    static constexpr int LANES = REPLAY_N / V;     // lanes across a row of states
    static constexpr int R = 128 / (int)sizeof(S); // 64 or 32 rows
    static constexpr int OWN = R / 32;             // rows of y that a lane ends up with
    static constexpr int PARTS = REPLAY_P / R;     // items a head
    static constexpr int BASE = R * REPLAY_N * (int)sizeof(S);
    static constexpr int STAGE = BASE + 16 * R * 2;

    static __device__ __forceinline__ int own() { // the first of them
        const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
        return OWN == 2 ? q * 16 + 2 * g : (q & 1) * 16 + 2 * g + (q >> 1);
    }
};

// Where an entry of R rows keeps a row: 16 rows' halves apart, as the matrix units take them, in
// 16-byte pieces that eight entries keep in different banks.
template <int R> __host__ __device__ inline int replay_position(int entry, int row) {
    const int piece = row / 16 * 2 + row % 2, turn = R == 64 ? entry & 7 : entry >> 1 & 3;
    return (piece ^ turn) * 8 + row % 16 / 2;
}

// A lane's entry (0..15, with its dt; 0 beyond the last) weighs exp2(the decays since) dt; `decay`
// is the base's. Sums run from the last entry back: nothing cancels.
__device__ __forceinline__ float entry_weight(float dt, float rate, float *decay) {
    const int lane = threadIdx.x & 31;
    float after = dt * rate; // of this entry and all later ones
#pragma unroll
    for (int o = 1; o < 16; o <<= 1) {
        const float v = __shfl_down_sync(~0u, after, o);
        after += lane + o < 16 ? v : 0.f;
    }
    const float later = __shfl_down_sync(~0u, after, 1);
    *decay = exp2_fast(__shfl_sync(~0u, after, 0));
    return dt * exp2_fast(lane < 15 ? later : 0.f);
}

} // namespace ssm

#endif
