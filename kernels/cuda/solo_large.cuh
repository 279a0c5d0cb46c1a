// SPDX-License-Identifier: Apache-2.0
// What solo_large_*.cuh share: which warp does what, how a block's shared memory is dealt, packets.
// See solo_large.cu for the design.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_CUH

#include "solo_states.cuh"

namespace ssm {

// Slots under way at once. What a block says to others queues behind them (solo_large.cu).
enum { LARGE_FLIGHT = 2 };

// 32-column parts of a slot, of a warp's nb (as ring.cuh's slots).
constexpr int large_part(int nb) {
    return nb % 5 == 0 ? 5 : nb % 4 == 0 ? 4 : 3;
}

// M: d_model, S: states' type.
template <int M, class S> struct large_shape {
    enum {
        BLOCKS = LARGE_BLOCKS,
        INNER = 2 * M,
        RANK = M / 16,
        N_X = RANK + 32,
        CH = INNER / BLOCKS,   // channels of a block
        OUT_ROWS = M / BLOCKS, // of out_proj, and of the residual
        GROUPS = CH / 8,       // of eight rows of in_proj's x, and of its z
        OUT_GROUPS = (OUT_ROWS + 7) / 8,
        PAIRS = N_X / 2, // of x_proj's sums
        WARPS = 8,       // 0 on: products, each its columns of all rows
        IN_NB = M / (WARPS * 32),
        IN_CB = large_part(IN_NB), // of a slot
        OUT_NB = INNER / (WARPS * 32),
        OUT_CB = large_part(OUT_NB),
        X_WARP = WARPS, // x_proj, a lane a row
        X_WARPS = N_X / 32,
        STATE_WARP = X_WARP + X_WARPS, // convolution and states, eight channels each
        STATE_WARPS = CH / 8,
        ASK_WARP = STATE_WARP + STATE_WARPS, // asks for the weights
        THREADS = (ASK_WARP + 1) * 32,
        COPIES = 4, // of x_proj's sums
        // bytes of a row of a slot: an odd multiple of 64
        IN_PITCH = WARPS * IN_CB * 64 + 64,
        OUT_PITCH = WARPS * OUT_CB * 64 + 64,
        SLOT = 8 * (IN_PITCH > OUT_PITCH ? IN_PITCH : OUT_PITCH),
        // offsets behind the ring
        U = 0,                   // the layer's input, bf16, each warp's columns
        Y = U + M * 2,           // out_proj's
        X_PARTS = Y + INNER * 2, // [warp][CH] sums of in_proj's x, and of its z
        Z_PARTS = X_PARTS + WARPS * CH * 4,
        OUT_PARTS = Z_PARTS + WARPS * CH * 4,         // [warp][OUT_GROUPS * 8]
        OWN = OUT_PARTS + WARPS * OUT_GROUPS * 8 * 4, // x
        XDB = OWN + CH * 4,                           // x_proj's sums
        SQUARES = XDB + N_X * 4,                      // [warp]
        BARRIERS = SQUARES + WARPS * 4,
        MOST_SLOTS = 16,
        BESIDE = BARRIERS + 2 * MOST_SLOTS * 8,
        ROOM = (227 * 1024 - BESIDE) / SLOT,
        SLOTS = ROOM < MOST_SLOTS ? ROOM : MOST_SLOTS,
        BYTES = SLOTS * SLOT + BESIDE,
        // packets
        SHARES = 0,                     // [PAIRS / 4][BLOCKS][4] of x_proj's sums
        SUMS = SHARES + PAIRS * BLOCKS, // [COPIES][PAIRS]
        US = SUMS + COPIES * PAIRS,     // [M / 2]
        YS = US + M / 2,                // [INNER / 2]
        PACKETS = YS + INNER / 2,
    };
    static_assert(INNER % (8 * BLOCKS) == 0 && N_X % 32 == 0 && X_WARPS >= 2, "warps");
    static_assert(PAIRS % 4 == 0 && PAIRS / 4 * 5 <= BLOCKS, "blocks that add up x_proj's shares");
    static_assert(OUT_ROWS <= 32 && OUT_ROWS % 4 == 0, "lanes");
    static_assert(SQUARES % 16 == 0 && XDB % 16 == 0 && OWN % 16 == 0, "alignment");
    static_assert(SLOT % 128 == 0 && US % 2 == 0 && YS % 2 == 0, "alignment");
};

#if SSM_HOPPER

// Named barriers: what one kind of warps leaves for another.
enum { LARGE_X = 1, LARGE_OWN, LARGE_Z, LARGE_XDB, LARGE_OUT };

// ---- packets

// Two words, of which the second's lowest eight bits are the exchange's number.
__device__ __forceinline__ void publish_words(uint2 *to, uint32_t v, uint32_t w, uint32_t tag) {
    const uint32_t tagged = (w & ~255u) | (tag & 255);
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"((uint64_t)tagged << 32 | v)
                 : "memory");
}
// Two packets that lie beside each other.
__device__ __forceinline__ uint4 two_packets(const uint2 *from) {
    uint64_t v, w;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0,%1}, [%2];"
                 : "=l"(v), "=l"(w)
                 : "l"(from)
                 : "memory");
    return make_uint4((uint32_t)v, (uint32_t)(v >> 32), (uint32_t)w, (uint32_t)(w >> 32));
}
__device__ __forceinline__ void store_shared2(uint32_t to, uint32_t v, uint32_t w) {
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(v), "r"(w) : "memory");
}

// ---- a block: what all its threads know, and the ring's next slot

template <int M, class S> struct large_block {
    typedef large_shape<M, S> shape;
    char *beside;
    uint32_t slots, full, empty;
    int first, at, phase; // first: channel

    __device__ __forceinline__ large_block(char *p) {
        beside = p + shape::SLOTS * shape::SLOT;
        slots = shared_address(p), full = address(shape::BARRIERS);
        empty = full + shape::MOST_SLOTS * 8;
        first = blockIdx.x * shape::CH, at = phase = 0;
    }
    __device__ __forceinline__ uint32_t address(int offset) const {
        return shared_address(beside + offset);
    }
    __device__ __forceinline__ float *floats(int offset) const {
        return (float *)(beside + offset);
    }
    __device__ __forceinline__ void init() const { // one thread
        for (int i = 0; i < shape::SLOTS; i++)
            barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, shape::WARPS);
        barriers_ready();
    }
    __device__ __forceinline__ void next() {
        if (++at == shape::SLOTS)
            at = 0, phase ^= 1;
    }
};

#endif

} // namespace ssm

#endif
