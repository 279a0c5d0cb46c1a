// SPDX-License-Identifier: Apache-2.0
// resident.cu's warps that ask for what the others work on.
#ifndef SSM_KERNELS_CUDA_RESIDENT_FILL_CUH
#define SSM_KERNELS_CUDA_RESIDENT_FILL_CUH

#include "medium.cuh"
#include "resident_advance.cuh"

namespace ssm {

#if SSM_HOPPER

// A warp asks for all that goes through the ring, in the order in which it is used: weights of all
// layers and the rank's tokens' states (lane i: token i's). The ring is full whenever the block
// waits for another one.
template <int NW, class S>
__device__ __forceinline__ void fill_ring(const resident_args &a, const resident_block<NW> &b) {
    typedef resident_shape<NW> shape;
    typedef resident_states<NW, S> states;
    turn<shape::SLOTS> slot;
    const uint64_t once = policy_once();
    const int lane = threadIdx.x % 32, token = token_of(b.rank, lane);
    row own = {-1, -1, 0, 1};
    if (token < a.tokens)
        own = a.rows[token];
    const bool there = own.slot >= 0 && !own.fresh;
    const char *state =
        a.state + ((size_t)max(own.slot, 0) * shape::INNER + b.cluster * NW) * 16 * sizeof(S);
    auto take = [&](int bytes) { // a free slot, by lane 0
        barrier_wait(b.empty + slot.at * 8, slot.phase ^ 1);
        barrier_expect(b.full + slot.at * 8, (uint32_t)bytes);
    };
    auto to = [&] { return b.slots + slot.at * shape::SLOT; };
    auto full = [&] { return b.full + slot.at * 8; };
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++, state += a.state_pitch) {
        const resident_weights &l = a.weights[i];
#pragma unroll 1
        for (int p = 0; p < shape::IN_PIECES; p++, slot.next()) {
            if (lane > 0)
                continue;
            take(shape::SLOT);
            const int column = (b.rank * shape::IN_PIECES + p) * PIECE;
#pragma unroll
            for (int r = 0; r < shape::TILE_ROWS; r += shape::BOX) {
                const int group = r / NW, at = r % NW;
                const int xs = group ? NW - shape::FIRST_X : shape::FIRST_X;
                const int row = at < xs ? group * shape::FIRST_X + at
                                        : shape::INNER + group * (NW - shape::FIRST_X) + at - xs;
                copy_box(to() + r * 128, &l.in, column, b.cluster * NW + row, full(), once);
            }
        }
#pragma unroll 1
        for (int k = 0; k < shape::X_SLOTS; k++, slot.next()) {
            if (lane > 0)
                continue;
            take(X_PROJ_ROWS * NW * 2);
            copy_box(to(), &l.x, b.cluster * NW, k * X_PROJ_ROWS, full(), once);
        }
#pragma unroll 1
        for (int k = 0; k < shape::DT_SLOTS; k++, slot.next()) {
            if (lane > 0)
                continue;
            const int bytes = min((int)DT_ROWS, NW - k * DT_ROWS) * shape::RANK * 2;
            take(bytes);
            copy_run(to(),
                     a.layers[i].dt_proj + (size_t)(b.cluster * NW + k * DT_ROWS) * shape::RANK,
                     (uint32_t)bytes, full(), once);
        }
#pragma unroll 1
        for (int k = 0; k < b.mine; k += states::OF_SLOT, slot.next()) {
            const bool now = there && lane >= k && lane < k + states::OF_SLOT;
            const int n = __popc(__ballot_sync(~0u, now));
            if (lane == 0)
                take(n * states::ROW_BYTES);
            __syncwarp();
            if (now)
                copy_run(to() + (lane - k) * states::ROW_BYTES, state, states::ROW_BYTES, full(),
                         once);
        }
#pragma unroll 1
        for (int p = 0; p < shape::OUT_PIECES; p++, slot.next()) {
            if (lane > 0)
                continue;
            take(shape::SLOT);
            copy_box(to(), &l.out, (b.split * shape::OUT_PIECES + p) * PIECE,
                     b.tile * shape::TILE_ROWS, full(), once);
        }
    }
}

// Token rows once they are there, by X_WARPS warps: not by the copy engine, where they would queue
// up behind the weights. A stage is announced when two more have been asked for.
template <int NW>
__device__ __forceinline__ void fill_x(const resident_args &a, const resident_block<NW> &b,
                                       int thread) {
    typedef resident_shape<NW> shape;
    enum { LAG = 2 };
    turn<X_STAGES> stage, announced;
    const int lane = thread % 32, chunk = thread % 8, first = thread / 8; // 16 bytes of every
    const int step = X_WARPS * 4, n = a.tokens / step;                    // so many rows
    auto announce = [&] {
        fence_async();
        __syncwarp();
        if (lane == 0)
            barrier_arrive(b.x_full + announced.at * 8);
        announced.next();
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
            copies_commit();
            stage.next();
            if (p >= LAG) {
                copies_wait_but<LAG>();
                announce();
            }
        }
        static_assert(LAG == 2, "two are left");
        copies_wait_but<1>();
        announce();
        copies_wait();
        announce();
    };
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        if (lane == 0)
            count_wait(&a.scratch->counts.input, RESIDENT_BLOCKS * i);
        __syncwarp();
        if (thread == 0)
            barrier_arrive(b.go);
        ask(a.u + b.rank * shape::IN_PIECES * PIECE, shape::WIDTH, shape::IN_PIECES);
        if (lane == 0)
            count_wait(&a.scratch->counts.y[b.split], RESIDENT_TILES * (i + 1));
        __syncwarp();
        ask(a.y + b.split * shape::OUT_PIECES * PIECE, shape::INNER, shape::OUT_PIECES);
    }
}

#endif

} // namespace ssm

#endif
