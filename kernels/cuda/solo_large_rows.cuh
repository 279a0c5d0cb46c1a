// SPDX-License-Identifier: Apache-2.0
// solo_large.cu's warps that have a row a lane: x_proj, and the residual.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH

#include "solo_large.cuh"
#include "totals.cuh"

namespace ssm {

#if SSM_HOPPER

// The block's rows of the residual, a lane a row.
template <class SHAPE> struct large_rows {
    typedef SHAPE shape;
    const solo_args &a;
    const float *parts, *gated;
    int lane, at;
    float r, norm;

    __device__ __forceinline__ large_rows(const solo_args &args, const large_block<SHAPE> &b)
        : a(args) {
        lane = threadIdx.x % 32;
        const int mine = min(lane, shape::OUT_ROWS - 1);
        at = blockIdx.x * shape::OUT_ROWS + mine;
        parts = b.floats(shape::OUT_PARTS) + mine, gated = b.floats(shape::Y_SQUARES);
        const int32_t token = known_token(a.tokens[0], a.drawn);
        r = to_float(a.embedding[(size_t)token * shape::WIDTH + at]);
        norm = load_once1(a.layers[0].next_norm + at);
    }
    // The next layer's input, to all blocks; the last one's, to the head.
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        solo_sync<LARGE_OUT>((shape::WARPS + 1) * 32);
        float by = shape::taken(a.layers[layer].packed_out_by);
        if constexpr (shape::GATED && shape::BC_GROUPS == 1)
            by *= rsqrt_fast(sum_of<shape::WARPS, 1>(gated) * (1.f / shape::INNER) + a.gate_eps);
        r += sum_of<shape::WARPS, shape::OUT_GROUPS * 8>(parts) * by;
        const float u = r * norm, odd = __shfl_down_sync(~0u, u, 1);
        const float r1 = __shfl_down_sync(~0u, r, 1), square = r * r + r1 * r1;
        const bool gives = lane % 2 == 0 && lane < shape::OUT_ROWS;
        if (layer + 1 < a.n_layers) {
            if (gives)
                publish_words(a.packets + shape::US + at / 2,
                              pack_bf16(u * shape::GIVEN, odd * shape::GIVEN),
                              __float_as_uint(square), tag + 1);
            norm = load_once1(a.layers[layer + 1].next_norm + at);
            return;
        }
        if (gives)
            *(uint32_t *)(a.u + at) = pack_bf16(u, odd);
        const float all = warp_sum(gives ? square : 0);
        if (lane == 0)
            a.squares[blockIdx.x] = all;
    }
};

// ---- x_proj: the block's columns of all rows; the last warp has the residual, too

// A warp's rows: a lane has a part of X_ROWS of them, in registers a layer ahead, and the totals of
// X_OWN, to which all blocks add and which all read. So they go on from exchange to exchange and
// launch to launch, and what one exchange comes to is the difference. No total is written anew
// before all have read it: what adds to it follows the layer's input, that all y, those the totals
// of the layer before.
template <class SHAPE> struct large_x_rows {
    typedef SHAPE shape;
    enum { N = shape::CH / shape::X_LANES / 8, APART = 32 / shape::X_LANES }; // 8s of columns; rows
    const solo_args &a;
    uint64_t *total, *base, before[shape::X_OWN];
    uint32_t own; // the block's x, of these columns
    int lane, warp, first;
    uint4 w[shape::X_ROWS][N];

    __device__ __forceinline__ large_x_rows(const solo_args &args, const large_block<SHAPE> &b)
        : a(args) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::X_WARP;
        const int row_at = warp * shape::X_WARP_ROWS + lane;
        own = b.address(shape::OWN) + lane % shape::X_LANES * N * 32;
        first = b.first + lane % shape::X_LANES * N * 8;
        total =
            (uint64_t *)(a.packets + shape::TOTALS) + row_at / 4 * shape::TOTALS_PITCH + row_at % 4;
        base = (uint64_t *)(a.packets + shape::BASES) + row_at;
#pragma unroll
        for (int k = 0; k < shape::X_OWN; k++) {
            before[k] = has(k) ? base[k * 32] : 0;
            if (before[k] & (shape::BLOCKS - 1)) // all there before this block adds to anything
                __trap();
        }
    }
    // Whether the lane has a k-th total.
    __device__ __forceinline__ bool has(int k) const {
        return (k + 1) * 32 <= shape::X_WARP_ROWS || k * 32 + lane < shape::X_WARP_ROWS;
    }
    __device__ __forceinline__ uint64_t *total_at(int k) const {
        return total + k * 8 * shape::TOTALS_PITCH;
    }
    __device__ __forceinline__ void fetch(int layer) {
        const bf16 *from =
            a.layers[layer].x_proj +
            (size_t)(warp * shape::X_WARP_ROWS + lane / shape::X_LANES) * shape::INNER + first;
#pragma unroll
        for (int i = 0; i < shape::X_ROWS; i++) {
#pragma unroll
            for (int k = 0; k < N; k++)
                w[i][k] = load_once(from + (size_t)i * APART * shape::INNER + k * 8);
        }
    }
    // The block's shares of the lane's totals.
    __device__ __forceinline__ void shares(float (&out)[shape::X_OWN]) const {
        float c[shape::X_ROWS][4] = {};
#pragma unroll
        for (int k = 0; k < N; k++) {
            const uint4 low = load_shared(own + k * 32), high = load_shared(own + k * 32 + 16);
            const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int r = 0; r < shape::X_ROWS; r++) {
                const uint32_t words[4] = {w[r][k].x, w[r][k].y, w[r][k].z, w[r][k].w};
#pragma unroll
                for (int i = 0; i < 8; i++)
                    c[r][i % 4] += (i % 2 ? high_half(words[i / 2]) : low_half(words[i / 2])) *
                                   __uint_as_float(x[i]);
            }
        }
        float sums[shape::X_ROWS];
#pragma unroll
        for (int r = 0; r < shape::X_ROWS; r++)
            sums[r] = (c[r][0] + c[r][1]) + (c[r][2] + c[r][3]);
        if constexpr (shape::X_LANES == 1) {
            out[0] = sums[0];
        } else {
#pragma unroll
            for (int r = 0; r < shape::X_ROWS; r++) {
                sums[r] += __shfl_xor_sync(~0u, sums[r], 1);
                const float v = __shfl_sync(~0u, sums[r], lane % APART * 2);
                if (r % 2 == 0 || lane >= APART)
                    out[r / 2] = v;
            }
        }
    }
};

template <class SHAPE>
__device__ __forceinline__ void large_x(const solo_args &a, const large_block<SHAPE> &b) {
    typedef SHAPE shape;
    uint32_t tag = first_tag(a);
    large_x_rows<SHAPE> x(a, b);
    x.fetch(0);
    large_rows<SHAPE> rows(a, b);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        solo_sync<LARGE_OWN>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        float sums[shape::X_OWN];
        x.shares(sums);
#pragma unroll
        for (int k = 0; k < shape::X_OWN; k++) {
            if (x.has(k))
                add_to_total<shape::BLOCKS>(x.total_at(k), sums[k]);
        }
        uint64_t since[shape::X_OWN];
        totals_wait<shape::BLOCKS>(
            since, [&](int k) { return x.total_at(k); }, [&](int k) { return x.has(k); },
            [&](int k) { return x.before[k]; });
#pragma unroll
        for (int k = 0; k < shape::X_OWN; k++) {
            x.before[k] += since[k];
            if (x.has(k))
                b.floats(shape::XDB)[x.warp * shape::X_WARP_ROWS + k * 32 + x.lane] =
                    total_of(since[k]);
        }
        solo_signal<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (layer + 1 < a.n_layers)
            x.fetch(layer + 1);
        if (x.warp == shape::X_WARPS - 1)
            rows.step(layer, tag);
    }
#pragma unroll
    for (int k = 0; k < shape::X_OWN; k++) {
        if (blockIdx.x == 0 && x.has(k)) // all blocks have read the one before
            x.base[k * 32] = x.before[k];
    }
}

#endif

} // namespace ssm

#endif
