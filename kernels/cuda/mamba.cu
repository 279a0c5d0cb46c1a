// SPDX-License-Identifier: Apache-2.0
// Mamba-1's recurrence: one token of many sequences (advance), or many tokens of some (scan).
//
// Both work on a tile of 16 token rows by some channels and begin alike: B and C of the rows go to
// shared memory, and delta = softplus(dt_proj dt + bias) of the tile is made there by the matrix
// units (bf16; otherwise by plain dot products), so that dt never takes a trip through memory.
//
// advance: the states of a channel lie side by side (64 bytes in fp32 for N = 16), a lane owns 16
// bytes of them, a warp reads 512 contiguous bytes a row and keeps decay, D and bias in registers
// over its rows. Bytes a row and layer: the state twice, x, z and y. Loads of several rows are
// issued ahead of the arithmetic. One exponential a state is a third of the special unit's time.
//
// scan: a thread owns a channel and its states in registers, sequentially in time: any cut of a
// prompt at tile boundaries gives the same bits. With too few sequences to fill the card a span is
// cut into pieces: local scans from zero leave end state and sum of delta, a carry pass chains them
// (the decay of a piece is exp2(A sum delta)), final scans start from the carried state. That costs
// the exponentials twice, 45 us a pass, layer and 2,048 tokens at 5,120 channels on an H200.
#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { TILE = 16, ADVANCE_THREADS = 256 };

struct mamba_args {
    const float *decay, *skip, *dt_bias; // [channels][N], [channels], [channels]
    const void *dt_proj;                 // T [channels][rank]
    const float *xdb;                    // [splits][token row][rank + 2 N]
    const void *x;                       // T [token row][channels]
    const void *xz;                      // T [token row][2 channels]: z in the second half
    void *y;                             // T [token row][channels]
    void *state;                         // S [slot][channels][N], this layer's
    int channels, rank, states, n_x, n_splits;
    size_t split_pitch; // floats from one partial sum of xdb to the next
};

// Sum of xdb's partial sums, in a fixed order.
__device__ __forceinline__ float xdb_at(const mamba_args &a, size_t at, int column) {
    const float *p = a.xdb + at * a.n_x + column;
    float v = *p;
    for (int s = 1; s < a.n_splits; s++)
        v += p[s * a.split_pitch];
    return v;
}

// dt [TILE][rank pitch] to shared memory, T as the products take it.
// bc [TILE][2 N] fp32.
template <class F>
__device__ __forceinline__ void stage_xdb(const mamba_args &a, int n, F token_row, float *dt,
                                          int dt_pitch, float *bc) {
    for (int i = threadIdx.x; i < TILE * a.n_x; i += blockDim.x) {
        const int r = i / a.n_x, c = i - r * a.n_x;
        const int at = r < n ? token_row(r) : -1;
        const float v = at >= 0 ? xdb_at(a, (size_t)at, c) : 0.f;
        if (c < a.rank)
            dt[r * dt_pitch + c] = v;
        else
            bc[r * 2 * a.states + c - a.rank] = v;
    }
}

// delta [TILE][channels a tile] from staged dt: a warp takes 8 channels at a time.
__device__ __forceinline__ void delta_products(const mamba_args &a, const float *dt, int dt_pitch,
                                               int first, int n_channels, float *delta) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    for (int tile = warp; tile * 8 < n_channels; tile += blockDim.x >> 5) {
        const int channel = first + tile * 8 + g;
        const bf16 *w = (const bf16 *)a.dt_proj + (size_t)channel * a.rank;
        float c[4] = {};
        for (int k = q * 8; k < a.rank + q * 8; k += 32) {
            uint4 b = make_uint4(0, 0, 0, 0), lo = b, hi = b;
            if (k < a.rank) {
                float v[8];
                if (channel < a.channels)
                    b = *(const uint4 *)(w + k);
                load<8>(dt + g * dt_pitch + k, v);
                lo = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                                pack_bf16(v[6], v[7]));
                load<8>(dt + (g + 8) * dt_pitch + k, v);
                hi = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                                pack_bf16(v[6], v[7]));
            }
            mma(c, lo.x, hi.x, lo.y, hi.y, b.x, b.y);
            mma(c, lo.z, hi.z, lo.w, hi.w, b.z, b.w);
        }
        const int j = tile * 8 + q * 2;
        delta[g * n_channels + j] = c[0], delta[g * n_channels + j + 1] = c[1];
        delta[(g + 8) * n_channels + j] = c[2], delta[(g + 8) * n_channels + j + 1] = c[3];
    }
}

template <class T>
__device__ __forceinline__ void delta_dots(const mamba_args &a, const float *dt, int dt_pitch,
                                           int first, int n_channels, int n, float *delta) {
    for (int i = threadIdx.x; i < n * n_channels; i += blockDim.x) {
        const int r = i / n_channels, j = i - r * n_channels;
        float sum = 0;
        if (first + j < a.channels) {
            const T *w = (const T *)a.dt_proj + (size_t)(first + j) * a.rank;
            for (int k = 0; k < a.rank; k++)
                sum += to_float(w[k]) * to_float(from_float<T>(dt[r * dt_pitch + k]));
        }
        delta[r * n_channels + j] = sum;
    }
}

// Before softplus and bias. Ends with a barrier.
template <class T>
__device__ __forceinline__ void make_delta(const mamba_args &a, const float *dt, int dt_pitch,
                                           int first, int n_channels, int n, float *delta) {
    bool done = false;
    if constexpr (sizeof(T) == 2 && !__is_same(T, f16)) {
        if (a.rank % 8 == 0) {
            delta_products(a, dt, dt_pitch, first, n_channels, delta);
            done = true;
        }
    }
    if (!done)
        delta_dots<T>(a, dt, dt_pitch, first, n_channels, n, delta);
    __syncthreads();
}

struct shared_tile {
    float *dt, *bc, *delta;
    int dt_pitch;
};

// Rows of dt are padded by 4 floats: eight rows' 16-byte reads fall into different banks.
__device__ __forceinline__ shared_tile carve(float *shared, int rank, int states) {
    shared_tile s;
    s.dt_pitch = (rank + 3) / 4 * 4 + 4;
    s.dt = shared;
    s.bc = s.dt + TILE * s.dt_pitch;
    s.delta = s.bc + TILE * 2 * states;
    return s;
}

static size_t tile_bytes(int rank, int states, int n_channels) {
    return sizeof(float) * TILE *
           ((size_t)(rank + 3) / 4 * 4 + 4 + 2 * (size_t)states + (size_t)n_channels);
}

// ---- advance

// V states a lane (16 bytes), a.states / V lanes a channel: a power of two up to 32.
template <class T, class S>
__global__ void __launch_bounds__(ADVANCE_THREADS)
    advance_kernel(mamba_args a, const row *rows, int n_rows, int rows_a_block) {
    constexpr int V = 16 / sizeof(S), AHEAD = 4;
    extern __shared__ __align__(16) float shared[];
    dependents_start();
    const int lanes = a.states / V, n_channels = ADVANCE_THREADS / lanes;
    const int first = blockIdx.x * n_channels, first_row = blockIdx.y * rows_a_block;
    const int n = min(rows_a_block, n_rows - first_row);
    const int j = threadIdx.x / lanes, q = threadIdx.x - j * lanes, channel = first + j;
    const bool live = channel < a.channels;
    const shared_tile s = carve(shared, a.rank, a.states);
    rows += first_row;

    float decay[V] = {}, skip = 0, bias = 0;
    if (live) {
        load<V>(a.decay + (size_t)channel * a.states + q * V, decay);
        skip = a.skip[channel], bias = a.dt_bias[channel];
    }
    // States were written a step ago, long before this graph began: they need not wait.
    S *states = (S *)a.state + (size_t)channel * a.states + q * V;
    const size_t slot_pitch = (size_t)a.channels * a.states;
    float h[AHEAD][V];
    auto fetch = [&](int i) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
#pragma unroll
            for (int v = 0; v < V; v++)
                h[k][v] = 0;
            if (i + k < n && live) {
                const row r = rows[i + k];
                if (r.slot >= 0 && !r.fresh)
                    load<V>(states + (size_t)r.slot * slot_pitch, h[k]);
            }
        }
    };
    fetch(0);
    dependency_wait();
    stage_xdb(
        a, n, [&](int r) { return rows[r].slot >= 0 ? rows[r].at : -1; }, s.dt, s.dt_pitch, s.bc);
    __syncthreads();
    make_delta<T>(a, s.dt, s.dt_pitch, first, n_channels, n, s.delta);

    for (int i = 0; i < n; i += AHEAD) {
        if (i > 0)
            fetch(i);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (i + k >= n)
                break;
            const row r = rows[i + k];
            const bool mine = live && r.slot >= 0;
            const T *x_row = (const T *)a.x + (size_t)r.at * a.channels;
            const float x = mine ? to_float(x_row[channel]) : 0.f;
            const float delta = softplus(s.delta[(i + k) * n_channels + j] + bias);
            const float *bc = s.bc + (i + k) * 2 * a.states + q * V;
            float y = 0;
#pragma unroll
            for (int v = 0; v < V; v++) {
                h[k][v] = exp2_fast(delta * decay[v]) * h[k][v] + delta * x * bc[v];
                y += h[k][v] * bc[a.states + v];
            }
            for (int o = lanes >> 1; o; o >>= 1)
                y += __shfl_xor_sync(~0u, y, o);
            if (!mine)
                continue;
            store<V>(states + (size_t)r.slot * slot_pitch, h[k]);
            if (q == 0) {
                const T *z_row = (const T *)a.xz + (size_t)r.at * 2 * a.channels + a.channels;
                ((T *)a.y)[(size_t)r.at * a.channels + channel] =
                    from_float<T>((y + skip * x) * silu(to_float(z_row[channel])));
            }
        }
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
    const shared_tile s = carve(shared, a.rank, a.states);
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

static mamba_args arguments(const device *d, int layer, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    mamba_args a = {};
    a.decay = w.decay, a.skip = w.skip, a.dt_bias = w.dt_bias, a.dt_proj = w.dt_proj;
    a.xdb = d->xdb, a.x = d->xc, a.xz = d->xz, a.y = d->y;
    const size_t slots = (size_t)d->n_slots * g.d_inner * g.d_state;
    a.state = (char *)d->state + (size_t)layer * slots * type_bytes(d->state_type);
    a.channels = g.d_inner, a.rank = g.dt_rank, a.states = g.d_state, a.n_x = d->n_x;
    a.n_splits = n_splits;
    a.split_pitch = (size_t)SPLIT_ROWS * d->n_x;
    return a;
}

cudaError_t mamba_advance(device *d, int layer, const batch &b, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const mamba_args a = arguments(d, layer, n_splits);
    const int v = 16 / (int)type_bytes(d->state_type), lanes = g.d_state / v;
    const bool fits = g.d_state % v == 0 && lanes >= 1 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
    const int n_channels = fits ? ADVANCE_THREADS / lanes : ADVANCE_THREADS;
    const unsigned blocks = (unsigned)ceil_div(g.d_inner, n_channels);
    int rows_a_block = TILE; // fewer where that would leave the card half empty
    while (rows_a_block > 4 && blocks * (unsigned)ceil_div(b.n_rows, rows_a_block) < 2u * d->n_sms)
        rows_a_block /= 2;
    const dim3 grid(blocks, (unsigned)ceil_div(b.n_rows, rows_a_block));
    const size_t shared = tile_bytes(g.dt_rank, g.d_state, n_channels);
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(d->state_type, [&](auto s) {
            typedef decltype(t) T;
            typedef decltype(s) S;
            auto kernel = fits ? advance_kernel<T, S> : advance_any_kernel<T, S>;
            return launch(d, kernel, grid, ADVANCE_THREADS, shared, b.decode, a, b.rows, b.n_rows,
                          rows_a_block);
        });
    });
}

// ---- scan

enum { SCAN_THREADS = 128 };
enum scan_pass { SCAN_WHOLE, SCAN_LOCAL, SCAN_FINAL };

// carry [piece][channels][N + 1]: end state of a local scan (then: the state that the piece begins
// with) and the sum of delta.
template <class T, class S, int N, int PASS>
__global__ void __launch_bounds__(SCAN_THREADS)
    scan_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry) {
    extern __shared__ __align__(16) float shared[];
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const bool live = channel < a.channels;
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    const shared_tile s = carve(shared, a.rank, N);
    float *mine = carry + ((size_t)p.index * a.channels + channel) * (N + 1);
    S *state = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * N;

    float decay[N], h[N], skip = 0, bias = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        h[i] = 0, decay[i] = 0;
    if (live) {
        load<N>(a.decay + (size_t)channel * N, decay);
        skip = a.skip[channel], bias = a.dt_bias[channel];
        if (PASS == SCAN_WHOLE && !sp.fresh)
            load<N>(state, h);
        if (PASS == SCAN_FINAL) {
            for (int i = 0; i < N; i++)
                h[i] = mine[i];
        }
    }
    for (int t = 0; t < p.count; t += TILE) {
        const int n = min((int)TILE, p.count - t), at = p.first + t;
        __syncthreads();
        stage_xdb(
            a, n, [&](int r) { return at + r; }, s.dt, s.dt_pitch, s.bc);
        __syncthreads();
        make_delta<T>(a, s.dt, s.dt_pitch, first, SCAN_THREADS, n, s.delta);
        if (!live)
            continue;
        const T *x_at = (const T *)a.x + (size_t)at * a.channels + channel;
        const T *z_at = (const T *)a.xz + ((size_t)at * 2 + 1) * a.channels + channel;
        T *y_at = (T *)a.y + (size_t)at * a.channels + channel;
        for (int r = 0; r < n; r++) {
            const float x = to_float(x_at[(size_t)r * a.channels]);
            const float delta = softplus(s.delta[r * SCAN_THREADS + threadIdx.x] + bias);
            const float *bc = s.bc + r * 2 * N;
            const float input = delta * x;
            float y = skip * x;
            if (PASS == SCAN_LOCAL)
                sum += delta;
#pragma unroll
            for (int i = 0; i < N; i++) {
                h[i] = exp2_fast(delta * decay[i]) * h[i] + input * bc[i];
                if (PASS != SCAN_LOCAL)
                    y += h[i] * bc[N + i];
            }
            if (PASS != SCAN_LOCAL)
                y_at[(size_t)r * a.channels] =
                    from_float<T>(y * silu(to_float(z_at[(size_t)r * 2 * a.channels])));
        }
    }
    if (!live)
        return;
    if (PASS == SCAN_LOCAL) {
        for (int i = 0; i < N; i++)
            mine[i] = h[i];
        mine[N] = sum;
    } else if (PASS == SCAN_WHOLE || p.first + p.count == sp.first + sp.count) {
        store<N>(state, h);
    }
}

// Chains the pieces of each span: a piece's end state becomes the state that it begins with.
template <class S, int N>
__global__ void __launch_bounds__(SCAN_THREADS)
    carry_kernel(mamba_args a, const span *spans, float *carry) {
    const int i = blockIdx.x * SCAN_THREADS + threadIdx.x;
    const int channel = i / N, v = i - channel * N;
    if (channel >= a.channels)
        return;
    const span sp = spans[blockIdx.y];
    const float decay = a.decay[(size_t)channel * N + v];
    float h =
        sp.fresh ? 0.f
                 : to_float(((const S *)a.state)[((size_t)sp.slot * a.channels + channel) * N + v]);
    for (int k = 0; k < sp.n_pieces; k++) {
        float *p = carry + ((size_t)(sp.first_piece + k) * a.channels + channel) * (N + 1);
        const float end = p[v], sum = p[N];
        p[v] = h;
        h = exp2_fast(sum * decay) * h + end;
    }
}

// Any number of states: the states stay in memory. One pass over whole spans.
template <class T, class S>
__global__ void __launch_bounds__(SCAN_THREADS) scan_any_kernel(mamba_args a, const span *spans) {
    extern __shared__ __align__(16) float shared[];
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const span sp = spans[blockIdx.y];
    const shared_tile s = carve(shared, a.rank, a.states);
    S *h = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * a.states;
    const float *decay = a.decay + (size_t)channel * a.states;
    for (int t = 0; t < sp.count; t += TILE) {
        const int n = min((int)TILE, sp.count - t), at = sp.first + t;
        __syncthreads();
        stage_xdb(
            a, n, [&](int r) { return at + r; }, s.dt, s.dt_pitch, s.bc);
        __syncthreads();
        make_delta<T>(a, s.dt, s.dt_pitch, first, SCAN_THREADS, n, s.delta);
        for (int r = 0; r < n && channel < a.channels; r++) {
            const size_t i = (size_t)(at + r) * a.channels + channel;
            const float x = to_float(((const T *)a.x)[i]);
            const float delta =
                softplus(s.delta[r * SCAN_THREADS + threadIdx.x] + a.dt_bias[channel]);
            const float *bc = s.bc + r * 2 * a.states;
            float y = a.skip[channel] * x;
            for (int v = 0; v < a.states; v++) {
                const float before = sp.fresh && t + r == 0 ? 0.f : to_float(h[v]);
                const float now = exp2_fast(delta * decay[v]) * before + delta * x * bc[v];
                h[v] = from_float<S>(now);
                y += now * bc[a.states + v];
            }
            const float z = to_float(
                ((const T *)a.xz)[(size_t)(at + r) * 2 * a.channels + a.channels + channel]);
            ((T *)a.y)[i] = from_float<T>(y * silu(z));
        }
    }
}

template <class T, class S> static cudaError_t scan_run(device *d, int layer, const batch &b) {
    const mamba_args a = arguments(d, layer, 1);
    const unsigned blocks = (unsigned)ceil_div(a.channels, SCAN_THREADS);
    const size_t shared = tile_bytes(a.rank, a.states, SCAN_THREADS);
    const dim3 by_piece(blocks, (unsigned)b.n_pieces), by_span(blocks, (unsigned)b.n_spans);
    if (a.states != 16)
        return launch(d, scan_any_kernel<T, S>, by_span, SCAN_THREADS, shared, false, a, b.spans);
    if (!b.split)
        return launch(d, scan_kernel<T, S, 16, SCAN_WHOLE>, by_piece, SCAN_THREADS, shared, false,
                      a, b.spans, b.pieces, d->carry);
    cudaError_t rc = launch(d, scan_kernel<T, S, 16, SCAN_LOCAL>, by_piece, SCAN_THREADS, shared,
                            false, a, b.spans, b.pieces, d->carry);
    if (rc == cudaSuccess)
        rc = launch(
            d, carry_kernel<S, 16>,
            dim3((unsigned)ceil_div((int64_t)a.channels * 16, SCAN_THREADS), (unsigned)b.n_spans),
            SCAN_THREADS, 0, false, a, b.spans, d->carry);
    if (rc == cudaSuccess)
        rc = launch(d, scan_kernel<T, S, 16, SCAN_FINAL>, by_piece, SCAN_THREADS, shared, false, a,
                    b.spans, b.pieces, d->carry);
    return rc;
}

cudaError_t mamba_scan(device *d, int layer, const batch &b) {
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(
            d->state_type, [&](auto s) { return scan_run<decltype(t), decltype(s)>(d, layer, b); });
    });
}

} // namespace ssm
