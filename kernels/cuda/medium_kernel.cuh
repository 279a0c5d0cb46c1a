// SPDX-License-Identifier: Apache-2.0
// The kernel of medium.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_MEDIUM_KERNEL_CUH
#define SSM_KERNELS_CUDA_MEDIUM_KERNEL_CUH

#include "medium.cuh"

namespace ssm {

#if SSM_HOPPER

// The sums of a group's 64 tokens and NW rows to shared memory.
template <int NW>
__device__ __forceinline__ void put_sums(const medium_args &a, const medium_shared &s,
                                         const float (&acc)[NW / 2], int count, int column) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, pitch = sums_pitch(a.tile_rows);
    const int t = threadIdx.x % 128 / 32 * 16 + g;
    float *at = s.sums + t * pitch + column + 2 * q;
#pragma unroll
    for (int i = 0; i < NW / 8; i++) {
        if (i * 8 < a.box_rows && t < count)
            *(float2 *)(at + i * 8) = make_float2(acc[4 * i], acc[4 * i + 1]);
        if (i * 8 < a.box_rows && t + 8 < count)
            *(float2 *)(at + 8 * pitch + i * 8) = make_float2(acc[4 * i + 2], acc[4 * i + 3]);
    }
}

// A token's scale, from its partial sums of squares: a warp a token, all loads in one trip.
template <int SPLITS>
__device__ __forceinline__ void sum_squares(const medium_args &a, const medium_shared &s, int from,
                                            int tokens) {
    constexpr int WARPS = MEDIUM_THREADS / 32, EACH = MOST_TOKENS / SPLITS / WARPS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    float sum[EACH] = {};
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const float *part = a.squares + (size_t)(from + warp + k * WARPS) * a.n_squares;
        if (warp + k * WARPS < tokens) {
#pragma unroll 4
            for (int i = lane; i < a.n_squares; i += 32)
                sum[k] += part[i];
        }
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const float all = warp_sum(sum[k]);
        if (lane == 0 && warp + k * WARPS < tokens)
            s.scale[warp + k * WARPS] = rsqrtf(all * a.per_width + a.eps);
    }
}

#endif

// NW: weight rows of a group's instruction; SPLITS: blocks of a cluster.
template <int NW, int SPLITS, medium_after AFTER>
__global__ void __launch_bounds__(MEDIUM_THREADS, 2)
    medium_kernel(const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ medium_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    if (AFTER != MEDIUM_SUMS)
        dependents_start();
    const int warp = threadIdx.x / 32, rank = blockIdx.x % SPLITS, tile = blockIdx.x / SPLITS;
    const int first = a.pieces * rank / SPLITS, n = a.pieces * (rank + 1) / SPLITS - first;
    const int token0 = blockIdx.y * a.box_tokens, count = min(a.box_tokens, a.tokens - token0);
    const int tokens = count / SPLITS, from = token0 + tokens * rank; // this block finishes them
    const medium_shared s = carve_medium<SPLITS>(shared, a, tokens);
    const int x_bytes = a.box_tokens * PIECE_BYTES;
    const medium_fill fill = {&w_map,
                              &x_map,
                              s.ring,
                              s.full,
                              (uint32_t)a.stage_bytes,
                              (uint32_t)x_bytes,
                              policy_once(),
                              first,
                              tile * a.tile_pitch,
                              token0,
                              a.box_rows,
                              a.group_pitch,
                              a.stage_bytes};
    const int ahead = min(n, a.stages), pitch = sums_pitch(a.tile_rows);
    if (threadIdx.x == 0) {
        map_prefetch(&x_map);
        for (int i = 0; i < a.stages; i++) {
            barrier_init(s.full + i * 8, 1);
            barrier_init(s.empty + i * 8, MEDIUM_GROUPS);
        }
        barrier_init(s.arrived, 1);
        barriers_ready();
        barrier_expect(s.arrived, (uint32_t)((SPLITS - 1) * tokens * pitch * 4));
#pragma unroll 1
        for (int p = 0; p < ahead; p++)
            fill.weights(p, p);
    }
    if (AFTER == MEDIUM_IN && (int)threadIdx.x < tokens)
        s.rows[threadIdx.x] = a.rows[from + threadIdx.x];
    __syncthreads();
    const int a_token = a.tile_rows / 4, per_pass = MEDIUM_THREADS / a_token;
    const int column = threadIdx.x % a_token * 4, out_row = row_at(a, tile, column);
    const int c = out_row - a.conv_first;
    const bool conv = AFTER == MEDIUM_IN && out_row < a.n_rows && c >= 0 && c < a.channels;
    if (conv && threadIdx.x % 4 == 0) {
#pragma unroll 1
        for (int t = threadIdx.x / a_token; t < tokens; t += per_pass) {
            const row r = s.rows[t];
#pragma unroll 1
            for (int e = 0; e < a.width - 1 && r.slot >= 0; e++)
                prefetch_line(a.ring + ((size_t)r.slot * (a.width - 1) + e) * a.channels + c);
        }
    }
    dependency_wait();
    if (AFTER == MEDIUM_SUMS) // a successor that has started knows that in_proj is done
        dependents_start();
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int p = 0; p < ahead; p++)
            fill.inputs(p, p);
    }
    if (a.squares)
        sum_squares<SPLITS>(a, s, from, tokens);

    const int j = warp / 4; // group
    float acc[NW / 2];
#pragma unroll
    for (int i = 0; i < NW / 2; i++)
        acc[i] = 0;
#pragma unroll 1
    for (int p = 0, stage = 0, phase = 0; p < n; p++) {
        barrier_wait(s.full + stage * 8, phase);
        const uint32_t at = s.ring + stage * a.stage_bytes;
        const uint64_t x = tile_at(at), w = tile_at(at + x_bytes + j * a.box_rows * PIECE_BYTES);
        wgmma_piece(acc, x, w);
        wgmma_wait<1>();
        const int before = stage == 0 ? a.stages - 1 : stage - 1, later = p - 1 + a.stages;
        if (p > 0 && later < n && threadIdx.x % 128 == 0) { // the piece before is done with
            barrier_arrive(s.empty + before * 8);
            if (threadIdx.x == 0) {
                barrier_wait(s.empty + before * 8, stage == 0 ? phase ^ 1 : phase);
                fill.weights(later, before);
                fill.inputs(later, before);
            }
        }
        if (++stage == a.stages)
            stage = 0, phase ^= 1;
    }
    wgmma_wait<0>();
    wgmma_touch(acc);
    __syncthreads();
    cluster_arrive(); // this block's tiles are needed no more
    put_sums<NW>(a, s, acc, count, j * a.box_rows);
    fence_async();
    if constexpr (AFTER == MEDIUM_IN)
        fetch_history(a, s, tokens, tile);
    if constexpr (AFTER == MEDIUM_OUT) {
#pragma unroll 1
        for (int i = threadIdx.x; i < tokens * a_token; i += MEDIUM_THREADS) {
            const int t = i / a_token, r = i % a_token * 4, at = row_at(a, tile, r);
            const bool there = at < a.n_rows;
            copy_async(s.residual + t * a.tile_rows + r,
                       a.out + (there ? (size_t)(from + t) * a.n_rows + at : 0), there);
        }
    }
    copies_commit();
    const bool live = (int)threadIdx.x < per_pass * a_token && out_row < a.n_rows;
    float bias[4] = {}, next_norm[4] = {};
    if (live && a.bias)
        load<4>(a.bias + out_row, bias);
    if (AFTER == MEDIUM_OUT && live && a.u)
        load<4>(a.next_norm + out_row, next_norm);
    __syncthreads();
    cluster_wait(); // nor are its peers'
    if ((int)threadIdx.x < SPLITS && (int)threadIdx.x != rank) {
        const int to = threadIdx.x, slot = rank < to ? rank : rank - 1, bytes = tokens * pitch * 4;
        const uint32_t peers = s.ring + (SPLITS + slot) * bytes;
        copy_to_peer(peer_address(peers, to), s.ring + to * bytes, (uint32_t)bytes,
                     peer_address(s.arrived, to));
    }
    copies_wait();
    __syncthreads();
    barrier_wait(s.arrived, 0);
#pragma unroll 2
    for (int t = threadIdx.x / a_token; t < tokens && live; t += per_pass) {
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < SPLITS; i++) {
            float part[4];
            const float *of = i == rank  ? s.sums + rank * tokens * pitch
                              : i < rank ? s.peers + i * tokens * pitch
                                         : s.peers + (i - 1) * tokens * pitch;
            load<4>(of + t * pitch + column, part);
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum[k] += part[k];
        }
        const float by = a.squares ? s.scale[t] : 1.f;
#pragma unroll
        for (int k = 0; k < 4; k++)
            sum[k] = sum[k] * by + bias[k];
        const size_t token = (size_t)(from + t), at = token * a.n_rows + out_row;
        if constexpr (AFTER == MEDIUM_IN) {
            if (!conv)
                store<4>(a.xz + at, sum);
            else if (s.rows[t].slot >= 0)
                convolve4(a, s, t, column, c, sum, a.xc + token * a.channels + c);
        } else if constexpr (AFTER == MEDIUM_SUMS) {
            store<4>(a.out + at, sum);
        } else {
            float v[4], next[4], square = 0;
            load<4>(s.residual + t * a.tile_rows + column, v);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                v[k] += sum[k];
                square += v[k] * v[k];
                next[k] = v[k] * next_norm[k];
            }
            store<4>(a.out + at, v);
            if (a.u) {
                store<4>(a.u + at, next);
                s.parts[t * (a_token + 1) + column / 4] = square;
            }
        }
    }
    if (AFTER == MEDIUM_OUT && a.u) {
        const int there = min(a_token, (a.n_rows - tile * a.tile_pitch) / 4);
        __syncthreads();
        const int lane = threadIdx.x & 31;
        for (int t = warp; t < tokens; t += MEDIUM_THREADS / 32) {
            float sum = 0;
#pragma unroll 2
            for (int i = lane; i < there; i += 32)
                sum += s.parts[t * (a_token + 1) + i];
            sum = warp_sum(sum);
            if (lane == 0)
                a.next_squares[(size_t)(from + t) * (gridDim.x / SPLITS) + tile] = sum;
        }
    }
    cluster_arrive();
    cluster_wait(); // the copies to peers have read this block's sums
#endif
}

// ---- host side

enum { HALF_AN_SM = 113 << 10 }; // shared memory of one of two blocks

static inline int larger(int a, int b) {
    return a > b ? a : b;
}
// Deals a product of rows of `cols` numbers to blocks of a's tile_rows, a multiple of 16, and
// box_tokens. Returns bytes of a block's shared memory.
static inline int medium_deal(int nw, int splits, medium_after after, int cols, medium_args *a) {
    a->pieces = ceil_div(cols, PIECE), a->box_rows = a->tile_rows / MEDIUM_GROUPS;
    a->tile_pitch = a->tile_rows, a->group_pitch = a->box_rows, a->group_end = a->n_rows;
    a->conv_columns = a->tile_rows;
    if (after == MEDIUM_IN && a->conv_first == 0) { // half of a block's rows need the convolution
        a->tile_pitch = a->conv_columns = a->box_rows;
        a->group_pitch = a->group_end = a->channels;
    }
    // Instructions read 64 token rows and NW weight rows whatever there is: room behind the ring.
    const int behind = larger(MOST_TOKENS, a->box_tokens + a->box_rows + nw) * PIECE_BYTES;
    a->stage_bytes = (a->box_tokens + a->tile_rows) * PIECE_BYTES;
    const int scratch = medium_scratch(splits), most = ceil_div(a->pieces, splits);
    a->stages = (HALF_AN_SM - scratch - larger(behind - a->stage_bytes, 0)) / a->stage_bytes;
    a->stages = a->stages < MOST_STAGES ? a->stages : MOST_STAGES;
    a->stages = a->stages < most ? a->stages : most;
    const int ring = (a->stages - 1) * a->stage_bytes + larger(behind, a->stage_bytes);
    const int behind_sums =
        medium_after_bytes(after, splits, a->box_tokens / splits, a->tile_rows, a->width);
    a->ring_bytes = (larger(ring, behind_sums) + 15) / 16 * 16;
    return a->ring_bytes + scratch;
}

} // namespace ssm

#endif
