// SPDX-License-Identifier: Apache-2.0
// The kernel of xproj.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_XPROJ_KERNEL_CUH
#define SSM_KERNELS_CUDA_XPROJ_KERNEL_CUH

#include "cuda.h"
#include "wgmma.cuh"

namespace ssm {

enum {
    XPROJ_PIECE = 64, // columns a stage of the ring
    XPROJ_PIECE_BYTES = XPROJ_PIECE * 2,
    XPROJ_TOKENS = 64, // a block
    XPROJ_PARTS = 8,   // of the columns: sums of these are added up as a tree
    XPROJ_GROUP = 128, // threads that multiply; one warp more asks for what they need
    XPROJ_THREADS = XPROJ_GROUP + 32,
    XPROJ_MOST_STAGES = 10,
    XPROJ_BARRIERS = (2 * XPROJ_MOST_STAGES + 1) * 8 // bytes
};

struct xproj_args {
    float *out; // [token][n_rows]
    int n_rows, tokens, pieces, stages, ring_bytes;
    bool early; // the next kernel may start when this one's inputs are there
};

// ROWS weight rows a block; SPLITS blocks of a cluster share the columns.
template <int ROWS, int SPLITS> struct xproj_shape {
    static constexpr int X_BYTES = XPROJ_TOKENS * XPROJ_PIECE_BYTES;
    static constexpr int STAGE = X_BYTES + ROWS * XPROJ_PIECE_BYTES;
    static constexpr int PITCH = ROWS + 8; // floats from one token's sums to the next one's
    static constexpr int SHARE = XPROJ_TOKENS / SPLITS; // tokens that a block finishes
    static constexpr int SHARE_BYTES = SHARE * PITCH * 4;
    static constexpr int SUMS = (2 * SPLITS - 1) * SHARE_BYTES; // take the ring's place
    static constexpr int PARTS = XPROJ_PARTS / SPLITS;          // of the columns, a block's
    static_assert(STAGE % 1024 == 0 && PARTS <= 4, "shape");
};

#if SSM_HOPPER

// How one thread fills the ring: x first in a stage, the weight rows behind it.
template <class SHAPE> struct xproj_fill {
    const CUtensorMap *w_map, *x_map;
    uint32_t ring, full;
    int first, token0, row0;

    __device__ __forceinline__ void weights(int piece, int stage) const {
        barrier_expect(full + stage * 8, SHAPE::STAGE);
        copy_box(ring + stage * SHAPE::STAGE + SHAPE::X_BYTES, w_map, (first + piece) * XPROJ_PIECE,
                 row0, full + stage * 8);
    }
    __device__ __forceinline__ void inputs(int piece, int stage) const {
        copy_box(ring + stage * SHAPE::STAGE, x_map, (first + piece) * XPROJ_PIECE, token0,
                 full + stage * 8);
    }
    // n pieces through the ring of `stages`
    __device__ __forceinline__ void run(int n, int stages, uint32_t empty, bool early) const {
        const int ahead = min(n, stages);
        map_prefetch(x_map);
#pragma unroll 1
        for (int p = 0; p < ahead; p++)
            weights(p, p);
        dependency_wait();
#pragma unroll 1
        for (int p = 0; p < ahead; p++)
            inputs(p, p);
        if (early)
            dependents_start();
#pragma unroll 1
        for (int p = ahead, stage = 0, phase = 0; p < n; p++) {
            barrier_wait(empty + stage * 8, phase);
            weights(p, stage);
            inputs(p, stage);
            if (++stage == stages)
                stage = 0, phase ^= 1;
        }
    }
};

template <int N> __device__ __forceinline__ void add_to(float (&sum)[N], const float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        sum[i] += v[i];
}

// Sums of consecutive parts as a tree, in v[0].
template <int COUNT, int N> __device__ __forceinline__ void add_as_tree(float (&v)[COUNT][N]) {
#pragma unroll
    for (int step = 1; step < COUNT; step *= 2) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 2 * step)
            add_to(v[i], v[i + step]);
    }
}

// The group's walk through the block's pieces: the sums of its parts, added up, in sum[0].
template <class SHAPE, int N>
__device__ __forceinline__ void xproj_multiply(const xproj_args &a, int first_part, uint32_t ring,
                                               uint32_t full, uint32_t empty,
                                               float (&sum)[SHAPE::PARTS][N]) {
    const int first = a.pieces * first_part / XPROJ_PARTS,
              n = a.pieces * (first_part + SHAPE::PARTS) / XPROJ_PARTS - first;
    int p = 0, stage = 0, phase = 0;
#pragma unroll
    for (int part = 0; part < SHAPE::PARTS; part++) {
        float(&acc)[N] = sum[part];
        const int end = a.pieces * (first_part + part + 1) / XPROJ_PARTS - first;
#pragma unroll
        for (int i = 0; i < N; i++)
            acc[i] = 0;
#pragma unroll 1
        for (; p < end; p++) {
            barrier_wait(full + stage * 8, phase);
            const uint32_t at = ring + stage * SHAPE::STAGE;
            const uint64_t x = tile_at(at), w = tile_at(at + SHAPE::X_BYTES);
            wgmma_piece(acc, x, w);
            wgmma_wait<1>();
            if (threadIdx.x == 0 && p > 0 && p - 1 + a.stages < n) // the piece before is done with
                barrier_arrive(empty + (stage == 0 ? a.stages - 1 : stage - 1) * 8);
            if (++stage == a.stages)
                stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
        wgmma_touch(acc);
        if (part % 2 == 1)
            add_to(sum[part - 1], acc);
        if (part % 4 == 3)
            add_to(sum[part - 3], sum[part - 1]);
    }
}

#endif

template <int ROWS, int SPLITS>
__global__ void __launch_bounds__(XPROJ_THREADS)
    xproj_kernel(const __grid_constant__ CUtensorMap w_map,
                 const __grid_constant__ CUtensorMap x_map, const __grid_constant__ xproj_args a) {
#if SSM_HOPPER
    typedef xproj_shape<ROWS, SPLITS> shape;
    constexpr int SHARE = shape::SHARE, PITCH = shape::PITCH, BYTES = shape::SHARE_BYTES;
    extern __shared__ __align__(1024) char shared[];
    const int split = blockIdx.x % SPLITS, first_part = split * shape::PARTS;
    const int token0 = blockIdx.x / SPLITS * XPROJ_TOKENS, row0 = blockIdx.y * ROWS;
    const uint32_t ring = shared_address(shared), full = ring + a.ring_bytes,
                   empty = full + XPROJ_MOST_STAGES * 8, arrived = empty + XPROJ_MOST_STAGES * 8;
    float *sums = (float *)shared; // [split][SHARE][PITCH] of this block, then of the others
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
            barrier_init(full + i * 8, 1);
            barrier_init(empty + i * 8, 1);
        }
        barrier_init(arrived, 1);
        barriers_ready();
        barrier_expect(arrived, (SPLITS - 1) * BYTES);
    }
    __syncthreads();
    const bool multiplies = threadIdx.x < XPROJ_GROUP;
    float sum[shape::PARTS][ROWS / 2];
    if (multiplies) {
        if (a.early) { // a successor that has started knows that what this one waits for is done
            dependency_wait();
            dependents_start();
        }
        xproj_multiply<shape>(a, first_part, ring, full, empty, sum);
    } else if (threadIdx.x == XPROJ_GROUP) {
        const int first = a.pieces * first_part / XPROJ_PARTS;
        const xproj_fill<shape> fill = {&w_map, &x_map, ring, full, first, token0, row0};
        fill.run(a.pieces * (first_part + shape::PARTS) / XPROJ_PARTS - first, a.stages, empty,
                 a.early);
    }
    __syncthreads();
    cluster_arrive(); // this block's tiles are needed no more
    if (multiplies) {
        const int lane = threadIdx.x & 31, t = threadIdx.x / 32 * 16 + (lane >> 2);
        float *at = sums + t * PITCH + 2 * (lane & 3);
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            *(float2 *)(at + i * 8) = make_float2(sum[0][4 * i], sum[0][4 * i + 1]);
            *(float2 *)(at + 8 * PITCH + i * 8) = make_float2(sum[0][4 * i + 2], sum[0][4 * i + 3]);
        }
    }
    fence_async();
    __syncthreads();
    cluster_wait(); // nor are its peers'
    if ((int)threadIdx.x < SPLITS && (int)threadIdx.x != split) {
        const int to = threadIdx.x, slot = split < to ? split : split - 1;
        copy_to_peer(peer_address(ring + (SPLITS + slot) * BYTES, to), ring + to * BYTES, BYTES,
                     peer_address(arrived, to));
    }
    __syncwarp();
    barrier_wait(arrived, 0);
    constexpr int VECTORS = ROWS / 4;
#pragma unroll 1
    for (int i = threadIdx.x; i < SHARE * VECTORS; i += XPROJ_THREADS) {
        const int t = i / VECTORS, row = i % VECTORS * 4, token = token0 + split * SHARE + t;
        float part[SPLITS][4];
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
            const int of = s == split ? s : s < split ? SPLITS + s : SPLITS + s - 1;
            load<4>(sums + (of * SHARE + t) * PITCH + row, part[s]);
        }
        add_as_tree(part);
        if (token < a.tokens && row0 + row < a.n_rows)
            store<4>(a.out + (size_t)token * a.n_rows + row0 + row, part[0]);
    }
    cluster_arrive();
    cluster_wait(); // the copies to peers have read this block's sums
#endif
}

// ---- host side

// Deals rows of `cols` numbers to a ring in `shared` bytes of a block's.
template <class SHAPE> void xproj_deal(int cols, int shared, xproj_args *a) {
    const int room = shared - XPROJ_BARRIERS;
    a->pieces = ceil_div(cols, XPROJ_PIECE);
    const int most = ceil_div(a->pieces, XPROJ_PARTS / SHAPE::PARTS);
    a->stages = room / SHAPE::STAGE < XPROJ_MOST_STAGES ? room / SHAPE::STAGE : XPROJ_MOST_STAGES;
    a->stages = a->stages < most ? a->stages : most;
    a->ring_bytes = room / 16 * 16;
}

} // namespace ssm

#endif
