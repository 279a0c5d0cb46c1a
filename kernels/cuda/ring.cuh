// SPDX-License-Identifier: Apache-2.0
// Pieces of few.cu: mbarriers, bulk copies, and a block's walk over weight rows through a ring of
// slots in shared memory.
#ifndef SSM_KERNELS_CUDA_RING_CUH
#define SSM_KERNELS_CUDA_RING_CUH

#include "cuda.h"
#include "util.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SSM_BULK 1
#else
#define SSM_BULK 0
#endif

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

__device__ __forceinline__ void ring_barrier_init(uint64_t *bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)),
                 "r"(arrivals));
}

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

// Named barriers: `threads` in all take part.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void ring_barriers_visible() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void ring_expect(uint64_t *bar, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
        "r"(bytes)
        : "memory");
}

__device__ __forceinline__ void ring_wait(uint64_t *bar, int phase) {
    asm volatile("{\n.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(shared_address(bar)),
                 "r"(phase)
                 : "memory");
}

__device__ __forceinline__ uint64_t read_once_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void bulk_copy(void *to, const void *from, int bytes, uint64_t *bar,
                                          uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar)), "l"(policy)
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
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from + i),
                         "r"(min(PIECE, bytes - i))
                         : "memory");
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
            ring_barrier_init(full + s, 1);
            ring_barrier_init(empty + s, RING_WARPS);
        }
        ring_barriers_visible();
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
        const uint64_t policy = read_once_policy();
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
                    ring_wait(empty + at, phase ^ 1);
                else if (asked >= flight)
                    ring_wait(full + asked - flight, 0);
                asked++;
                if (lane == 0)
                    ring_expect(full + at, rows * shape::COLS * 2);
                __syncwarp();
                if (lane < rows)
                    bulk_copy(slots + at * shape::BYTES + lane * shape::PITCH, from,
                              shape::COLS * 2, full + at, policy);
                next();
            }
        }
    }

    // c1 is the last to take anything that was read from the slot.
    template <class X>
    __device__ __forceinline__ void multiply(float (&c0)[4], float (&c1)[4], X x) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
        ring_wait(full + at, phase);
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
