// SPDX-License-Identifier: Apache-2.0
// What a channel has of a layer beside the products, in solo.cu and solo_large.cu: the
// convolution's taps and past inputs (solo_taps), and four of its states with what advances them
// (solo_lane). All of it is asked for a layer ahead, to registers, in the order in which it stands.
#ifndef SSM_KERNELS_CUDA_SOLO_CHANNEL_CUH
#define SSM_KERNELS_CUDA_SOLO_CHANNEL_CUH

#include "solo_rows.cuh"

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

// 1 / sqrt(x), 2 ulp, for x that is not denormal.
__device__ __forceinline__ float rsqrt_fast(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- the convolution of one channel of INNER

template <int INNER> struct solo_taps {
    float tap[4], bias;      // of j tokens ago
    unsigned short entry[3]; // the inputs of 1, 2 and 3 tokens ago

    // The channel's place in its slot.
    static __device__ __forceinline__ size_t place(const row &r, int kept, int channel) {
        return (size_t)max(r.slot, 0) * kept * INNER + channel;
    }
    __device__ __forceinline__ void fetch(const solo_args &a, const row &r, int kept, size_t place,
                                          int layer, int channel) {
        const solo_layer &l = a.layers[layer];
        bias = load_once1(l.conv_bias + channel);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int e = r.ring - j < 0 ? r.ring - j + kept : r.ring - j;
            tap[j] = 0;
            if (j <= kept)
                tap[j] = load_once1(l.conv_weight + (size_t)(kept - j) * INNER + channel);
            if (j > 0)
                entry[j - 1] = 0;
            if (j > 0 && j <= kept && r.slot >= 0 && !r.fresh)
                entry[j - 1] = load_own(a.ring + layer * a.ring_pitch + place + (size_t)e * INNER);
        }
    }
    // All but the newest input's.
    __device__ __forceinline__ float past() const {
        return bias + tap[3] * low_half(entry[2]) + tap[2] * low_half(entry[1]) +
               tap[1] * low_half(entry[0]);
    }
    // The newest input, bf16, becomes an entry; a new sequence's others are zeros.
    static __device__ __forceinline__ void keep(const solo_args &a, const row &r, int kept,
                                                size_t place, int layer, uint32_t input) {
        bf16 *to = a.ring + layer * a.ring_pitch + place;
#pragma unroll 1
        for (int e = 0; e < kept; e++) {
            if (e == r.ring)
                to[(size_t)e * INNER] = __ushort_as_bfloat16((unsigned short)input);
            else if (r.fresh)
                to[(size_t)e * INNER] = from_float<bf16>(0.f);
        }
    }
};

// ---- states: four lanes a channel, four states a lane (q)

// NORMS: dt, B and C may be RMS-normed first (falcon_mamba).
template <int RANK, class S, bool NORMS = false> struct solo_lane {
    enum { PART = RANK / 4 }; // of dt_proj's columns, a lane's
    words<sizeof(S)> before;  // states
    uint4 decays;
    uint2 weights[PART / 4];
    float skip, bias;

    __device__ __forceinline__ void fetch(const solo_layer &l, const char *states, int channel,
                                          int q) {
        before = load_own((const S *)states);
        decays = load_once(l.decay + (size_t)channel * 16 + q * 4);
#pragma unroll
        for (int k = 0; k < PART / 4; k++)
            weights[k] = load_once2(l.dt_proj + (size_t)channel * RANK + q * PART + k * 4);
        skip = load_once1(l.skip + channel), bias = load_once1(l.dt_bias + channel);
    }
    __device__ __forceinline__ void begin(const row &r, float (&h)[4]) const {
        load<4>((const S *)&before, h);
        if (r.fresh || r.slot < 0)
            h[0] = h[1] = h[2] = h[3] = 0;
    }
    // Over the four lanes of a channel, to all.
    static __device__ __forceinline__ float of_lanes(float v) {
        v += __shfl_xor_sync(~0u, v, 1);
        return v + __shfl_xor_sync(~0u, v, 2);
    }
    // What n numbers whose squares' sum the four lanes have in parts are multiplied by.
    static __device__ __forceinline__ float norm(float squares, int n, float eps) {
        return rsqrt_fast(of_lanes(squares) / (float)n + eps);
    }
    // xdb: x_proj's sums; eps: of their norms, below 0 if there are none. The states, one token on;
    // the channel's y without its gate, to all four lanes.
    __device__ __forceinline__ float advance(const float *xdb, int q, float x, float (&h)[4],
                                             float eps = -1) const {
        const float decay[4] = {__uint_as_float(decays.x), __uint_as_float(decays.y),
                                __uint_as_float(decays.z), __uint_as_float(decays.w)};
        float d[4] = {}, squares[2] = {};
#pragma unroll
        for (int k = 0; k < PART / 4; k++) {
            float v[4];
            load<4>(xdb + q * PART + k * 4, v);
            if (NORMS) {
                squares[0] += v[0] * v[0] + v[1] * v[1];
                squares[1] += v[2] * v[2] + v[3] * v[3];
            }
            d[0] += low_half(weights[k].x) * v[0], d[1] += high_half(weights[k].x) * v[1];
            d[2] += low_half(weights[k].y) * v[2], d[3] += high_half(weights[k].y) * v[3];
        }
        float bs[4], cs[4];
        load<4>(xdb + RANK + q * 4, bs);
        load<4>(xdb + RANK + 16 + q * 4, cs);
        float dot = d[0] + d[1] + (d[2] + d[3]);
        dot += __shfl_xor_sync(~0u, dot, 1);
        dot += __shfl_xor_sync(~0u, dot, 2);
        if (NORMS && eps >= 0) {
            dot *= norm(squares[0] + squares[1], RANK, eps);
            const float b =
                norm(bs[0] * bs[0] + bs[1] * bs[1] + (bs[2] * bs[2] + bs[3] * bs[3]), 16, eps);
            const float c =
                norm(cs[0] * cs[0] + cs[1] * cs[1] + (cs[2] * cs[2] + cs[3] * cs[3]), 16, eps);
#pragma unroll
            for (int i = 0; i < 4; i++)
                bs[i] *= b, cs[i] *= c;
        }
        const float delta = softplus(dot + bias), input = delta * x;
        float y = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            h[i] = exp2_fast(delta * decay[i]) * h[i] + input * bs[i];
            y += h[i] * cs[i];
        }
        y += __shfl_xor_sync(~0u, y, 1);
        y += __shfl_xor_sync(~0u, y, 2);
        return y + skip * x;
    }
};

#endif

} // namespace ssm

#endif
