// SPDX-License-Identifier: Apache-2.0
// What solo_large.cu's blocks do between the products: convolution and SiLU, the states. What
// does not depend on the layer's data is asked for a layer ahead, to registers.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_STATES_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_STATES_CUH

#include "solo_large.cuh"

namespace ssm {

#if SSM_HOPPER

// A warp eight channels, four lanes a channel, four states a lane; the convolution by all four.
template <class SHAPE> struct large_states {
    typedef SHAPE shape;
    typedef typename shape::state S;
    const solo_args &a;
    const large_block<SHAPE> &b;
    const row r;
    int lane, warp, q, c, kept;
    size_t place;
    char *states;
    solo_taps<shape::INNER> taps; // of the layer
    solo_lane<shape::RANK, S, shape::NORMS> own;

    __device__ __forceinline__ large_states(const solo_args &args, const large_block<SHAPE> &block)
        : a(args), b(block), r(args.rows[0]) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::STATE_WARP;
        q = lane & 3, c = warp * 8 + (lane >> 2), kept = a.width - 1;
        place = taps.place(r, kept, b.first + c);
        states = a.state +
                 (((size_t)max(r.slot, 0) * shape::INNER + b.first + c) * 16 + q * 4) * sizeof(S);
    }
    __device__ __forceinline__ void fetch(int layer) {
        taps.fetch(a, r, kept, place, layer, b.first + c);
        own.fetch(a.layers[layer], states + layer * a.state_pitch, b.first + c, q);
    }
    // The channel's x, to the block; scale: the input's.
    __device__ __forceinline__ float convolve(int layer, float &scale) const {
        const float past = taps.past();
        const float v = b.x_sum(a, layer, c, scale);
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        const float x = high_half(pack_bf16(0.f, silu(past + taps.tap[0] * low_half(stored))));
        if (q == 0)
            b.floats(shape::OWN)[c] = x;
        solo_signal<LARGE_OWN>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (q == 0 && r.slot >= 0)
            taps.keep(a, r, kept, place, layer, stored);
        return x;
    }
    // The layer's y, to all blocks.
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        float scale, h[4];
        const float x = convolve(layer, scale);
        own.begin(r, h);
        solo_sync<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        float y = own.advance(b.floats(shape::XDB), q, x, h, a.bc_dt_eps);
        solo_sync<LARGE_Z>((shape::WARPS + shape::STATE_WARPS) * 32);
        y *= silu(sum_of<shape::WARPS, shape::CH>(b.floats(shape::Z_PARTS) + c) * scale) *
             shape::GIVEN;
        const float odd = __shfl_down_sync(~0u, y, 4);
        if (lane % 8 == 0)
            publish_words(a.packets + shape::YS + (b.first + c) / 2, pack_bf16(y, odd), 0, tag);
        if (r.slot >= 0)
            store<4>((S *)(states + layer * a.state_pitch), h);
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
    }
};

// STATES: large_states, or large_heads (solo_large_mamba2.cuh).
template <class STATES>
__device__ __forceinline__ void large_advance(const solo_args &a,
                                              const large_block<typename STATES::shape> &b) {
    uint32_t tag = first_tag(a);
    STATES states(a, b);
    states.fetch(0);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++)
        states.step(layer, tag);
}

#endif

} // namespace ssm

#endif
