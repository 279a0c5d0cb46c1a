// SPDX-License-Identifier: Apache-2.0
// solo_large.cu's warps that have a row a lane: x_proj, and the residual.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_ROWS_CUH

#include "solo_large.cuh"

namespace ssm {

#if SSM_HOPPER

// The block's rows of the residual, a lane a row.
template <int M, class S> struct large_rows {
    typedef large_shape<M, S> shape;
    const solo_args &a;
    const float *parts;
    int lane, at;
    float r, norm;

    __device__ __forceinline__ large_rows(const solo_args &args, const large_block<M, S> &b)
        : a(args) {
        lane = threadIdx.x % 32;
        const int mine = min(lane, shape::OUT_ROWS - 1);
        at = blockIdx.x * shape::OUT_ROWS + mine;
        parts = b.floats(shape::OUT_PARTS) + mine;
        const int32_t token = known_token(a.tokens[0], a.drawn);
        r = to_float(a.embedding[(size_t)token * M + at]);
        norm = load_once1(a.layers[0].next_norm + at);
    }
    // The next layer's input, to all blocks; the last one's, to the head.
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        solo_sync<LARGE_OUT>((shape::WARPS + 1) * 32);
        r += sum_of<shape::WARPS, shape::OUT_GROUPS * 8>(parts);
        const float u = r * norm, odd = __shfl_down_sync(~0u, u, 1);
        const float r1 = __shfl_down_sync(~0u, r, 1), square = r * r + r1 * r1;
        const bool gives = lane % 2 == 0 && lane < shape::OUT_ROWS;
        if (layer + 1 < a.n_layers) {
            if (gives)
                publish_words(a.packets + shape::US + at / 2, pack_bf16(u, odd),
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

template <int M, class S>
__device__ __forceinline__ void large_x(const solo_args &a, const large_block<M, S> &b) {
    typedef large_shape<M, S> shape;
    constexpr int N = shape::CH / 8, PAIRS = shape::PAIRS, MINE = (PAIRS + 31) / 32;
    constexpr int SHARES = shape::BLOCKS / 8; // of eight rows, a lane
    uint32_t tag = first_tag(a);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::X_WARP;
    const int row_at = warp * 32 + lane;
    const uint32_t own = b.address(shape::OWN), xdb = b.address(shape::XDB);
    const int at = (int)blockIdx.x;
    // A block's shares of four pairs of rows lie side by side; every fifth block adds up eight
    // rows.
    const int eight = at % 5 == 0 && at / 5 < PAIRS / 4 ? at / 5 : -1;
    uint2 *to = a.packets + shape::SHARES + (row_at / 8 * shape::BLOCKS + at) * 4 + row_at / 2 % 4;
    uint4 w[N];
    const auto fetch = [&](int layer) {
        const bf16 *from = a.layers[layer].x_proj + (size_t)row_at * shape::INNER + b.first;
#pragma unroll
        for (int k = 0; k < N; k++)
            w[k] = load_once(from + k * 8);
    };
    fetch(0);
    large_rows<M, S> rows(a, b);
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
        const float sum = (c[0] + c[1]) + (c[2] + c[3]), odd = __shfl_down_sync(~0u, sum, 1);
        if (lane % 2 == 0)
            publish(to, sum, odd, tag);
        if (warp == 0 && eight >= 0) { // all blocks' shares
            uint2 v[SHARES];
            gather_all(v, a.packets + shape::SHARES + eight * shape::BLOCKS * 4, tag,
                       shape::BLOCKS * 4);
            const float2 all = sum_packets(v, 4);
            if (lane < shape::COPIES * 4)
                publish(a.packets + shape::SUMS + lane / 4 * PAIRS + eight * 4 + lane % 4, all.x,
                        all.y, tag);
        } else if (warp == 1) { // all sums
            uint2 v[MINE];
            gather_all(v, a.packets + shape::SUMS + blockIdx.x % shape::COPIES * PAIRS, tag, PAIRS);
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                if (i * 32 + lane < PAIRS)
                    store_shared2(xdb + (i * 32 + lane) * 8, v[i].x & ~15u, v[i].y & ~15u);
            }
            solo_signal<LARGE_XDB>((1 + shape::STATE_WARPS) * 32);
        }
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
        if (warp == shape::X_WARPS - 1)
            rows.step(layer, tag);
    }
}

#endif

} // namespace ssm

#endif
