// SPDX-License-Identifier: Apache-2.0
// What in_proj of many decode rows does with its sums (wide.cuh): scale, convolution, SiLU. See
// wide_rows.cu for the design.
#ifndef SSM_KERNELS_CUDA_WIDE_ROWS_CUH
#define SSM_KERNELS_CUDA_WIDE_ROWS_CUH

#include <type_traits>

#include "mamba.cuh"
#include "wide_turns.cuh"

namespace ssm {

struct wide_rows_args {
    int n, channels; // token rows; of x, and of z
    const row *rows; // [n]
    // What a token's sums are multiplied by: 1 / its root mean square, from partial sums.
    const float *squares; // [token][n_squares] or NULL
    int n_squares;
    float per_width, eps;
    bf16 *xz, *xc, *ring; // [token][2 channels]: its second half, [token][channels],
                          // [slot][3][channels]
    const float *conv_weight, *conv_bias; // [4][channels], [channels]
    CUtensorMap ring_map;                 // boxes of a tile's channels and 3 entries
};

#if SSM_HOPPER

template <int ID, int THREADS> __device__ __forceinline__ void meet() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

#endif

// A stage holds 8 tokens of each warp: their slots' rings as they lie, and room for their x or z.
constexpr int rows_history(int half) { // bytes a token: three entries, where a box may begin
    return (3 * half * 2 + 127) / 128 * 128;
}
constexpr int rows_stage(int half) {
    return (32 * (rows_history(half) + half * 2 + 16) + 1023) / 1024 * 1024;
}

constexpr int rows_scratch(int half) { // of wide_rows_end
    return 2 * (128 * (4 + 16 + 4) + 5 * half * 4);
}
// Tiles of HALF channels, which a block's groups make in turns or together.
template <int HALF>
using rows_in_turns = wide_turns<2 * HALF, 2, rows_stage(HALF), 3, rows_scratch(HALF)>;
template <int HALF> using rows_together = wide_shape<1, 2 * HALF, 1, 1, rows_scratch(HALF)>;

template <class SHAPE> struct wide_rows_end {
    typedef wide_rows_args args;
    static constexpr int HALF = SHAPE::COLS / 2, KEPT = 3, LATE = 0;
    static constexpr int STAGES = 4, TOKENS = 32; // of a tile; of a stage
    static constexpr int OWN = 2 * SHAPE::MT;     // stages of a group: all, or half where two share
    static constexpr int HISTORY = rows_history(HALF), X = TOKENS * HISTORY;
    static constexpr int PITCH = HALF * 2 + 16; // bytes of a token's x or z in shared memory
    static constexpr int VECTORS = HALF / 8, AT_ONCE = 32 / VECTORS; // 16 bytes; tokens a pass
    static constexpr int THREADS = SHAPE::BESIDE * 32;               // of beside()
    // Of a tile, in two copies: what its rows are scaled by, taps [4][HALF] and bias, rows, their
    // slots, token after token of a stage.
    static constexpr int SCALE = 0, TAPS = SCALE + SHAPE::TOKENS * 4, ROWS = TAPS + 5 * HALF * 4,
                         SOURCE = ROWS + SHAPE::TOKENS * 16, COPY = SOURCE + SHAPE::TOKENS * 4;
    static constexpr int SCRATCH = 2 * COPY;
    static_assert(SCRATCH == SHAPE::SCRATCH, "shape");
    static_assert(HALF % 16 == 0 && ROWS % 16 == 0, "shape");
    static_assert(PITCH / 16 % 2 == 1, "eight tokens' 16 bytes meet in no bank");
    static_assert(X + TOKENS * PITCH <= SHAPE::END_BYTES, "a stage");

#if SSM_HOPPER
    static __device__ __forceinline__ void ahead(const args &, const wide_tile &) {
    }
    static __device__ __forceinline__ char *scratch(const wide_tile &t) {
        extern __shared__ __align__(1024) char shared[];
        return shared + SHAPE::BYTES - SCRATCH + t.turn % 2 * COPY;
    }
    // Of the tile: the i-th token of a stage.
    static __device__ __forceinline__ int token_of(int stage, int i) {
        return stage / 2 * 64 + i / 8 * 16 + stage % 2 * 8 + i % 8;
    }

    // ---- by idle warps: what a tile needs beside its sums

    static __device__ __forceinline__ void taps_of(const args &e, const wide_tile &t, int thread) {
        float *taps = (float *)(scratch(t) + TAPS);
        for (int i = thread; i < 5 * HALF; i += THREADS) {
            const int j = i / HALF, c = t.column_tile * HALF + i % HALF;
            taps[i] = j < 4 ? e.conv_weight[(size_t)(KEPT - j) * e.channels + c] : e.conv_bias[c];
        }
    }
    static __device__ __forceinline__ void scale_of(const args &e, const wide_tile &t, int thread) {
        float *scale = (float *)(scratch(t) + SCALE);
        for (int i = thread; i < SHAPE::TOKENS; i += THREADS) {
            float by = 1;
            if (e.squares && t.token0 + i < e.n) {
                const float *part = e.squares + (size_t)(t.token0 + i) * e.n_squares;
                float sum = 0;
#pragma unroll 8
                for (int k = 0; k < e.n_squares; k++)
                    sum += part[k];
                by = rsqrtf(sum * e.per_width + e.eps);
            }
            scale[i] = by;
        }
    }
    static __device__ __forceinline__ void describe(const args &e, const wide_tile &t, int thread) {
        row *rows = (row *)(scratch(t) + ROWS);
        int *source = (int *)(scratch(t) + SOURCE);
        for (int i = thread; i < SHAPE::TOKENS; i += THREADS) { // in the stages' order
            const int at = token_of(i / TOKENS, i % TOKENS);
            row r = {-1, -1, 0, 1};
            if (t.token0 + at < e.n)
                r = e.rows[t.token0 + at];
            rows[at] = r;
            source[i] = max(r.slot, 0);
        }
    }
    static __device__ __forceinline__ void described() { // those warps and fetch()
        meet<2, THREADS + 32>();
    }
    // A tile's copy is written when fetch() has met these warps for the tile before: then the end
    // of the one before that is over.
    static __device__ __forceinline__ void beside(const args &e, const wide_args &a, int rank,
                                                  int place) {
        const int thread = threadIdx.x - (WIDE_THREADS - THREADS);
        const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
#pragma unroll 1
        for (int i = place; i < tiles; i += step) {
            const wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
            taps_of(e, t, thread);
            describe(e, t, thread);
            if (i < step)
                dependency_wait();
            scale_of(e, t, thread);
            described();
        }
    }

    static __device__ __forceinline__ void fetch(const args &e, const wide_tile &t, int stage,
                                                 uint32_t at, uint32_t full) {
        const int lane = threadIdx.x & 31;
        if (stage == 0)
            described();
        if (lane == 0)
            barrier_expect(full, TOKENS * KEPT * HALF * 2);
        __syncwarp();
        const int *source = (const int *)(scratch(t) + SOURCE) + stage * TOKENS;
        copy_box(at + lane * HISTORY, &e.ring_map, t.column_tile * HALF, source[lane] * KEPT, full);
    }

    // ---- by the groups

    // Taps of a lane's eight channels.
    struct taps {
        float weight[KEPT + 1][8], bias[8]; // weight[j]: of the input j tokens ago

        __device__ __forceinline__ taps(const float *from) {
#pragma unroll
            for (int j = 0; j <= KEPT; j++)
                load<8>(from + j * HALF, weight[j]);
            load<8>(from + (KEPT + 1) * HALF, bias);
        }
        // before[j]: the input j + 1 tokens ago
        __device__ __forceinline__ void convolve(const uint4 &x, const uint4 (&before)[KEPT],
                                                 float (&sum)[8]) const {
            float v[8];
            load<8>((const bf16 *)&x, v);
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum[i] = bias[i] + weight[0][i] * v[i];
#pragma unroll
            for (int j = 0; j < KEPT; j++) {
                load<8>((const bf16 *)&before[j], v);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sum[i] += weight[j + 1][i] * v[i];
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum[i] = silu(sum[i]);
        }
    };

    // Eight tokens' x (PART 0) or z (1) of a warp: lane l holds pairs of token l / 4.
    template <int PART>
    static __device__ __forceinline__ void put_part(uint32_t to,
                                                    const uint32_t (&pairs)[HALF / 4]) {
        constexpr int N = HALF / 8, FROM = PART * N;
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            if (i + 4 <= N)
                store_matrices(to + i * 16, pairs[FROM + i], pairs[FROM + i + 1],
                               pairs[FROM + i + 2], pairs[FROM + i + 3]);
            else
                store_matrices(to + i * 16, pairs[FROM + i], pairs[FROM + i + 1]);
        }
    }
    // A token's input to its ring, of channels c on; `fresh`: what lies before it reads as zero.
    static __device__ __forceinline__ void keep(const args &e, int slot, int ring, bool fresh,
                                                int c, const uint4 &x) {
        bf16 *entries = e.ring + (size_t)slot * KEPT * e.channels + c;
        if (fresh) {
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                *(uint4 *)(entries + (size_t)i * e.channels) = make_uint4(0, 0, 0, 0);
        }
        *(uint4 *)(entries + (size_t)ring * e.channels) = x;
    }
    // Eight channels of a token.
    struct part {
        row r;
        uint4 x, before[KEPT]; // before[j]: j + 1 tokens ago

        __device__ __forceinline__ void get(const row &of, const char *history, const char *from) {
            r = of;
            x = *(const uint4 *)from;
            int entry = r.ring;
#pragma unroll
            for (int j = 0; j < KEPT; j++) {
                entry = entry == 0 ? KEPT - 1 : entry - 1;
                before[j] = *(const uint4 *)(history + entry * HALF * 2);
                if (r.fresh)
                    before[j] = make_uint4(0, 0, 0, 0);
            }
        }
    };

    template <class RING>
    static __device__ __forceinline__ void apply(const args &e, const wide_tile &t, RING &ring,
                                                 const float (&acc)[SHAPE::MT][HALF]) {
        const int lane = ring.lane, v = lane % VECTORS, sub = lane / VECTORS;
        const int warp = ring.warp % 4, first = ring.warp / 4 * OWN; // the group's first stage
        const int token0 = t.token0 - first / 2 * 64;                // of the tile
        const int c = t.column_tile * HALF + v * 8;
        const char *own = scratch(t);
        extern __shared__ __align__(1024) char shared[];
        uint32_t at = ring.take();
        uint32_t pairs[OWN][HALF / 4];
#pragma unroll
        for (int s = 0; s < OWN; s++) {
            const int m = s / 2, h = s % 2;
            const float by =
                ((const float *)(own + SCALE))[token_of(first + s, warp * 8 + lane / 4)];
#pragma unroll
            for (int j = 0; j < HALF / 4; j++)
                pairs[s][j] = pack_bf16(acc[m][4 * j + 2 * h] * by, acc[m][4 * j + 2 * h + 1] * by);
        }
        const taps k((const float *)(own + TAPS) + v * 8);
        const row *rows = (const row *)(own + ROWS);
#pragma unroll 1
        for (int s = 0; s < STAGES; s++) {
            if (s > 0)
                at = ring.take();
            if (OWN < STAGES && s / OWN != first / OWN) { // the other group's
                ring.give();
                continue;
            }
            constexpr int PASSES = (8 + AT_ONCE - 1) / AT_ONCE;
            const uint32_t to = at + X + (warp * 8 + lane % 8) * PITCH + lane / 8 * 16;
            const char *stage = shared + (at - shared_address(shared));
            int token[PASSES];
            part parts[PASSES];
            auto put = [&](auto part) {
                const int i = s % OWN;
                if (i == 0)
                    put_part<part.value>(to, pairs[0]);
                else if (i == 1)
                    put_part<part.value>(to, pairs[1]);
                else if (i == 2)
                    put_part<part.value>(to, pairs[OWN - 2]);
                else
                    put_part<part.value>(to, pairs[OWN - 1]);
                __syncwarp();
            };
            put(std::integral_constant<int, 1>());
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                const int i = p * AT_ONCE + sub, place = warp * 8 + min(i, 7);
                token[p] = token0 + token_of(s, place);
                if (i >= 8 || sub >= AT_ONCE || token[p] >= e.n)
                    token[p] = -1;
                const uint4 z = *(const uint4 *)(stage + X + place * PITCH + v * 16);
                if (token[p] >= 0)
                    *(uint4 *)(e.xz + ((size_t)token[p] * 2 + 1) * e.channels + c) = z;
            }
            __syncwarp();
            put(std::integral_constant<int, 0>());
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                const int place = warp * 8 + min(p * AT_ONCE + sub, 7);
                parts[p].get(rows[token_of(s, place)], stage + place * HISTORY + v * 16,
                             stage + X + place * PITCH + v * 16);
            }
            float sum[PASSES][8];
#pragma unroll
            for (int p = 0; p < PASSES; p++)
                k.convolve(parts[p].x, parts[p].before, sum[p]);
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                const row &r = parts[p].r;
                if (token[p] < 0 || r.slot < 0)
                    continue;
                store<8>(e.xc + (size_t)token[p] * e.channels + c, sum[p]);
                keep(e, r.slot, r.ring, r.fresh, c, parts[p].x);
            }
            fence_async();
            __syncwarp();
            ring.give();
        }
    }
#endif
};

} // namespace ssm

#endif
