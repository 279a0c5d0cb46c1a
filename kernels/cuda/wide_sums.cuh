// SPDX-License-Identifier: Apache-2.0
// How the sums of a cluster that splits k meet (wide.cuh): each block sends the others what they
// keep, by bulk copies from shared memory to shared memory, and adds up in order of rank.
#ifndef SSM_KERNELS_CUDA_WIDE_SUMS_CUH
#define SSM_KERNELS_CUDA_WIDE_SUMS_CUH

#include "wide.cuh"

namespace ssm {

// The stages behind END's in which the sums of a cluster that splits k meet: each warp's for its
// peers, and theirs for it.
template <class SHAPE> struct wide_exchange {
    static constexpr int OTHERS = SHAPE::SPLITS - 1, PART = SHAPE::KEPT * 128; // bytes of a warp
    static constexpr int WARP_BYTES = 2 * OTHERS * PART;
    static constexpr int A_SLOT = SHAPE::SPLITS == 1 ? 1 : SHAPE::STAGE_BYTES / WARP_BYTES;
    static constexpr int SLOTS = (WIDE_WARPS + A_SLOT - 1) / A_SLOT;
};

#if SSM_HOPPER

// Every block keeps registers [KEPT rank, KEPT (rank + 1)) of its SUMS.
template <class SHAPE, int STAGES>
__device__ __forceinline__ void wide_add_up(const float (&acc)[SHAPE::SUMS],
                                            float (&kept)[SHAPE::KEPT], uint32_t slots, int slot,
                                            uint32_t arrived, int split, int share) {
    typedef wide_exchange<SHAPE> exchange;
    constexpr int OTHERS = exchange::OTHERS, PART = exchange::PART, A_SLOT = exchange::A_SLOT;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    slot = (slot + warp / A_SLOT) % STAGES;
    const uint32_t sent = slots + slot * SHAPE::STAGE_BYTES + warp % A_SLOT * exchange::WARP_BYTES;
    const uint32_t got = sent + OTHERS * PART;
    arrived += warp * 8;
    if (lane == 0)
        barrier_expect(arrived, OTHERS * PART);
#pragma unroll
    for (int to = 0; to < SHAPE::SPLITS; to++) {
        const uint32_t at = sent + (to - (to > split)) * PART + lane * 16;
        if (to != split) {
#pragma unroll
            for (int i = 0; i < SHAPE::KEPT; i += 4)
                asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at + i * 128),
                             "f"(acc[to * SHAPE::KEPT + i]), "f"(acc[to * SHAPE::KEPT + i + 1]),
                             "f"(acc[to * SHAPE::KEPT + i + 2]), "f"(acc[to * SHAPE::KEPT + i + 3])
                             : "memory");
        }
    }
    fence_async();
    __syncwarp();
    if (lane < SHAPE::SPLITS && lane != split) {
        const int peer = lane * SHAPE::SHARE + share;
        copy_to_peer(peer_address(got + (split - (split > lane)) * PART, peer),
                     sent + (lane - (lane > split)) * PART, PART, peer_address(arrived, peer));
    }
    __syncwarp();
    barrier_wait(arrived, 0);
#pragma unroll
    for (int i = 0; i < SHAPE::KEPT; i += 4) {
        float sum[4] = {};
#pragma unroll
        for (int from = 0; from < SHAPE::SPLITS; from++) { // in order of rank
            float v[4];
            const uint32_t at = got + (from - (from > split)) * PART + lane * 16 + i * 128;
            if (from == split) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    v[k] = acc[from * SHAPE::KEPT + i + k];
                }
            } else {
                asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                             : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                             : "r"(at)
                             : "memory");
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum[k] += v[k];
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            kept[i + k] = sum[k];
    }
}

#endif

} // namespace ssm

#endif
