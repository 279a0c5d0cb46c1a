// SPDX-License-Identifier: Apache-2.0
// What medium_kernel.cuh is made of: arguments, shared memory, how the ring is filled, what follows
// the sums. See medium.cu for the design.
#ifndef SSM_KERNELS_CUDA_MEDIUM_CUH
#define SSM_KERNELS_CUDA_MEDIUM_CUH

#include "cuda.h"
#include "mamba.cuh"
#include "wgmma.cuh"

namespace ssm {

enum medium_after { MEDIUM_IN, MEDIUM_SUMS, MEDIUM_OUT };
enum { PIECE = 64, PIECE_BYTES = 128 }; // columns a stage of the ring

// Boxes of a row-major bf16 [rows][cols] array; swizzled: of PIECE columns, for the matrix units.
// fetch: bytes that L2 takes from memory at least.
enum map_fetch { FETCH_128, FETCH_256 };
bool tensor_map(CUtensorMap *out, const void *base, int cols, int rows, int box_cols, int box_rows,
                bool swizzle, map_fetch fetch = FETCH_256);
// The same of bf16 or fp32, swizzled over rows of 128, 64 or 0 bytes.
bool tensor_map_of(CUtensorMap *out, const void *base, bool fp32, int cols, int rows, int box_cols,
                   int box_rows, int swizzle, map_fetch fetch = FETCH_256);

struct medium_args {
    int n_rows, tokens, pieces;          // of the weight, of x, of a row of both
    int tile_rows, box_rows, box_tokens; // rows a cluster, a group; token rows a tile
    int stages, stage_bytes, ring_bytes;
    // The first weight row of tile i's group j: i * tile_pitch + j * group_pitch, below
    // group_end for the first group.
    int tile_pitch, group_pitch, group_end;
    // What the sums of a token are multiplied by: 1 / its root mean square, from partial sums.
    const float *squares; // [token][n_squares] or NULL
    int n_squares;
    float per_width, eps;
    const float *bias; // [n_rows] or NULL
    // MEDIUM_IN
    bf16 *xz, *xc, *ring;
    const row *rows;
    const float *conv_weight, *conv_bias; // [d_conv][channels], [channels]
    int conv_first, channels, width;      // rows of the convolution, d_conv
    int conv_columns;                     // of a tile, at most, that are convolved
    // MEDIUM_SUMS, MEDIUM_OUT (added to)
    float *out; // [token][n_rows]
    // MEDIUM_OUT, or NULL: the next layer's input and its tokens' sums of squares a row tile
    const float *next_norm; // [n_rows]
    bf16 *u;                // [token][n_rows]
    float *next_squares;    // [token][row tiles]
};

enum {
    MEDIUM_GROUPS = 2,
    MEDIUM_THREADS = 128 * MEDIUM_GROUPS,
    MOST_TOKENS = 64,
    MOST_STAGES = 10
};

// Floats from one token's sums to the next one's: eight rows' 8-byte writes meet in no bank.
__host__ __device__ inline int sums_pitch(int rows) { // a multiple of 16
    return rows + 8;
}

// Bytes of scratch behind the ring.
constexpr int medium_scratch(int splits) {
    return (2 * MOST_STAGES + 2) * 8 + MOST_TOKENS * 4 + MOST_TOKENS / splits * 16;
}

// Bytes of what takes the ring's place, for so many tokens a rank.
__host__ __device__ inline int medium_sums_bytes(int splits, int tokens, int tile_rows) {
    return (2 * splits - 1) * tokens * sums_pitch(tile_rows) * 4;
}
inline int medium_after_bytes(medium_after after, int splits, int tokens, int tile_rows,
                              int width) {
    const int sums = medium_sums_bytes(splits, tokens, tile_rows);
    return after == MEDIUM_IN
               ? sums + tokens * (width - 1) * tile_rows * 2 + (width + 1) * tile_rows * 4
           : after == MEDIUM_OUT ? sums + tokens * (tile_rows + tile_rows / 4 + 1) * 4
                                 : sums;
}

#if SSM_HOPPER

// Of the shared memory: the ring, where later the cluster's sums meet and what follows them waits,
// then barriers, scales and rows.
struct medium_shared {
    uint32_t ring, full, empty, arrived;
    float *scale; // [token]
    row *rows;    // [token of the rank]
    // in the ring's place
    float *sums;     // [rank][token of the rank][pitch] of this block
    float *peers;    // [peer][token of the rank][pitch] of the others
    bf16 *history;   // IN: [token of the rank][d_conv - 1][tile_rows], 1, 2, 3 tokens ago
    float *taps;     // IN: [d_conv + 1][tile_rows]: of the input so many tokens ago, the bias
    float *residual; // OUT: [token of the rank][tile_rows]
    float *parts;    // OUT: [token of the rank][tile_rows / 4 + 1]
};

template <int SPLITS>
__device__ __forceinline__ medium_shared carve_medium(char *p, const medium_args &a, int tokens) {
    medium_shared s;
    s.ring = shared_address(p);
    s.full = s.ring + a.ring_bytes, s.empty = s.full + MOST_STAGES * 8;
    s.arrived = s.empty + MOST_STAGES * 8;
    s.scale = (float *)(p + a.ring_bytes + (2 * MOST_STAGES + 2) * 8);
    s.rows = (row *)(s.scale + MOST_TOKENS);
    s.sums = (float *)p;
    s.peers = s.sums + SPLITS * tokens * sums_pitch(a.tile_rows);
    char *after = p + medium_sums_bytes(SPLITS, tokens, a.tile_rows);
    s.history = (bf16 *)after;
    s.taps = (float *)(after + tokens * (a.width - 1) * a.tile_rows * 2);
    s.residual = (float *)after;
    s.parts = s.residual + tokens * a.tile_rows;
    return s;
}

// The weight row of a tile's column; n_rows: none.
__device__ __forceinline__ int row_at(const medium_args &a, int tile, int column) {
    const int at = tile * a.tile_pitch + column % a.box_rows;
    return column >= a.box_rows ? at + a.group_pitch : at < a.group_end ? at : a.n_rows;
}

// The convolution's history of the rank's tokens and its taps, asked for.
__device__ __forceinline__ void fetch_history(const medium_args &a, const medium_shared &s,
                                              int tokens, int tile) {
    const int kept = a.width - 1, vectors = a.conv_columns / 8, step = MEDIUM_THREADS / vectors;
    const int v = threadIdx.x % vectors * 8, c = row_at(a, tile, v) - a.conv_first;
    const bool conv = c >= 0 && c < a.channels;
#pragma unroll 2
    for (int t = threadIdx.x / vectors; t < tokens; t += step) {
        const row r = s.rows[t];
        const bf16 *from = a.ring + (size_t)r.slot * kept * a.channels + c;
        const bool there = conv && r.slot >= 0 && !r.fresh;
        int e = r.ring;
        for (int k = 0; k < kept; k++) {
            e = e == 0 ? kept - 1 : e - 1;
            copy_async(s.history + (t * kept + k) * a.tile_rows + v,
                       there ? from + (size_t)e * a.channels : a.ring, there);
        }
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < (a.width + 1) * a.tile_rows / 4; i += MEDIUM_THREADS) {
        const int j = i / (a.tile_rows / 4), v = i % (a.tile_rows / 4) * 4;
        const int c = row_at(a, tile, v) - a.conv_first;
        const bool there = c >= 0 && c < a.channels;
        const float *from =
            j < a.width ? a.conv_weight + (size_t)(kept - j) * a.channels : a.conv_bias;
        copy_async(s.taps + j * a.tile_rows + v, there ? from + c : from, there);
    }
}

// Convolution and SiLU of four channels of one token, and its place in the ring.
__device__ __forceinline__ void convolve4(const medium_args &a, const medium_shared &s, int t,
                                          int column, int c, const float (&sum)[4], bf16 *to) {
    const int kept = a.width - 1;
    const row r = s.rows[t];
    const uint2 raw = make_uint2(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]));
    float v[4] = {low_half(raw.x), high_half(raw.x), low_half(raw.y), high_half(raw.y)};
    float w[4], b[4];
    load<4>(s.taps + column, w);
    load<4>(s.taps + a.width * a.tile_rows + column, b);
#pragma unroll
    for (int k = 0; k < 4; k++)
        v[k] = b[k] + w[k] * v[k];
#pragma unroll
    for (int j = 0; j < 3; j++) {
        if (j >= kept)
            break;
        load<4>(s.taps + (j + 1) * a.tile_rows + column, w);
        load<4>(s.history + (t * kept + j) * a.tile_rows + column, b);
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] += w[k] * b[k];
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
        v[k] = silu(v[k]);
    store<4>(to, v);
    bf16 *entries = a.ring + (size_t)r.slot * kept * a.channels + c;
#pragma unroll 1
    for (int e = 0; r.fresh && e < kept; e++) // before a sequence all reads as zero from now on
        *(uint2 *)(entries + (size_t)e * a.channels) = make_uint2(0, 0);
    *(uint2 *)(entries + (size_t)r.ring * a.channels) = raw;
}

// How one thread fills the ring: x first in a stage, the groups' weight rows behind it.
struct medium_fill {
    const CUtensorMap *w_map, *x_map;
    uint32_t ring, full, bytes, x_bytes;
    uint64_t once;
    int first, row0, token0, box_rows, group_pitch, stage_bytes;

    __device__ __forceinline__ void weights(int piece, int stage) const {
        const uint32_t at = ring + stage * stage_bytes + x_bytes;
        barrier_expect(full + stage * 8, bytes);
        for (int j = 0; j < MEDIUM_GROUPS; j++)
            copy_box(at + j * box_rows * PIECE_BYTES, w_map, (first + piece) * PIECE,
                     row0 + j * group_pitch, full + stage * 8, once);
    }
    __device__ __forceinline__ void inputs(int piece, int stage) const {
        copy_box(ring + stage * stage_bytes, x_map, (first + piece) * PIECE, token0,
                 full + stage * 8);
    }
};

#endif

} // namespace ssm

#endif
