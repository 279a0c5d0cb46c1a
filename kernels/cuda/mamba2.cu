// SPDX-License-Identifier: Apache-2.0
// Mamba-2's recurrence, one token at a time: advance for decode rows, a plain scan for any shape.
//
// advance: a block takes one head of one row: head_dim x N states, 32 KB in fp32 for the published
// 64 x 128. Each thread first asks for all its states (16 bytes a load, 4 or 8 loads in flight),
// then waits for what the step computed, so that one block's memory time covers another's
// arithmetic. A row of N states lies across the lanes of a warp (or half of one in fp16); y is a
// shuffle reduction. Bytes a head: the states twice, 400 bytes besides. The official kernel gives a
// block 4 rows of 128 states, 655,360 blocks a layer at 512 sequences of 2.7b: the launch rate, not
// memory, is its limit.
//
// y leaves gated: y silu(z). With `squares` it is multiplied by the norm's weight as well and a
// head's sum of squares goes aside, so that out_proj can apply the norm to its sums (skinny.cu).
#include "cuda.h"
#include "few.cuh"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { HEAD_THREADS = 256 };

struct mamba2_args {
    const float *decay, *skip, *dt_bias; // [heads]
    const float *gate_norm;              // [d_inner], with squares
    const void *xc;                      // T [token row][conv_dim]: x, B, C
    const void *in;                      // T [token row][n_in]: z first, dt last
    void *y;                             // T [token row][d_inner]
    float *squares;                      // [token row][heads] or NULL
    void *state;                         // S [slot][heads][head_dim][N], this layer's
    int heads, head_dim, states, groups, d_inner, conv_dim, n_in;
    float dt_min, dt_max;
};

template <class T>
__device__ __forceinline__ float head_delta(const mamba2_args &a, size_t at, int head) {
    const float dt = to_float(((const T *)a.in)[at * a.n_in + a.n_in - a.heads + head]);
    return fminf(fmaxf(softplus(dt + a.dt_bias[head]), a.dt_min), a.dt_max);
}

// P states a head's row count, N a row; a thread's vector is V states, 16 bytes.
template <class T, class S, int P, int N>
__global__ void __launch_bounds__(HEAD_THREADS, sizeof(S) == 2 ? 6 : 5)
    advance_kernel(mamba2_args a, const row *rows) {
    constexpr int V = 16 / sizeof(S), LANES = N / V, AT_ONCE = HEAD_THREADS / LANES,
                  LOADS = P / AT_ONCE;
    static_assert(LANES <= 32 && P % AT_ONCE == 0, "shape");
    __shared__ float y_sum[P], scratch[32];
    dependents_start();
    const int head = blockIdx.x, group = head / (a.heads / a.groups);
    const int q = threadIdx.x % LANES, p0 = threadIdx.x / LANES;
    const row r = rows[blockIdx.y];
    S *state = (S *)a.state + (((size_t)max(r.slot, 0) * a.heads + head) * P + p0) * N + q * V;
    uint4 raw[LOADS]; // as stored: half the registers in fp16, so more blocks an SM
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        raw[i] = make_uint4(0, 0, 0, 0);
        if (r.slot >= 0 && !r.fresh)
            raw[i] = __ldcs((const uint4 *)(state + (size_t)i * AT_ONCE * N));
    }
    dependency_wait();
    if (r.slot < 0)
        return;
    const T *xc = (const T *)a.xc + (size_t)r.at * a.conv_dim;
    float b[V], c[V];
    load<V>(xc + a.d_inner + group * N + q * V, b);
    load<V>(xc + a.d_inner + (a.groups + group) * N + q * V, c);
    const float delta = head_delta<T>(a, (size_t)r.at, head);
    const float decay = exp2_fast(delta * a.decay[head]);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int p = i * AT_ONCE + p0;
        const float input = delta * to_float(xc[head * P + p]);
        float y = 0, h[V];
        load<V>((const S *)&raw[i], h);
#pragma unroll
        for (int v = 0; v < V; v++) {
            h[v] = decay * h[v] + input * b[v];
            y += h[v] * c[v];
        }
        store<V>(state + (size_t)i * AT_ONCE * N, h);
#pragma unroll
        for (int o = LANES / 2; o; o >>= 1)
            y += __shfl_xor_sync(~0u, y, o);
        if (q == 0)
            y_sum[p] = y;
    }
    __syncthreads();
    float square = 0;
    if (threadIdx.x < P) {
        const int channel = head * P + threadIdx.x;
        const float z = to_float(((const T *)a.in)[(size_t)r.at * a.n_in + channel]);
        float y = (y_sum[threadIdx.x] + a.skip[head] * to_float(xc[channel])) * silu(z);
        square = y * y;
        if (a.squares)
            y *= a.gate_norm[channel];
        ((T *)a.y)[(size_t)r.at * a.d_inner + channel] = from_float<T>(y);
    }
    if (a.squares) {
        square = block_sum(square, scratch);
        if (threadIdx.x == 0)
            a.squares[(size_t)r.at * a.heads + head] = square;
    }
}

// Any shape, rows or spans: a warp a state row (p), lanes across its states, sequential in time.
template <class T, class S>
__global__ void __launch_bounds__(HEAD_THREADS)
    scan_any_kernel(mamba2_args a, const row *rows, const span *spans) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    const int head = blockIdx.x, group = head / (a.heads / a.groups);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = HEAD_THREADS / 32;
    int slot, at, count, fresh;
    if (rows) {
        const row r = rows[blockIdx.y];
        slot = r.slot, at = r.at, count = 1, fresh = r.fresh;
    } else {
        const span s = spans[blockIdx.y];
        slot = s.slot, at = s.first, count = s.count, fresh = s.fresh;
    }
    if (slot < 0)
        return;
    S *state = (S *)a.state + ((size_t)slot * a.heads + head) * a.head_dim * a.states;
    for (int t = 0; t < count; t++, at++) {
        const T *xc = (const T *)a.xc + (size_t)at * a.conv_dim;
        const T *b = xc + a.d_inner + group * a.states, *c = b + a.groups * a.states;
        const float delta = head_delta<T>(a, (size_t)at, head);
        const float decay = exp2_fast(delta * a.decay[head]);
        float square = 0;
        for (int p = warp; p < a.head_dim; p += warps) {
            const int channel = head * a.head_dim + p;
            const float x = to_float(xc[channel]);
            S *h = state + (size_t)p * a.states;
            float y = 0;
            for (int n = lane; n < a.states; n += 32) {
                const float before = fresh && t == 0 ? 0.f : to_float(h[n]);
                const float now = decay * before + delta * x * to_float(b[n]);
                h[n] = from_float<S>(now);
                y += now * to_float(c[n]);
            }
            y = warp_sum(y);
            const float z = to_float(((const T *)a.in)[(size_t)at * a.n_in + channel]);
            y = (y + a.skip[head] * x) * silu(z);
            if (lane == 0) {
                square += y * y;
                if (a.squares)
                    y *= a.gate_norm[channel];
                ((T *)a.y)[(size_t)at * a.d_inner + channel] = from_float<T>(y);
            }
        }
        if (a.squares) {
            square = block_sum(square, scratch);
            if (threadIdx.x == 0)
                a.squares[(size_t)at * a.heads + head] = square;
        }
    }
}

static mamba2_args arguments(const device *d, int layer, bool fold_norm) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    mamba2_args a = {};
    a.decay = w.decay, a.skip = w.skip, a.dt_bias = w.dt_bias, a.gate_norm = w.gate_norm;
    a.xc = d->xc, a.in = d->xz, a.y = d->y, a.squares = fold_norm ? d->squares : NULL;
    const size_t slots = (size_t)d->n_slots * g.d_inner * g.d_state;
    a.state = (char *)d->state + (size_t)layer * slots * type_bytes(d->state_type);
    a.heads = g.n_heads, a.head_dim = g.head_dim, a.states = g.d_state, a.groups = g.n_groups;
    a.d_inner = g.d_inner, a.conv_dim = g.conv_dim, a.n_in = d->n_in;
    a.dt_min = g.dt_min, a.dt_max = g.dt_max;
    return a;
}

cudaError_t mamba2_advance(device *d, int layer, const batch &b, bool fold_norm) {
    if (d->replays && !b.at_once)
        return replay_advance(d, layer, b, fold_norm);
    const ssm_geometry &g = d->g;
    const mamba2_args a = arguments(d, layer, fold_norm);
    const bool vectors = g.conv_dim % 8 == 0 && g.d_inner % 8 == 0;
    const dim3 grid((unsigned)g.n_heads, (unsigned)b.n_rows);
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(d->state_type, [&](auto s) {
            typedef decltype(t) T;
            typedef decltype(s) S;
            if (b.n_rows <= FEW_ROWS && b.decode && g.head_dim == 64 && g.d_state == 128) {
                const cudaError_t rc = few_prepare(advance_kernel<T, S, 64, 128>, 0);
                if (rc != cudaSuccess)
                    return rc;
            }
            if (vectors && g.head_dim == 64 && g.d_state == 128)
                return launch(d, advance_kernel<T, S, 64, 128>, grid, HEAD_THREADS, 0, b.decode, a,
                              b.rows);
            if (vectors && g.head_dim == 64 && g.d_state == 64)
                return launch(d, advance_kernel<T, S, 64, 64>, grid, HEAD_THREADS, 0, b.decode, a,
                              b.rows);
            return launch(d, scan_any_kernel<T, S>, grid, HEAD_THREADS, 0, b.decode, a, b.rows,
                          (const span *)NULL);
        });
    });
}

cudaError_t mamba2_scan(device *d, int layer, const batch &b) {
    if (ssd_fits(d))
        return ssd_wgmma_fits(d) ? ssd_wgmma_scan(d, layer, b) : ssd_scan(d, layer, b);
    const mamba2_args a = arguments(d, layer, false);
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(d->state_type, [&](auto s) {
            typedef decltype(t) T;
            typedef decltype(s) S;
            return launch(d, scan_any_kernel<T, S>, dim3((unsigned)a.heads, (unsigned)b.n_spans),
                          HEAD_THREADS, 0, false, a, (const row *)NULL, b.spans);
        });
    });
}

} // namespace ssm
