// SPDX-License-Identifier: Apache-2.0
// What solo.cu's warps do between the products: convolution and SiLU, and the states. Everything
// that does not depend on the layer's data is asked for a layer ahead, to registers.
#ifndef SSM_KERNELS_CUDA_SOLO_STATES_CUH
#define SSM_KERNELS_CUDA_SOLO_STATES_CUH

#include "solo_products.cuh"

namespace ssm {

#if SSM_HOPPER

// This step's slot, which the same thread writes later.
__device__ __forceinline__ unsigned short load_own(const bf16 *p) {
    unsigned short v;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ words<4> load_own(const float *p) {
    words<4> v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ __forceinline__ words<2> load_own(const f16 *p) {
    words<2> v;
    asm volatile("ld.global.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.w[0]), "=r"(v.w[1])
                 : "l"(p)
                 : "memory");
    return v;
}

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

// 1 / sqrt(x), 2 ulp, for x that is not denormal.
__device__ __forceinline__ float rsqrt_fast(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- after in_proj's x, a lane a channel: to the whole cluster

template <int M, int CH, class S>
__device__ __forceinline__ void after_in(const solo_args &a, const solo_block<M, CH, S> &b) {
    typedef solo_shape<M, CH, S> shape;
    const int lane = threadIdx.x % 32, kept = a.width - 1, c = lane < CH ? lane : 0;
    const row r = a.rows[0];
    const float *parts = b.floats(shape::PARTS) + c, *squares = b.floats(shape::SQUARES);
    float *own = b.floats(shape::OWN);
    const size_t slot = (size_t)max(r.slot, 0) * kept * shape::INNER + b.first + c;
    float tap[4], bias;
    unsigned short entry[3];
    auto fetch = [&](int layer) {
        const solo_layer &l = a.layers[layer];
        bias = load_once1(l.conv_bias + b.first + c);
#pragma unroll
        for (int j = 0; j < 4; j++) { // j tokens ago
            const int e = r.ring - j < 0 ? r.ring - j + kept : r.ring - j;
            tap[j] = 0;
            if (j <= kept)
                tap[j] =
                    load_once1(l.conv_weight + (size_t)(kept - j) * shape::INNER + b.first + c);
            if (j > 0)
                entry[j - 1] = 0;
            if (j > 0 && j <= kept && r.slot >= 0 && !r.fresh)
                entry[j - 1] =
                    load_own(a.ring + layer * a.ring_pitch + slot + (size_t)e * shape::INNER);
        }
    };
    fetch(0);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++) {
        const float before = bias + tap[3] * low_half(entry[2]) + tap[2] * low_half(entry[1]) +
                             tap[1] * low_half(entry[0]);
        const float newest = tap[0];
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
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
        const uint32_t x = pack_bf16(0.f, silu(before + newest * low_half(stored)));
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
        if (lane < CH && r.slot >= 0) {
            bf16 *to = a.ring + layer * a.ring_pitch + slot;
#pragma unroll 1
            for (int e = 0; e < kept; e++) {
                if (e == r.ring)
                    to[(size_t)e * shape::INNER] = __ushort_as_bfloat16((unsigned short)stored);
                else if (r.fresh)
                    to[(size_t)e * shape::INNER] = from_float<bf16>(0.f);
            }
        }
    }
}

// ---- states: a warp eight channels, four lanes a channel, four states a lane

template <int M, int CH, class S>
__device__ __forceinline__ void advance_states(const solo_args &a, const solo_block<M, CH, S> &b) {
    typedef solo_shape<M, CH, S> shape;
    constexpr int PART = shape::RANK / 4; // of dt_proj's columns, a lane's
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::STATE_WARP;
    const int g = lane >> 2, q = lane & 3, c = warp * 8 + g;
    const row r = a.rows[0];
    const float *own = b.floats(shape::OWN), *xdb = b.floats(shape::XDB);
    const float *z_parts = b.floats(shape::PARTS) + shape::SPLITS * CH + c;
    char *states =
        a.state + (((size_t)max(r.slot, 0) * shape::INNER + b.first + c) * 16 + q * 4) * sizeof(S);
    words<sizeof(S)> ahead;
    uint4 decays;
    uint2 weights[PART / 4];
    float skips, biases;
    auto fetch = [&](int layer) {
        const solo_layer &l = a.layers[layer];
        ahead = load_own((const S *)(states + layer * a.state_pitch));
        decays = load_once(l.decay + (size_t)(b.first + c) * 16 + q * 4);
#pragma unroll
        for (int k = 0; k < PART / 4; k++)
            weights[k] =
                load_once2(l.dt_proj + (size_t)(b.first + c) * shape::RANK + q * PART + k * 4);
        skips = load_once1(l.skip + b.first + c), biases = load_once1(l.dt_bias + b.first + c);
    };
    fetch(0);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++) {
        float h[4];
        load<4>((const S *)&ahead, h);
        if (r.fresh || r.slot < 0)
            h[0] = h[1] = h[2] = h[3] = 0;
        const float decay[4] = {__uint_as_float(decays.x), __uint_as_float(decays.y),
                                __uint_as_float(decays.z), __uint_as_float(decays.w)};
        uint2 w[PART / 4];
#pragma unroll
        for (int k = 0; k < PART / 4; k++)
            w[k] = weights[k];
        const float skip = skips, bias = biases;
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
        solo_sync<OWN_X>((shape::STATE_WARPS + 1) * 32);
        solo_sync<Z_SUMS>((shape::IN_WARPS + shape::STATE_WARPS) * 32);
        const float x = own[c], gate = silu(sum_of<shape::SPLITS, CH>(z_parts) * own[CH]);

        solo_wait(b.bar_xdb, layer & 1);
        float d[4] = {};
#pragma unroll
        for (int k = 0; k < PART / 4; k++) {
            float v[4];
            load<4>(xdb + q * PART + k * 4, v);
            d[0] += low_half(w[k].x) * v[0], d[1] += high_half(w[k].x) * v[1];
            d[2] += low_half(w[k].y) * v[2], d[3] += high_half(w[k].y) * v[3];
        }
        float bs[4], cs[4];
        load<4>(xdb + shape::RANK + q * 4, bs);
        load<4>(xdb + shape::RANK + 16 + q * 4, cs);
        float dot = d[0] + d[1] + (d[2] + d[3]);
        dot += __shfl_xor_sync(~0u, dot, 1);
        dot += __shfl_xor_sync(~0u, dot, 2);
        const float delta = softplus(dot + bias), input = delta * x;
        float y = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            h[i] = exp2_fast(delta * decay[i]) * h[i] + input * bs[i];
            y += h[i] * cs[i];
        }
        y += __shfl_xor_sync(~0u, y, 1);
        y += __shfl_xor_sync(~0u, y, 2);
        y = (y + skip * x) * gate;
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
