// SPDX-License-Identifier: Apache-2.0
// wide.cuh's product with the two groups of warps taking turns: each multiplies a tile of 128
// tokens by COLS columns alone, and what follows a tile (END) is hidden behind the other group's
// product, where wide_kernel's groups share a tile and the matrix units wait for its end. END's
// stages are a ring of their own, END_SLOTS of END_BYTES, asked for by a warp of its own, so that
// what a tile ends with is there when it ends. A block reads more of x and w for its work than with
// wide_kernel's tiles; L2 gives it (11 TB/s were seen).
//
// Two warps are idle: where END has SCRATCH bytes they make there what tiles need beside,
//   static void beside(e, a, rank)    once; may wait for nothing that the groups or their peers do,
//                                     but meet the asking warp in fetch()
//
// wide_kernel remains for a single tile a block: there turns would only be half as wide.
#ifndef SSM_KERNELS_CUDA_WIDE_TURNS_CUH
#define SSM_KERNELS_CUDA_WIDE_TURNS_CUH

#include "wide_kernel.cuh"

namespace ssm {

enum { WIDE_TURNS_BARRIERS = 512, WIDE_MOST_SLOTS = 10 };

template <int COLS_, int SHARE_, int END_BYTES_, int END_SLOTS_, int SCRATCH_ = 0>
struct wide_turns {
    static constexpr int MT = 2, COLS = COLS_, SHARE = SHARE_, SPLITS = 1, CLUSTER = SHARE;
    static constexpr int TOKENS = 128, X_BYTES = TOKENS * 128, W_BYTES = COLS * 128;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES, WARPS = 4, BESIDE = 2;
    static constexpr int END_BYTES = END_BYTES_, END_SLOTS = END_SLOTS_;
    static constexpr int SUMS = MT * COLS / 2, KEPT = SUMS, M = MT, N = COLS;
    static_assert(STAGE_BYTES % 1024 == 0 && END_BYTES % 1024 == 0, "shape");

    static constexpr int SCRATCH = SCRATCH_; // bytes for END, the last ones
    static constexpr int BESIDES = END_SLOTS * END_BYTES + WIDE_TURNS_BARRIERS + SCRATCH;
    static constexpr int ROOM = (WIDE_SHARED - BESIDES) / STAGE_BYTES;
    static constexpr int STAGES = ROOM < WIDE_MOST_STAGES ? ROOM : WIDE_MOST_STAGES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + BESIDES;
    static_assert(STAGES >= 3 && END_SLOTS <= WIDE_MOST_SLOTS, "shared memory");
};

#if SSM_HOPPER

// One warp: x and w of all tiles.
template <class SHAPE, class RING>
__device__ __forceinline__ void turns_produce(const CUtensorMap *x_map, const CUtensorMap *w_map,
                                              const wide_args &a, RING ring, int stages, int rank,
                                              uint32_t told, place_ticket ticket) {
    constexpr int PART = SHAPE::TOKENS / SHAPE::SHARE; // of x, each block's for all
    const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
    const auto weights = [&](const wide_tile &t, int p, int s) {
        const uint32_t at = ring.slots + s * SHAPE::STAGE_BYTES + SHAPE::X_BYTES;
        barrier_expect(ring.full + s * 8, SHAPE::STAGE_BYTES);
        wide_weights<SHAPE>(w_map, a, t, p, at, ring.full + s * 8);
    };
    const auto inputs = [&](const wide_tile &t, int p, int s) {
        const uint32_t at = ring.slots + s * SHAPE::STAGE_BYTES + rank * PART * 128;
        if constexpr (SHAPE::SHARE == 1)
            copy_box(at, x_map, p * WIDE_PIECE, t.token0, ring.full + s * 8);
        else
            copy_box_to((1u << SHAPE::SHARE) - 1, at, x_map, p * WIDE_PIECE, t.token0 + rank * PART,
                        ring.full + s * 8);
    };
    int i = wide_place<SHAPE>(a, told, ticket, rank, ring.lane);
    const int n = i < tiles ? a.pieces : 0, ahead = min(n, stages);
    int p = ahead;
    wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
    wide_ask_first(ring, ahead, x_map, t, weights, inputs, [&] {
        if (SHAPE::CLUSTER > 1 && !a.places.tickets)
            cluster_wait(); // the peers' barriers are there
    });
    ring.skip(ahead);
#pragma unroll 1
    for (;; p = 0) {
        wide_ask(ring, p, n, t, weights, inputs);
        i += step;
        if (i >= tiles)
            break;
        t = wide_tile_at<SHAPE>(a, i, rank);
    }
    dependents_start();
    if (SHAPE::SHARE > 1) { // what peers tell this block has come before it ends
        for (int k = 0; k < stages; k++, ring.next())
            barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
    }
}

// One warp: what END asks for, of each tile when the end of the one before is over (`ended`).
template <class SHAPE, class END, class RING>
__device__ __forceinline__ void turns_fetch(const wide_args &a, const typename END::args &e,
                                            RING ring, uint32_t ended, int rank, int first) {
    const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
#pragma unroll 1
    for (int i = first, phase = 1; i < tiles; i += step, phase ^= 1) {
        const wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
        if (i > first)
            barrier_wait(ended, phase);
        END::ahead(e, t);
#pragma unroll 1
        for (int k = 0; k < END::STAGES; k++, ring.next()) {
            barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
            END::fetch(e, t, k, ring.slots + ring.stage * SHAPE::END_BYTES,
                       ring.full + ring.stage * 8);
            __syncwarp();
        }
    }
}

// A group of four warps: every second tile of the block's. A barrier tells odd from even passes
// through its ring alone, so a group waits for its stages only when the other one has taken all
// that come before: `turn` says so for the product and behind it for END, a barrier a group each;
// the fifth says that a tile's end is over.
template <class SHAPE, class END, class RING, class END_RING>
__device__ __forceinline__ void turns_consume(const wide_args &a, const typename END::args &e,
                                              RING ring, END_RING own, uint32_t turn, int group,
                                              int rank, int place) {
    const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
    const uint32_t mine = turn + group * 8, others = turn + (group ^ 1) * 8;
    bool first = group == 0; // nothing comes before
    if (group == 1) {
        ring.skip(a.pieces);
        own.skip(END::STAGES);
    }
#pragma unroll 1
    for (int i = place + group * step, phase = 0; i < tiles; i += 2 * step) {
        const wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
        float acc[SHAPE::MT][SHAPE::COLS / 2];
        if (!first)
            barrier_wait(mine, phase);
        wide_multiply<SHAPE>(ring, a.pieces, 0, acc, [&](int p) {
            if (p == a.pieces - 1 && ring.lane == 0)
                barrier_arrive(others);
        });
        if (!first)
            barrier_wait(mine + 16, phase), phase ^= 1;
        first = false;
        END::apply(e, t, own, acc);
        if (ring.lane == 0)
            barrier_arrive(others + 16);
        for (int late = END::LATE; END::LATE > 0 && late > 0; late--)
            wide_give_late<END::LATE>(own, late);
        if (ring.lane == 0)
            barrier_arrive(turn + 32);
        ring.skip(a.pieces), own.skip(END::STAGES);
    }
}

#endif

template <class SHAPE, class END>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_turns_kernel(const __grid_constant__ CUtensorMap x_map,
                      const __grid_constant__ CUtensorMap w_map,
                      const __grid_constant__ wide_args a,
                      const __grid_constant__ typename END::args e) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    constexpr int STAGES = SHAPE::STAGES, SLOTS = SHAPE::END_SLOTS;
    constexpr int ENDS = STAGES * SHAPE::STAGE_BYTES, BARRIERS = ENDS + SLOTS * SHAPE::END_BYTES;
    const int warp = threadIdx.x / 32, rank = blockIdx.x % SHAPE::CLUSTER;
    wide_ring<STAGES, SHAPE::STAGE_BYTES, SHAPE::SHARE> ring;
    wide_ring<SLOTS, SHAPE::END_BYTES, 1> own;
    ring.slots = shared_address(shared), own.slots = ring.slots + ENDS;
    ring.full = ring.slots + BARRIERS, ring.empty = ring.full + WIDE_MOST_STAGES * 8;
    own.full = ring.empty + WIDE_MOST_STAGES * 8, own.empty = own.full + WIDE_MOST_SLOTS * 8;
    const uint32_t turn = own.empty + WIDE_MOST_SLOTS * 8, told = turn + 5 * 8;
    ring.stage = ring.phase = ring.oldest = own.stage = own.phase = own.oldest = 0;
    ring.warp = own.warp = warp % 4, ring.lane = own.lane = threadIdx.x % 32;
    const place_ticket ticket = wide_ticket(a, rank);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full + i * 8, 1);
            barrier_init(ring.empty + i * 8, SHAPE::WARPS * SHAPE::SHARE);
        }
        for (int i = 0; i < SLOTS; i++) {
            barrier_init(own.full + i * 8, 1);
            barrier_init(own.empty + i * 8, SHAPE::WARPS);
        }
        for (int i = 0; i < 5; i++)
            barrier_init(turn + i * 8, SHAPE::WARPS);
        place_begin(told);
    }
    __syncthreads();
    if (SHAPE::CLUSTER > 1)
        cluster_arrive();
    if (warp < WIDE_WARPS) {
        more_registers<232>();
        if (SHAPE::CLUSTER > 1)
            cluster_wait();
        if (SHAPE::SHARE > 1) // lane i tells block i of those that share x
            ring.empty = peer_address(ring.empty, ring.lane % SHAPE::SHARE);
        dependency_wait();
        const int place = hear_place<SHAPE::CLUSTER>(a.places, told);
        turns_consume<SHAPE, END>(a, e, ring, own, turn, warp / 4, rank, place);
    } else {
        fewer_registers<40>();
        if (warp == WIDE_WARPS) {
            turns_produce<SHAPE>(&x_map, &w_map, a, ring, STAGES, rank, told, ticket);
        } else {
            if (SHAPE::CLUSTER > 1)
                cluster_wait();
            const int place = hear_place<SHAPE::CLUSTER>(a.places, told);
            if (warp == WIDE_WARPS + 1) {
                dependency_wait();
                wide_wipe(a, ring.lane);
                turns_fetch<SHAPE, END>(a, e, own, turn + 32, rank, place);
            } else if constexpr (SHAPE::SCRATCH > 0) {
                END::beside(e, a, rank, place);
            }
        }
    }
#endif
}

} // namespace ssm

#endif
