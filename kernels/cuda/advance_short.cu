// SPDX-License-Identifier: Apache-2.0
// Mamba-1, one token of 9 to 64 sequences: a tile of 16 rows a block, all of whose states are under
// way before the wait for x_proj.
//
// With so few rows a step waits for latencies and instructions, not for bytes. So blocks are small
// (32 channels in fp16, 16 in fp32), which deals the rows evenly to the SMs; a lane holds 16 bytes
// of 8 or 4 rows' states; x, z and dt_proj's weights come before the wait too (medium.cu: what
// follows x_proj starts after in_proj). Behind it: x_proj's sums, delta by the matrix units, a warp
// 8 channels, and the rows.
//
// Bytes a row and layer: the state twice, x, z and y, as in advance.cu.
//
// From the end of the wait to the last block's end, fp16 states, one H200, us (layers 20 to 23):
//                                            2.8b b64      130m b64
//   advance.cu, a tile a block               10.5          8.2 to 8.7
//   a warp all 16 rows, 64 threads a block   9.7 to 10.7   4.6 to 5.9
//   a warp 8 or 4 of them (this)             8.5 to 9.7    3.2 to 3.4
#include "advance.cuh"

namespace ssm {

enum { COLUMNS = 2 }; // warps along the channels

struct short_shared {
    char *dt_proj; // [channels] rows of weight_pitch bytes
    float *delta;  // [TILE][channels + 8] before softplus; the padding keeps rows' banks apart
    float2 *pair;  // [TILE][channels] delta, delta x
    float *xdb;    // [TILE][xdb_pitch]
    bf16 *x, *z;   // [TILE][channels]; x becomes y
    row_tile *rows;
};

static size_t short_bytes(int rank, int n_x, int channels) {
    return (size_t)channels * weight_pitch(rank) + TILE * (channels + 8) * sizeof(float) +
           TILE * channels * sizeof(float2) + TILE * xdb_pitch(n_x) * sizeof(float) +
           2 * TILE * channels * sizeof(bf16) + sizeof(row_tile);
}

__device__ __forceinline__ short_shared carve_short(char *p, int rank, int n_x, int channels) {
    short_shared s;
    s.dt_proj = p, p += channels * weight_pitch(rank);
    s.delta = (float *)p, p += TILE * (channels + 8) * sizeof(float);
    s.pair = (float2 *)p, p += TILE * channels * sizeof(float2);
    s.xdb = (float *)p, p += TILE * xdb_pitch(n_x) * sizeof(float);
    s.x = (bf16 *)p, p += TILE * channels * sizeof(bf16);
    s.z = (bf16 *)p, p += TILE * channels * sizeof(bf16);
    s.rows = (row_tile *)p;
    return s;
}

// Grid: columns of channels, tiles of rows. GROUPS: warps along a tile's rows.
template <class S, int GROUPS>
__global__ void __launch_bounds__(32 * COLUMNS * GROUPS, GROUPS == 2 ? 5 : 3)
    advance_short_kernel(mamba_args a, const row *rows, int n_rows) {
    constexpr int THREADS = 32 * COLUMNS * GROUPS, ROWS = TILE / GROUPS;
    typedef stream_shape<S, 32 * COLUMNS> shape;
    constexpr int V = shape::V, LANES = shape::LANES, CHANNELS = shape::CHANNELS,
                  OF_WARP = shape::OF_WARP;
    static_assert(CHANNELS / 8 <= COLUMNS * GROUPS && ROWS % LANES == 0, "warps");
    extern __shared__ __align__(16) char memory[];
    dependents_start();
    const short_shared s = carve_short(memory, a.rank, a.n_x, CHANNELS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int row0 = warp / COLUMNS * ROWS, channel0 = warp % COLUMNS * OF_WARP; // this warp's
    const int q = lane % LANES, c = channel0 + lane / LANES;
    const int first = blockIdx.x * CHANNELS, first_row = blockIdx.y * TILE;
    const uint32_t slot_units = (uint32_t)(a.channels * 16 / V);
    if (threadIdx.x < TILE) {
        row r = {-1, -1, 0, 0};
        if (first_row + (int)threadIdx.x < n_rows)
            r = rows[first_row + threadIdx.x];
        const uint32_t unit = r.slot < 0 ? (uint32_t)row_tile::NONE : (uint32_t)r.slot * slot_units;
        s.rows->from[threadIdx.x] = r.fresh ? (uint32_t)row_tile::NONE : unit;
        s.rows->to[threadIdx.x] = unit;
        s.rows->at[threadIdx.x] = r.slot < 0 ? -1 : r.at;
    }
    __syncthreads();
    char *states = (char *)a.state + ((size_t)(first + c) * 16 + q * V) * sizeof(S);
    uint4 raw[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const uint32_t unit = s.rows->from[row0 + k];
        const void *at = states + (size_t)unit * 16;
        raw[k] = load_state(unit != row_tile::NONE ? at : &no_state);
    }
    // x and z: what this grid follows started after in_proj was done
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE * (CHANNELS / 8); i += THREADS) {
        const int r = i / (CHANNELS / 8), t = i % (CHANNELS / 8) * 8;
        const bool live = s.rows->at[r] >= 0;
        const size_t at = live ? (size_t)s.rows->at[r] : 0;
        copy_async(s.x + r * CHANNELS + t, (const bf16 *)a.x + at * a.channels + first + t, live);
        copy_async(s.z + r * CHANNELS + t,
                   (const bf16 *)a.xz + (at * 2 + 1) * a.channels + first + t, live);
    }
    stage_dt_proj(a, s.dt_proj, first, CHANNELS);
    float decay[V];
    load<V>(a.decay + (size_t)(first + c) * 16 + q * V, decay);
    const float skip = a.skip[first + c], bias = a.dt_bias[first + threadIdx.x % CHANNELS];
    dependency_wait();
    const int pitch = xdb_pitch(a.n_x), vectors = a.n_x / 4;
#pragma unroll 2
    for (int i = threadIdx.x; i < TILE * vectors; i += THREADS) {
        const int r = i / vectors, v = i - r * vectors;
        const bool live = s.rows->at[r] >= 0;
        const size_t at = live ? (size_t)s.rows->at[r] : 0;
        copy_async(s.xdb + r * pitch + v * 4, a.xdb + at * a.n_x + v * 4, live);
    }
    copies_commit();
    copies_wait();
    __syncthreads();
    if (warp < CHANNELS / 8) {
        float *delta = s.delta + warp * 8;
        delta_of_warp<1>(a, s.dt_proj + warp * 8 * weight_pitch(a.rank), s.xdb, pitch,
                         [&](int r, int at, float v0, float v1) {
                             *(float2 *)(delta + r * (CHANNELS + 8) + at) = make_float2(v0, v1);
                         });
    }
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < TILE * CHANNELS; i += THREADS) {
        const int r = i / CHANNELS;
        const float delta = softplus(s.delta[r * (CHANNELS + 8) + i % CHANNELS] + bias);
        s.pair[i] = make_float2(delta, delta * to_float(s.x[i]));
    }
    __syncthreads();
    float part[LANES];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const int r = row0 + k;
        part[k % LANES] = advance_row<S>(raw[k], s.pair[r * CHANNELS + c],
                                         s.xdb + r * pitch + a.rank + q * V, decay);
        const uint32_t unit = s.rows->to[r];
        store_state(states + (size_t)unit * 16, raw[k], unit != row_tile::NONE);
        if (k % LANES < LANES - 1)
            continue;
        spread_sums<LANES>(part, q);
        const int at = (r - (LANES - 1) + q) * CHANNELS + c;
        const float x = to_float(s.x[at]), z = to_float(s.z[at]);
        s.x[at] = from_float<bf16>((part[0] + skip * x) * silu(z));
    }
    __syncwarp();
    constexpr int PARTS = OF_WARP / 8; // 16-byte parts of a row that is the warp's
    if (lane < ROWS * PARTS) {
        const int r = row0 + lane / PARTS, at = channel0 + lane % PARTS * 8;
        if (s.rows->at[r] >= 0)
            *(uint4 *)((bf16 *)a.y + (size_t)s.rows->at[r] * a.channels + first + at) =
                *(const uint4 *)(s.x + r * CHANNELS + at);
    }
}

bool short_fits(const device *d, const batch &b, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const int channels = d->state_type == SSM_DTYPE_F32 ? 16 : 32;
    return b.decode && medium_fits(d, b.n) && n_splits == 1 && d->weight_type == SSM_DTYPE_BF16 &&
           d->arch >= 80 && g.d_state == 16 && g.dt_rank % 8 == 0 && g.dt_rank <= 256 &&
           g.d_inner % channels == 0;
}

template <class S, int GROUPS> static cudaError_t run(device *d, int layer, const batch &b) {
    constexpr int CHANNELS = stream_shape<S, 32 * COLUMNS>::CHANNELS;
    const mamba_args a = row_arguments(d, layer, b, 1);
    const dim3 grid((unsigned)(a.channels / CHANNELS), (unsigned)ceil_div(b.n_rows, TILE));
    const size_t shared = short_bytes(a.rank, a.n_x, CHANNELS);
    auto kernel = advance_short_kernel<S, GROUPS>;
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return rc ? rc
              : launch(d, kernel, grid, 32 * COLUMNS * GROUPS, shared, b.decode, a, b.rows,
                       b.n_rows);
}

cudaError_t mamba_advance_short(device *d, int layer, const batch &b) {
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        const int channels = stream_shape<S, 32 * COLUMNS>::CHANNELS;
        const int blocks = d->g.d_inner / channels * ceil_div(b.n_rows, TILE);
        return blocks <= 3 * d->n_sms ? run<S, 4>(d, layer, b) : run<S, 2>(d, layer, b);
    });
}

} // namespace ssm
