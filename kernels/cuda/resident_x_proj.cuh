// SPDX-License-Identifier: Apache-2.0
// x_proj in resident.cu: the cluster's share of its sums, a 64th of all of them added up, and how
// blocks hear of each other's.
#ifndef SSM_KERNELS_CUDA_RESIDENT_X_PROJ_CUH
#define SSM_KERNELS_CUDA_RESIDENT_X_PROJ_CUH

#include <type_traits>

#include "resident_exchanges.cuh"

namespace ssm {

#if SSM_HOPPER

__device__ __forceinline__ void mma_8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// The cluster's channels' share of x_proj's sums, of the rank's tokens.
template <class SHAPE>
__device__ __forceinline__ void x_proj_parts(const resident_args &a, const resident_block<SHAPE> &b,
                                             resident_worker<SHAPE> &w) {
    typedef SHAPE shape;
    enum { TILES = shape::N_X / 8, A_WARP = (TILES + 7) / 8, STEPS = SHAPE::NW / 16 };
    enum { SIXTEENS = shape::OWN_ROWS / 16 }; // of tokens
    int slot[shape::X_SLOTS];
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        slot[i] = next_slot(b, w);
    float c[A_WARP][SIXTEENS][4] = {};
    const bf16 *x = b.x() + w.lane % 16 * shape::PITCH + w.lane / 16 * 8;
    const char *rows[A_WARP];
    const int g = made_anew<SHAPE>(w.g);
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = min(w.warp + 8 * k, TILES - 1) * 8 + g;
        int at = slot[0];
#pragma unroll
        for (int i = 1; i < shape::X_SLOTS; i++)
            at = n < i * shape::X_PROJ_ROWS ? at : slot[i];
        rows[k] =
            b.slot(at) + n % shape::X_PROJ_ROWS * (shape::WIDE ? 128 : SHAPE::NW * 2) + w.q * 4;
    }
    auto two = [&](int k, int unit) { // of 16 bytes
        if (!shape::WIDE)
            return *(const uint32_t *)(rows[k] + unit * 16);
        return *(const uint32_t *)(rows[k] + unit / 8 * (shape::X_PROJ_ROWS * 128) +
                                   (unit % 8 ^ w.g) * 16);
    };
#pragma unroll
    for (int s = 0; s < STEPS + SHAPE::NW % 16 / 8; s++) {
        uint32_t v[SIXTEENS][4];
#pragma unroll
        for (int m = 0; m < SIXTEENS; m++)
            ldmatrix(v[m], x + m * 16 * shape::PITCH + s * 16);
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const uint32_t b0 = two(k, s * 2);
            if (s == STEPS) { // eight channels are left
#pragma unroll
                for (int m = 0; m < SIXTEENS; m++)
                    mma_8(c[k][m], v[m][0], v[m][1], b0);
                continue;
            }
            const uint32_t b1 = two(k, s * 2 + 1);
#pragma unroll
            for (int m = 0; m < SIXTEENS; m++)
                mma(c[k][m], v[m][0], v[m][1], v[m][2], v[m][3], b0, b1);
        }
    }
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
#pragma unroll
        for (int m = 0; m < SIXTEENS; m++)
            bits |= __float_as_uint(c[k][m][0]);
    }
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        give_back(b, w, slot[i], bits);
    if constexpr (shape::EXCHANGED)
        return add_x_shares(a, b, w, c);
    char *staged = b.staged();
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = (w.warp + 8 * k) * 8 + 2 * w.q;
#pragma unroll
        for (int m = 0; m < 2 * SIXTEENS; m++) {
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

// One warp tells the other blocks what workers have made of x_proj, asks for the constants of the
// states, adds up a 64th of the rank's sums of x_proj, and tells the workers when all are there,
// while they go on with z.
template <class SHAPE>
__device__ __forceinline__ void carry_sums(const resident_args &a, const resident_block<SHAPE> &b) {
    typedef SHAPE shape;
    enum { ROW = shape::N_X / 4, UNITS = ROW * shape::HALF_ROWS / 64 }; // of a token; of a 64th
    enum { MORE = UNITS > 32 ? 32 : 0 };            // few lanes have a second unit
    enum { PITCH = shape::HALF_ROWS * shape::N_X }; // of a cluster's share
    resident_scratch<SHAPE> &counts = scratch_of<SHAPE>(a);
    const int lane = threadIdx.x % 32, units = b.mine * ROW; // of four numbers
    const int first = b.cluster * units / RESIDENT_CLUSTERS;
    const int mine = (b.cluster + 1) * units / RESIDENT_CLUSTERS - first;
    float *parts = x_parts_of<SHAPE>(a) + b.rank * RESIDENT_CLUSTERS * PITCH;
    const float *from = parts + (first + min(lane, max(mine - 1, 0))) * 4;
    char *place = b.staged() + min(lane, UNITS - 1) * 16;
    const int r = (first + lane) / ROW, n = shape::swizzled(r, (first + lane) % ROW) * 4;
    [[maybe_unused]] const float *from_more =
        parts + (first + min(lane + MORE, max(mine - 1, 0))) * 4;
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        barrier_wait(b.told, i & 1);
        if (one_lane()) {
            if (b.mine > 0) {
                store_run(parts + b.cluster * PITCH, shared_address(b.staged()),
                          (uint32_t)(b.mine * shape::N_X * 4));
                stores_commit();
                stores_done();
            }
            count_up(&counts.parts[b.rank]);
            b.ask_up_to(NO_LIMIT);
            ask_constants(a, b, i);
            count_wait(&counts.parts[b.rank], RESIDENT_CLUSTERS * (i + 1));
        }
        __syncwarp();
        // All clusters' to where the own share was, and in order of cluster, by eights, added up.
#pragma unroll
        for (int c = 0; c < RESIDENT_CLUSTERS; c += 8) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                if (lane < UNITS)
                    copy_async(place + (c + k) * UNITS * 16, from + (size_t)(c + k) * PITCH, true);
            }
            copies_commit();
        }
        if constexpr (MORE > 0) {
#pragma unroll
            for (int c = 0; c < RESIDENT_CLUSTERS; c += 8) {
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    if (lane + 32 < UNITS)
                        copy_async(place + 512 + (c + k) * UNITS * 16,
                                   from_more + (size_t)(c + k) * PITCH, true);
                }
                copies_commit();
            }
        }
        float4 sum;
        int past = 0; // of a lane's first unit
        auto add = [&](int c) {
            float4 v[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = *(const float4 *)(place + past + (c + k) * UNITS * 16);
#pragma unroll
            for (int k = 1; k < 8; k++)
                add4(v[0], v[k]);
            if (c == 0)
                sum = v[0];
            else
                add4(sum, v[0]);
        };
        auto add_all = [&](auto behind) { // so many eights of copies
            constexpr int N = decltype(behind)::value;
            copies_wait<N + 7>(), add(0);
            copies_wait<N + 6>(), add(8);
            copies_wait<N + 5>(), add(16);
            copies_wait<N + 4>(), add(24);
            copies_wait<N + 3>(), add(32);
            copies_wait<N + 2>(), add(40);
            copies_wait<N + 1>(), add(48);
            copies_wait<N>(), add(56);
        };
        auto give = [&](int r, int n, bool there) {
            uint64_t before = 0;
            if (there && n < shape::RANK) {
                before = exchange(dt_of<SHAPE>(a, b.rank) + r * shape::RANK + n,
                                  pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
            } else if (there) {
                float *to = bc_of<SHAPE>(a, b.rank) + r * 32 + n - shape::RANK;
                before = exchange(to, __float_as_uint(sum.x), __float_as_uint(sum.y)) |
                         exchange(to + 2, __float_as_uint(sum.z), __float_as_uint(sum.w));
            }
            return before;
        };
        add_all(std::integral_constant<int, MORE / 4>());
        uint64_t before = give(r, n, lane < mine);
        if constexpr (MORE > 0) {
            const int at = first + min(lane + 32, UNITS - 1);
            past = lane + 32 < UNITS ? 512 : 0;
            add_all(std::integral_constant<int, 0>());
            before |= give(at / ROW, shape::swizzled(at / ROW, at % ROW) * 4, lane + 32 < mine);
        }
        const bool back = exchanged(before);
        if (one_lane()) {
            count_exchanged(&counts.sums[b.rank], back);
            count_wait(&counts.sums[b.rank], RESIDENT_CLUSTERS * (i + 1));
            barrier_arrive(b.open);
        }
        __syncwarp();
    }
}

#endif

} // namespace ssm

#endif
