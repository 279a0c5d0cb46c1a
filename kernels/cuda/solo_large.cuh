// SPDX-License-Identifier: Apache-2.0
// What solo_large_*.cuh share: which warp does what, how a block's shared memory is dealt, packets.
// See solo_large.cu for the design.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_CUH

#include "packed.cuh"
#include "solo_states.cuh"

namespace ssm {

// Bytes under way at once, of packed weights. What a block says to others queues behind them
// (solo_large.cu).
enum { LARGE_FLIGHT = 28 * 1024 };

// 32-column parts of a slot, of a warp's nb (as ring.cuh's slots).
constexpr int large_part(int nb) {
    return nb % 5 == 0 ? 5 : nb % 4 == 0 ? 4 : 3;
}

// Mamba-2's published heads and states; B and C of a group. Rows of B, C and dt that a block has
// where there are groups (solo_large_groups.cuh), of B and of C each.
enum { LARGE_HEAD = 64, LARGE_STATES = 128, LARGE_CONV_BC = 2 * LARGE_STATES, LARGE_REST = 8 };

// M: d_model, S: states' type; P: in_proj and out_proj in 12 bits a weight (packed.cuh); TWO:
// Mamba-2 (solo_large_mamba2.cu).
template <int M, class S, bool P, bool TWO> struct large_shape {
    typedef S state;
    enum {
        BC_GROUPS = TWO && M == 4096 ? 8 : 1, // mamba-codestral-7b: of B, C and the gated norm
        GATED = TWO,                          // out_proj's sums are those of a gated norm's input
        NORMS = !TWO && M == 4096,            // dt, B and C may be normed (falcon_mamba)
        WIDTH = M,
        BLOCKS = LARGE_BLOCKS,
        INNER = 2 * M,
        RANK = M / 16,
        N_X = TWO ? LARGE_CONV_BC + 8 : RANK + 32, // Mamba-2: B, C, and a block's heads' dt
        CONV = TWO ? INNER + BC_GROUPS * LARGE_CONV_BC : INNER,
        HEADS = INNER / LARGE_HEAD,
        CH = INNER / BLOCKS,   // channels of a block
        OUT_ROWS = M / BLOCKS, // of out_proj, and of the residual
        GROUPS = CH / 8,       // of eight rows of in_proj's x, and of its z
        OUT_GROUPS = (OUT_ROWS + 7) / 8,
        WARPS = 8, // 0 on: products, each its columns of all rows
        IN_NB = M / (WARPS * 32),
        IN_CB = large_part(IN_NB), // of a slot
        OUT_NB = INNER / (WARPS * 32),
        OUT_CB = large_part(OUT_NB),
        // x_proj: a lane a row, or two lanes three rows, as registers allow; Mamba-2: a row of B,
        // of C, of dt; its groups: what comes after the products of such rows
        X_WARP = WARPS,
        X_LANES = N_X > 256 && !TWO ? 2 : 1, // of a row
        X_ROWS = X_LANES == 2 ? 3 : 1,       // of a lane
        X_WARP_ROWS = 32 / X_LANES * X_ROWS, // of a warp
        X_WARPS = BC_GROUPS > 1 ? 1
                  : TWO         ? 3
                                : N_X / X_WARP_ROWS,
        X_OWN = (X_WARP_ROWS + 31) / 32, // totals of a lane
        STATE_WARP = X_WARP + X_WARPS,   // convolution and states, eight channels each
        STATE_WARPS = CH / 8,
        ASK_WARP = STATE_WARP + STATE_WARPS, // asks for the weights
        THREADS = (ASK_WARP + 1) * 32,
        READERS = P ? WARPS / 2 : WARPS, // of a slot: solo_large_packed.cuh
        // bytes of a row of a slot: an odd multiple of 64
        IN_PITCH = WARPS * IN_CB * 64 + 64,
        OUT_PITCH = WARPS * OUT_CB * 64 + 64,
        TURNS = M / 256, // packed: slots of in_proj's x, of its z, and of out_proj
        // Groups: rows of B, C and dt of a block; packed, slots have all of them by 512 columns
        REST_ROWS = 2 * LARGE_REST + 1,
        REST_SLOTS = M / 512,
        REST_SLOT_PITCH = 1024 + 16, // bytes of a row
        SLOT = P ? CH * 384 : 8 * (IN_PITCH > OUT_PITCH ? IN_PITCH : OUT_PITCH),
        // offsets behind the ring
        WIDE = P ? 2 : 1,     // of a packed form's activations half are zeros: large_packed::put()
        U = 0,                // the layer's input, bf16, each warp's columns
        Y = U + M * 2 * WIDE, // out_proj's
        X_PARTS = Y + INNER * 2 * WIDE, // [warp][CH] sums of in_proj's x, and of its z
        Z_PARTS = X_PARTS + WARPS * CH * 4,
        OUT_PARTS = Z_PARTS + WARPS * CH * 4,         // [warp][OUT_GROUPS * 8]
        OWN = OUT_PARTS + WARPS * OUT_GROUPS * 8 * 4, // x
        XDB = OWN + CH * 4,                           // x_proj's sums
        SQUARES = XDB + N_X * 4,                      // [warp] of the input
        Y_SQUARES = SQUARES + WARPS * 4,              // [warp][BC_GROUPS] of what is gated
        REST_PARTS = Y_SQUARES + (TWO ? WARPS * BC_GROUPS * 4 : 0), // [warp][REST_PITCH] of groups
        REST_PITCH = 2 * LARGE_REST + 2,
        BARRIERS = REST_PARTS + (BC_GROUPS > 1 ? WARPS * REST_PITCH * 4 : 0),
        MOST_SLOTS = 24,
        BESIDE = BARRIERS + 2 * MOST_SLOTS * 8,
        ROOM = (227 * 1024 - BESIDE) / SLOT,
        SLOTS = ROOM < MOST_SLOTS ? ROOM : MOST_SLOTS,
        BYTES = SLOTS * SLOT + BESIDE,
        FLIGHT = P ? (LARGE_FLIGHT + SLOT - 1) / SLOT : 2, // slots under way at once
        // packets
        TOTALS = 0, // [N_X / 4][TOTALS_PITCH] of x_proj
        TOTALS_PITCH = 64,
        BASES = TOTALS + N_X / 4 * TOTALS_PITCH, // [N_X]
        REST = 0, // Mamba-2: [B, C, dt][block], in their place; groups: [group][B, C], two states
        RESTS = BC_GROUPS > 1 ? LARGE_CONV_BC / 2 * BC_GROUPS : 3 * BLOCKS,
        US = TWO ? RESTS : BASES + N_X, // [M / 2]
        YS = US + M / 2,                // [INNER / 2]
        PACKETS = YS + INNER / 2,
    };
    // What packed weights are multiplied by carries; that and 2^-base are taken from the sums.
    static constexpr float GIVEN = P ? PACKED_GIVEN : 1;
    static __device__ __forceinline__ float taken(uint32_t by) {
        return P ? low_half(by) / PACKED_GIVEN : 1;
    }
    static_assert(INNER % (8 * BLOCKS) == 0 && (TWO || N_X % X_WARP_ROWS == 0) &&
                      (X_WARPS >= 2 || BC_GROUPS > 1),
                  "warps");
    static_assert(!TWO || ((int)LARGE_STATES == BLOCKS && HEADS <= BLOCKS), "a row each of B, C");
    static_assert(BC_GROUPS == 1 ||
                      ((int)CH == LARGE_HEAD && BLOCKS / BC_GROUPS * LARGE_REST == LARGE_STATES &&
                       BC_GROUPS * 32 == OUT_NB * 8 && // a lane's fours of y
                       INNER / BC_GROUPS == WARPS * OUT_CB * 32 && INNER / BC_GROUPS == 2 * 512 &&
                       REST_SLOTS % 2 == 0 && (!P || REST_ROWS * REST_SLOT_PITCH <= SLOT)),
                  "a block is a head, a norm's group a warp's part of y and two slots");
    static_assert(OUT_ROWS <= 32 && OUT_ROWS % 4 == 0, "lanes");
    static_assert(SQUARES % 16 == 0 && XDB % 16 == 0 && OWN % 16 == 0, "alignment");
    static_assert(SLOT % 128 == 0 && US % 2 == 0 && YS % 2 == 0, "alignment");
};

#if SSM_HOPPER

// Named barriers: what one kind of warps leaves for another.
enum { LARGE_X = 1, LARGE_OWN, LARGE_Z, LARGE_XDB, LARGE_OUT, LARGE_U, LARGE_Y };

// ---- packets

// Two words, of which the second's lowest eight bits are the exchange's number.
__device__ __forceinline__ void publish_words(uint2 *to, uint32_t v, uint32_t w, uint32_t tag) {
    store_packet(to, v, (w & ~255u) | (tag & 255));
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

__device__ __forceinline__ uint2 load_shared2(uint32_t from) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
    return v;
}

// ---- a block: what all its threads know, and the ring's next slot

template <class SHAPE> struct large_block {
    typedef SHAPE shape;
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
    // Groups: which of B's, C's and dt's rows is the block's i-th, of REST_ROWS.
    __device__ __forceinline__ int rest_row(int i) const {
        enum { ROWS = shape::BC_GROUPS * LARGE_STATES }; // of B
        return i < 2 * LARGE_REST ? i / LARGE_REST * ROWS + blockIdx.x * LARGE_REST + i % LARGE_REST
                                  : 2 * ROWS + blockIdx.x;
    }
    __device__ __forceinline__ void init() const { // one thread
        for (int i = 0; i < shape::SLOTS; i++)
            barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, shape::READERS);
        barriers_ready();
    }
    // What sums over the layer's input are multiplied by, beside what packed weights are.
    __device__ __forceinline__ float input_scale(const solo_args &a) const {
        return rsqrt_fast(sum_of<shape::WARPS, 1>(floats(shape::SQUARES)) * (1.f / shape::WIDTH) +
                          a.eps);
    }
    // The sum of a row of x, once all warps have theirs; scale: of x's and z's sums.
    __device__ __forceinline__ float x_sum(const solo_args &a, int layer, int c,
                                           float &scale) const {
        solo_sync<LARGE_X>((shape::WARPS + shape::STATE_WARPS) * 32);
        scale = input_scale(a) * shape::taken(a.layers[layer].packed_in_by);
        return sum_of<shape::WARPS, shape::CH>(floats(shape::X_PARTS) + c) * scale;
    }
    template <int STEP = 1> __device__ __forceinline__ void next() {
        at += STEP;
        if (at >= shape::SLOTS)
            at -= shape::SLOTS, phase ^= 1;
    }
};

#endif

} // namespace ssm

#endif
