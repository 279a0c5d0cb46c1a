// SPDX-License-Identifier: Apache-2.0
// What conv_xproj.cu's kernel is made of: shared memory, and a tile's lists of boxes.
#ifndef SSM_KERNELS_CUDA_CONV_XPROJ_CUH
#define SSM_KERNELS_CUDA_CONV_XPROJ_CUH

#include "cuda.h"
#include "wide_hopper.cuh"

namespace ssm {

enum {
    CX_PIECE = 64, // channels at a time
    CX_ROW = 128,  // bytes of a token there
    CX_TAPS = 5 * CX_PIECE * 4,
    CX_ALIGN = 8, // virtual rows: what a span takes is rounded up to so many
    CX_BEFORE = 3 // of a span's rows: its history
};

// Boxes of a tile's rows: all of them, all but the history, or so many.
enum cx_box { CX_WHOLE, CX_REST, CX_32, CX_8, CX_1, CX_BOXES, CX_HISTORY = CX_BOXES };
inline int cx_box_rows(int box, int whole, int rest) {
    const int rows[CX_BOXES] = {whole, rest, 32, 8, 1};
    return rows[box];
}

struct cx_maps {
    CUtensorMap w, taps;
    CUtensorMap x[CX_BOXES + 1]; // of the input; the last of the rings: one row
    CUtensorMap out[CX_BOXES];   // of the output, and where GROUPS is 0 the first is what is read
};

struct cx_args {
    const float *bias;    // [channels]
    const bf16 *in;       // [token row][in_pitch]
    bf16 *ring;           // [slot][3][channels] of this layer
    float *sums;          // [token row][n_x]
    int channels, pieces; // of all channels
    int n_x, n_slots, n_spans, tokens;
    int most_tiles; // a step of so many tiles gets them without two spans in one
    size_t in_pitch;
    const span *spans;
};

struct cx_copy {  // a box of a tile
    int from, at; // row in memory; row of the tile | cx_box << 16
};

// MT 64 weight rows, N virtual rows a tile, SPLITS blocks a cluster that share the channels, GROUPS
// of four warps that convolve (0: the output is there and only x_proj is made).
template <int MT_, int N_, int SPLITS_, int GROUPS_, int W_, int TILES_, int X_> struct cx_shape {
    static constexpr int MT = MT_, N = N_, SPLITS = SPLITS_, GROUPS = GROUPS_;
    static constexpr bool CONV = GROUPS > 0;
    static constexpr int THREADS = 128 * (2 + GROUPS), RUN = N / 8; // tokens a thread
    static constexpr int GROUP = RUN > 9 ? 8 : RUN;                 // asked for at once
    // Sums that come from peers, by pairs of tokens: [peer][pair][weight row][2]. A pair's are 32
    // bytes apart in banks: what four lanes read does not meet.
    static constexpr int PAIRS = N / 2 / SPLITS, PAIR_BYTES = MT * 64 * 8 + 32;
    static constexpr int SUMS = (SPLITS - 1) * PAIRS * PAIR_BYTES;
    static constexpr int W_BYTES = MT * 64 * CX_ROW, TILE_BYTES = N * CX_ROW;
    static constexpr int X_ROWS = N + CX_BEFORE;
    static constexpr int X_BYTES = CONV ? X_ROWS * CX_ROW + CX_TAPS : 0;

    static constexpr int COPIES = CONV ? X_ROWS : 1;
    static constexpr int LISTS = (2 * COPIES) * 8 + N * 4 + (N / CX_ALIGN + 1) * 4 + 32;
    static constexpr int BARRIERS = 6 * 8 * 8 + 8;
    static constexpr int least(int a, int b) {
        return a < b ? a : b;
    }
    static constexpr int W_STAGES = W_, TILES = TILES_, X_STAGES = X_;
    // A barrier tells odd passes from even ones only: a stage is one group's.
    static_assert(!CONV || X_STAGES % (GROUPS ? GROUPS : 1) == 0, "stages");
    static constexpr int RINGS = W_STAGES * W_BYTES + TILES * TILE_BYTES + X_STAGES * X_BYTES;
    static constexpr int SUMS_AT = (RINGS + 15) / 16 * 16;
    static constexpr int LISTS_AT = (SUMS_AT + SUMS + 15) / 16 * 16;
    static constexpr int BARRIERS_AT = (LISTS_AT + LISTS + 7) / 8 * 8;
    static constexpr int BYTES = BARRIERS_AT + BARRIERS;
    static_assert(N % CX_ALIGN == 0 && N / 2 % SPLITS == 0, "shape");
    static_assert(W_STAGES <= 8 && X_STAGES <= 8 && TILES <= 8, "barriers");
    static_assert(W_BYTES % 1024 == 0 && TILE_BYTES % 1024 == 0, "swizzle");
    static_assert(BYTES <= 227 << 10, "shared memory");

    // Registers a thread: of those that multiply, convolve, copy.
    static constexpr int ALL = 65536 / THREADS / 8 * 8 * (2 + GROUPS);
    static constexpr int COPYING = 40;
    static constexpr int MULTIPLYING = N >= 128 ? (GROUPS == 3 ? 224 : 232) : 152;
    static constexpr int CONVOLVING =
        CONV ? least((ALL - MULTIPLYING - COPYING) / (GROUPS ? GROUPS : 1) / 8 * 8,
                     ALL / (2 + GROUPS) - 8)
             : 0;
};

#if SSM_HOPPER

__device__ __forceinline__ void wgmma(float (&d)[36], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35"
                 "}, %36, %37, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
                 : "l"(a), "l"(b));
}

// What a block works on, in shared memory.
template <class S> struct cx_lists {
    cx_copy in[S::COPIES], out[S::COPIES];
    int token[S::N];                    // token row of each of the tile's, or -1
    int begins[S::N / CX_ALIGN + 1];    // spans whose first token it has
    int n_in, n_out, n_begins, in_rows; // in_rows: of all of `in`
};

// A block of threads' addresses, and its part of the channels.
template <class S> struct cx_block {
    uint32_t w, tiles, x, sums;                                          // [stage]; from peers
    uint32_t full_w, empty_w, full_t, empty_t, full_x, empty_x, arrived; // barriers
    char *shared;
    cx_lists<S> *lists;
    int first, n, split; // pieces

    __device__ __forceinline__ uint32_t w_at(int p) const {
        return w + p % S::W_STAGES * S::W_BYTES;
    }
    __device__ __forceinline__ uint32_t tile_at(int p) const {
        return tiles + p % S::TILES * S::TILE_BYTES;
    }
    __device__ __forceinline__ uint32_t x_at(int p) const {
        return x + p % S::X_STAGES * S::X_BYTES;
    }
    // Waits of the p-th piece's use of a ring of STAGES: until it is there, until there is room.
    template <int STAGES> __device__ __forceinline__ static void there(uint32_t full, int p) {
        barrier_wait(full + p % STAGES * 8, p / STAGES & 1);
    }
    template <int STAGES> __device__ __forceinline__ static void room(uint32_t empty, int p) {
        if (p >= STAGES)
            barrier_wait(empty + p % STAGES * 8, (p / STAGES & 1) ^ 1);
    }
};

// `count` rows as boxes, by one thread.
__device__ __forceinline__ int cx_boxes(cx_copy *to, int from, int at, int count, int whole,
                                        int rest) {
    int n = 0;
    if (count == whole || count == rest) {
        to[n++] = {from, at | (count == whole ? CX_WHOLE : CX_REST) << 16};
        return n;
    }
    while (count > 0) {
        const int box = count >= 32 ? CX_32 : count >= 8 ? CX_8 : CX_1;
        const int rows = box == CX_32 ? 32 : box == CX_8 ? 8 : 1;
        to[n++] = {from, at | box << 16};
        from += rows, at += rows, count -= rows;
    }
    return n;
}

// One warp: a tile's lists.
template <class S>
__device__ __forceinline__ void cx_list(const cx_args &a, int tile, cx_lists<S> &to) {
    const int lane = threadIdx.x & 31, low = tile * S::N, high = low + S::X_ROWS;
    int n_in = 0, n_out = 0, n_begins = 0, rows = 0, base = 0;
    for (int i = lane; i < S::N; i += 32)
        to.token[i] = -1;
    int whole = 0; // tiles without two spans in one
    for (int i = lane; i < a.n_spans; i += 32)
        whole += (a.spans[i].count + S::N - 1) / S::N;
    const bool apart = __reduce_add_sync(~0u, whole) <= a.most_tiles;
    for (int i0 = 0; i0 < a.n_spans && base < high; i0 += 32) {
        span s = {};
        int length = 0;
        if (i0 + lane < a.n_spans) {
            s = a.spans[i0 + lane];
            length = apart ? (s.count + S::N - 1) / S::N * S::N
                           : (s.count + CX_BEFORE + CX_ALIGN - 1) / CX_ALIGN * CX_ALIGN;
        }
        int end = length;
#pragma unroll
        for (int o = 1; o < 32; o *= 2) {
            const int v = __shfl_up_sync(~0u, end, o);
            end += lane >= o ? v : 0;
        }
        const int begin = base + end - length;
        unsigned mine = __ballot_sync(~0u, length > 0 && begin < high && begin + length > low);
        base += __shfl_sync(~0u, end, 31);
        for (; mine; mine &= mine - 1) {
            const int l = __ffs(mine) - 1, b = __shfl_sync(~0u, begin, l);
            const int first = __shfl_sync(~0u, s.first, l), count = __shfl_sync(~0u, s.count, l);
            const int slot = __shfl_sync(~0u, s.slot, l), ring = __shfl_sync(~0u, s.ring, l);
            const int fresh = __shfl_sync(~0u, s.fresh, l);
            // rows [from, till) of its tokens are asked for, [out, till) made
            const int from = max(b + CX_BEFORE, low), out = max(b + CX_BEFORE, low + CX_BEFORE);
            const int till = min(b + CX_BEFORE + count, high);
            const int token = first - b - CX_BEFORE; // of virtual row 0, as it were
            for (int v = out + lane; v < till; v += 32)
                to.token[v - low - CX_BEFORE] = token + v;
            if (lane == 0) {
                for (int j = CX_BEFORE; j > 0; j--) { // tokens before the span's first
                    const int v = b + CX_BEFORE - j;
                    if (b >= low && b < low + S::N) {
                        const int entry = slot * 3 + (ring - j + 3) % 3;
                        to.in[n_in++] = {fresh ? a.n_slots * 3 : entry, // past the end: zeros
                                         (v - low) | CX_HISTORY << 16};
                        rows++;
                    }
                }
                if (from < till) {
                    n_in += cx_boxes(to.in + n_in, token + from, from - low, till - from, S::X_ROWS,
                                     S::N);
                    rows += till - from;
                }
                if (out < till)
                    n_out += cx_boxes(to.out + n_out, token + out, out - low - CX_BEFORE,
                                      till - out, S::N, S::N);
                if (b >= low && b < low + S::N)
                    to.begins[n_begins++] = i0 + l;
            }
        }
    }
    if (lane == 0)
        to.n_in = n_in, to.n_out = n_out, to.n_begins = n_begins, to.in_rows = rows;
    __syncwarp();
}

#endif

} // namespace ssm

#endif
