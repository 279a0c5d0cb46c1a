// SPDX-License-Identifier: Apache-2.0
// x_proj in resident.cu: the cluster's share of its sums, a 64th of all of them added up, and how
// blocks hear of each other's.
#ifndef SSM_KERNELS_CUDA_RESIDENT_X_PROJ_CUH
#define SSM_KERNELS_CUDA_RESIDENT_X_PROJ_CUH

#include "resident_in.cuh"

namespace ssm {

#if SSM_HOPPER

__device__ __forceinline__ void mma_8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// The cluster's channels' share of x_proj's sums, of the rank's tokens.
template <int NW>
__device__ __forceinline__ void x_proj_parts(const resident_args &a, const resident_block<NW> &b,
                                             resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    enum { TILES = shape::N_X / 8, A_WARP = (TILES + 7) / 8, STEPS = NW / 16 };
    int slot[2];
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        slot[i] = next_slot(b, w);
    float c[A_WARP][2][4] = {};
    const bf16 *x = b.x() + w.lane % 16 * shape::PITCH + w.lane / 16 * 8;
    const char *rows[A_WARP];
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = min(w.warp + 8 * k, TILES - 1) * 8 + w.g;
        rows[k] = b.slot(n < X_PROJ_ROWS ? slot[0] : slot[shape::X_SLOTS - 1]) +
                  n % X_PROJ_ROWS * (NW * 2) + w.q * 4;
    }
#pragma unroll
    for (int s = 0; s < STEPS + NW % 16 / 8; s++) {
        uint32_t v[2][4];
        ldmatrix(v[0], x + s * 16);
        ldmatrix(v[1], x + 16 * shape::PITCH + s * 16);
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const uint32_t b0 = *(const uint32_t *)(rows[k] + s * 32);
            if (s == STEPS) { // eight channels are left
                mma_8(c[k][0], v[0][0], v[0][1], b0);
                mma_8(c[k][1], v[1][0], v[1][1], b0);
                continue;
            }
            const uint32_t b1 = *(const uint32_t *)(rows[k] + s * 32 + 16);
            mma(c[k][0], v[0][0], v[0][1], v[0][2], v[0][3], b0, b1);
            mma(c[k][1], v[1][0], v[1][1], v[1][2], v[1][3], b0, b1);
        }
    }
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < A_WARP; k++)
        bits |= __float_as_uint(c[k][0][0]) | __float_as_uint(c[k][1][0]);
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        give_back(b, w, slot[i], bits);
    char *staged = b.staged();
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = (w.warp + 8 * k) * 8 + 2 * w.q;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            if (n < shape::N_X)
                *(float2 *)(staged + (m * 8 + w.g) * (shape::N_X * 4) +
                            shape::swizzled(w.g, n / 4) * 16 + n % 4 * 4) =
                    make_float2(c[k][m / 2][m % 2 * 2], c[k][m / 2][m % 2 * 2 + 1]);
        }
    }
    fence_async();
    __syncwarp();
    if (w.lane == 0)
        barrier_arrive(b.told);
}

// Adds up a 64th of the rank's sums of x_proj, in order of cluster: a warp eight of them, then
// those of the warps.
template <int NW>
__device__ __forceinline__ void x_proj_sums(const resident_args &a, const resident_block<NW> &b,
                                            const resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    const int units = b.mine * shape::N_X / 4; // of four numbers
    const int unit = b.cluster * units / RESIDENT_CLUSTERS + w.lane;
    const bool live = unit < (b.cluster + 1) * units / RESIDENT_CLUSTERS;
    float4 *sums = b.sums();
    enum { UNITS = shape::N_X / 8 };
    barrier_wait(b.open, w.layer & 1);
    float4 v[8];
    const float *from = x_parts_of<NW>(a) + (live ? unit : 0) * 4 +
                        (size_t)(b.rank * RESIDENT_CLUSTERS + w.warp * 8) * HALF_ROWS * shape::N_X;
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = load_shared_sum(from + (size_t)i * HALF_ROWS * shape::N_X);
#pragma unroll
    for (int i = 1; i < 8; i++)
        add4(v[0], v[i]);
    if (w.lane < UNITS)
        sums[w.warp * UNITS + w.lane] = v[0];
    workers_sync();
    if (w.warp == 0) {
        float4 sum = sums[min(w.lane, UNITS - 1)];
#pragma unroll
        for (int i = 1; i < 8; i++)
            add4(sum, sums[i * UNITS + min(w.lane, UNITS - 1)]);
        const int r = unit / (shape::N_X / 4);
        const int n = shape::swizzled(r, unit % (shape::N_X / 4)) * 4;
        if (live && n < shape::RANK)
            *(uint2 *)(dt_of<NW>(a, b.rank) + r * shape::RANK + n) =
                make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
        else if (live)
            *(float4 *)(bc_of<NW>(a, b.rank) + r * 32 + n - shape::RANK) = sum;
        __syncwarp();
        if (w.lane == 0)
            barrier_arrive(b.told + 8);
    }
}

// One warp tells the other blocks what workers have made of x_proj, and these what it hears, while
// they go on with z.
template <int NW>
__device__ __forceinline__ void carry_sums(const resident_args &a, const resident_block<NW> &b) {
    typedef resident_shape<NW> shape;
    resident_counts &counts = a.scratch->counts;
    if (threadIdx.x % 32)
        return;
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        barrier_wait(b.told, i & 1);
        if (b.mine > 0) {
            store_run(x_parts_of<NW>(a) +
                          (size_t)(b.rank * RESIDENT_CLUSTERS + b.cluster) * HALF_ROWS * shape::N_X,
                      shared_address(b.staged()), (uint32_t)(b.mine * shape::N_X * 4));
            stores_commit();
            stores_done();
        }
        count_up(&counts.parts[b.rank]);
        b.ask_up_to(NO_LIMIT);
        count_wait(&counts.parts[b.rank], RESIDENT_CLUSTERS * (i + 1));
        barrier_arrive(b.open);
        barrier_wait(b.told + 8, i & 1);
        count_up(&counts.sums[b.rank]);
        count_wait(&counts.sums[b.rank], RESIDENT_CLUSTERS * (i + 1));
        barrier_arrive(b.open + 8);
    }
}

#endif

} // namespace ssm

#endif
