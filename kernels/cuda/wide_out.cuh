// SPDX-License-Identifier: Apache-2.0
// What follows out_proj's sums (wide.cuh): the residual takes them, and the next layer gets its
// input, u = bf16(residual times its norm's weight), and every token's sum of squares over the
// columns of a block, in fixed order.
//
// A stage holds PER chunks of the columns of 128 tokens, for each warp a box of its 16 tokens: the
// residual, changed in place, and behind all of these room for u. A lane has pairs of columns of
// tokens g and g + 8. Chunks of 32 columns: rows of 128 and 64 bytes, 16-byte parts swapped by row,
// which sends four rows' 8-byte accesses to the same two parts; so odd rows are two groups of
// eight columns away from even ones. Chunks of 40 or 24 need neither: odd multiples of 32 bytes.
#ifndef SSM_KERNELS_CUDA_WIDE_OUT_CUH
#define SSM_KERNELS_CUDA_WIDE_OUT_CUH

#include "wide_kernel.cuh"

namespace ssm {

struct wide_out_args {
    CUtensorMap residual, u; // boxes of 16 tokens and CHUNK columns, swizzled by their bytes
    const float *next_norm;  // [cols] of what follows, or NULL: no u, no squares
    float *squares;          // [token][n_squares]
    int tokens, cols, n_squares;
};

constexpr int wide_chunk(int columns, bool split) { // split: stages are short
    return columns % 32 == 0 && !(split && columns == 96) ? 32 : columns % 40 == 0 ? 40 : 24;
}

template <class SHAPE> struct wide_out_end {
    typedef wide_out_args args;
    static constexpr int M = SHAPE::M, N = SHAPE::N, CHUNK = wide_chunk(N, SHAPE::SPLITS > 1);
    static constexpr int BOX = 16 * CHUNK * 4, U_BOX = BOX / 2, CHUNKS = M * N / CHUNK;
    static constexpr int ROOM = SHAPE::END_BYTES / (SHAPE::WARPS * (BOX + U_BOX));
    static constexpr int PER = ROOM < CHUNKS ? ROOM : CHUNKS, STAGES = (CHUNKS + PER - 1) / PER;
    static constexpr int U_AT = PER * SHAPE::WARPS * BOX, LATE = STAGES < 2 ? STAGES : 2;
    static constexpr bool SWIZZLE = CHUNK == 32;
    static_assert(SHAPE::SPLITS == 1 || STAGES + wide_exchange<SHAPE>::SLOTS <= SHAPE::STAGES,
                  "room for a cluster's sums");
    static_assert(N % CHUNK == 0 && PER > 0, "a stage");

#if SSM_HOPPER
    // Column and token where the block's chunk c of warp w begins.
    static __device__ __forceinline__ int2 box_of(const wide_tile &t, int c, int w) {
        const int kept = t.split * SHAPE::KEPT, m = kept / (SHAPE::COLS / 2) + c / (N / CHUNK);
        return make_int2(t.col0 + kept % (SHAPE::COLS / 2) * 2 + c % (N / CHUNK) * CHUNK,
                         t.token0 + (w / 4 * SHAPE::MT + m) * 64 + w % 4 * 16);
    }
    static __device__ __forceinline__ void ahead(const args &e, const wide_tile &t) {
        for (int i = threadIdx.x & 31; i < CHUNKS * SHAPE::WARPS; i += 32) {
            const int2 at = box_of(t, i / SHAPE::WARPS, i % SHAPE::WARPS);
            prefetch_box(&e.residual, at.x, at.y);
        }
    }
    static __device__ __forceinline__ void fetch(const args &e, const wide_tile &t, int i,
                                                 uint32_t at, uint32_t full) {
        const int lane = threadIdx.x & 31, n = min(PER, CHUNKS - i * PER) * SHAPE::WARPS;
        if (lane == 0)
            barrier_expect(full, n * BOX);
        __syncwarp();
        for (int k = lane; k < n; k += 32) {
            const int2 from = box_of(t, i * PER + k / SHAPE::WARPS, k % SHAPE::WARPS);
            copy_box(at + k * BOX, &e.residual, from.x, from.y, full);
        }
    }

    // The same bits for odd rows, whose halves of a chunk change places: nothing is contracted.
    static __device__ __forceinline__ float square(float2 v) {
        return __fmaf_rn(v.x, v.x, __fmul_rn(v.y, v.y));
    }
    template <int PAIRS> static __device__ __forceinline__ float add_up(const float (&of)[PAIRS]) {
        if constexpr (PAIRS == 4) {
            return __fadd_rn(__fadd_rn(of[0], of[1]), __fadd_rn(of[2], of[3]));
        } else {
            float sum = of[0];
#pragma unroll
            for (int j = 1; j < PAIRS; j++)
                sum = __fadd_rn(sum, of[j]);
            return sum;
        }
    }

    template <class RING>
    static __device__ __forceinline__ void apply(const args &e, const wide_tile &t, RING &ring,
                                                 const float (&acc)[M][N / 2]) {
        constexpr int PAIRS = CHUNK / 8;
        const int g = ring.lane >> 2, q = ring.lane & 3;
        const int away = SWIZZLE ? (g & 1) * 2 : 0; // a lane's j-th pair is its sums' j ^ away
        const int at_pair = SWIZZLE ? g * 128 + (((q >> 1) ^ g ^ away * 2) * 16 | (q & 1) * 8)
                                    : g * CHUNK * 4 + q * 8;
        const int at_u = SWIZZLE ? g * 64 + ((g >> 1 ^ away) * 16 | q * 4) : g * CHUNK * 2 + q * 4;
        const bool next = e.next_norm != NULL;
        uint32_t stage = 0;
        float low = 0, high = 0; // squares of tokens g, g + 8
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            constexpr int OF_ROW = N / CHUNK;
            const int m = c / OF_ROW, first = c % OF_ROW * PAIRS;
            const int token = t.token0 + m * 64 + ring.warp % 4 * 16;
            const int col = t.col0 + c % OF_ROW * CHUNK;
            float2 a[PAIRS], b[PAIRS], w[PAIRS];
            float of_low[PAIRS], of_high[PAIRS]; // squares
#pragma unroll
            for (int j = 0; j < PAIRS; j++) { // on their way during the wait
                const int column = col + (j ^ away) * 8 + 2 * q;
                w[j] = next && column < e.cols ? *(const float2 *)(e.next_norm + column)
                                               : make_float2(0, 0);
            }
            if (c % PER == 0)
                stage = ring.take();
            const uint32_t box = stage + (c % PER * SHAPE::WARPS + ring.warp) * BOX;
            const uint32_t u_box = stage + U_AT + (c % PER * SHAPE::WARPS + ring.warp) * U_BOX;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                const uint32_t at = box + (SWIZZLE ? at_pair ^ j * 32 : at_pair + j * 32);
                a[j] = load_shared(at), b[j] = load_shared(at + 8 * CHUNK * 4);
            }
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                const uint32_t at = box + (SWIZZLE ? at_pair ^ j * 32 : at_pair + j * 32);
                const uint32_t u = u_box + (SWIZZLE ? at_u ^ j * 16 : at_u + j * 16);
                float v[4];
#pragma unroll
                for (int k = 0; k < 4; k++)
                    v[k] = SWIZZLE && away ? acc[m][(first + (j ^ 2) % PAIRS) * 4 + k]
                                           : acc[m][(first + j) * 4 + k];
                a[j].x += v[0], a[j].y += v[1], b[j].x += v[2], b[j].y += v[3];
                of_low[j] = square(a[j]), of_high[j] = square(b[j]);
                store_shared(at, a[j]), store_shared(at + 8 * CHUNK * 4, b[j]);
                store_shared(u, pack_bf16(a[j].x * w[j].x, a[j].y * w[j].y));
                store_shared(u + 8 * CHUNK * 2, pack_bf16(b[j].x * w[j].x, b[j].y * w[j].y));
            }
            low = __fadd_rn(low, add_up(of_low)), high = __fadd_rn(high, add_up(of_high));
            fence_async();
            __syncwarp();
            const bool last = c % PER == PER - 1 || c == CHUNKS - 1; // of its stage
            if (ring.lane == 0) {
                store_box(&e.residual, col, token, box);
                if (next)
                    store_box(&e.u, col, token, u_box);
                if (last)
                    stores_commit();
                if (last && c / PER >= LATE)
                    stores_read<LATE>();
            }
            if (last && c / PER >= LATE) {
                __syncwarp();
                ring.give();
            }
            if (c % OF_ROW == OF_ROW - 1) {
                if (next && t.col0 < e.cols)
                    put_squares(e, low, high, token + g, t.col0 / N, q == 0);
                low = high = 0;
            }
        }
    }

    static __device__ __forceinline__ void put_squares(const args &e, float low, float high,
                                                       int token, int tile, bool put) {
        low += __shfl_xor_sync(~0u, low, 1), high += __shfl_xor_sync(~0u, high, 1);
        low += __shfl_xor_sync(~0u, low, 2), high += __shfl_xor_sync(~0u, high, 2);
        float *to = e.squares + (size_t)token * e.n_squares + tile;
        if (put && token < e.tokens)
            to[0] = low;
        if (put && token + 8 < e.tokens)
            to[8 * e.n_squares] = high;
    }
#endif
};

} // namespace ssm

#endif
