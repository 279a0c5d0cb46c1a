// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's middle of a layer, what is common to states that are written every token
// (resident_heads_at_once.cuh) and those that are not (resident_heads_replay.cuh): B, C and dt
// come, y goes.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_STATES_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_STATES_CUH

#include "resident_heads_in.cuh"
#include "resident_out.cuh"

namespace ssm {

#if SSM_HOPPER

template <class SHAPE, class S, bool REPLAY> struct heads_states {
    typedef SHAPE shape;
    typedef heads_source<SHAPE, S, REPLAY> source;
    int own; // lane k: of the rank's token k: slot * 2 + whether it begins from nothing; -1: none

    __device__ __forceinline__ heads_states(const resident_args &a,
                                            const resident_block<SHAPE> &b) {
        const int lane = threadIdx.x % 32;
        own = -1;
        if (lane < b.mine) {
            const row r = a.rows[b.token(lane)];
            own = r.slot < 0 ? -1 : r.slot * 2 + (r.fresh != 0);
        }
    }

    // ---- places

    static __device__ __forceinline__ int first_head(const resident_block<SHAPE> &b) {
        return b.cluster * shape::NW / HEAD;
    }
    static __device__ __forceinline__ char *staged(const resident_block<SHAPE> &b) {
        return shape::STAGED_APART ? b.staged() : b.peer_place();
    }
    // Of a token of the rank: what its states and inputs weigh; squares of what is normed, by part
    // and warp.
    static __device__ __forceinline__ float *weights(const resident_block<SHAPE> &b, int token) {
        return (float *)staged(b) + token * shape::WEIGHTS;
    }
    static __device__ __forceinline__ float *squares(const resident_block<SHAPE> &b, int token) {
        return (float *)staged(b) + shape::HALF_ROWS * shape::WEIGHTS + token * shape::SQUARES;
    }
    // B, C (128 numbers on) and dt (256 on) of a token from its n-th number on: where token rows
    // were, which no longer are read. A row of 128 bytes has 64 numbers.
    static __device__ __forceinline__ const bf16 *bc(const resident_block<SHAPE> &b, int token,
                                                     int n) {
        return (const bf16 *)(b.x_place() + n / 64 * shape::BC_STAGE + token * 128) + n % 64;
    }

    // ---- before them

    // B, C and dt, once they are there. All of z is multiplied, and where its last token rows were
    // is B's and C's room now.
    __device__ __forceinline__ void ask(const heads_args &a, const resident_block<SHAPE> &b,
                                        const resident_worker<SHAPE> &w) const {
        enum { UNITS = shape::EXTRAS / 8 };
        barrier_wait(b.open, w.layer & 1);
        workers_sync();
        const bf16 *from = extras_of<SHAPE>(a) + (size_t)b.token(0) * shape::EXTRAS;
#pragma unroll 4
        for (int i = threadIdx.x; i < b.mine * UNITS; i += RESIDENT_WORKERS)
            copy_async((void *)bc(b, i / UNITS, i % UNITS * 8),
                       from + (size_t)(i / UNITS) * shape::EXTRAS + i % UNITS * 8, true);
        copies_commit();
    }
    // delta of a token's head, by the cluster's heads; rate: A log2 e.
    static __device__ __forceinline__ float delta_of(const heads_args &a,
                                                     const resident_block<SHAPE> &b,
                                                     const resident_worker<SHAPE> &w, int token,
                                                     int h, float *rate) {
        const int head = min(first_head(b) + h, shape::HEADS - 1);
        const resident_layer &l = a.layers[w.layer];
        const float dt = to_float(*bc(b, token, 2 * HEAD_STATES + head));
        *rate = __ldg(l.decay + head);
        return fminf(fmaxf(softplus(dt + __ldg(l.dt_bias + head)), a.dt_min), a.dt_max);
    }

    // y of all rows, and the sums of its squares, N of each token, to all blocks.
    template <int N>
    __device__ __forceinline__ void give_y(const heads_args &a, const resident_block<SHAPE> &b,
                                           const resident_worker<SHAPE> &w) const {
        enum { UNITS = shape::NW / 8 };
        [[maybe_unused]] uint64_t before = 0;
        workers_sync();
#pragma unroll 2
        for (int i = threadIdx.x; i < b.mine * UNITS; i += RESIDENT_WORKERS) {
            const int token = i / UNITS, v = i % UNITS * 8;
            const uint4 y = *(const uint4 *)(b.z() + token * shape::PITCH + v);
            uint4 *to =
                (uint4 *)(a.y + (size_t)b.token(token) * shape::INNER + b.cluster * shape::NW + v);
            if constexpr (shape::EXCHANGED)
                before |= exchange(to, y);
            else
                *to = y;
        }
        if (threadIdx.x < b.mine) {
            const float *from = squares(b, threadIdx.x);
            float sum = 0;
#pragma unroll
            for (int i = 0; i < N; i++)
                sum += from[i];
            float *to = gated_of<SHAPE>(a) + b.token(threadIdx.x) * RESIDENT_CLUSTERS + b.cluster;
            if constexpr (shape::EXCHANGED)
                before |= exchange_one(to, sum);
            else
                *to = sum;
        }
        const bool back = shape::EXCHANGED && exchanged(before);
        fence_async(); // the peer's copies may follow
        workers_sync();
        if (threadIdx.x == 0) {
            count_exchanged(&scratch_of<SHAPE>(a).y[b.split], back);
            b.ask_up_to(NO_LIMIT);
        }
    }
};

// What a token's sums of out_proj are multiplied by: all its y are there when its shares are.
template <class SHAPE> struct gated_squares {
    typedef residual_part<SHAPE> part_of;
    float2 v[part_of::TOKENS];

    __device__ __forceinline__ gated_squares(const resident_args &a, const part_of &part) {
#pragma unroll
        for (int k = 0; k < part_of::TOKENS; k++)
            v[k] = load_shared_pair(gated_of<SHAPE>(a) + part.token(k) * RESIDENT_CLUSTERS +
                                    part.lane * 2);
    }
    __device__ __forceinline__ float scale(const resident_args &a, int k) const {
        const float sum = warp_sum(v[k].x + v[k].y);
        return rsqrtf(sum * (1.f / SHAPE::INNER) + a.gate_eps);
    }
};

#endif

} // namespace ssm

#endif
