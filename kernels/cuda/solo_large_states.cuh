// SPDX-License-Identifier: Apache-2.0
// What solo_large.cu's blocks do between the products: convolution and SiLU, the states. What
// does not depend on the layer's data is asked for a layer ahead, to registers.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_STATES_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_STATES_CUH

#include "solo_large.cuh"

namespace ssm {

#if SSM_HOPPER

// A warp eight channels, four lanes a channel, four states a lane; the convolution by all four.
template <int M, class S> struct large_states {
    typedef large_shape<M, S> shape;
    enum { PART = shape::RANK / 4 }; // of dt_proj's columns, a lane's
    const solo_args &a;
    const large_block<M, S> &b;
    const row r;
    int lane, warp, q, c, kept;
    size_t slot;
    char *states;
    // of the layer
    words<sizeof(S)> before;
    uint4 decays;
    uint2 weights[PART / 4];
    float skip, bias, tap[4], conv_bias;
    unsigned short entry[3];

    __device__ __forceinline__ large_states(const solo_args &args, const large_block<M, S> &block)
        : a(args), b(block), r(args.rows[0]) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::STATE_WARP;
        q = lane & 3, c = warp * 8 + (lane >> 2), kept = a.width - 1;
        const size_t at = (size_t)max(r.slot, 0);
        slot = at * kept * shape::INNER + b.first + c;
        states = a.state + ((at * shape::INNER + b.first + c) * 16 + q * 4) * sizeof(S);
    }
    __device__ __forceinline__ void fetch(int layer) {
        const solo_layer &l = a.layers[layer];
        conv_bias = load_once1(l.conv_bias + b.first + c);
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
        before = load_own((const S *)(states + layer * a.state_pitch));
        decays = load_once(l.decay + (size_t)(b.first + c) * 16 + q * 4);
#pragma unroll
        for (int k = 0; k < PART / 4; k++)
            weights[k] =
                load_once2(l.dt_proj + (size_t)(b.first + c) * shape::RANK + q * PART + k * 4);
        skip = load_once1(l.skip + b.first + c), bias = load_once1(l.dt_bias + b.first + c);
    }
    // The channel's x, to the block; scale: the input's.
    __device__ __forceinline__ float convolve(int layer, float &scale) const {
        const float past = conv_bias + tap[3] * low_half(entry[2]) + tap[2] * low_half(entry[1]) +
                           tap[1] * low_half(entry[0]);
        solo_sync<LARGE_X>((shape::WARPS + shape::STATE_WARPS) * 32);
        scale = rsqrt_fast(sum_of<shape::WARPS, 1>(b.floats(shape::SQUARES)) * (1.f / M) + a.eps);
        const float v = sum_of<shape::WARPS, shape::CH>(b.floats(shape::X_PARTS) + c) * scale;
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        const float x = high_half(pack_bf16(0.f, silu(past + tap[0] * low_half(stored))));
        if (q == 0)
            b.floats(shape::OWN)[c] = x;
        solo_signal<LARGE_OWN>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (q == 0 && r.slot >= 0) {
            bf16 *to = a.ring + layer * a.ring_pitch + slot;
#pragma unroll 1
            for (int e = 0; e < kept; e++) {
                if (e == r.ring)
                    to[(size_t)e * shape::INNER] = __ushort_as_bfloat16((unsigned short)stored);
                else if (r.fresh)
                    to[(size_t)e * shape::INNER] = from_float<bf16>(0.f);
            }
        }
        return x;
    }
    __device__ __forceinline__ float delta() const {
        const float *xdb = b.floats(shape::XDB) + q * PART;
        float d[4] = {};
#pragma unroll
        for (int k = 0; k < PART / 4; k++) {
            float v[4];
            load<4>(xdb + k * 4, v);
            d[0] += low_half(weights[k].x) * v[0], d[1] += high_half(weights[k].x) * v[1];
            d[2] += low_half(weights[k].y) * v[2], d[3] += high_half(weights[k].y) * v[3];
        }
        float dot = d[0] + d[1] + (d[2] + d[3]);
        dot += __shfl_xor_sync(~0u, dot, 1);
        dot += __shfl_xor_sync(~0u, dot, 2);
        return softplus(dot + bias);
    }
    // The layer's y, to all blocks.
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        float scale, h[4], bs[4], cs[4];
        const float x = convolve(layer, scale);
        load<4>((const S *)&before, h);
        if (r.fresh || r.slot < 0)
            h[0] = h[1] = h[2] = h[3] = 0;
        const float decay[4] = {__uint_as_float(decays.x), __uint_as_float(decays.y),
                                __uint_as_float(decays.z), __uint_as_float(decays.w)};
        solo_sync<LARGE_XDB>((1 + shape::STATE_WARPS) * 32);
        load<4>(b.floats(shape::XDB) + shape::RANK + q * 4, bs);
        load<4>(b.floats(shape::XDB) + shape::RANK + 16 + q * 4, cs);
        const float d = delta(), input = d * x;
        float y = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            h[i] = exp2_fast(d * decay[i]) * h[i] + input * bs[i];
            y += h[i] * cs[i];
        }
        y += __shfl_xor_sync(~0u, y, 1);
        y += __shfl_xor_sync(~0u, y, 2);
        y += skip * x;
        solo_sync<LARGE_Z>((shape::WARPS + shape::STATE_WARPS) * 32);
        y *= silu(sum_of<shape::WARPS, shape::CH>(b.floats(shape::Z_PARTS) + c) * scale);
        const float odd = __shfl_down_sync(~0u, y, 4);
        if (lane % 8 == 0)
            publish_words(a.packets + shape::YS + (b.first + c) / 2, pack_bf16(y, odd), 0, tag);
        if (r.slot >= 0)
            store<4>((S *)(states + layer * a.state_pitch), h);
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
    }
};

template <int M, class S>
__device__ __forceinline__ void large_advance(const solo_args &a, const large_block<M, S> &b) {
    uint32_t tag = first_tag(a);
    large_states<M, S> states(a, b);
    states.fetch(0);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++)
        states.step(layer, tag);
}

#endif

} // namespace ssm

#endif
