// SPDX-License-Identifier: Apache-2.0
// The warps of advance_ring.cu that make delta.
#ifndef SSM_KERNELS_CUDA_ADVANCE_RING_DELTA_CUH
#define SSM_KERNELS_CUDA_ADVANCE_RING_DELTA_CUH

#include "advance_ring.cuh"
#include "ring.cuh"

namespace ssm {

#if SSM_HOPPER

// x_proj's sums of a tile: dt as bf16, B and C; zeros where there is no row. also(n, numbers n to
// n + 3 of B and C).
template <class F>
__device__ __forceinline__ void stage_sums(const mamba_args &a, int thread, int token, char *dt,
                                           float *bc, F also) {
    constexpr int A_ROW = DELTA_THREADS / TILE, BATCH = 6;
    const int r = thread / A_ROW, vectors = a.n_x / 4;
    for (int v0 = thread % A_ROW; v0 < vectors; v0 += A_ROW * BATCH) {
        float f[BATCH][4];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            const int v = v0 + A_ROW * j;
            f[j][0] = f[j][1] = f[j][2] = f[j][3] = 0;
            if (token >= 0 && v < vectors)
                load<4>(a.xdb + (size_t)token * a.n_x + v * 4, f[j]);
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            const int v = v0 + A_ROW * j;
            if (v * 4 < a.rank)
                *(uint2 *)(dt + r * weight_pitch(a.rank) + v * 8) =
                    make_uint2(pack_bf16(f[j][0], f[j][1]), pack_bf16(f[j][2], f[j][3]));
            else if (v < vectors)
                store<4>(bc + r * 32 + v * 4 - a.rank, f[j]), also(v * 4 - a.rank, f[j]);
        }
    }
}

// Delta of a tile, of which a warp makes TILES * 8 channels': in registers...
template <class S, int COLS = 2> struct tile_delta {
    typedef advance_ring_shape<S, COLS> shape;
    static constexpr int TILES = shape::CHANNELS / 8 / DELTA_WARPS;
    float c[TILES][4];

    __device__ __forceinline__ void make(const mamba_args &a, const advance_ring_layout &l,
                                         const char *memory, int warp, int lane) {
        const int g = lane >> 2, q = lane & 3, pitch = weight_pitch(a.rank);
#pragma unroll
        for (int t = 0; t < TILES; t++)
            c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0;
        const char *dt = memory + l.dt + g * pitch;
        const char *weights = memory + l.dt_proj + (warp * TILES * 8 + g) * pitch;
#pragma unroll 1
        for (int k = q * 8; k < a.rank + q * 8; k += 32) { // as delta_of_warp
            const uint4 none = make_uint4(0, 0, 0, 0);
            const bool live = k < a.rank;
            const uint4 lo = live ? *(const uint4 *)(dt + k * 2) : none;
            const uint4 hi = live ? *(const uint4 *)(dt + 8 * pitch + k * 2) : none;
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint4 w = live ? *(const uint4 *)(weights + t * 8 * pitch + k * 2) : none;
                mma(c[t], lo.x, hi.x, lo.y, hi.y, w.x, w.y);
                mma(c[t], lo.z, hi.z, lo.w, hi.w, w.z, w.w);
            }
        }
        const int channel = warp * TILES * 8 + q * 2;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const float2 bias = *(const float2 *)(memory + l.bias + (channel + t * 8) * 4);
            c[t][0] = softplus(c[t][0] + bias.x), c[t][1] = softplus(c[t][1] + bias.y);
            c[t][2] = softplus(c[t][2] + bias.x), c[t][3] = softplus(c[t][3] + bias.y);
        }
    }

    // ... and where the other warps take it from, `begun`: once they are done with the one before.
    __device__ __forceinline__ void put(const advance_ring_layout &l, char *memory, int warp,
                                        int lane, bool begun) const {
        const int g = lane >> 2, q = lane & 3, channel = warp * TILES * 8 + q * 2;
        float *delta = (float *)(memory + l.delta) + g * shape::DELTA_PITCH + channel;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (begun)
                named_sync(DELTA_IS_READ + half, ADVANCE_RING_THREADS);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                *(float2 *)(delta + half * 8 * shape::DELTA_PITCH + t * 8) =
                    make_float2(c[t][2 * half], c[t][2 * half + 1]);
            named_arrive(DELTA_IS_THERE + half, ADVANCE_RING_THREADS);
        }
    }
};

// The last warps of a block: delta of a tile is made in registers while the other warps are busy
// with the tile before it, and put where theirs was, half a tile at a time.
template <class S, int COLS>
__device__ __forceinline__ void make_deltas(const mamba_args &a, const advance_ring_layout &l,
                                            char *memory, const row *rows,
                                            advance_ring_tiles tile) {
    typedef advance_ring_shape<S, COLS> shape;
    constexpr int CHANNELS = shape::CHANNELS;
    const int thread = threadIdx.x - ROW_WARPS * 32, lane = thread & 31, warp = thread >> 5;
    auto token_of = [&] { // of the row whose sums this thread brings
        const int r = thread / (DELTA_THREADS / TILE);
        if (r >= tile.count)
            return -1;
        const row w = rows[tile.row + r];
        return w.slot < 0 ? -1 : w.at;
    };
    auto begin_column = [&] {
        const int first = tile.column * CHANNELS;
        stage_dt_proj(a, memory + l.dt_proj, first, CHANNELS, thread, DELTA_THREADS);
        if (thread < CHANNELS / 4)
            copy_async(memory + l.bias + thread * 16, a.dt_bias + first + thread * 4, true);
        copies_commit();
    };
    begin_column();
    int token = token_of();
    copies_wait();
    dependency_wait();
    bool begun = false;
    for (int buffer = 0; tile.count > 0; buffer ^= 1) {
        named_sync(DT_IS_THERE, DELTA_THREADS); // of the tile before: nobody reads it any more
        stage_sums(a, thread, token, memory + l.dt, (float *)(memory + l.bc) + buffer * TILE * 32,
                   [](int, const float(&)[4]) {});
        named_sync(DT_IS_THERE, DELTA_THREADS);
        tile_delta<S, COLS> delta;
        delta.make(a, l, memory, warp, lane);
        delta.put(l, memory, warp, lane, begun);
        begun = true;
        const int column = tile.column;
        tile.next();
        token = token_of();
        if (tile.column != column) {
            named_sync(DT_IS_THERE, DELTA_THREADS); // nobody reads the old column's weights
            begin_column();
            copies_wait();
        }
    }
}

#endif

} // namespace ssm

#endif
