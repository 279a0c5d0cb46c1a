// SPDX-License-Identifier: Apache-2.0
// What solo.cu's warps do between the products: convolution and SiLU, and the states. Everything
// that does not depend on the layer's data is asked for a layer ahead, to registers.
#ifndef SSM_KERNELS_CUDA_SOLO_STATES_CUH
#define SSM_KERNELS_CUDA_SOLO_STATES_CUH

#include "solo_channel.cuh"
#include "solo_products.cuh"

namespace ssm {

#if SSM_HOPPER

template <int N, int PITCH> __device__ __forceinline__ float sum_of(const float *p) {
    float v[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] = p[i * PITCH];
#pragma unroll
    for (int o = N / 2; o; o /= 2) {
#pragma unroll
        for (int i = 0; i < o; i++)
            v[i] += v[i + o];
    }
    return v[0];
}

// ---- after in_proj's x, a lane a channel: to the whole cluster

template <int M, int CH, class S>
__device__ __forceinline__ void after_in(const solo_args &a, const solo_block<M, CH, S> &b) {
    typedef solo_shape<M, CH, S> shape;
    const int lane = threadIdx.x % 32, kept = a.width - 1, c = lane < CH ? lane : 0;
    const row r = a.rows[0];
    const float *parts = b.floats(shape::PARTS) + c, *squares = b.floats(shape::SQUARES);
    float *own = b.floats(shape::OWN);
    const size_t place = solo_taps<shape::INNER>::place(r, kept, b.first + c);
    solo_taps<shape::INNER> taps;
    taps.fetch(a, r, kept, place, 0, b.first + c);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++) {
        const float past = taps.past(), newest = taps.tap[0];
        if (layer + 1 < a.n_layers)
            taps.fetch(a, r, kept, place, layer + 1, b.first + c);
        float square = 0;
        if constexpr (!shape::NARROW) {
            solo_wait(b.bar_u, layer & 1);
#pragma unroll
            for (int i = 0; i < M / 256; i++) {
                const uint4 v = load_shared(b.address(shape::SQUARES) + i * 512 + lane * 16);
                square += (__uint_as_float(v.x) + __uint_as_float(v.y)) +
                          (__uint_as_float(v.z) + __uint_as_float(v.w));
            }
            square = warp_sum(square);
        }
        solo_sync<X_SUMS>((shape::IN_WARPS + 1) * 32);
        if constexpr (shape::NARROW)
            square = sum_of<shape::SPLITS, 1>(squares);
        const float scale = rsqrt_fast(square * (1.f / M) + a.eps);
        const float v = sum_of<shape::SPLITS, CH>(parts) * scale;
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        const uint32_t x = pack_bf16(0.f, silu(past + newest * low_half(stored)));
#pragma unroll
        for (int t = 0; t < shape::TILES; t++) { // eight words
            const uint32_t even = __shfl_sync(~0u, x, t * 16 + 2 * (lane & 7));
            const uint32_t odd = __shfl_sync(~0u, x, t * 16 + 2 * (lane & 7) + 1);
            send_words<8>(b.address(shape::XC) + (b.rank * CH + t * 16) * 2, even >> 16 | odd,
                          b.bar_x, lane);
        }
        if (lane < CH)
            own[lane] = high_half(x);
        if (lane == 0)
            own[CH] = scale;
        solo_signal<OWN_X>((shape::STATE_WARPS + 1) * 32);
        if (lane < CH && r.slot >= 0)
            taps.keep(a, r, kept, place, layer, stored);
    }
}

// ---- states: a warp eight channels, four lanes a channel, four states a lane

template <int M, int CH, class S>
__device__ __forceinline__ void advance_states(const solo_args &a, const solo_block<M, CH, S> &b) {
    typedef solo_shape<M, CH, S> shape;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::STATE_WARP;
    const int g = lane >> 2, q = lane & 3, c = warp * 8 + g;
    const row r = a.rows[0];
    const float *own = b.floats(shape::OWN), *xdb = b.floats(shape::XDB);
    const float *z_parts = b.floats(shape::PARTS) + shape::SPLITS * CH + c;
    char *states =
        a.state + (((size_t)max(r.slot, 0) * shape::INNER + b.first + c) * 16 + q * 4) * sizeof(S);
    solo_lane<shape::RANK, S> ahead;
    ahead.fetch(a.layers[0], states, b.first + c, q);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++) {
        const solo_lane<shape::RANK, S> own_lane = ahead;
        float h[4];
        own_lane.begin(r, h);
        if (layer + 1 < a.n_layers)
            ahead.fetch(a.layers[layer + 1], states + (layer + 1) * a.state_pitch, b.first + c, q);
        solo_sync<OWN_X>((shape::STATE_WARPS + 1) * 32);
        solo_sync<Z_SUMS>((shape::IN_WARPS + shape::STATE_WARPS) * 32);
        const float x = own[c], gate = silu(sum_of<shape::SPLITS, CH>(z_parts) * own[CH]);

        solo_wait(b.bar_xdb, layer & 1);
        const float y = own_lane.advance(xdb, q, x, h) * gate;
        const float even = __shfl_sync(~0u, y, 8 * q), odd = __shfl_sync(~0u, y, 8 * q + 4);
        send_words<4>(b.address(shape::Y) + (b.rank * CH + warp * 8) * 2, pack_bf16(even, odd),
                      b.bar_y, lane);
        if (threadIdx.x == shape::STATE_WARP * 32)
            b.expect_xdb();
        if (r.slot >= 0)
            store<4>((S *)(states + layer * a.state_pitch), h);
    }
}

#endif

} // namespace ssm

#endif
