// SPDX-License-Identifier: Apache-2.0
// What Mamba-1's recurrences share (advance*.cu, scan*.cu): arguments, B and C of a tile of token
// rows in shared memory, and delta before its softplus, dt_proj dt, made there by the matrix units
// (bf16; otherwise by plain dot products), so that delta never takes a trip through memory.
#ifndef SSM_KERNELS_CUDA_MAMBA_CUH
#define SSM_KERNELS_CUDA_MAMBA_CUH

#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { TILE = 16, MAX_SPLITS = 8 }; // TILE: token rows

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
                lo = pack_bf16(v);
                load<8>(dt + (g + 8) * dt_pitch + k, v);
                hi = pack_bf16(v);
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

// ---- bf16 tiles: dt_proj's weights of a block's channels and x_proj's sums in shared memory

// Odd multiples of 64 bytes: two rows' 64-byte reads never meet in a bank.
__host__ __device__ inline int weight_pitch(int rank) {
    return ((rank * 2 + 63) / 64 | 1) * 64;
}

// Rows four floats apart in banks: eight rows' 16-byte reads do not meet (with 192 all would).
__host__ __device__ inline int xdb_pitch(int n_x) {
    return (n_x + 31) / 32 * 32 + 4;
}

// dt_proj of the n channels from `first` on, rows of weight_pitch bytes; asynchronous. thread: of
// `threads` that do it.
__device__ __forceinline__ void stage_dt_proj(const mamba_args &a, char *to, int first, int n,
                                              int thread, int threads) {
    const int vectors = a.rank / 8, pitch = weight_pitch(a.rank);
    for (int i = thread; i < n * vectors; i += threads) {
        const int c = i / vectors, v = i - c * vectors;
        const bool live = first + c < a.channels;
        const size_t row = live ? (size_t)(first + c) : 0;
        copy_async(to + c * pitch + v * 16, (const bf16 *)a.dt_proj + row * a.rank + v * 8, live);
    }
}
__device__ __forceinline__ void stage_dt_proj(const mamba_args &a, char *to, int first, int n) {
    stage_dt_proj(a, to, first, n, threadIdx.x, blockDim.x);
}

// dt_proj dt of a tile for the calling warp's TILES * 8 channels, to put(row, channel, two values):
// channel counts from the warp's first and is even. dt_proj: the warp's part of what stage_dt_proj
// staged. dt: [TILE] rows of dt_pitch floats.
template <int TILES, class F>
__device__ __forceinline__ void delta_of_warp(const mamba_args &a, const char *dt_proj,
                                              const float *dt, int dt_pitch, F put) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, pitch = weight_pitch(a.rank);
    float c[TILES][4] = {};
    for (int k = q * 8; k < a.rank + q * 8; k += 32) {
        uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
        const bool live = k < a.rank;
        if (live) {
            float v[8];
            load<8>(dt + g * dt_pitch + k, v);
            lo = pack_bf16(v);
            load<8>(dt + (g + 8) * dt_pitch + k, v);
            hi = pack_bf16(v);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (live)
                w = *(const uint4 *)(dt_proj + (t * 8 + g) * pitch + k * 2);
            mma(c[t], lo.x, hi.x, lo.y, hi.y, w.x, w.y);
            mma(c[t], lo.z, hi.z, lo.w, hi.w, w.z, w.w);
        }
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        put(g, t * 8 + 2 * q, c[t][0], c[t][1]);
        put(g + 8, t * 8 + 2 * q, c[t][2], c[t][3]);
    }
}

inline mamba_args mamba_arguments(const device *d, int layer, int32_t n_splits) {
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

inline mamba_args row_arguments(const device *d, int layer, const batch &b, int32_t n_splits) {
    mamba_args a = mamba_arguments(d, layer, n_splits);
    a.y = mamba_y(d, b);
    return a;
}

// scan_any.cu: any type and number of states; a pass other than SCAN_WHOLE only with 16 states.
cudaError_t mamba_scan_any(device *d, int layer, const batch &b, scan_pass pass);

} // namespace ssm

#endif
