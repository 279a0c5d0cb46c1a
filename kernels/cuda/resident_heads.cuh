// SPDX-License-Identifier: Apache-2.0
// Mamba-2 in resident.cu's frame: how a block's shared memory is dealt, and what its scratch has.
// See resident_heads.cu for the design.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_CUH

#include <type_traits>

#include "resident.cuh"

namespace ssm {

enum { HEAD = 64, HEAD_STATES = 128 }; // channels of a head, states of a channel

// CHANNELS: of a cluster, a 32nd of d_model; as many heads there are. P: in_proj's and out_proj's
// weights are packed (resident_packed.cuh), but for B's, C's and dt's. E: states have entries.
template <int CHANNELS, bool P, bool E> struct heads_shape {
    enum {
        NW = CHANNELS,
        PACKED = P,
        APART = P, // rows of x that no second group has
        ROWS = RESIDENT_ROWS,
        FEW = P && NW > 32,              // room for 16 rows, and slots no larger than these need
        HALF_ROWS = FEW ? 16 : ROWS / 2, // room for a rank's
        SETS = 1,
        TALL = false,
        HALVES = true, // a rank ends half of the tokens, the first or the second
        GATED = true,  // out_proj's sums are scaled by the gated norm
        OUT_TILES = 16,
        OUT_SPLITS = RESIDENT_BLOCKS / OUT_TILES,
        MOST_TILES = OUT_TILES,
        MOST_SPLITS = OUT_SPLITS,
        SQUARE_ROWS = ROWS,
        TILE_ROWS = 32 * NW / OUT_TILES,
        OUT_GROUP = TILE_ROWS / 2,
        WIDTH = 32 * NW,
        INNER = 64 * NW,
        HEADS = NW,
        MANY = false,
        EXCHANGED = P, // B, C, dt and y are told without releases (resident_exchanges.cuh)
        CONV = INNER + 2 * HEAD_STATES,
        EXTRA = 8,                        // rows of B, C, dt behind those of x, and
        EXTRAS = 2 * HEAD_STATES + HEADS, // all of them: a token's row in the scratch
        UNITS = EXTRAS / EXTRA,           // clusters that have any
        OF_CLUSTER = 2,                   // heads that a cluster's channels are of, at most
        IN_PIECES = NW / 4,
        OUT_PIECES = NW / OUT_SPLITS,
        X_ROWS = NW + EXTRA,
        A_SLOT = 2,
        HEADS_AT_ONCE = NW % HEAD == 0 || HEAD % NW == 0 ? 1 : 2, // of a slot's states
        // rows of x and what is behind them; a token's states and entries (resident_heads_in.cuh)
        X_BYTES = FEW ? NW / 16 * PACKED_TILE + EXTRA * 512 : A_SLOT * X_ROWS * 128,
        ENTRIES_BYTES = E || !FEW ? HEADS_AT_ONCE * REPLAY_HELD * HEAD * 2 : 0,
        STATES_BYTES = NW * HEAD_STATES * 2 + ENTRIES_BYTES,
        SLOT = ((int)X_BYTES > (int)STATES_BYTES ? X_BYTES : STATES_BYTES + 1023) / 1024 * 1024,
        IN_SLOTS = IN_PIECES / A_SLOT,
        X_SLOTS = 8, // of z, that may come before B, C and dt are counted
        X_STAGES = 6,
        X_STAGE = ROWS * 128,
        BC_STAGE = P ? 1024 : X_STAGE, // where 64 numbers of B, C and dt of a token lie apart
        X_BARRIERS = P && (int)IN_SLOTS > (int)X_STAGES ? (int)IN_SLOTS : (int)X_STAGES,
        KEPT_SLOTS = X_STAGES / A_SLOT,
        GROUP_ROWS = (NW / 8 + 1) / 2 * 8,
        IN_BLOCKS = GROUP_ROWS / 8,
        X_GROUP = (X_ROWS / 8 + 1) / 2 * 8,
        X_BLOCKS = X_GROUP / 8,
        PITCH = NW + 8,
        // bytes
        FROM_PEER = 8 * X_BLOCKS * 256,
        PEER = FROM_PEER + 8 * IN_BLOCKS * 256,
        ACTS = HALF_ROWS * PITCH * 2,
        WEIGHTS = 68, // floats of a token: heads_replay::weights, and
        SQUARES = 16, // by part and warp
        STAGED = HALF_ROWS * (WEIGHTS + SQUARES) * 4,
        STAGED_APART = (int)STAGED > (int)FROM_PEER, // or where x's sums from the peer were
        BESIDE = X_STAGES * X_STAGE + PEER + 2 * ACTS + (STAGED_APART ? STAGED : 0),
        BARRIERS = 768,
        ROOM = (RESIDENT_SHARED - BESIDE - BARRIERS) / SLOT,
        SLOTS = ROOM < 16 ? ROOM : 16,
        BYTES = SLOTS * SLOT + BESIDE + BARRIERS,
        FLYING = FLIGHT / (FEW ? (int)SLOT : A_SLOT * NW * 128),
        SLOTS_FLIGHT = FLYING < SLOTS ? FLYING : SLOTS,
        SLOTS_AHEAD = NW == 24 ? 0 : AHEAD / SLOT, // asking ahead costs 130m's few rows 3%
        BEFORE_SHARES = ROWS * RESIDENT_CLUSTERS + ROWS * EXTRAS / 2
    };
    static_assert((int)X_STAGES % A_SLOT == 0 && (int)IN_PIECES >= (int)X_STAGES, "z's first ones");
    static_assert((2 * SLOTS + 2 * X_BARRIERS + 22 + ASKED) * 8 <= BARRIERS, "their room");
    static_assert((int)BYTES <= (int)RESIDENT_SHARED, "all");
    static_assert((int)UNITS <= (int)RESIDENT_CLUSTERS, "eight rows a cluster");
};

struct heads_args : resident_args {
    const float *gate_norm[RESIDENT_LAYERS]; // [d_inner]
    float dt_min, dt_max;
    // replay.cu's, of all layers and slots, of fp16 states:
    bf16 *entries_x;     // [layer][slot][heads][REPLAY_HELD][64]
    bf16 *entries_b;     // [layer][slot][REPLAY_HELD][128]
    float *entries_dt;   // [layer][slot][REPLAY_HELD][heads]
    const int32_t *held; // of each row: its entries, and 256 if its base then takes them
    int n_slots;
};

// A step's states, S each: written in it, or replay.cu's. What the kernel is made with; for other
// devices than Hopper's no more than names.
template <class SHAPE, class S> struct heads_at_once;
template <class SHAPE, class S> struct heads_replay;
template <template <class, class> class STATES> struct heads_entries : std::false_type {};
template <> struct heads_entries<heads_replay> : std::true_type {};

#if SSM_HOPPER

// Behind resident_scratch: [token][cluster] sums of squares of what is normed; [token][EXTRAS] B
// and C after the convolution, dt.
template <class SHAPE> __device__ __forceinline__ float *gated_of(const resident_args &a) {
    return (float *)(&scratch_of<SHAPE>(a) + 1);
}
template <class SHAPE> __device__ __forceinline__ bf16 *extras_of(const resident_args &a) {
    return (bf16 *)(gated_of<SHAPE>(a) + SHAPE::ROWS * RESIDENT_CLUSTERS);
}

// The first of the cluster's eight rows of B, C and dt; -1: it has none.
template <class SHAPE> __device__ __forceinline__ int extra_rows(const resident_block<SHAPE> &b) {
    const int unit = b.cluster * SHAPE::UNITS / RESIDENT_CLUSTERS;
    const bool has = (b.cluster + 1) * SHAPE::UNITS / RESIDENT_CLUSTERS > unit;
    return has ? unit * SHAPE::EXTRA : -1;
}

#endif

} // namespace ssm

#endif
