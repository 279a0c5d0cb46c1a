// SPDX-License-Identifier: Apache-2.0
// The kernel of few.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_FEW_KERNEL_CUH
#define SSM_KERNELS_CUDA_FEW_KERNEL_CUH

#include "few_end.cuh"

namespace ssm {

// STREAM: token rows cross from L2 to registers part by part, each once, and all of the block's
// rows (at most 8 * STREAM) are summed side by side; otherwise they lie in shared memory.
template <int NB, few_kind KIND, int STREAM>
__global__ void __launch_bounds__(STREAM ? 768 : 512, STREAM ? 1 : 2) few_kernel(few_args a) {
#if SSM_BULK
    typedef slot_shape<NB> shape;
    extern __shared__ __align__(128) char shared[];
    // No more than is used: in_proj's, the advance's and out_proj's blocks fill an SM to the byte.
    constexpr int SLOTS = KIND == FEW_HEAD ? MAX_SLOTS : BESIDE_SLOTS;
    __shared__ uint64_t full[SLOTS], empty[SLOTS];
    __shared__ float scale[FEW_ROWS];
    dependents_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int units = (a.n_rows + a.unit - 1) / a.unit;
    const int first = (int)((int64_t)blockIdx.x * units / gridDim.x) * a.unit;
    const int end = (int)((int64_t)(blockIdx.x + 1) * units / gridDim.x) * a.unit;
    const int n = min(end, a.n_rows) - first;
    row_runs runs;
    runs.first[0] = first, runs.first[1] = a.second + first;
    runs.count[0] = n, runs.count[1] = KIND == FEW_IN_X ? n : 0;

    block_ring<NB, STREAM != 0> ring;
    ring.slots = shared, ring.full = full, ring.empty = empty;
    ring.n_slots = a.n_slots, ring.at = ring.phase = 0;
    if (threadIdx.x == RING_THREADS - 32)
        ring.init();
    __syncthreads();
    if (warp == RING_WARPS + END_WARPS) {
        ask_for_last(a);
        ring.produce(runs, a.weight, a.flight);
        return;
    }
    constexpr int K = NB * 32 * RING_WARPS, X_PITCH = (NB | 1) * 64;
    char *rows_at = shared + (size_t)a.n_slots * shape::BYTES;
    const few_shared s = carve(a, rows_at + (STREAM ? 0 : RING_WARPS * a.batch * X_PITCH));
    if (warp >= RING_WARPS) {
        end_warps<KIND>(a, s, scale, runs, K);
        return;
    }

    dependency_wait();
    // Lanes of tokens that are not there do as token 0's: nobody reads their sums.
    const int token = g < a.batch ? g : 0;
    float *mine = s.sums + (warp * a.batch + g) * CHUNK + 2 * q;
    if constexpr (STREAM) {
        const bf16 *from = a.x + (size_t)token * K + warp * shape::CB * 32 + q * 8;
        uint4 x[2][shape::CB];
        float c[STREAM][4] = {};
#pragma unroll
        for (int k = 0; k < shape::CB; k++)
            x[0][k] = __ldcg((const uint4 *)(from + k * 32));
#pragma unroll
        for (int part = 0; part < shape::PARTS; part++) {
            if (part + 1 < shape::PARTS) {
#pragma unroll
                for (int k = 0; k < shape::CB; k++)
                    x[(part + 1) & 1][k] =
                        __ldcg((const uint4 *)(from + (part + 1) * shape::COLS + k * 32));
            }
#pragma unroll
            for (int r = 0; r < STREAM; r++) {
                if (r * 8 < n)
                    ring.multiply(c[r], c[r], [&](int k) { return x[part & 1][k]; });
            }
        }
#pragma unroll
        for (int r = 0; r < STREAM; r++) {
            if (r * 8 < n && g < a.batch)
                *(float2 *)(mine + r * 8) = make_float2(c[r][0], c[r][1]);
        }
        named_arrive(FULL_BARRIER, RING_CONSUMERS + END_THREADS);
        return;
    }

    char *mine_x = rows_at + warp * a.batch * X_PITCH;
#pragma unroll 1
    for (int t = 0; t < a.batch; t++) {
#pragma unroll
        for (int i = 0; i < (NB * 4 + 31) / 32; i++) {
            const int at = i * 32 + lane, k = at >> 2; // a sixteen-byte part of the k-th 32 columns
            const int column = k / shape::CB * shape::COLS +
                               (warp * shape::CB + k % shape::CB) * 32 + (at & 3) * 8;
            if (at < NB * 4)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                                 shared_address(mine_x + t * X_PITCH + at * 16)),
                             "l"(a.x + (size_t)t * K + column)
                             : "memory");
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
    const char *x = mine_x + token * X_PITCH + q * 16;
    int chunk = 0;
#pragma unroll 1
    for (int run = 0; run < (KIND == FEW_IN_X ? 2 : 1); run++) {
#pragma unroll 1
        for (int done = 0; done < n; done += CHUNK, chunk++) {
            const int rows = min((int)CHUNK, n - done), buffer = chunk & 1;
            if (chunk >= 2)
                named_sync(FREE_BARRIER + buffer, RING_CONSUMERS + END_THREADS);
            float *to = mine + buffer * RING_WARPS * a.batch * CHUNK;
#pragma unroll 1
            for (int r = 0; r < rows; r += 8) {
                const float2 c =
                    ring.group_sums([&](int k) { return *(const uint4 *)(x + k * 64); });
                if (g < a.batch)
                    *(float2 *)(to + r) = c;
            }
            named_arrive(FULL_BARRIER + buffer, RING_CONSUMERS + END_THREADS);
        }
    }
#endif
}

} // namespace ssm

#endif
