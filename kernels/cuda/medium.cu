// SPDX-License-Identifier: Apache-2.0
// Products for 9 to 16 rows of large models on Hopper: a step is still the time to read the weights
// once, on the warp groups' matrix instruction, with a cluster's shared memory for the sums.
//
// - A cluster of SPLITS blocks takes an even share of the weight rows, each of its blocks an even
//   part of the columns. So a block's part of the token rows stays in shared memory and crosses
//   from L2 once, and there are as many clusters as the card holds at once: one wave.
// - Three groups of four warps own MT tiles of up to 64 weight rows each and a ring of STAGES
// pieces
//   of 64 columns, filled by asynchronous copies two pieces ahead: 96 KB an SM under way. The first
//   pieces are asked for before the wait for the kernel before. Groups do not wait for each other.
// - Weights are the instruction's first operand (64 rows), token rows the second (16 columns); both
//   lie in shared memory in rows of 128 bytes, 16-byte parts swapped by row.
// - Blocks of a cluster hold partial sums of the same outputs. They go to shared memory, and each
//   block adds up an even share of the tokens over its peers, in order of rank: the same bits in
//   every run. Then convolution and SiLU, or the residual (skinny.cuh).
//
// Bytes: the weights once. Floor: weights / 4.4 TB/s. Read off one block by clock64, cycles,
// in_proj and out_proj of 2.8b at 16 rows: token rows 1,000 / 1,600, weights 20,000 (11.5 us: the
// floor) / 10,500, peers and sums 7,000 / 2,500. x_proj takes 10,500 for its 20 KB a block: two
// pieces ahead are too few where a piece is small.
//
// Ladder, 2.8b b16, ms a step: skinny.cu's 16 rows 4.20; this, predicted 2.7, 3.20.
// Tried and dropped: 32 and 64 rows the same way, 3.61 and 4.11 against cuBLASLt's 3.57 and 3.75
// (unrolled over 16 tokens 5.15: the code itself did not reach the SM in time; loads behind a
// branch, each waiting for the one before, 6.6); models under 8 M weights a projection, 130m b16
// 0.58 against 0.51.
#include "skinny.cuh"

namespace ssm {

enum {
    GROUPS = 3,
    MEDIUM_THREADS = GROUPS * 128,
    STAGES = 3,
    PIECE = 64,
    TILE_BYTES = 64 * 128,
    N = 16
};

struct medium_args {
    skinny_args s;
    int clusters, tile_rows; // tile_rows: of a group's tile, at most 64
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SSM_WGMMA 1
#else
#define SSM_WGMMA 0
#endif

#if SSM_WGMMA

__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
    // rows of 128 bytes in groups of 8 (1,024 bytes), 128-byte swizzle
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

// acc [64 x 16] += a [64 x 16] b [16 x 16]
__device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7])
                 : "l"(a), "l"(b));
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_finish() {
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// What this thread wrote to shared memory becomes visible to the matrix units after a barrier.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void copy_part(uint32_t to, const void *from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(live ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ uint32_t peer_address(uint32_t address, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// No "memory": loads of a batch are under way together; the cluster's barriers keep them in place.
__device__ __forceinline__ float peer_load(uint32_t address) {
    float v;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address));
    return v;
}

#endif

// A row's 16-byte part, swapped by row: what the 128-byte swizzle expects.
__device__ __forceinline__ uint32_t part_at(int row, int part) {
    return (uint32_t)(row * 128 + ((part ^ (row & 7)) << 4));
}

// MT: tiles a group; SPLITS: blocks a cluster.
template <int MT, int SPLITS, epilogue AFTER>
__global__ void __launch_bounds__(MEDIUM_THREADS, 1) medium_kernel(medium_args m) {
#if SSM_WGMMA
    constexpr int ROWS = GROUPS * MT * 64, PITCH = ROWS + 4, TOKENS = N / SPLITS;
    extern __shared__ __align__(1024) char shared[];
    __shared__ row rows[N];
    const skinny_args &a = m.s;
    dependents_start();
    if (threadIdx.x < N) {
        const bool there = AFTER == AFTER_IN && (int)threadIdx.x < a.batch;
        rows[threadIdx.x] = there ? a.rows[threadIdx.x] : row{-1, -1, 0, 0};
    }
    const int cluster = blockIdx.x / SPLITS, rank = blockIdx.x % SPLITS;
    const int group = threadIdx.x / 128, in_group = threadIdx.x % 128;
    const int r0 = (int)((int64_t)cluster * a.n_rows / m.clusters);
    const int n_rows = (int)((int64_t)(cluster + 1) * a.n_rows / m.clusters) - r0;
    const int pieces = a.n_cols / PIECE, first = pieces * rank / SPLITS;
    const int n = pieces * (rank + 1) / SPLITS - first;
    const uint32_t base = shared_address(shared);
    const uint32_t ring = base + group * (STAGES * MT * TILE_BYTES);
    const uint32_t x_at = base + GROUPS * STAGES * MT * TILE_BYTES;

    // Row i of the group's tiles: its weights, or NULL.
    auto fetch = [&](int piece) {
        if (piece < n) {
            const uint32_t stage = ring + piece % STAGES * (MT * TILE_BYTES);
#pragma unroll
            for (int i = 0; i < MT * 4; i++) {
                const int vector = i * 128 + in_group, row = vector / 8, part = vector % 8;
                const int tile = group * MT + row / 64, in_tile = row % 64;
                const int at = tile * m.tile_rows + in_tile;
                if (in_tile < m.tile_rows && at < n_rows)
                    copy_part(stage + row / 64 * TILE_BYTES + part_at(in_tile, part),
                              a.weight + (size_t)(r0 + at) * a.n_cols + (first + piece) * PIECE +
                                  part * 8,
                              true);
            }
        }
        commit();
    };
    fetch(0);
    fetch(1);
    dependency_wait();
    for (int i = threadIdx.x; i < n * N * 8; i += MEDIUM_THREADS) {
        const int piece = i / (N * 8), token = i / 8 % N, part = i % 8;
        const bool live = token < a.batch;
        copy_part(x_at + piece * (N * 128) + part_at(token, part),
                  (const bf16 *)a.x + (size_t)(live ? token : 0) * a.n_cols +
                      (first + piece) * PIECE + part * 8,
                  live);
    }
    commit();
    wait_copies<0>();
    fence_async();
    __syncthreads();

    float acc[MT][N / 2];
#pragma unroll
    for (int t = 0; t < MT; t++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            acc[t][i] = 0;
    }
    for (int piece = 0; piece < n; piece++) {
        if (piece > 0) {
            wait_copies<STAGES - 2>();
            fence_async();
            asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
        }
        fetch(piece + 2); // where the piece before this one was
        const uint64_t w = descriptor(ring + piece % STAGES * (MT * TILE_BYTES));
        const uint64_t x = descriptor(x_at + piece * (N * 128));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) { // 16 columns are 32 bytes
#pragma unroll
            for (int t = 0; t < MT; t++)
                wgmma(acc[t], w + t * (TILE_BYTES / 16) + k * 2, x + k * 2);
        }
        wgmma_finish();
    }
    wait_copies<0>();
    __syncthreads(); // nobody's tiles are needed any more

    float *sums = (float *)shared; // [token][PITCH]
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int t = 0; t < MT; t++) {
        float *at = sums + (group * MT + t) * 64 + (in_group >> 5) * 16 + g;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                at[(j * 8 + 2 * q + (i & 1)) * PITCH + (i >> 1) * 8] = acc[t][j * 4 + i];
        }
    }
    cluster_arrive();
    // This thread's output row for TOKENS tokens, and what follows their sums, asked for while the
    // peers arrive. Few instructions: straight code runs once and waits for itself to be read.
    const int i = threadIdx.x, row_at = r0 + i, c = row_at - a.conv_first, token0 = rank * TOKENS;
    const bool live = i < n_rows;
    const bool conv = AFTER == AFTER_IN && live && c >= 0 && c < a.channels;
    taps t = {};
    bf16 before[TOKENS][3];
    float residual[TOKENS];
    if (conv)
        load_weights(a, c, t);
#pragma unroll
    for (int j = 0; j < TOKENS; j++) {
        if constexpr (AFTER == AFTER_IN)
            load_before(a, conv ? rows[token0 + j] : row{-1, -1, 0, 0}, conv ? c : 0, before[j]);
        if constexpr (AFTER == AFTER_OUT) {
            const float *at = a.out + (size_t)(token0 + j) * a.n_rows + row_at;
            residual[j] = *(live && token0 + j < a.batch ? at : (const float *)&nothing);
        }
    }
    const float bias = live && a.bias ? a.bias[row_at] : 0.f;
    const uint32_t mine =
        base + (uint32_t)((i / m.tile_rows * 64 + i % m.tile_rows) * sizeof(float));
    cluster_wait();
    float v[TOKENS][SPLITS];
#pragma unroll
    for (int s = 0; s < SPLITS && live; s++) {
        const uint32_t there = peer_address(mine, s);
#pragma unroll
        for (int j = 0; j < TOKENS; j++)
            v[j][s] = peer_load(there + (uint32_t)((token0 + j) * PITCH * sizeof(float)));
    }
#pragma unroll
    for (int j = 0; j < TOKENS; j++) {
        const int token = token0 + j;
        if (!live || token >= a.batch)
            break;
        float sum = bias;
#pragma unroll
        for (int s = 0; s < SPLITS; s++)
            sum += v[j][s];
        const size_t at = (size_t)token * a.n_rows + row_at;
        if constexpr (AFTER == AFTER_IN) {
            if (!conv) {
                a.xz[at] = from_float<bf16>(sum);
            } else if (rows[token].slot >= 0) {
#pragma unroll
                for (int k = 0; k < 3; k++)
                    t.before[k] = to_float(before[j][k]);
                a.xc[(size_t)token * a.channels + c] =
                    from_float<bf16>(convolve(a, rows[token], c, sum, t));
            }
        } else {
            a.out[at] = AFTER == AFTER_OUT ? residual[j] + sum : sum;
        }
    }
    cluster_arrive();
    cluster_wait(); // a peer may still read this block's sums
#endif
}

// ---- host side

template <int MT> static size_t medium_bytes(int n_cols, int splits) {
    const size_t ring = (size_t)GROUPS * STAGES * MT * TILE_BYTES;
    const size_t x = (size_t)ceil_div(n_cols / PIECE, splits) * N * 128;
    const size_t sums = (size_t)N * (GROUPS * MT * 64 + 4) * sizeof(float);
    return ring + x > sums ? ring + x : sums;
}

template <int MT, int SPLITS, epilogue AFTER>
static cudaError_t run(const device *d, const skinny_args &a) {
    auto kernel = medium_kernel<MT, SPLITS, AFTER>;
    const size_t shared = medium_bytes<MT>(a.n_cols, SPLITS);
    cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {SPLITS, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(d->n_sms / SPLITS * SPLITS));
    config.blockDim = dim3(MEDIUM_THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = d->stream;
    config.attrs = attributes;
    config.numAttrs = 1;
    int most = 0;
    if (rc == cudaSuccess)
        rc = cudaOccupancyMaxActiveClusters(&most, kernel, &config);
    if (rc != cudaSuccess)
        return rc;
    if (most < 1)
        return cudaErrorInvalidConfiguration;
    medium_args m = {a, most, 0};
    if (m.clusters > ceil_div(a.n_rows, 16))
        m.clusters = ceil_div(a.n_rows, 16);
    if (a.n_rows > m.clusters * GROUPS * MT * 64)
        m.clusters = ceil_div(a.n_rows, GROUPS * MT * 64);
    m.tile_rows = ceil_div(ceil_div(a.n_rows, m.clusters), GROUPS * MT);
    config.gridDim = dim3((unsigned)(m.clusters * SPLITS));
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, m);
}

static cudaError_t run_any(const device *d, const skinny_args &a) {
    return a.after == AFTER_IN  ? run<2, 4, AFTER_IN>(d, a)
           : a.after == AFTER_X ? run<1, 8, AFTER_X>(d, a)
                                : run<1, 8, AFTER_OUT>(d, a);
}

bool medium_fits(const device *d, int32_t n) {
    const ssm_geometry &g = d->g;
    const size_t most = (size_t)226 << 10; // the rows take a part of the last KB
    return d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && n > 8 && n <= N &&
           (int64_t)d->n_in * g.d_model >= (int64_t)8 << 20 && g.d_model % (4 * PIECE) == 0 &&
           g.d_inner % (8 * PIECE) == 0 && g.d_conv <= 4 && medium_bytes<2>(g.d_model, 4) <= most &&
           medium_bytes<1>(g.d_inner, 8) <= most;
}

cudaError_t medium_in(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    const cudaError_t rc = norm(d, w.norm, d->residual, NULL, d->u, b.n, true);
    skinny_args a = skinny_arguments(d, b, w.in_proj, d->u, d->n_in, d->g.d_model, AFTER_IN);
    skinny_in_fill(d, layer, b, &a);
    return rc ? rc : run_any(d, a);
}

cudaError_t medium_x(device *d, int layer, const batch &b) {
    skinny_args a =
        skinny_arguments(d, b, d->layers[layer].x_proj, d->xc, d->n_x, d->g.d_inner, AFTER_X);
    a.out = d->xdb;
    return run_any(d, a);
}

cudaError_t medium_out(device *d, int layer, const batch &b) {
    const layer_weights &w = d->layers[layer];
    skinny_args a = skinny_arguments(d, b, w.out_proj, d->y, d->g.d_model, d->g.d_inner, AFTER_OUT);
    a.out = d->residual, a.bias = w.out_bias;
    return run_any(d, a);
}

} // namespace ssm
