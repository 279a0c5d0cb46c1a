// SPDX-License-Identifier: Apache-2.0
// What in_proj of prompts does with its sums (wide.cuh): each token's are scaled by its norm and
// rounded. A stage is room for the columns of 64 tokens, for each warp boxes of its 16 tokens by 32
// columns: rows of 64 bytes, 16-byte parts swapped by row.
#ifndef SSM_KERNELS_CUDA_WIDE_IN_CUH
#define SSM_KERNELS_CUDA_WIDE_IN_CUH

#include "wide_turns.cuh"

namespace ssm {

struct wide_in_args {
    CUtensorMap y; // boxes of 16 tokens and 32 columns, swizzled by their 64 bytes
    // What a token's sums are multiplied by: 1 / its root mean square, from partial sums.
    const float *squares; // [token][n_squares] or NULL
    int n_squares, tokens;
    float per_width, eps;
};

template <class SHAPE> struct wide_in_end {
    typedef wide_in_args args;
    static constexpr int M = SHAPE::M, N = SHAPE::N, CHUNK = 32;
    static constexpr int BOX = 16 * CHUNK * 2, OF_ROW = N / CHUNK, CHUNKS = M * OF_ROW;
    static constexpr int ROOM = SHAPE::END_BYTES / (SHAPE::WARPS * BOX);
    static constexpr int PER = ROOM < CHUNKS ? ROOM : CHUNKS, STAGES = (CHUNKS + PER - 1) / PER;
    static constexpr int LATE = STAGES < 2 ? STAGES : 2;
    static_assert(N % CHUNK == 0 && PER > 0 && SHAPE::SPLITS == 1, "shape");

#if SSM_HOPPER
    static __device__ __forceinline__ void ahead(const args &, const wide_tile &) {
    }
    static __device__ __forceinline__ void fetch(const args &, const wide_tile &, int, uint32_t,
                                                 uint32_t full) {
        if ((threadIdx.x & 31) == 0)
            barrier_arrive(full);
    }
    template <class RING>
    static __device__ __forceinline__ void apply(const args &e, const wide_tile &t, RING &ring,
                                                 const float (&acc)[M][N / 2]) {
        const int lane = ring.lane, first = t.token0 + ring.warp % 4 * 16;
        float by[M][2];
#pragma unroll
        for (int i = 0; i < M * 2; i++)
            by[i / 2][i % 2] = wide_scale(e, first + i / 2 * 64 + i % 2 * 8 + lane / 4, lane % 4);
        const int at = lane % 8 * 64 + ((lane / 8 ^ lane % 8 / 2) * 16);
        uint32_t own = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int m = c / OF_ROW, column = c % OF_ROW;
            if (c % PER == 0)
                own = ring.take() + ring.warp * (PER * BOX);
            const uint32_t box = own + c % PER * BOX;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t v[4];
#pragma unroll
                for (int p = 0; p < 4; p++) {
                    const int i = (column * 4 + p) * 4 + 2 * h;
                    v[p] = pack_bf16(acc[m][i] * by[m][h], acc[m][i + 1] * by[m][h]);
                }
                store_matrices(box + h * 8 * 64 + at, v[0], v[1], v[2], v[3]);
            }
            if (c % PER < PER - 1 && c < CHUNKS - 1)
                continue;
            fence_async();
            __syncwarp();
            if (lane == 0) {
#pragma unroll
                for (int k = c / PER * PER; k <= c; k++)
                    store_box(&e.y, t.col0 + k % OF_ROW * CHUNK, first + k / OF_ROW * 64,
                              own + k % PER * BOX);
                stores_commit();
                if (c / PER >= LATE)
                    stores_read<LATE>();
            }
            if (c / PER >= LATE) {
                __syncwarp();
                ring.give();
            }
        }
    }
#endif
};

// A stage of its own: the columns of 64 tokens.
template <int COLS, int SHARE> using wide_in_turns = wide_turns<COLS, SHARE, 64 * COLS * 2, 2>;

} // namespace ssm

#endif
