// SPDX-License-Identifier: Apache-2.0
// Mamba-1, one token of few sequences or in shapes that advance.cu does not take.
//
// A block takes a tile of up to 16 rows by some channels. The states of a channel lie side by side
// (64 bytes in fp32 for N = 16), a lane owns 16 bytes of them, a warp reads 512 contiguous bytes a
// row and keeps decay in registers over its rows. The first rows' states and dt_proj's weights are
// asked for before the step's data is there; afterwards its phases follow one another, each a trip
// to L2: right where a block has one tile and a step is short, wrong for long lists (see there).
#include "mamba.cuh"

namespace ssm {

enum { ADVANCE_THREADS = 256 };

// The same with the weights asked for before the step's data is there: RK blocks of 32 columns for
// each of TPW tiles of 8 channels a warp; RK * 32 >= rank. All channels exist.
template <int TPW, int RK>
__device__ __forceinline__ void fetch_dt_proj(const mamba_args &a, int first, uint4 (&w)[TPW][RK]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int t = 0; t < TPW; t++) {
        const int channel = first + (t * (blockDim.x >> 5) + warp) * 8 + g;
        const bf16 *from = (const bf16 *)a.dt_proj + (size_t)channel * a.rank + q * 8;
#pragma unroll
        for (int k = 0; k < RK; k++) {
            w[t][k] = make_uint4(0, 0, 0, 0);
            if (k * 32 + q * 8 < a.rank && channel < a.channels)
                w[t][k] = load_once((const void *)(from + k * 32));
        }
    }
}

template <int TPW, int RK>
__device__ __forceinline__ void delta_from(const mamba_args &a, const uint4 (&w)[TPW][RK],
                                           const float *dt, int dt_pitch, int n_channels,
                                           float *delta) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    float c[TPW][4];
#pragma unroll
    for (int t = 0; t < TPW; t++)
        c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0;
#pragma unroll
    for (int k = 0; k < RK; k++) {
        const int at = k * 32 + q * 8;
        uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
        if (at < a.rank) {
            float v[8];
            load<8>(dt + g * dt_pitch + at, v);
            lo = pack_bf16(v);
            load<8>(dt + (g + 8) * dt_pitch + at, v);
            hi = pack_bf16(v);
        }
#pragma unroll
        for (int t = 0; t < TPW; t++) {
            mma(c[t], lo.x, hi.x, lo.y, hi.y, w[t][k].x, w[t][k].y);
            mma(c[t], lo.z, hi.z, lo.w, hi.w, w[t][k].z, w[t][k].w);
        }
    }
#pragma unroll
    for (int t = 0; t < TPW; t++) {
        float *to = delta + (t * (blockDim.x >> 5) + warp) * 8 + q * 2;
        to[g * n_channels] = c[t][0], to[g * n_channels + 1] = c[t][1];
        to[(g + 8) * n_channels] = c[t][2], to[(g + 8) * n_channels + 1] = c[t][3];
    }
}

// V states a lane (16 bytes), a.states / V lanes a channel: a power of two up to 32. RK > 0: bf16,
// 16 states, 64 channels a block, dt_proj's weights in registers before the wait.
template <class T, class S, int RK>
__global__ void __launch_bounds__(ADVANCE_THREADS, RK ? 1 : 3)
    advance_kernel(mamba_args a, const row *rows, int n_rows, int rows_a_block) {
    constexpr int V = 16 / sizeof(S), AHEAD = 4, TPW = sizeof(S) == 4 ? 1 : 2;
    extern __shared__ __align__(16) float shared[];
    dependents_start();
    const int lanes = RK ? 16 / V : a.states / V, n_channels = blockDim.x / lanes;
    const int first = blockIdx.x * n_channels, first_row = blockIdx.y * rows_a_block;
    const int n = min(rows_a_block, n_rows - first_row);
    const int j = threadIdx.x / lanes, q = threadIdx.x - j * lanes, channel = first + j;
    const bool live = channel < a.channels;
    const shared_tile s = carve(shared, a.rank, a.states, n_channels);
    rows += first_row;

    float decay[V] = {};
    if (live)
        load<V>(a.decay + (size_t)channel * a.states + q * V, decay);
    // States were written a step ago, long before this graph began: they need not wait.
    S *states = (S *)a.state + (size_t)channel * a.states + q * V;
    const size_t slot_pitch = (size_t)a.channels * a.states;
    row r[AHEAD];
    float h[AHEAD][V];
    auto fetch = [&](int i) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            r[k].slot = -1;
            if (i + k < n && live)
                r[k] = rows[i + k];
#pragma unroll
            for (int v = 0; v < V; v++)
                h[k][v] = 0;
            if (r[k].slot >= 0 && !r[k].fresh)
                load<V>(states + (size_t)r[k].slot * slot_pitch, h[k]);
        }
    };
    fetch(0);
    uint4 dt_proj[TPW][RK ? RK : 1];
    if constexpr (RK > 0)
        fetch_dt_proj(a, first, dt_proj);
    dependency_wait();
    stage_xdb(
        a, n, [&](int i) { return rows[i].slot >= 0 ? rows[i].at : -1; }, s.dt, s.dt_pitch, s.bc);
    __syncthreads();
    if constexpr (RK > 0) {
        delta_from(a, dt_proj, s.dt, s.dt_pitch, n_channels, s.delta);
        __syncthreads();
    } else {
        make_delta<T>(a, s.dt, s.dt_pitch, first, n_channels, n, s.delta);
    }

    // What a channel needs once a row is made once a row, not by each of its lanes.
    const int shift = 31 - __clz(n_channels);
    for (int i = threadIdx.x; i < n << shift; i += blockDim.x) {
        const row w = rows[i >> shift];
        const int c = first + (i & (n_channels - 1));
        if (w.slot < 0 || c >= a.channels)
            continue;
        const float x = to_float(((const T *)a.x)[(size_t)w.at * a.channels + c]);
        const float delta = softplus(s.delta[i] + a.dt_bias[c]);
        s.pair[i] = make_float2(delta, delta * x);
    }
    __syncthreads();
    for (int i = 0; i < n; i += AHEAD) {
        if (i > 0)
            fetch(i);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int at = min(i + k, n - 1);
            const float2 pair = s.pair[(at << shift) + j];
            const float *bc = s.bc + at * 2 * a.states + q * V;
            float b[V], c[V], y = 0;
            load<V>(bc, b);
            load<V>(bc + a.states, c);
#pragma unroll
            for (int v = 0; v < V; v++) {
                h[k][v] = exp2_fast(pair.x * decay[v]) * h[k][v] + pair.y * b[v];
                y += h[k][v] * c[v];
            }
            for (int o = lanes >> 1; o; o >>= 1)
                y += __shfl_xor_sync(~0u, y, o);
            if (r[k].slot < 0)
                continue;
            store<V>(states + (size_t)r[k].slot * slot_pitch, h[k]);
            if (q == 0)
                s.delta[(at << shift) + j] = y;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n << shift; i += blockDim.x) {
        const row w = rows[i >> shift];
        const int c = first + (i & (n_channels - 1));
        if (w.slot < 0 || c >= a.channels)
            continue;
        const float x = to_float(((const T *)a.x)[(size_t)w.at * a.channels + c]);
        const float z = to_float(((const T *)a.xz)[((size_t)w.at * 2 + 1) * a.channels + c]);
        ((T *)a.y)[(size_t)w.at * a.channels + c] =
            from_float<T>((s.delta[i] + a.skip[c] * x) * silu(z));
    }
}

// Any number of states: a thread a channel, states in memory.
template <class T, class S>
__global__ void __launch_bounds__(ADVANCE_THREADS)
    advance_any_kernel(mamba_args a, const row *rows, int n_rows, int rows_a_block) {
    extern __shared__ __align__(16) float shared[];
    dependents_start();
    dependency_wait();
    const int first = blockIdx.x * ADVANCE_THREADS, channel = first + threadIdx.x;
    const shared_tile s = carve(shared, a.rank, a.states, 0);
    rows += blockIdx.y * rows_a_block;
    const int n = min(rows_a_block, n_rows - (int)blockIdx.y * rows_a_block);
    stage_xdb(
        a, n, [&](int r) { return rows[r].slot >= 0 ? rows[r].at : -1; }, s.dt, s.dt_pitch, s.bc);
    __syncthreads();
    make_delta<T>(a, s.dt, s.dt_pitch, first, ADVANCE_THREADS, n, s.delta);
    if (channel >= a.channels)
        return;
    for (int i = 0; i < n; i++) {
        const row r = rows[i];
        if (r.slot < 0)
            continue;
        const float x = to_float(((const T *)a.x)[(size_t)r.at * a.channels + channel]);
        const float delta =
            softplus(s.delta[i * ADVANCE_THREADS + threadIdx.x] + a.dt_bias[channel]);
        S *h = (S *)a.state + ((size_t)r.slot * a.channels + channel) * a.states;
        const float *decay = a.decay + (size_t)channel * a.states, *bc = s.bc + i * 2 * a.states;
        float y = a.skip[channel] * x;
        for (int v = 0; v < a.states; v++) {
            const float before = r.fresh ? 0.f : to_float(h[v]);
            const float now = exp2_fast(delta * decay[v]) * before + delta * x * bc[v];
            h[v] = from_float<S>(now);
            y += now * bc[a.states + v];
        }
        const float z =
            to_float(((const T *)a.xz)[(size_t)r.at * 2 * a.channels + a.channels + channel]);
        ((T *)a.y)[(size_t)r.at * a.channels + channel] = from_float<T>(y * silu(z));
    }
}

template <class S> static auto advance_fast(int rank) {
    return rank <= 64    ? advance_kernel<bf16, S, 2>
           : rank <= 160 ? advance_kernel<bf16, S, 5>
                         : advance_kernel<bf16, S, 8>;
}

cudaError_t mamba_advance_few(device *d, int layer, const batch &b, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const mamba_args a = row_arguments(d, layer, b, n_splits);
    const int v = 16 / (int)type_bytes(d->state_type), lanes = g.d_state / v;
    const bool fits = g.d_state % v == 0 && lanes >= 1 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
    // Registers for weights cost occupancy: worth it where a step is short.
    const bool fast = b.n_rows <= 64 && d->weight_type == SSM_DTYPE_BF16 && g.d_state == 16 &&
                      g.dt_rank % 8 == 0 && g.dt_rank <= 256;
    const int threads = fast ? 64 * lanes : fits && lanes == 1 ? 128 : ADVANCE_THREADS;
    const int n_channels = fits ? threads / lanes : threads;
    const unsigned blocks = (unsigned)ceil_div(g.d_inner, n_channels);
    int rows_a_block = TILE; // fewer where that would leave the card half empty
    while (rows_a_block > 4 && blocks * (unsigned)ceil_div(b.n_rows, rows_a_block) < 2u * d->n_sms)
        rows_a_block /= 2;
    const dim3 grid(blocks, (unsigned)ceil_div(b.n_rows, rows_a_block));
    const size_t shared = tile_bytes(g.dt_rank, g.d_state, fits ? 3 * n_channels : n_channels);
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(d->state_type, [&](auto s) {
            typedef decltype(t) T;
            typedef decltype(s) S;
            auto kernel = fast   ? advance_fast<S>(g.dt_rank)
                          : fits ? advance_kernel<T, S, 0>
                                 : advance_any_kernel<T, S>;
            return launch(d, kernel, grid, threads, shared, b.decode, a, b.rows, b.n_rows,
                          rows_a_block);
        });
    });
}

} // namespace ssm
