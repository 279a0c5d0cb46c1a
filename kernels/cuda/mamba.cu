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

enum { TILE = 16, ADVANCE_THREADS = 256, MAX_SPLITS = 8 };

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

// The n rows' dt to dt [TILE][dt_pitch] and B, C to bc [TILE][2 N], fp32: x_proj's partial sums
// added up in a fixed order, everything asked for at once (a row after the other would cost a trip
// to L2 each: 16 us a tile, measured). Rows from n on are left as they are: what a product makes of
// them is not used. U: numbers a load.
template <int U, int AT_ONCE, int SPLITS, class F>
__device__ __forceinline__ void stage_xdb_by(const mamba_args &a, int n, F token_row, float *dt,
                                             int dt_pitch, float *bc) {
    const int a_row = a.n_x / U;
    for (int i = threadIdx.x; i < n * a_row; i += AT_ONCE * blockDim.x) {
        float v[AT_ONCE][SPLITS][U];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = i + j * blockDim.x, r = at / a_row, c = (at - r * a_row) * U;
            const int row = at < n * a_row ? token_row(r) : -1;
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
#pragma unroll
                for (int u = 0; u < U; u++)
                    v[j][s][u] = 0;
                if (row >= 0 && s < a.n_splits)
                    load<U>(a.xdb + s * a.split_pitch + (size_t)row * a.n_x + c, v[j][s]);
            }
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = i + j * blockDim.x, r = at / a_row, c = (at - r * a_row) * U;
            if (at >= n * a_row)
                break;
#pragma unroll
            for (int s = 1; s < SPLITS; s++) {
#pragma unroll
                for (int u = 0; u < U; u++)
                    v[j][0][u] += v[j][s][u];
            }
            float *to = c < a.rank ? dt + r * dt_pitch + c : bc + r * 2 * a.states + c - a.rank;
            store<U>(to, v[j][0]);
        }
    }
}

template <class F>
__device__ __forceinline__ void stage_xdb(const mamba_args &a, int n, F token_row, float *dt,
                                          int dt_pitch, float *bc) {
    if (a.rank % 4 != 0 || a.states % 2 != 0)
        stage_xdb_by<1, 1, MAX_SPLITS>(a, n, token_row, dt, dt_pitch, bc);
    else if (a.n_splits == 1)
        stage_xdb_by<4, 4, 1>(a, n, token_row, dt, dt_pitch, bc);
    else
        stage_xdb_by<4, 1, MAX_SPLITS>(a, n, token_row, dt, dt_pitch, bc);
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
            lo = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                            pack_bf16(v[6], v[7]));
            load<8>(dt + (g + 8) * dt_pitch + at, v);
            hi = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                            pack_bf16(v[6], v[7]));
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
    float *dt, *bc, *delta; // delta: before softplus, later the sums of y
    float2 *pair;           // delta, delta x
    int dt_pitch;
};

// Rows of dt are padded by 4 floats: eight rows' 16-byte reads fall into different banks.
__device__ __forceinline__ shared_tile carve(float *shared, int rank, int states, int n_channels) {
    shared_tile s;
    s.dt_pitch = (rank + 3) / 4 * 4 + 4;
    s.dt = shared;
    s.bc = s.dt + TILE * s.dt_pitch;
    s.delta = s.bc + (TILE * 2 * states + 3) / 4 * 4;
    s.pair = (float2 *)(s.delta + TILE * n_channels);
    return s;
}

static size_t tile_bytes(int rank, int states, int numbers_a_row) { // 1 or 3 a channel
    return sizeof(float) * TILE *
           ((size_t)(rank + 3) / 4 * 4 + 4 + 2 * (size_t)states + (size_t)numbers_a_row);
}

// ---- advance

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

template <class S> static auto advance_fast(int rank) {
    return rank <= 64    ? advance_kernel<bf16, S, 2>
           : rank <= 160 ? advance_kernel<bf16, S, 5>
                         : advance_kernel<bf16, S, 8>;
}

cudaError_t mamba_advance(device *d, int layer, const batch &b, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const mamba_args a = arguments(d, layer, n_splits);
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

// ---- scan

enum { SCAN_THREADS = 128, SCAN_LANES = 2, SCAN_BLOCK = SCAN_THREADS * SCAN_LANES };
enum scan_pass { SCAN_WHOLE, SCAN_LOCAL, SCAN_FINAL };

// carry [piece][N + 1][channels]: end state of a local scan (then: the state that the piece begins
// with) and the sum of delta.
template <class T, class S, int N, int PASS>
__global__ void __launch_bounds__(SCAN_THREADS)
    scan_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry) {
    extern __shared__ __align__(16) float shared[];
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const bool live = channel < a.channels;
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    const shared_tile s = carve(shared, a.rank, N, 0);
    float *mine = carry + (size_t)p.index * (N + 1) * a.channels + channel;
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
                h[i] = mine[(size_t)i * a.channels];
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
            mine[(size_t)i * a.channels] = h[i];
        mine[(size_t)N * a.channels] = sum;
    } else if (PASS == SCAN_WHOLE || p.first + p.count == sp.first + sp.count) {
        store<N>(state, h);
    }
}

// ---- scan, bf16: dt_proj's weights of the block's channels in shared memory, the next tile's x, z
// and x_proj sums under way while this one is worked on.

struct scan_shared {
    char *dt_proj; // [channels a block] rows of weight_pitch bytes
    float *delta;  // [TILE][SCAN_THREADS]
    float *xdb;    // [2][TILE][xdb_pitch]
    bf16 *x, *z;   // [2][TILE][SCAN_THREADS]
};

// Odd multiples of 64 bytes: two rows' 64-byte reads never meet in a bank.
__host__ __device__ static int weight_pitch(int rank) {
    return ((rank * 2 + 63) / 64 | 1) * 64;
}

// Rows four floats apart in banks: eight rows' 16-byte reads do not meet (with 192 all would).
__host__ __device__ static int xdb_pitch(int n_x) {
    return (n_x + 31) / 32 * 32 + 4;
}

static size_t scan_bytes(int rank, int n_x) {
    return (size_t)SCAN_THREADS * weight_pitch(rank) + TILE * SCAN_THREADS * sizeof(float) +
           2 * TILE * (xdb_pitch(n_x) * sizeof(float) + 2 * SCAN_THREADS * sizeof(bf16));
}

__device__ __forceinline__ scan_shared carve_scan(char *p, int rank, int n_x) {
    scan_shared s;
    s.dt_proj = p, p += SCAN_THREADS * weight_pitch(rank);
    s.delta = (float *)p, p += TILE * SCAN_THREADS * sizeof(float);
    s.xdb = (float *)p, p += 2 * TILE * xdb_pitch(n_x) * sizeof(float);
    s.x = (bf16 *)p, p += 2 * TILE * SCAN_THREADS * sizeof(bf16);
    s.z = (bf16 *)p;
    return s;
}

// 16 bytes, or zeros where `live` is not set.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(live ? 16 : 0)
                 : "memory");
}

template <bool Z>
__device__ __forceinline__ void fetch_tile(const mamba_args &a, const scan_shared &s, int buffer,
                                           int at, int n, int first) {
    constexpr int VECTORS = SCAN_THREADS / 8;
    for (int i = threadIdx.x; i < TILE * VECTORS; i += SCAN_BLOCK) {
        const int r = i / VECTORS, c = i % VECTORS * 8;
        const bool live = r < n && first + c < a.channels;
        const size_t row = live ? (size_t)at + r : 0, column = live ? first + c : 0;
        copy_async(s.x + (buffer * TILE + r) * SCAN_THREADS + c,
                   (const bf16 *)a.x + row * a.channels + column, live);
        if (Z)
            copy_async(s.z + (buffer * TILE + r) * SCAN_THREADS + c,
                       (const bf16 *)a.xz + (row * 2 + 1) * a.channels + column, live);
    }
    const int vectors = a.n_x / 4, pitch = xdb_pitch(a.n_x);
    for (int i = threadIdx.x; i < TILE * vectors; i += SCAN_BLOCK) {
        const int r = i / vectors, v = i - r * vectors;
        copy_async(s.xdb + (buffer * TILE + r) * pitch + v * 4,
                   a.xdb + (size_t)(r < n ? at + r : 0) * a.n_x + v * 4, r < n);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ __forceinline__ void stage_dt_proj(const mamba_args &a, char *to, int first) {
    const int vectors = a.rank / 8, pitch = weight_pitch(a.rank);
    for (int i = threadIdx.x; i < SCAN_THREADS * vectors; i += SCAN_BLOCK) {
        const int c = i / vectors, v = i - c * vectors;
        uint4 w = make_uint4(0, 0, 0, 0);
        if (first + c < a.channels)
            w = *(const uint4 *)((const bf16 *)a.dt_proj + (size_t)(first + c) * a.rank + v * 8);
        *(uint4 *)(to + c * pitch + v * 16) = w;
    }
}

// A warp makes the delta of its own 16 channels, so that no barrier is needed after.
__device__ __forceinline__ void delta_of_warp(const mamba_args &a, const scan_shared &s,
                                              const float *dt) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int pitch = weight_pitch(a.rank), dt_pitch = xdb_pitch(a.n_x);
    float c[2][4] = {};
    for (int k = q * 8; k < a.rank + q * 8; k += 32) {
        uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
        const bool live = k < a.rank;
        if (live) {
            float v[8];
            load<8>(dt + g * dt_pitch + k, v);
            lo = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                            pack_bf16(v[6], v[7]));
            load<8>(dt + (g + 8) * dt_pitch + k, v);
            hi = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                            pack_bf16(v[6], v[7]));
        }
#pragma unroll
        for (int t = 0; t < 2; t++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (live)
                w = *(const uint4 *)(s.dt_proj + (warp * 16 + t * 8 + g) * pitch + k * 2);
            mma(c[t], lo.x, hi.x, lo.y, hi.y, w.x, w.y);
            mma(c[t], lo.z, hi.z, lo.w, hi.w, w.z, w.w);
        }
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < 2; t++) {
        float *to = s.delta + warp * 16 + t * 8 + 2 * q;
        *(float2 *)(to + g * SCAN_THREADS) = make_float2(c[t][0], c[t][1]);
        *(float2 *)(to + (g + 8) * SCAN_THREADS) = make_float2(c[t][2], c[t][3]);
    }
    __syncwarp();
}

// Two lanes share a channel: half of its states each, and every second token's softplus and output.
template <class S, int N, int PASS>
__global__ void __launch_bounds__(SCAN_BLOCK)
    scan_bf16_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry) {
    constexpr int H = N / SCAN_LANES;
    extern __shared__ __align__(16) char memory[];
    const int first = blockIdx.x * SCAN_THREADS, c = threadIdx.x / SCAN_LANES;
    const int half = threadIdx.x % SCAN_LANES, channel = first + c;
    const bool live = channel < a.channels;
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    const scan_shared s = carve_scan(memory, a.rank, a.n_x);
    float *mine = carry + ((size_t)p.index * (N + 1) + half * H) * a.channels + channel;
    S *state = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * N + half * H;

    fetch_tile<PASS != SCAN_LOCAL>(a, s, 0, p.first, min((int)TILE, p.count), first);
    stage_dt_proj(a, s.dt_proj, first);
    float decay[H], h[H], skip = 0, bias = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < H; i++)
        h[i] = 0, decay[i] = 0;
    if (live) {
        load<H>(a.decay + (size_t)channel * N + half * H, decay);
        skip = a.skip[channel], bias = a.dt_bias[channel];
        if (PASS == SCAN_WHOLE && !sp.fresh)
            load<H>(state, h);
        if (PASS == SCAN_FINAL) {
#pragma unroll
            for (int i = 0; i < H; i++)
                h[i] = mine[(size_t)i * a.channels];
        }
    }
    for (int t = 0, buffer = 0; t < p.count; t += TILE, buffer ^= 1) {
        const int n = min((int)TILE, p.count - t), at = p.first + t;
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        if (t + TILE < p.count)
            fetch_tile<PASS != SCAN_LOCAL>(a, s, buffer ^ 1, at + TILE,
                                           min((int)TILE, p.count - t - TILE), first);
        const int pitch = xdb_pitch(a.n_x);
        const float *xdb = s.xdb + buffer * TILE * pitch;
        const bf16 *x_tile = s.x + buffer * TILE * SCAN_THREADS + c;
        const bf16 *z_tile = s.z + buffer * TILE * SCAN_THREADS + c;
        delta_of_warp(a, s, xdb);
        float *delta = s.delta + c;
#pragma unroll 4
        for (int r = half; r < TILE; r += SCAN_LANES) // past the end: delta 0 changes nothing
            delta[r * SCAN_THREADS] = r < n ? softplus(delta[r * SCAN_THREADS] + bias) : 0.f;
        __syncwarp();
        bf16 *y_at = (bf16 *)a.y + (size_t)at * a.channels + channel;
#pragma unroll 2
        for (int r = 0; r < n; r += 2) {
            float y[2];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const float x = to_float(x_tile[(r + u) * SCAN_THREADS]);
                const float d = delta[(r + u) * SCAN_THREADS];
                const float *bc = xdb + (r + u) * pitch + a.rank + half * H;
                const float input = d * x;
                float b[H], cc[H], part[2] = {half ? 0.f : skip * x, 0};
                load<H>(bc, b);
                if (PASS == SCAN_LOCAL)
                    sum += d;
                else
                    load<H>(bc + N, cc);
#pragma unroll
                for (int i = 0; i < H; i++) {
                    h[i] = exp2_fast(d * decay[i]) * h[i] + input * b[i];
                    if (PASS != SCAN_LOCAL)
                        part[i & 1] += h[i] * cc[i];
                }
                y[u] = part[0] + part[1];
            }
            if (PASS != SCAN_LOCAL) {
                y[0] += __shfl_xor_sync(~0u, y[0], 1);
                y[1] += __shfl_xor_sync(~0u, y[1], 1);
                const float z = to_float(z_tile[(r + half) * SCAN_THREADS]);
                if (live && r + half < n)
                    y_at[(size_t)(r + half) * a.channels] =
                        from_float<bf16>((half ? y[1] : y[0]) * silu(z));
            }
        }
    }
    if (!live)
        return;
    if (PASS == SCAN_LOCAL) {
#pragma unroll
        for (int i = 0; i < H; i++)
            mine[(size_t)i * a.channels] = h[i];
        if (half == 0)
            mine[(size_t)N * a.channels] = sum;
    } else if (PASS == SCAN_WHOLE || p.first + p.count == sp.first + sp.count) {
        store<H>(state, h);
    }
}

// Chains the pieces of each span: a piece's end state becomes the state that it begins with.
template <class S, int N>
__global__ void __launch_bounds__(SCAN_THREADS)
    carry_kernel(mamba_args a, const span *spans, float *__restrict__ carry) {
    constexpr int AHEAD = 8;
    const int channel = blockIdx.x * SCAN_THREADS + threadIdx.x, v = blockIdx.z;
    if (channel >= a.channels)
        return;
    const span sp = spans[blockIdx.y];
    const float decay = a.decay[(size_t)channel * N + v];
    const size_t pitch = (size_t)(N + 1) * a.channels;
    const S *state = (const S *)a.state + ((size_t)sp.slot * a.channels + channel) * N + v;
    float *p = carry + (size_t)sp.first_piece * pitch + channel;
    float h = sp.fresh ? 0.f : to_float(*state);
    for (int k = 0; k < sp.n_pieces; k += AHEAD) {
        float end[AHEAD], sum[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float *at = p + (size_t)min(k + i, sp.n_pieces - 1) * pitch;
            end[i] = at[(size_t)v * a.channels], sum[i] = at[(size_t)N * a.channels];
        }
#pragma unroll
        for (int i = 0; i < AHEAD && k + i < sp.n_pieces; i++) {
            p[(size_t)(k + i) * pitch + (size_t)v * a.channels] = h;
            h = exp2_fast(sum[i] * decay) * h + end[i];
        }
    }
}

// Any number of states: the states stay in memory. One pass over whole spans.
template <class T, class S>
__global__ void __launch_bounds__(SCAN_THREADS) scan_any_kernel(mamba_args a, const span *spans) {
    extern __shared__ __align__(16) float shared[];
    const int first = blockIdx.x * SCAN_THREADS, channel = first + threadIdx.x;
    const span sp = spans[blockIdx.y];
    const shared_tile s = carve(shared, a.rank, a.states, 0);
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

template <class T, class S>
static cudaError_t scan_pieces(device *d, const mamba_args &a, const batch &b, scan_pass pass) {
    const dim3 grid((unsigned)ceil_div(a.channels, SCAN_THREADS), (unsigned)b.n_pieces);
    if (__is_same(T, bf16) && a.rank % 8 == 0 && a.rank <= 256 && a.channels % 8 == 0) {
        auto kernel = pass == SCAN_WHOLE   ? scan_bf16_kernel<S, 16, SCAN_WHOLE>
                      : pass == SCAN_LOCAL ? scan_bf16_kernel<S, 16, SCAN_LOCAL>
                                           : scan_bf16_kernel<S, 16, SCAN_FINAL>;
        const size_t shared = scan_bytes(a.rank, a.n_x);
        const cudaError_t rc =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        return rc ? rc
                  : launch(d, kernel, grid, SCAN_BLOCK, shared, false, a, b.spans, b.pieces,
                           d->carry);
    }
    auto kernel = pass == SCAN_WHOLE   ? scan_kernel<T, S, 16, SCAN_WHOLE>
                  : pass == SCAN_LOCAL ? scan_kernel<T, S, 16, SCAN_LOCAL>
                                       : scan_kernel<T, S, 16, SCAN_FINAL>;
    return launch(d, kernel, grid, SCAN_THREADS, tile_bytes(a.rank, a.states, SCAN_THREADS), false,
                  a, b.spans, b.pieces, d->carry);
}

template <class T, class S> static cudaError_t scan_run(device *d, int layer, const batch &b) {
    const mamba_args a = arguments(d, layer, 1);
    if (a.states != 16)
        return launch(d, scan_any_kernel<T, S>,
                      dim3((unsigned)ceil_div(a.channels, SCAN_THREADS), (unsigned)b.n_spans),
                      SCAN_THREADS, tile_bytes(a.rank, a.states, SCAN_THREADS), false, a, b.spans);
    if (!b.split)
        return scan_pieces<T, S>(d, a, b, SCAN_WHOLE);
    cudaError_t rc = scan_pieces<T, S>(d, a, b, SCAN_LOCAL);
    if (rc == cudaSuccess)
        rc = launch(d, carry_kernel<S, 16>,
                    dim3((unsigned)ceil_div(a.channels, SCAN_THREADS), (unsigned)b.n_spans, 16),
                    SCAN_THREADS, 0, false, a, b.spans, d->carry);
    return rc ? rc : scan_pieces<T, S>(d, a, b, SCAN_FINAL);
}

cudaError_t mamba_scan(device *d, int layer, const batch &b) {
    return with_type(d->weight_type, [&](auto t) {
        return with_state_type(
            d->state_type, [&](auto s) { return scan_run<decltype(t), decltype(s)>(d, layer, b); });
    });
}

} // namespace ssm
