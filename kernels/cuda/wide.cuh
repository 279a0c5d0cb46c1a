// SPDX-License-Identifier: Apache-2.0
// The product of large steps on Hopper: y [token][column] = x [token][k] w [column][k]^T, bf16 in,
// fp32 sums, with what follows it in the same launch: out_proj leaves the next layer's input
// (wide_out.cu), in_proj scales by that input's norm (wide_in.cu), so that a layer has no kernel
// for its norm, and all of its kernels take part in programmatic dependent launch, which
// cuBLASLt's do not: they begin 1.5 to 4 us after the one before.
//
// A block makes tiles of 128 MT tokens by COLS columns (weight rows). One warp asks for stages of
// PIECE columns of x and w by tensor map into a ring; two groups of four warps multiply them, each
// MT operands of 64 tokens by all of COLS, and give each stage back when they are through with it.
//
// A cluster of SHARE blocks has neighbouring columns and shares its tokens: each block fetches its
// part of x for all of them. L2 gives about 7 TB/s where a tile of 256 x 160 at the matrix units'
// rate asks for 8.
// A cluster of SPLITS splits k: sums meet in shared memory and are added up in order of rank, each
// block finishing a part of the tile (rows of 64 tokens, or columns).
// There is one order of k and of everything else: a token's bits do not depend on its place.
//
// What follows is END, the same warps' work after a tile's last stage. The producer goes on with
// stages for END (residual; or only room) and behind these with the next tile's, so memory never
// waits for the end of a tile. END is a struct with
//
//   struct args                 kernel argument, tensor maps among it
//   static constexpr int STAGES ring stages of its own after each tile
//   static void ahead(e, tile)  the asking warp, all lanes: once a tile, when its first stages are
//                               asked for (prefetches to L2)
//   static void fetch(e, tile, i, at, full)
//                               the asking warp, all lanes: stage i of those, at address `at` in
//                               shared memory; must arrive once on barrier `full`, with
//                               barrier_expect for what it copies
//   static void apply(e, tile, ring, acc)
//                               a group of four warps; acc [SHAPE::M][SHAPE::N / 2]: as wgmma.cuh
//                               says, of tokens tile.token0 + 64 m, columns from tile.col0. Takes
//                               STAGES stages and gives all but the last LATE back, each warp for
//                               itself: ring.take() waits for the next and is its address,
//                               ring.give() gives the oldest back (behind a __syncwarp and when no
//                               store of this warp reads it any more).
//   static constexpr int LATE   stages that are given back while the next tile's first ones are
//                               multiplied: lane 0 has made one group of stores of each
//
// All of END runs after the wait for the kernel before. Warp w multiplies tokens 16 (w % 4) of each
// operand of group w / 4, whose first token is MT 64 (w / 4) of the tile's.
#ifndef SSM_KERNELS_CUDA_WIDE_CUH
#define SSM_KERNELS_CUDA_WIDE_CUH

#include "wide.h"
#include "wide_hopper.cuh"
#include "wide_places.cuh"

namespace ssm {

enum {
    WIDE_PIECE = 64, // columns of k a stage
    WIDE_WARPS = 8,  // that multiply
    WIDE_THREADS = WIDE_WARPS * 32 + 128,
    WIDE_SHARED = 227 << 10,
    WIDE_MOST_STAGES = 10,
    WIDE_BARRIERS = 256 // bytes
};

template <int MT_, int COLS_, int SHARE_, int SPLITS_, int SCRATCH_ = 0> struct wide_shape {
    static constexpr int MT = MT_, COLS = COLS_, SHARE = SHARE_, SPLITS = SPLITS_;
    static constexpr int SCRATCH = SCRATCH_, BESIDE = 2; // bytes for END, the last ones; idle warps
    static constexpr int CLUSTER = SHARE * SPLITS, TOKENS = 128 * MT;
    static constexpr int X_BYTES = TOKENS * 128, W_BYTES = COLS * 128;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int WARPS = WIDE_WARPS, END_BYTES = STAGE_BYTES; // of a stage for END
    // What a block keeps of a tile's sums: KEPT registers, M operands of N columns.
    static constexpr int SUMS = MT * COLS / 2, KEPT = SUMS / SPLITS;
    static constexpr int M = KEPT > COLS / 2 ? KEPT / (COLS / 2) : 1, N = KEPT / M * 2;
    static_assert(STAGE_BYTES % 1024 == 0 && KEPT % 4 == 0 && M * N / 2 == KEPT, "shape");
    static_assert(SPLITS == 1 || KEPT >= COLS / 2 || COLS / 2 % KEPT == 0, "whole columns");
    static_assert(SPLITS == 1 || SCRATCH == 0, "idle warps meet the cluster's others");

    static constexpr int BESIDES = WIDE_BARRIERS + SCRATCH;
    static constexpr int ROOM = (WIDE_SHARED - BESIDES) / STAGE_BYTES;
    static constexpr int STAGES = ROOM < WIDE_MOST_STAGES ? ROOM : WIDE_MOST_STAGES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + BESIDES;
    static_assert(STAGES >= 3, "shared memory");
};

struct wide_args {
    int tokens, cols, pieces; // of x, of y, of k
    int row_tiles, col_tiles; // col_tiles: of SHARE neighbouring columns each
    int band;                 // row tiles that share a walk over all columns
    int half; // > 0: half of a tile's columns lie so many weight rows behind the others (col0 / 2)
    wide_places places;
};

struct wide_tile {
    int token0, col0; // apply: of the group's sums; elsewhere of the block's tile
    int column_tile;  // of all tiles of COLS columns
    int split, turn;  // of k; 0, 1, 0, ... of a block's tiles
};

#if SSM_HOPPER

// A warp's walk through a ring of STAGES stages of BYTES, whose users in SHARE blocks give back.
template <int STAGES, int BYTES, int SHARE> struct wide_ring {
    uint32_t slots, full, empty; // shared memory; empty: of the block to be told
    int stage, phase, oldest;    // next to be taken, to be given back
    int warp, lane;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES)
            stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ uint32_t take() {
        barrier_wait(full + stage * 8, phase);
        const uint32_t at = slots + stage * BYTES;
        next();
        return at;
    }
    // All blocks that copy into this one's stages are told.
    __device__ __forceinline__ void give() {
        if (lane < SHARE) {
            if constexpr (SHARE == 1)
                barrier_arrive(empty + oldest * 8);
            else
                arrive_at_peer(empty + oldest * 8);
        }
        oldest = oldest == STAGES - 1 ? 0 : oldest + 1;
    }
    // n stages that are another's.
    __device__ __forceinline__ void skip(int n) {
        stage += n;
        phase ^= stage / STAGES & 1;
        oldest = stage %= STAGES;
    }
};

template <class SHAPE>
__device__ __forceinline__ wide_tile wide_tile_at(const wide_args &a, int i, int rank) {
    const int of_band = a.band * a.col_tiles, band = i / of_band;
    const int rows = min(a.band, a.row_tiles - band * a.band), at = i - band * of_band;
    wide_tile t;
    t.split = rank / SHAPE::SHARE, t.turn = i / (gridDim.x / SHAPE::CLUSTER) & 1;
    t.token0 = (band * a.band + at % rows) * SHAPE::TOKENS;
    t.column_tile = at / rows * SHAPE::SHARE + rank % SHAPE::SHARE;
    t.col0 = t.column_tile * SHAPE::COLS;
    return t;
}

#endif

} // namespace ssm

#endif
