// SPDX-License-Identifier: Apache-2.0
// Pieces of few.cu: a block's walk over weight rows through a ring of slots in shared memory.
#ifndef SSM_KERNELS_CUDA_RING_CUH
#define SSM_KERNELS_CUDA_RING_CUH

#include "bulk.cuh"
#include "cuda.h"

namespace ssm {

enum {
    RING_WARPS = 8, // that multiply
    END_WARPS = 3,  // that do what comes after
    RING_CONSUMERS = RING_WARPS * 32,
    END_THREADS = END_WARPS * 32,
    RING_THREADS = RING_CONSUMERS + END_THREADS + 32, // the last one asks for the weights
    MAX_SLOTS = 16,
    BESIDE_SLOTS = 12 // beside other kernels' blocks
};

// A warp's columns are NB blocks of 32. A slot holds eight rows of a part of the columns, CB blocks
// of each warp: a copy a row. Rows lie an odd multiple of 64 bytes apart: the matrix instruction's
// reads (two rows by 64 bytes at a time) never meet in a bank.
template <int NB> struct slot_shape {
    static constexpr int CB = NB <= 5 ? NB : NB % 5 == 0 ? 5 : NB % 4 == 0 ? 4 : 3;
    static constexpr int PARTS = NB / CB, COLS = RING_WARPS * CB * 32, PITCH = COLS * 2 + 64,
                         BYTES = 8 * PITCH;
    static_assert(NB % CB == 0, "shape");
};

#if SSM_BULK

// Once `sum` is there, one of a matrix instruction's that no token row gives: zero, or NaN. What
// the instruction was fed has then come from shared memory. An arrive alone overtakes reads that
// queue behind the SM's loads from L2: the slot was filled again in front of them (few.cu).
__device__ __forceinline__ void ring_arrive_after(uint64_t *bar, float sum) {
    asm volatile("{\n.reg .pred p;\n"
                 "setp.neu.f32 p, %1, 0f3F800000;\n" // it is not one
                 "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(shared_address(bar)),
                 "f"(sum)
                 : "memory");
}

// Two runs of weight rows, each in groups of eight (the last may be short).
struct row_runs {
    int first[2], count[2];
};

// Asks L2 for bytes a little faster than memory gives them, one lane: faster, what the kernel that
// runs has to read would queue behind them.
__device__ __forceinline__ void ask_l2(const char *from, int bytes) {
    constexpr int PIECE = 4096, CYCLES = 160;
    if ((threadIdx.x & 31) == 0) {
#pragma unroll 1
        for (int i = 0; i < bytes; i += PIECE) {
            prefetch_run(from + i, min(PIECE, bytes - i));
            const int start = (int)clock();
            while ((int)clock() - start < CYCLES)
                ;
        }
    }
    __syncwarp();
}

// The ring of a block. Barriers of a slot: full (the copies' bytes) and empty (a warp each).
template <int NB, bool STREAM> struct block_ring {
    typedef slot_shape<NB> shape;
    char *slots;
    uint64_t *full, *empty;
    int n_slots, at, phase;

    __device__ __forceinline__ void init() { // one thread, before a barrier
#pragma unroll 1
        for (int s = 0; s < n_slots; s++) {
            barrier_init(shared_address(full + s), 1);
            barrier_init(shared_address(empty + s), RING_WARPS);
        }
        barriers_ready();
    }

    __device__ __forceinline__ void next() {
        if (++at == n_slots)
            at = 0, phase ^= 1;
    }

    // The asking warp: all slots of all rows, in the order in which they are multiplied. Until
    // somebody multiplies at most `flight` slots are under way: more would queue up in front of
    // what the kernel that runs has to read.
    __device__ __forceinline__ void produce(const row_runs &runs, const bf16 *weight, int flight) {
        constexpr int K = NB * 32 * RING_WARPS;
        const int lane = threadIdx.x & 31;
        const uint64_t policy = policy_once();
        int asked = 0;
#pragma unroll 1
        for (int run = 0; run < 2; run++) {
            const int groups = (runs.count[run] + 7) / 8, n = groups * shape::PARTS;
#pragma unroll 1
            for (int i = 0; i < n; i++) {
                const int group = STREAM ? i % groups : i / shape::PARTS;
                const int part = STREAM ? i / groups : i % shape::PARTS;
                const int rows = min(8, runs.count[run] - group * 8);
                const bf16 *from =
                    weight + (size_t)(runs.first[run] + group * 8 + lane) * K + part * shape::COLS;
                if (asked >= n_slots)
                    barrier_wait(shared_address(empty + at), phase ^ 1);
                else if (asked >= flight)
                    barrier_wait(shared_address(full + asked - flight), 0);
                asked++;
                if (lane == 0)
                    barrier_expect(shared_address(full + at), rows * shape::COLS * 2);
                __syncwarp();
                if (lane < rows)
                    copy_run(shared_address(slots + at * shape::BYTES + lane * shape::PITCH), from,
                             shape::COLS * 2, shared_address(full + at), policy);
                next();
            }
        }
    }

    // c1 is the last to take anything that was read from the slot.
    template <class X>
    __device__ __forceinline__ void multiply(float (&c0)[4], float (&c1)[4], X x) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
        barrier_wait(shared_address(full + at), phase);
        const char *from =
            slots + at * shape::BYTES + g * shape::PITCH + warp * shape::CB * 64 + q * 16;
#pragma unroll
        for (int k = 0; k < shape::CB; k++) {
            const uint4 w = *(const uint4 *)(from + k * 64);
            const uint4 v = x(k);
            mma(c0, v.x, 0, v.y, 0, w.x, w.y);
            mma(c1, v.z, 0, v.w, 0, w.z, w.w);
        }
        __syncwarp();
        if (lane == 0)
            ring_arrive_after(empty + at, c1[3]);
        next();
    }

    // Sums of the next group's eight rows over the warp's columns: rows 2 q, 2 q + 1 of token g
    // (lane 4 g + q). x(k): the lane's eight columns of token g of the warp's k-th 32.
    template <class X> __device__ __forceinline__ float2 group_sums(X x) {
        float c0[4] = {}, c1[4] = {};
#pragma unroll 1
        for (int part = 0; part < shape::PARTS; part++)
            multiply(c0, c1, [&](int k) { return x(part * shape::CB + k); });
        return make_float2(c0[0] + c1[0], c0[1] + c1[1]);
    }
};

#endif

} // namespace ssm

#endif
