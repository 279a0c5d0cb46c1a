// SPDX-License-Identifier: Apache-2.0
// solo_large.cu's warps that have a row a lane: x_proj, and the residual.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH

#include "solo_large.cuh"

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
        if constexpr (shape::GATED)
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

// ---- x_proj: the block's columns of all rows, a lane a row; the last warp has the residual, too

template <class SHAPE>
__device__ __forceinline__ void large_x(const solo_args &a, const large_block<SHAPE> &b) {
    typedef SHAPE shape;
    constexpr int N = shape::CH / 8;
    uint32_t tag = first_tag(a);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::X_WARP;
    const int row_at = warp * 32 + lane;
    const uint32_t own = b.address(shape::OWN);
    uint64_t *total =
        (uint64_t *)(a.packets + shape::TOTALS) + row_at / 4 * shape::TOTALS_PITCH + row_at % 4;
    uint64_t *base = (uint64_t *)(a.packets + shape::BASES) + row_at, before = *base;
    if (before & (shape::BLOCKS - 1)) // it must be there before this block adds to anything
        __trap();
    uint4 w[N];
    const auto fetch = [&](int layer) {
        const bf16 *from = a.layers[layer].x_proj + (size_t)row_at * shape::INNER + b.first;
#pragma unroll
        for (int k = 0; k < N; k++)
            w[k] = load_once(from + k * 8);
    };
    fetch(0);
    large_rows<SHAPE> rows(a, b);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        solo_sync<LARGE_OWN>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        float c[4] = {};
#pragma unroll
        for (int k = 0; k < N; k++) {
            const uint32_t words[4] = {w[k].x, w[k].y, w[k].z, w[k].w};
            const uint4 low = load_shared(own + k * 32), high = load_shared(own + k * 32 + 16);
            const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
                c[i % 4] += (i % 2 ? high_half(words[i / 2]) : low_half(words[i / 2])) *
                            __uint_as_float(x[i]);
        }
        const float sum = (c[0] + c[1]) + (c[2] + c[3]);
        const bool number = fabsf(sum) < LARGE_MOST;
        add_to_total(total, number ? sum : 0);
        const float all = total_of<shape::BLOCKS>(total, before);
        b.floats(shape::XDB)[row_at] = number ? all : NAN; // and so its y, and all that follows
        solo_signal<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
        if (warp == shape::X_WARPS - 1)
            rows.step(layer, tag);
    }
    if (blockIdx.x == 0) // all blocks have read the one before
        *base = before;
}

#endif

} // namespace ssm

#endif
