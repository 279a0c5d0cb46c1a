// SPDX-License-Identifier: Apache-2.0
// resident.cu's warps that ask for what the others work on.
#ifndef SSM_KERNELS_CUDA_RESIDENT_FILL_CUH
#define SSM_KERNELS_CUDA_RESIDENT_FILL_CUH

#include "medium.cuh"
#include "resident_advance.cuh"

namespace ssm {

#if SSM_HOPPER

// What goes through the ring, in the order in which it is used: weights of all layers and the
// rank's tokens' states. One warp.
template <int NW, class S> struct ring_source {
    typedef resident_shape<NW> shape;
    typedef resident_states<NW, S> states;
    const resident_args &a;
    const resident_block<NW> &b;
    const uint64_t once;
    int lane, n_states;
    bool there;        // the lane's token has a state
    const char *state; // of the first layer

    __device__ __forceinline__ ring_source(const resident_args &args,
                                           const resident_block<NW> &block)
        : a(args), b(block), once(policy_once()) {
        lane = threadIdx.x % 32, n_states = in_states(b.mine);
        const int token = token_of(b.rank, lane);
        row own = {-1, -1, 0, 1};
        if (token < a.tokens)
            own = a.rows[token];
        there = own.slot >= 0 && !own.fresh;
        state =
            a.state + ((size_t)max(own.slot, 0) * shape::INNER + b.cluster * NW) * 16 * sizeof(S);
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
            map_prefetch(&l.in), map_prefetch(&l.x), map_prefetch(&l.out);
        }
    }

    // Slot j of a layer into the ring's slot `at`, or (-1) to L2.
    __device__ __forceinline__ void ask(int layer, int j, int at) const {
        const resident_weights &l = a.weights[layer];
        const uint32_t full = b.full + at * 8, to = b.slots + at * shape::SLOT;
        const bool leads = lane == 0;
        auto expect = [&](int bytes) {
            if (leads && at >= 0)
                barrier_expect(full, (uint32_t)bytes);
        };
        auto box = [&](int offset, const CUtensorMap *map, int column, int row) {
            if (leads && at >= 0)
                copy_box(to + offset, map, column, row, full, once);
            else if (leads)
                prefetch_box(map, column, row);
        };
        auto run = [&](bool on, int offset, const void *from, int bytes) {
            if (on && at >= 0)
                copy_run(to + offset, from, (uint32_t)bytes, full, once);
            else if (on)
                prefetch_run(from, (uint32_t)bytes);
        };
        auto in = [&](int at, int row) {
            const int column = (b.rank * shape::IN_PIECES + 2 * at) * PIECE;
            expect(shape::SLOT);
            box(0, &l.in, column, row + b.cluster * NW);
            box(NW * 128, &l.in, column + PIECE, row + b.cluster * NW);
        };
        if (j < shape::IN_SLOTS)
            return in(j, 0);
        j -= shape::IN_SLOTS;
        if (j < shape::X_SLOTS) {
            expect(X_PROJ_ROWS * NW * 2);
            return box(0, &l.x, b.cluster * NW, j * X_PROJ_ROWS);
        }
        j -= shape::X_SLOTS;
        if (j < shape::KEPT_SLOTS) // of z: those whose token rows are still there
            return in(j + shape::IN_SLOTS - shape::KEPT_SLOTS, shape::INNER);
        if (j < shape::IN_SLOTS)
            return in(j - shape::KEPT_SLOTS, shape::INNER);
        j -= shape::IN_SLOTS;
        if (j < shape::DT_SLOTS) {
            const int row = j * DT_ROWS;
            const int bytes = min((int)DT_ROWS, NW - row) * shape::RANK * 2;
            expect(bytes);
            return run(leads, 0,
                       a.layers[layer].dt_proj + (size_t)(b.cluster * NW + row) * shape::RANK,
                       bytes);
        }
        j -= shape::DT_SLOTS;
        if (j < n_states) { // lane i: token i's
            const int k = j * states::OF_SLOT;
            const bool now = there && lane >= k && lane < k + states::OF_SLOT;
            expect(__popc(__ballot_sync(~0u, now)) * states::ROW_BYTES);
            __syncwarp();
            return run(now, (lane - k) * states::ROW_BYTES, state + layer * a.state_pitch,
                       states::ROW_BYTES);
        }
        j -= n_states;
        expect(shape::SLOT);
        box(0, &l.out, (b.split * shape::OUT_PIECES + j) * PIECE, b.tile * shape::TILE_ROWS);
    }
};

// Slots are asked for as they become free. At most FLIGHT bytes are under way, and none of those
// that the workers hold up (ask_up_to): what blocks tell each other would queue up behind them.
// While all that was asked for is there and no slot is free, L2 is asked for what follows, a
// little slower than memory gives it.
template <int NW, class S>
__device__ __forceinline__ void fill_ring(const resident_args &a, const resident_block<NW> &b) {
    typedef resident_shape<NW> shape;
    enum { PACE = shape::SLOT / 20 }; // cycles
    const ring_source<NW, S> source(a, b);
    const int in_layer = source.in_layer(b.mine), n = in_layer * a.n_layers;
    turn<shape::SLOTS> slot, landing, last;
    int ahead = 0, asked_at = 0; // the next slot that L2 is not asked for yet
    int j = 0, layer = 0, next = 0, next_layer = 0;
    auto on = [&](int *at, int *at_layer) {
        if (++*at == in_layer)
            *at = 0, ++*at_layer;
    };
    auto look_ahead = [&](int i) {
        const bool all_there = i > 0 && barrier_test(b.full + last.at * 8, last.phase);
        const int now = (int)clock();
        if (!__all_sync(~0u, all_there && now - asked_at > PACE))
            return;
        source.ask(next_layer, next, -1);
        on(&next, &next_layer), ahead++;
        asked_at = now;
    };
    source.fetch_maps(0);
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        if (i >= shape::SLOTS_FLIGHT) {
            barrier_wait(b.full + landing.at * 8, landing.phase);
            landing.next();
        }
        while (!__all_sync(~0u, barrier_test(b.empty + slot.at * 8, slot.phase ^ 1))) {
            if (ahead < n && ahead - i < shape::SLOTS_AHEAD)
                look_ahead(i);
        }
        while (i >= b.asked_up_to())
            ;
        __syncwarp();
        if (j == 0)
            source.fetch_maps(layer + 1);
        source.ask(layer, j, slot.at);
        last = slot;
        slot.next(), on(&j, &layer);
        if (ahead == i)
            ahead++, next = j, next_layer = layer;
    }
}

// Token rows once they are there, by X_WARPS warps: not by the copy engine, where they would queue
// up behind the weights. A stage's barrier counts each thread's copies as they land; those that
// multiply fence them, for a fence here would wait for all that are under way.
template <int NW>
__device__ __forceinline__ void fill_x(const resident_args &a, const resident_block<NW> &b,
                                       int thread) {
    typedef resident_shape<NW> shape;
    turn<X_STAGES> stage;
    const int chunk = thread % 8, first = thread / 8;  // 16 bytes of every
    const int step = X_WARPS * 4, n = a.tokens / step; // so many rows
    // One thread of a block asks: fewer ask sooner.
    auto hear = [&](const resident_counts::counter *c, int target, uint32_t barrier, int i) {
        if (thread == 0) {
            count_wait(c, target);
            barrier_arrive(barrier);
        }
        __syncwarp();
        if (thread >= 32)
            barrier_wait(barrier, i & 1);
    };
    auto ask = [&](const bf16 *from, int pitch, int pieces) {
        from += (size_t)first * pitch + chunk * 8;
        char *to = b.x_place() + first * 128 + (chunk ^ first % 8) * 16;
#pragma unroll 1
        for (int p = 0; p < pieces; p++) {
            barrier_wait(b.x_empty + stage.at * 8, stage.phase ^ 1);
#pragma unroll
            for (int k = 0; k < RESIDENT_ROWS / step; k++) {
                if (k < n)
                    copy_async(to + stage.at * X_STAGE + k * step * 128,
                               from + (size_t)k * step * pitch + p * PIECE, true);
            }
            copies_arrive(b.x_full + stage.at * 8);
            stage.next();
        }
    };
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        hear(&a.scratch->counts.input, RESIDENT_BLOCKS * (i + 1), b.go, i);
        const bf16 *u = a.u + b.rank * shape::IN_PIECES * PIECE;
        ask(u, shape::WIDTH, shape::IN_PIECES);
        ask(u, shape::WIDTH, shape::IN_PIECES - X_STAGES); // z's turn: it has the last ones
        hear(&a.scratch->counts.y[b.split], RESIDENT_TILES * (i + 1), b.y_go, i);
        ask(a.y + b.split * shape::OUT_PIECES * PIECE, shape::INNER, shape::OUT_PIECES);
    }
}

#endif

} // namespace ssm

#endif
