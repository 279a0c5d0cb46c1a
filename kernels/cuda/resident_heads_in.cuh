// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's rows of B, C and dt: on their way to all blocks, and what comes through the
// ring.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_IN_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_IN_CUH

#include "replay.cuh"
#include "resident_fill.cuh"
#include "resident_heads.cuh"

namespace ssm {

#if SSM_HOPPER

// Of extra rows: the convolution's channel (of dt's: any), and whether there is one.
template <class SHAPE>
__device__ __forceinline__ int extra_channel(const resident_block<SHAPE> &b) {
    return SHAPE::INNER + min(max(extra_rows(b), 0), 2 * HEAD_STATES - SHAPE::EXTRA);
}
template <class SHAPE>
__device__ __forceinline__ bool extra_convolved(const resident_block<SHAPE> &b) {
    return extra_rows(b) >= 0 && extra_rows(b) < 2 * HEAD_STATES;
}
// Where those of up to eight tokens wait to be told: in z's place, behind extra rows' sums.
template <class SHAPE>
__device__ __forceinline__ uint32_t *told_extras(const resident_block<SHAPE> &b) {
    enum { FROM = 6 * 256 };
    static_assert(!SHAPE::EXCHANGED || FROM + 8 * SHAPE::EXTRA * 2 <= (int)SHAPE::ACTS, "z's");
    return (uint32_t *)((char *)b.z() + FROM);
}
// Two numbers of the thread's token.
template <class SHAPE>
__device__ __forceinline__ void give_extra(const resident_args &a, const resident_block<SHAPE> &b,
                                           const resident_worker<SHAPE> &w, uint32_t pair) {
    if constexpr (SHAPE::EXCHANGED)
        told_extras(b)[w.lane] = pair;
    else if (extra_rows(b) >= 0 && w.own_place() < b.mine)
        *(uint32_t *)(extras_of<SHAPE>(a) + (size_t)b.token(w.own_place()) * SHAPE::EXTRAS +
                      extra_rows(b) + 2 * w.q) = pair;
}

// What goes through the ring: rows of x with the extra ones, z's, the rank's tokens' states, in
// PARTS slots each, out_proj's. REPLAY: behind a token's states the entries of x of the heads that
// the cluster has channels of, which another warp asks for: two or three copies are too many for
// the one that asks for all else, if slots are small.
template <class SHAPE, class S, bool REPLAY> struct heads_source {
    typedef SHAPE shape;
    enum {
        HAS_ENTRIES = REPLAY,
        PARTS = sizeof(S) / 2,
        PART_BYTES = shape::NW * HEAD_STATES * 2, // of a token's states
        HEAD_BYTES = REPLAY_HELD * HEAD * 2,      // of a head's entries
        ENTRY = HEAD * 2
    };
    static_assert(!REPLAY || PARTS == 1, "a slot a token");
    static_assert((int)PART_BYTES + (REPLAY ? shape::HEADS_AT_ONCE * HEAD_BYTES : 0) <=
                      (int)shape::SLOT,
                  "a slot");
    static constexpr int KEPT = kept_slots<SHAPE, (bool)shape::PACKED>();
    const heads_args &a;
    const resident_block<SHAPE> &b;
    const uint64_t once;
    int lane, extra;
    int first_head, n_heads;
    int held;            // entries of the lane's token
    bool there, folds;   // it has a state, which is read once more (heads_replay::fold)
    const char *state;   // of the first layer
    const char *entries; // the same: of the cluster's first head

    __device__ __forceinline__ heads_source(const heads_args &args,
                                            const resident_block<SHAPE> &block)
        : a(args), b(block), once(policy_once()) {
        const int first = b.cluster * shape::NW; // channel
        lane = threadIdx.x % 32, extra = extra_rows(b);
        row own = {-1, -1, 0, 1};
        if (lane < b.mine)
            own = a.rows[b.token(lane)];
        const size_t slot = (size_t)max(own.slot, 0);
        there = own.slot >= 0 && !own.fresh;
        state = a.state + (slot * shape::INNER + first) * HEAD_STATES * sizeof(S);
        held = 0, folds = false, entries = NULL;
        if constexpr (REPLAY) {
            first_head = first / HEAD, n_heads = (first + shape::NW - 1) / HEAD - first_head + 1;
            entries = (const char *)a.entries_x + (slot * shape::HEADS + first_head) * HEAD_BYTES;
            if (there) {
                held = a.held[b.token(lane)] & 255;
                folds = a.held[b.token(lane)] >= 256;
            }
        }
    }
    // Of the lane's token.
    __device__ __forceinline__ void copy_once(uint32_t to, const char *from, uint32_t bytes,
                                              uint32_t full) const {
        if (REPLAY && folds)
            copy_run(to, from, bytes, full);
        else
            copy_run(to, from, bytes, full, once);
    }
    static __device__ __forceinline__ int in_layer(int tokens) { // slots
        return 2 * shape::IN_SLOTS + tokens * PARTS + shape::OUT_PIECES;
    }
    __device__ __forceinline__ void fetch_maps(int layer) const {
        if (lane == 0 && layer < a.n_layers) {
            const resident_weights &l = a.weights[layer];
            map_prefetch(&l.in), map_prefetch(&l.x), map_prefetch(&l.out);
        }
    }

    // Packed rows of x or z; the second group's of x have extra ones behind them, four boxes.
    template <bool TO_L2, class BOX>
    __device__ __forceinline__ void packed_in(int layer, int at, bool is_x, uint32_t full,
                                              uint32_t to, const BOX &box) const {
        typedef packed_shape<SHAPE> packed;
        const bool more = is_x && extra >= 0 && at % 2;
        packed_source<SHAPE, TO_L2>{b, once}.in(a.layers[layer].packed_in, at, !is_x,
                                                more ? packed::EXTRA_BYTES : 0, full, to);
        if (!more)
            return;
        const int column = (b.rank * shape::IN_PIECES + at / 2 * 4) * PIECE;
#pragma unroll
        for (int i = 0; i < 4; i++)
            box(packed::TAKEN + i * 1024, &a.weights[layer].x, column + i * PIECE,
                2 * shape::INNER + extra);
    }
    // Slot j of a layer into the ring's slot `place`, or to L2. slots, fulls: where all are.
    template <bool TO_L2>
    __device__ __forceinline__ void ask(int layer, int j, int place, uint32_t slots,
                                        uint32_t fulls) const {
        const resident_weights &l = a.weights[layer];
        const uint32_t full = fulls + place * 8, to = slots + place * shape::SLOT;
        const bool leads = one_lane();
        auto expect = [&](int bytes) {
            if (!TO_L2 && leads)
                barrier_expect(full, (uint32_t)bytes);
        };
        auto box = [&](int offset, const CUtensorMap *map, int column, int row) {
            if (!TO_L2 && leads)
                copy_box(to + offset, map, column, row, full, once);
            else if (leads)
                prefetch_box(map, column, row);
        };
        auto in = [&](int at, int row, bool more) { // rows of x, or z
            if constexpr (shape::PACKED)
                return packed_in<TO_L2>(layer, at, more, full, to, box);
            enum { X_BYTES = shape::X_ROWS * 128, Z_BYTES = shape::NW * 128 };
            const int column = (b.rank * shape::IN_PIECES + shape::A_SLOT * at) * PIECE;
            expect(shape::A_SLOT * (more && extra >= 0 ? X_BYTES : Z_BYTES));
#pragma unroll
            for (int i = 0; i < shape::A_SLOT; i++) {
                const int offset = i * (more ? X_BYTES : Z_BYTES);
                box(offset, &l.in, column + i * PIECE, row + b.cluster * shape::NW);
                if (more && extra >= 0)
                    box(offset + Z_BYTES, &l.x, column + i * PIECE, 2 * shape::INNER + extra);
            }
        };
        if (j < shape::IN_SLOTS)
            return in(j, shape::INNER, true);
        j -= shape::IN_SLOTS;
        if (j < shape::IN_SLOTS) // of z: those first whose token rows are still there
            return in(j < KEPT ? j + shape::IN_SLOTS - KEPT : j - KEPT, 0, false);
        j -= shape::IN_SLOTS;
        if (j < b.mine * PARTS) { // lane k: of its token k
            const int k = j / PARTS, part = j % PARTS;
            const bool now = there && lane == k;
            const int more = REPLAY ? __shfl_sync(~0u, held, k) * ENTRY * n_heads : 0;
            expect(__any_sync(~0u, now) ? PART_BYTES + more : 0);
            if (REPLAY && !TO_L2 && leads)
                barrier_arrive(b.asked + j % ASKED * 8);
            __syncwarp();
            const char *from = state + layer * a.state_pitch + part * PART_BYTES;
            if (!TO_L2 && now)
                copy_once(to, from, PART_BYTES, full);
            else if (now)
                prefetch_run(from, PART_BYTES);
            return;
        }
        j -= b.mine * PARTS;
        if constexpr (shape::PACKED)
            return packed_source<SHAPE, TO_L2>{b, once}.out(a.layers[layer].packed_out, j, full,
                                                            to);
        expect(shape::TILE_ROWS * 128);
        box(0, &l.out, (b.split * shape::OUT_PIECES + j) * PIECE, b.tile * shape::TILE_ROWS);
    }

    // By another warp: the entries of all of a layer's tokens, each once its slot was asked for.
    // at: the first one's.
    __device__ __forceinline__ void copy_entries(int layer, turn<shape::SLOTS> at) const {
        const char *from = entries + (size_t)layer * a.n_slots * (shape::HEADS * HEAD_BYTES);
#pragma unroll 1
        for (int k = 0; k < b.mine; k++) {
            b.wait_asked(layer, k);
            if (lane == k && held > 0) {
                const uint32_t to = b.slots + at.at * shape::SLOT + PART_BYTES;
                for (int h = 0; h < n_heads; h++)
                    copy_once(to + h * HEAD_BYTES, from + h * HEAD_BYTES, (uint32_t)held * ENTRY,
                              b.full + at.at * 8);
            }
            at.next();
        }
    }
};

// By a warp; returns whether others see them already.
template <class SHAPE>
__device__ __forceinline__ bool exchange_extras(const heads_args &a,
                                                const resident_block<SHAPE> &b) {
    const int lane = threadIdx.x % 32, token = lane / 4;
    const uint32_t pair = told_extras(b)[lane], next = __shfl_down_sync(~0u, pair, 1);
    uint64_t before = 0;
    if (lane % 2 == 0 && token < b.mine)
        before = exchange(extras_of<SHAPE>(a) + (size_t)b.token(token) * SHAPE::EXTRAS +
                              extra_rows(b) + lane % 4 * 2,
                          pair, next);
    return exchanged(before);
}

// One warp tells the other blocks that the rank's tokens have B, C and dt, and the workers when all
// are there, while they go on with z.
template <class STATES, class SHAPE>
__device__ __forceinline__ void carry_extras(const heads_args &a, const resident_block<SHAPE> &b) {
    resident_scratch<SHAPE> &counts = scratch_of<SHAPE>(a);
    typedef typename STATES::source source_of;
    const bool has = extra_rows(b) >= 0;
    [[maybe_unused]] const source_of source(a, b);
    turn<SHAPE::SLOTS> at; // the layer's first slot of states
    at.skip(2 * SHAPE::IN_SLOTS);
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        barrier_wait(b.told, i & 1);
        bool back = false;
        if constexpr (SHAPE::EXCHANGED)
            back = has && exchange_extras(a, b);
        if (one_lane()) {
            if (has)
                count_exchanged(&counts.sums[b.rank], back);
            b.ask_up_to(NO_LIMIT);
            count_wait(&counts.sums[b.rank], SHAPE::UNITS * (i + 1));
            barrier_arrive(b.open);
        }
        __syncwarp();
        if constexpr (source_of::HAS_ENTRIES)
            source.copy_entries(i, at);
        at.skip(source_of::in_layer(b.mine));
    }
}

#endif

} // namespace ssm

#endif
