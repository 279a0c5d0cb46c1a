// SPDX-License-Identifier: Apache-2.0
// resident.cu's warps that ask for what the others work on.
#ifndef SSM_KERNELS_CUDA_RESIDENT_FILL_CUH
#define SSM_KERNELS_CUDA_RESIDENT_FILL_CUH

#include "medium.cuh"
#include "resident_advance.cuh"
#include "resident_packed.cuh"

namespace ssm {

#if SSM_HOPPER

// Packed weights through the ring, by one lane of its warp. Of a slot, by its barrier and place,
// or to L2.
template <class SHAPE, bool TO_L2> struct packed_source {
    typedef packed_shape<SHAPE> packed;
    const resident_block<SHAPE> &b;
    const uint64_t once;

    // A group's rows of x or z, those of one of solo_large.cu's blocks, by the rank's (at / 2)-th
    // 256 columns. more: bytes that follow.
    __device__ __forceinline__ void in(const char *weights, int at, bool z, int more, uint32_t full,
                                       uint32_t to) const {
        const int slot = (z ? SHAPE::NW / 8 : 0) + b.rank * packed::TURNS + at / 2;
        const char *from =
            weights + ((size_t)slot * PACKED_BLOCKS + b.cluster * 2 + at % 2) * packed::TAKEN;
        if (!one_lane())
            return;
        if constexpr (TO_L2) {
            prefetch_run(from, packed::TAKEN);
        } else {
            barrier_expect(full, packed::TAKEN + more);
            copy_run(to, from, packed::TAKEN, full, once);
        }
    }
    // A group's rows of out_proj, those of four of solo_large.cu's blocks, by the split's (j /
    // 2)-th 128 columns: each block's S, and its E. One lane asks for all of them: lanes would take
    // turns in a loop that is longer.
    __device__ __forceinline__ void out(const char *weights, int j, uint32_t full,
                                        uint32_t to) const {
        enum : uint32_t { S_BYTES = packed::TILES * 512, E_BYTES = S_BYTES / 2 };
        const int column = b.split * packed::OUT_TURNS + j / 2; // of 128
        const int block = b.tile * 8 + j % 2 * 4;               // the first one
        const char *blocks =
            weights + ((size_t)(column / 4) * PACKED_BLOCKS + block) * packed::TAKEN;
        const char *s = blocks + column % 4 * S_BYTES;
        const char *e = blocks + packed::TAKEN_E + column % 4 * E_BYTES;
        if (!one_lane())
            return;
        if constexpr (!TO_L2)
            barrier_expect(full, packed::TAKEN);
#pragma unroll
        for (int k = 0; k < 4; k++, s += packed::TAKEN, e += packed::TAKEN) {
            if constexpr (TO_L2) {
                prefetch_run(s, S_BYTES);
                prefetch_run(e, E_BYTES);
            } else {
                copy_run(to + k * S_BYTES, s, S_BYTES, full, once);
                copy_run(to + packed::OUT_E + k * E_BYTES, e, E_BYTES, full, once);
            }
        }
    }
};

// What goes through the ring, in the order in which it is used: weights of all layers and the
// rank's tokens' states. One warp.
// P: in_proj and out_proj are packed.
template <class SHAPE, class S, bool P> struct ring_source {
    typedef SHAPE shape;
    typedef resident_states<SHAPE, S> states;
    static constexpr int KEPT = kept_slots<SHAPE, P>();
    const resident_args &a;
    const resident_block<SHAPE> &b;
    const uint64_t once;
    int lane, n_states;
    bool there, second_there;         // the lane's token has a state; TALL: a second one
    const char *state, *second_state; // of the first layer

    __device__ __forceinline__ ring_source(const resident_args &args,
                                           const resident_block<SHAPE> &block)
        : a(args), b(block), once(policy_once()) {
        lane = threadIdx.x % 32, n_states = in_states(b.mine);
        find(lane, there, state);
        if constexpr (shape::TALL)
            find(32 + lane, second_there, second_state);
    }
    __device__ __forceinline__ void find(int at, bool &there, const char *&state) const {
        const int token = token_of(b.rank, at);
        row own = {-1, -1, 0, 1};
        if (token < a.tokens)
            own = a.rows[token];
        there = own.slot >= 0 && !own.fresh;
        state = a.state +
                ((size_t)max(own.slot, 0) * shape::INNER + b.cluster * SHAPE::NW) * 16 * sizeof(S);
    }
    static __device__ __forceinline__ int in_states(int tokens) {
        return (tokens + states::OF_SLOT - 1) / states::OF_SLOT;
    }
    static __device__ __forceinline__ int in_layer(int tokens) { // slots
        return 2 * shape::IN_SLOTS + shape::X_SLOTS + shape::DT_SLOTS + in_states(tokens) +
               shape::OUT_PIECES;
    }

    // A layer's maps, which the copy engine would otherwise wait for at their first box.
    __device__ __forceinline__ void fetch_maps(int layer) const {
        if (lane == 0 && layer < a.n_layers) {
            const resident_weights &l = a.weights[layer];
            map_prefetch(&l.x);
            if (!P)
                map_prefetch(&l.in), map_prefetch(&l.out);
        }
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
        auto run = [&](bool on, int offset, const void *from, int bytes) {
            if (!TO_L2 && on)
                copy_run(to + offset, from, (uint32_t)bytes, full, once);
            else if (on)
                prefetch_run(from, (uint32_t)bytes);
        };
        auto in = [&](int at, int row) {
            if constexpr (P)
                return packed_source<SHAPE, TO_L2>{b, once}.in(a.layers[layer].packed_in, at,
                                                               row > 0, 0, full, to);
            const int column = (b.rank * shape::IN_PIECES + shape::A_SLOT * at) * PIECE;
            expect(shape::SLOT);
            box(0, &l.in, column, row + b.cluster * SHAPE::NW);
            if (shape::A_SLOT == 2)
                box(SHAPE::NW * 128, &l.in, column + PIECE, row + b.cluster * SHAPE::NW);
        };
        if (j < shape::IN_SLOTS)
            return in(j, 0);
        j -= shape::IN_SLOTS;
        if (j < shape::X_SLOTS) {
            expect(shape::X_PROJ_ROWS * SHAPE::NW * 2);
            if (shape::WIDE) // as two pieces, so that rows are not all in the same banks
                box(shape::X_PROJ_ROWS * 128, &l.x, b.cluster * SHAPE::NW + PIECE,
                    j * shape::X_PROJ_ROWS);
            return box(0, &l.x, b.cluster * SHAPE::NW, j * shape::X_PROJ_ROWS);
        }
        j -= shape::X_SLOTS;
        if (j < KEPT) // of z: those whose token rows are still there
            return in(j + shape::IN_SLOTS - KEPT, shape::INNER);
        if (j < shape::IN_SLOTS)
            return in(j - KEPT, shape::INNER);
        j -= shape::IN_SLOTS;
        if (j < shape::DT_SLOTS) {
            const int row = j * shape::DT_ROWS;
            const int bytes = min((int)shape::DT_ROWS, SHAPE::NW - row) * shape::RANK * 2;
            expect(bytes);
            return run(leads, 0,
                       a.layers[layer].dt_proj +
                           (size_t)(b.cluster * SHAPE::NW + row) * shape::RANK,
                       bytes);
        }
        j -= shape::DT_SLOTS;
        if (j < n_states) { // lane i: token i's; TALL: then 32 + i's
            int k = j * states::OF_SLOT;
            bool of_lane = there;
            const char *from = state;
            if constexpr (shape::TALL) {
                if (k >= 32)
                    k -= 32, of_lane = second_there, from = second_state;
            }
            const bool now = of_lane && lane >= k && lane < k + states::OF_SLOT;
            expect(__popc(__ballot_sync(~0u, now)) * states::ROW_BYTES);
            __syncwarp();
            return run(now, (lane - k) * states::ROW_BYTES, from + layer * a.state_pitch,
                       states::ROW_BYTES);
        }
        j -= n_states;
        if constexpr (P)
            return packed_source<SHAPE, TO_L2>{b, once}.out(a.layers[layer].packed_out, j, full,
                                                            to);
        expect(shape::SLOT);
        box(0, &l.out, (b.split * shape::OUT_PIECES + j) * PIECE, b.tile * shape::TILE_ROWS);
    }
};

// Slots are asked for as they become free. At most SLOTS_FLIGHT are under way, and none of those
// that the workers hold up (ask_up_to): what blocks tell each other would queue up behind them. Nor
// does one begin within PACE of the one before, for that is true of what comes in bursts, too;
// packed weights are faster without it. While all that was asked for is there and no slot is free,
// L2 is asked for what follows, at that pace. One lane asks, by addresses that are kept: else a
// turn takes longer than memory does for a slot of packed weights (large-steps.md).
template <class SHAPE, class SOURCE, class ARGS>
__device__ __forceinline__ void fill_ring(const ARGS &a, const resident_block<SHAPE> &b) {
    typedef SHAPE shape;
    // Cycles: memory gives 16 or 17 bytes in each. Of 2.8b's 64 rows a longer pause costs 1%; of
    // 1.4b's the shorter one does, of mamba2-2.7b's neither.
    constexpr bool SOONER = shape::NW == 80 && !shape::TALL && !shape::GATED;
    constexpr uint32_t PACE = shape::SLOT / (SOONER ? 26 : 24);
    const SOURCE source(a, b);
    const int in_layer = source.in_layer(b.mine), n = in_layer * a.n_layers;
    const uint32_t slots = kept_word(b.slots), full = kept_word(b.full),
                   empty = full + shape::SLOTS * 8;
    turn<shape::SLOTS> slot, landing, last;
    int j = 0, layer = 0;
    int ahead = 0, next = 0, next_layer = 0;     // the next slot that L2 is not asked for yet
    auto now = [] { return (uint32_t)clock(); }; // begins anew: only differences say anything
    [[maybe_unused]] uint32_t asked_at = now();
    uint32_t asked_l2_at = now();
    auto on = [&](int *at, int *at_layer) {
        if (++*at == in_layer)
            *at = 0, ++*at_layer;
    };
    auto look_ahead = [&](int i) {
        const bool all_there = i > 0 && barrier_test(full + last.at * 8, last.phase);
        if (!__all_sync(~0u, all_there && now() - asked_l2_at > PACE))
            return;
        asked_l2_at = now();
        source.template ask<true>(next_layer, next, -1, slots, full);
        on(&next, &next_layer), ahead++;
    };
    source.fetch_maps(0);
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        if (i >= shape::SLOTS_FLIGHT) {
            barrier_wait(full + landing.at * 8, landing.phase);
            landing.next();
        }
        if constexpr (shape::SLOTS_AHEAD == 0) {
            barrier_wait(empty + slot.at * 8, slot.phase ^ 1);
        } else {
            while (!__all_sync(~0u, barrier_test(empty + slot.at * 8, slot.phase ^ 1))) {
                if (ahead < n && ahead - i < shape::SLOTS_AHEAD)
                    look_ahead(i);
            }
        }
        while (i >= b.asked_up_to())
            ;
        __syncwarp();
        if (j == 0)
            source.fetch_maps(layer + 1);
        if constexpr (!shape::PACKED) {
            while (now() - asked_at < PACE)
                ;
            asked_at = now();
        }
        source.template ask<false>(layer, j, slot.at, slots, full);
        last = slot;
        slot.next(), on(&j, &layer);
        if (ahead == i)
            ahead++, next = j, next_layer = layer;
    }
}

// What these wait for, one thread for all of them: fewer ask sooner.
__device__ __forceinline__ void hear(const resident_counter *c, int target, uint32_t barrier,
                                     int layer, int thread) {
    if (thread == 0) {
        count_wait(c, target);
        barrier_arrive(barrier);
    }
    __syncwarp();
    if (thread >= 32)
        barrier_wait(barrier, layer & 1);
}

// Token rows once they are there, by X_WARPS warps: not by the copy engine, where they would queue
// up behind the weights. A stage's barrier counts each thread's copies as they land; those that
// multiply fence them, for a fence here would wait for all that are under way.
template <class SHAPE>
__device__ __forceinline__ void fill_x(const resident_args &a, const resident_block<SHAPE> &b,
                                       int thread) {
    typedef SHAPE shape;
    turn<shape::X_STAGES> stage;
    const int chunk = thread % 8, first = thread / 8;  // 16 bytes of every
    const int step = X_WARPS * 4, n = a.tokens / step; // so many rows
    auto ask = [&](const bf16 *from, int pitch, int pieces) {
        from += (size_t)first * pitch + chunk * 8;
        char *to = b.x_place() + first * 128 + (chunk ^ first % 8) * 16;
#pragma unroll 1
        for (int p = 0; p < pieces; p++) {
            barrier_wait(b.x_empty + stage.at * 8, stage.phase ^ 1);
#pragma unroll
            for (int k = 0; k < SHAPE::ROWS / step; k++) {
                if constexpr (shape::HALVES) { // eights of either rank's by turn
                    const int at = k / 2 * 8 + first;
                    if (at < b.mine)
                        copy_async(to + stage.at * shape::X_STAGE + k * step * 128,
                                   from + (size_t)(k / 2 * 8 + k % 2 * b.mine) * pitch + p * PIECE,
                                   true);
                } else if (k < n)
                    copy_async(to + stage.at * shape::X_STAGE + k * step * 128,
                               from + (size_t)k * step * pitch + p * PIECE, true);
            }
            copies_arrive(b.x_full + stage.at * 8);
            stage.next();
        }
    };
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        hear(&scratch_of<SHAPE>(a).input, RESIDENT_BLOCKS * (i + 1), b.go, i, thread);
        const bf16 *u = a.u + b.rank * shape::IN_PIECES * PIECE;
        ask(u, shape::WIDTH, shape::IN_PIECES);
        ask(u, shape::WIDTH, shape::IN_PIECES - shape::X_STAGES); // z's turn: it has the last ones
        hear(&scratch_of<SHAPE>(a).y[b.split], shape::OUT_TILES * (i + 1), b.y_go, i, thread);
        ask(a.y + b.split * shape::OUT_PIECES * PIECE, shape::INNER, shape::OUT_PIECES);
    }
}

// The same for packed weights: 128 columns of 16 rows a stage.
template <class SHAPE>
__device__ __forceinline__ void fill_x_packed(const resident_args &a,
                                              const resident_block<SHAPE> &b, int thread) {
    typedef packed_shape<SHAPE> shape;
    enum { PARTS = 16, STEP = X_WARPS * 32 / PARTS, ROWS = RESIDENT_PACKED_ROWS };
    turn<shape::STAGES> stage;
    const int part = thread % PARTS, first = thread / PARTS; // 16 bytes of every STEP rows
    char *to = b.x_place() + part / 8 * (shape::STAGE / 2);
    auto ask = [&](const bf16 *from, int pitch, int stages) {
        from += (SHAPE::HALVES ? 0 : (size_t)first * pitch) + part * 8;
#pragma unroll 1
        for (int p = 0; p < stages; p++) {
            barrier_wait(b.x_empty + stage.at * 8, stage.phase ^ 1);
#pragma unroll
            for (int k = 0; k < ROWS; k += STEP) {
                const int row = first + k;
                if constexpr (SHAPE::HALVES) { // a rank's, then the other's
                    if (row % 8 < b.mine)
                        copy_async(
                            to + stage.at * shape::STAGE + row * 128 + (part % 8 ^ row % 8) * 16,
                            from + (size_t)(row / 8 * b.mine + row % 8) * pitch + p * 2 * PIECE,
                            true);
                } else if (row < a.tokens)
                    copy_async(to + stage.at * shape::STAGE + row * 128 + (part % 8 ^ row % 8) * 16,
                               from + (size_t)k * pitch + p * 2 * PIECE, true);
            }
            copies_arrive(b.x_full + stage.at * 8);
            stage.next();
        }
    };
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        hear(&scratch_of<SHAPE>(a).input, RESIDENT_BLOCKS * (i + 1), b.go, i, thread);
        const bf16 *u = a.u + b.rank * shape::IN_PIECES * PIECE;
        ask(u, shape::WIDTH, shape::IN_SLOTS);
        ask(u, shape::WIDTH, shape::IN_SLOTS - shape::STAGES); // z's turn, as above
        hear(&scratch_of<SHAPE>(a).y[b.split], shape::OUT_TILES * (i + 1), b.y_go, i, thread);
        ask(a.y + b.split * shape::OUT_PIECES * PIECE, shape::INNER, shape::OUT_TURNS);
    }
}

// P: of packed weights.
template <bool P, class SHAPE>
__device__ __forceinline__ void fill_rows(const resident_args &a, const resident_block<SHAPE> &b,
                                          int thread) {
    if constexpr (P)
        fill_x_packed(a, b, thread);
    else
        fill_x(a, b, thread);
}

#endif

} // namespace ssm

#endif
