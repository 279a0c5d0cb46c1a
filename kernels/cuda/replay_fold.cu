// SPDX-License-Identifier: Apache-2.0
// Replay's memory, and states made whole outside of a decode step: before a prompt goes on from a
// slot that holds entries (in place), and where a slot is read (into canonical form; the slot stays
// as it is, so that being looked at changes no answer).
//
// A block takes one head of one slot: entries' weights by its first warp, weighted x and B in
// shared memory, then every state is decay S + sum of x_j B_j in fp32. That is 15 multiply-adds a
// state where a decode step's fold has the matrix units, but it runs once a turn, not every 16
// tokens.
#include "replay.cuh"
#include "types.cuh"

namespace ssm {

enum { FOLD_THREADS = 256 };

struct fold_args {
    const float *decay; // [heads]
    const void *state;  // S [slot][heads][P][N], this layer's bases
    const bf16 *x, *b;
    const float *dt;
    int heads, groups;
};

struct fold_shared {
    float x[REPLAY_HELD][REPLAY_P], weight[16], decay;
};

// x of all entries, times its weight.
template <int R>
__device__ __forceinline__ void load_weighted(const fold_args &a, fold_shared &s, size_t at,
                                              int head, int slot, int held) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        float dt = 0;
        if (lane < held)
            dt = a.dt[((size_t)slot * REPLAY_HELD + lane) * a.heads + head];
        float decay;
        const float weight = entry_weight(dt, a.decay[head], &decay);
        if (lane < 16)
            s.weight[lane] = weight;
        s.decay = decay;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < held * REPLAY_P; i += FOLD_THREADS) {
        const int j = i / REPLAY_P, p = i % REPLAY_P;
        const bf16 *entry = a.x + ((at * (REPLAY_P / R) + p / R) * REPLAY_HELD + j) * R;
        s.x[j][p] = s.weight[j] * to_float(entry[replay_position<R>(j, p % R)]);
    }
    __syncthreads();
}

// S: the base's type; put(state's index in the slot, value)
template <class S, class F>
__device__ __forceinline__ void fold_head(const fold_args &a, int head, int slot, int held, F put) {
    __shared__ fold_shared s;
    const size_t at = (size_t)slot * a.heads + head;
    load_weighted<replay_shape<S>::R>(a, s, at, head, slot, held);
    const int n = threadIdx.x % REPLAY_N, group = head / (a.heads / a.groups);
    const bf16 *ring = a.b + ((size_t)slot * a.groups + group) * REPLAY_HELD * REPLAY_N + n;
    float b[REPLAY_HELD];
#pragma unroll
    for (int j = 0; j < REPLAY_HELD; j++) {
        b[j] = 0;
        if (j < held)
            b[j] = to_float(ring[j * REPLAY_N]);
    }
    const S *state = (const S *)a.state + at * REPLAY_P * REPLAY_N;
    for (int i = threadIdx.x; i < REPLAY_P * REPLAY_N; i += FOLD_THREADS) {
        float h = s.decay * to_float(state[i]);
#pragma unroll
        for (int j = 0; j < REPLAY_HELD; j++) {
            if (j < held)
                h += s.x[j][i / REPLAY_N] * b[j];
        }
        put((size_t)head * REPLAY_P * REPLAY_N + i, h);
    }
}

template <class S>
__global__ void __launch_bounds__(FOLD_THREADS) fold_spans_kernel(fold_args a, const span *spans) {
    const span sp = spans[blockIdx.y];
    if (sp.held == 0)
        return;
    S *state = (S *)a.state + (size_t)sp.slot * a.heads * REPLAY_P * REPLAY_N;
    fold_head<S>(a, blockIdx.x, sp.slot, sp.held,
                 [&](size_t i, float h) { state[i] = from_float<S>(h); });
}

template <class S>
__global__ void __launch_bounds__(FOLD_THREADS)
    fold_read_kernel(fold_args a, int slot, int held, float *out) {
    fold_head<S>(a, blockIdx.x, slot, held, [&](size_t i, float h) { out[i] = h; });
}

// ---- host

// Of one slot in one layer, by array.
replay_sizes replay_bytes(const device *d) {
    if (d->g.kind == SSM_BLOCK_MAMBA)
        return advance_replay_bytes(d);
    const size_t heads = (size_t)d->g.n_heads, held = REPLAY_HELD;
    return {heads * REPLAY_P * held * sizeof(bf16), d->g.n_groups * held * REPLAY_N * sizeof(bf16),
            heads * held * sizeof(float)};
}

static fold_args arguments(const device *d, int layer) {
    const replay_sizes each = replay_bytes(d);
    const size_t slots = (size_t)layer * d->n_slots;
    fold_args a = {};
    a.decay = d->layers[layer].decay;
    a.state =
        (const char *)d->state + slots * d->g.d_inner * d->g.d_state * type_bytes(d->state_type);
    a.x = (const bf16 *)((const char *)d->replay_x + slots * each.x);
    a.b = (const bf16 *)((const char *)d->replay_b + slots * each.b);
    a.dt = (const float *)((const char *)d->replay_dt + slots * each.dt);
    a.heads = d->g.n_heads, a.groups = d->g.n_groups;
    return a;
}

cudaError_t replay_fold(device *d, int layer, const batch &b) {
    if (d->g.kind == SSM_BLOCK_MAMBA)
        return advance_replay_fold(d, layer, b);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        return launch(d, fold_spans_kernel<S>, dim3((unsigned)d->g.n_heads, (unsigned)b.n_spans),
                      FOLD_THREADS, 0, false, arguments(d, layer), b.spans);
    });
}

cudaError_t replay_read(device *d, int layer, int32_t slot, float *out) {
    if (d->g.kind == SSM_BLOCK_MAMBA)
        return advance_replay_read(d, layer, slot, out);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        return launch(d, fold_read_kernel<S>, dim3((unsigned)d->g.n_heads), FOLD_THREADS, 0, false,
                      arguments(d, layer), slot, d->held[slot].held, out);
    });
}

} // namespace ssm
