// SPDX-License-Identifier: Apache-2.0
// The kernel of wide.cuh: a warp that asks, two groups of four that multiply.
#ifndef SSM_KERNELS_CUDA_WIDE_KERNEL_CUH
#define SSM_KERNELS_CUDA_WIDE_KERNEL_CUH

#include "clusters.cuh"
#include "medium.cuh"
#include "wide_sums.cuh"

namespace ssm {

#if SSM_HOPPER

// Piece p of a tile's weight rows, by one lane: one box, or two where they lie in two places.
template <class SHAPE>
__device__ __forceinline__ void wide_weights(const CUtensorMap *map, const wide_args &a,
                                             const wide_tile &t, int p, uint32_t at,
                                             uint32_t full) {
    const int row = a.half > 0 ? t.col0 / 2 : t.col0;
    copy_box(at, map, p * WIDE_PIECE, row, full);
    if (a.half > 0)
        copy_box(at + SHAPE::W_BYTES / 2, map, p * WIDE_PIECE, row + a.half, full);
}

// The asking warp's first lane, at the block's start.
__device__ __forceinline__ place_ticket wide_ticket(const wide_args &a, int rank) {
    place_ticket t = {};
    if (a.places.tickets && rank == 0 && threadIdx.x == WIDE_WARPS * 32)
        t.take(a.places);
    return t;
}
// The asking warp: its cluster's place. With tickets it has met the cluster, too.
template <class SHAPE>
__device__ __forceinline__ int wide_place(const wide_args &a, uint32_t told, place_ticket ticket,
                                          int rank, int lane) {
    if (a.places.tickets) {
        if (SHAPE::CLUSTER > 1)
            cluster_wait(); // the peers' barriers are there
        if (rank == 0 && lane == 0)
            tell_place<SHAPE::CLUSTER>(told, ticket.place(a.places));
        __syncwarp();
    }
    return hear_place<SHAPE::CLUSTER>(a.places, told);
}
// One warp of the launch, behind the wait for the kernel before.
__device__ __forceinline__ void wide_wipe(const wide_args &a, int lane) {
    if (blockIdx.x == 0 && a.places.wiped && lane < (int)(sizeof(place_tickets) / sizeof(uint4)))
        a.places.wiped[lane] = make_uint4(0, 0, 0, 0);
}

// What a token's sums are multiplied by; four lanes add up what wide_out.cu left of its squares.
template <class ARGS> __device__ __forceinline__ float wide_scale(const ARGS &a, int token, int q) {
    if (!a.squares)
        return 1;
    const float *part = a.squares + (size_t)min(token, a.tokens - 1) * a.n_squares;
    float sum = 0;
#pragma unroll 4
    for (int k = q; k < a.n_squares; k += 4)
        sum += part[k];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return rsqrtf(sum * a.per_width + a.eps);
}

// One warp: a tile's pieces from p on, each as its slot of the ring becomes free.
template <class RING, class TILE, class WEIGHTS, class INPUTS>
__device__ __forceinline__ void wide_ask(RING &ring, int &p, int n, const TILE &t,
                                         const WEIGHTS &weights, const INPUTS &inputs) {
#pragma unroll 1
    for (; p < n; p++, ring.next()) {
        barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
        if (ring.lane == 0) {
            weights(t, p, ring.stage);
            inputs(t, p, ring.stage);
        }
        __syncwarp();
    }
}

// One warp: the launch's first pieces of its first tile. Weights depend on nothing; inputs wait for
// the kernel before and, by peers(), for what they need of the cluster's other blocks.
template <class RING, class TILE, class WEIGHTS, class INPUTS, class PEERS>
__device__ __forceinline__ void wide_ask_first(const RING &ring, int n, const CUtensorMap *x_map,
                                               const TILE &t, const WEIGHTS &weights,
                                               const INPUTS &inputs, const PEERS &peers) {
    if (ring.lane == 0) {
        map_prefetch(x_map);
        for (int p = 0; p < n; p++)
            weights(t, p, p);
    }
    __syncwarp();
    peers();
    dependency_wait();
    if (ring.lane == 0) {
        for (int p = 0; p < n; p++)
            inputs(t, p, p);
    }
    __syncwarp();
}

// One warp: everything that comes into shared memory.
template <class SHAPE, class END, int STAGES>
__device__ __forceinline__ void
wide_produce(const CUtensorMap *x_map, const CUtensorMap *w_map, const wide_args &a,
             const typename END::args &e, wide_ring<STAGES, SHAPE::STAGE_BYTES, SHAPE::SHARE> ring,
             int rank, uint32_t told, place_ticket ticket) {
    constexpr int PART = SHAPE::TOKENS / SHAPE::SHARE; // of x, each block's for all
    const int share = rank % SHAPE::SHARE, split = rank / SHAPE::SHARE;
    const int first = a.pieces * split / SHAPE::SPLITS;
    const int n = a.pieces * (split + 1) / SHAPE::SPLITS - first;
    const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
    const uint32_t blocks = ((1u << SHAPE::SHARE) - 1) << (split * SHAPE::SHARE);
    const auto weights = [&](const wide_tile &t, int p, int s) {
        const uint32_t at = ring.slots + s * SHAPE::STAGE_BYTES + SHAPE::X_BYTES;
        barrier_expect(ring.full + s * 8, SHAPE::STAGE_BYTES);
        wide_weights<SHAPE>(w_map, a, t, first + p, at, ring.full + s * 8);
    };
    const auto inputs = [&](const wide_tile &t, int p, int s) {
        const uint32_t at = ring.slots + s * SHAPE::STAGE_BYTES + share * PART * 128;
        if constexpr (SHAPE::SHARE == 1)
            copy_box(at, x_map, (first + p) * WIDE_PIECE, t.token0, ring.full + s * 8);
        else
            copy_box_to(blocks, at, x_map, (first + p) * WIDE_PIECE, t.token0 + share * PART,
                        ring.full + s * 8);
    };
    int i = wide_place<SHAPE>(a, told, ticket, rank, ring.lane);
    const int ahead = i < tiles ? min(n, STAGES) : 0;
    wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
    wide_ask_first(ring, ahead, x_map, t, weights, inputs, [&] {
        if (SHAPE::CLUSTER > 1 && !a.places.tickets)
            cluster_wait(); // the peers' barriers are there
    });
    if (i < tiles)
        END::ahead(e, t);
    ring.stage = ahead % STAGES, ring.phase = ahead / STAGES;
    for (int p = ahead; i < tiles;) {
        wide_ask(ring, p, n, t, weights, inputs);
#pragma unroll 1
        for (int k = 0; k < END::STAGES; k++, ring.next()) {
            barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
            END::fetch(e, t, k, ring.slots + ring.stage * SHAPE::STAGE_BYTES,
                       ring.full + ring.stage * 8);
            __syncwarp();
        }
        i += step;
        if (i >= tiles)
            break;
        t = wide_tile_at<SHAPE>(a, i, rank), p = 0;
        END::ahead(e, t);
    }
    dependents_start();
    if (SHAPE::SPLITS > 1) { // as the groups do
        cluster_arrive();
        cluster_wait();
    }
    if (SHAPE::SHARE > 1) { // what peers tell this block has come before it ends
        for (int k = 0; k < STAGES; k++, ring.next())
            barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
    }
}

// The oldest of `late` stages that stores may still read.
template <int LATE, class RING>
__device__ __forceinline__ void wide_give_late(RING &ring, int late) {
    static_assert(LATE <= 2, "one wait each");
    if (ring.lane == 0) {
        if (late == 2)
            stores_read<1>();
        else
            stores_read<0>();
    }
    __syncwarp();
    ring.give();
}

// The sums of n stages. x: bytes of a stage before the group's tokens; beside(p): what a warp does
// while stage p is multiplied.
template <class SHAPE, class RING, class F>
__device__ __forceinline__ void wide_multiply(RING &ring, int n, int x,
                                              float (&acc)[SHAPE::MT][SHAPE::COLS / 2], F beside) {
    constexpr int MT = SHAPE::MT, N = SHAPE::COLS;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int k = 0; k < N / 2; k++)
            acc[m][k] = 0;
    }
#pragma unroll 1
    for (int p = 0; p < n; p++) {
        const uint32_t at = ring.take();
        const uint64_t of_x = tile_at(at + x), of_w = tile_at(at + SHAPE::X_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < WIDE_PIECE / 16; k++) { // 16 columns are 32 bytes
#pragma unroll
            for (int m = 0; m < MT; m++)
                wgmma(acc[m], of_x + m * (64 * 128 / 16) + k * 2, of_w + k * 2);
        }
        wgmma_commit();
        beside(p);
        wgmma_wait<1>();
        if (p > 0)
            ring.give();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < MT; m++)
        wgmma_touch(acc[m]);
    ring.give();
}

// A group of four warps.
template <class SHAPE, class END, int STAGES>
__device__ __forceinline__ void
wide_consume(const wide_args &a, const typename END::args &e,
             wide_ring<STAGES, SHAPE::STAGE_BYTES, SHAPE::SHARE> ring, int rank, uint32_t arrived,
             uint32_t told) {
    constexpr int MT = SHAPE::MT, N = SHAPE::COLS;
    const int split = rank / SHAPE::SHARE, group = ring.warp / 4;
    const int n = a.pieces * (split + 1) / SHAPE::SPLITS - a.pieces * split / SHAPE::SPLITS;
    const int tiles = a.row_tiles * a.col_tiles, step = gridDim.x / SHAPE::CLUSTER;
    if (SHAPE::CLUSTER > 1)
        cluster_wait();
    if (SHAPE::SHARE > 1) // lane i tells block i of those that share x
        ring.empty = peer_address(ring.empty, split * SHAPE::SHARE + ring.lane % SHAPE::SHARE);
    const int place = hear_place<SHAPE::CLUSTER>(a.places, told);
    dependency_wait();
    if (SHAPE::SPLITS > 1 && place >= tiles) { // as the others do
        cluster_arrive();
        cluster_wait();
    }
    int late = 0;
#pragma unroll 1
    for (int i = place; i < tiles; i += step) {
        wide_tile t = wide_tile_at<SHAPE>(a, i, rank);
        float acc[MT][N / 2];
        wide_multiply<SHAPE>(ring, n, group * MT * 64 * 128, acc, [&](int) {
            if (END::LATE > 0 && late > 0)
                wide_give_late<END::LATE>(ring, late--);
        });
        t.token0 += group * MT * 64;
        if constexpr (SHAPE::SPLITS == 1) {
            END::apply(e, t, ring, acc);
        } else {
            cluster_arrive(); // nobody reads a stage any more
            cluster_wait();
            float kept[SHAPE::M][SHAPE::N / 2];
            wide_add_up<SHAPE, STAGES>(
                (const float(&)[SHAPE::SUMS])acc, (float(&)[SHAPE::KEPT])kept, ring.slots,
                ring.stage + END::STAGES, arrived, split, rank % SHAPE::SHARE);
            const int from = split * SHAPE::KEPT;
            t.token0 += from / (N / 2) * 64, t.col0 += from % (N / 2) * 2;
            END::apply(e, t, ring, kept);
        }
        late = END::LATE;
    }
    for (; END::LATE > 0 && late > 0; late--)
        wide_give_late<END::LATE>(ring, late);
}

#endif

template <class SHAPE, class END>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_kernel(const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ CUtensorMap w_map, const __grid_constant__ wide_args a,
                const __grid_constant__ typename END::args e) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    constexpr int STAGES = SHAPE::STAGES, BARRIERS = STAGES * SHAPE::STAGE_BYTES;
    const int warp = threadIdx.x / 32, rank = blockIdx.x % SHAPE::CLUSTER;
    wide_ring<STAGES, SHAPE::STAGE_BYTES, SHAPE::SHARE> ring;
    ring.slots = shared_address(shared);
    ring.full = ring.slots + BARRIERS, ring.empty = ring.full + WIDE_MOST_STAGES * 8;
    const uint32_t arrived = ring.empty + WIDE_MOST_STAGES * 8, told = arrived + WIDE_WARPS * 8;
    ring.stage = ring.phase = ring.oldest = 0, ring.warp = warp, ring.lane = threadIdx.x % 32;
    const place_ticket ticket = wide_ticket(a, rank);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full + i * 8, 1);
            barrier_init(ring.empty + i * 8, WIDE_WARPS * SHAPE::SHARE);
        }
        for (int i = 0; i < WIDE_WARPS; i++)
            barrier_init(arrived + i * 8, 1);
        place_begin(told);
    }
    __syncthreads();
    if (SHAPE::CLUSTER > 1)
        cluster_arrive();
    if (warp < WIDE_WARPS) {
        more_registers<232>();
        wide_consume<SHAPE, END, STAGES>(a, e, ring, rank, arrived, told);
    } else {
        fewer_registers<40>();
        if (warp == WIDE_WARPS) {
            wide_produce<SHAPE, END, STAGES>(&x_map, &w_map, a, e, ring, rank, told, ticket);
        } else {
            if (SHAPE::CLUSTER > 1)
                cluster_wait();
            if (SHAPE::SPLITS > 1) { // as the groups do
                cluster_arrive();
                cluster_wait();
            }
            if (warp == WIDE_WARPS + 1) {
                dependency_wait();
                wide_wipe(a, ring.lane);
            }
            if constexpr (SHAPE::SCRATCH > 0) {
                if (warp >= WIDE_WARPS + 4 - SHAPE::BESIDE)
                    END::beside(e, a, rank, hear_place<SHAPE::CLUSTER>(a.places, told));
            }
        }
    }
    if (SHAPE::SPLITS > 1) { // peers have what they copy from here
        cluster_arrive();
        cluster_wait();
    }
#endif
}

// A product's tiles, by block number.
template <class SHAPE> wide_args wide_deal(int n, int cols, int k, int half) {
    wide_args a = {};
    a.tokens = n, a.cols = cols, a.pieces = ceil_div(k, WIDE_PIECE);
    a.row_tiles = ceil_div(n, SHAPE::TOKENS);
    a.col_tiles = ceil_div(cols, SHAPE::COLS * SHAPE::SHARE);
    a.band = a.row_tiles < 16 ? a.row_tiles : 16;
    a.half = half;
    return a;
}

// kernel: of SHAPE and an END with arguments e; w [cols][k], x [n][k]; set: of its tickets, or
// NULL.
template <class SHAPE, class K, class ARGS>
cudaError_t wide_launch(const device *d, K kernel, const void *w, const void *x, int n, int cols,
                        int k, const ARGS &e, const place_set *set = NULL, int half = 0) {
    wide_args a = wide_deal<SHAPE>(n, cols, k, half);
    const int box = half > 0 ? SHAPE::COLS / 2 : SHAPE::COLS;
    CUtensorMap w_map, x_map;
    if (!tensor_map(&w_map, w, k, cols, WIDE_PIECE, box, true) ||
        !tensor_map(&x_map, x, k, n, WIDE_PIECE, SHAPE::TOKENS / SHAPE::SHARE, true))
        return cudaErrorNotSupported;
    const int tiles = a.row_tiles * a.col_tiles, most = d->n_sms / SHAPE::CLUSTER;
    int clusters = SHAPE::SPLITS > 1 || tiles < most ? tiles : most;
    if (wide_places_for(d, tiles, SHAPE::CLUSTER, SHAPE::SPLITS > 1, set, &a.places))
        clusters = most;
    cluster_launch launch(d, dim3((unsigned)(clusters * SHAPE::CLUSTER)), WIDE_THREADS,
                          SHAPE::BYTES, SHAPE::CLUSTER, BESIDE_PREDECESSOR);
    return launch.run(kernel, x_map, w_map, a, e);
}

} // namespace ssm

#endif
