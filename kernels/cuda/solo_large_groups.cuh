// SPDX-License-Identifier: Apache-2.0
// What groups of B and C have of their own in solo_large_mamba2.cu (mamba-codestral-7b), which has
// the design: the warp that takes what the products' warps make of a block's rows of B, C and dt.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_GROUPS_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_GROUPS_CUH

#include "solo_large_mamba2.cuh"

namespace ssm {

#if SSM_HOPPER

// One warp: lanes 0 to 7 have the block's rows of B, 8 to 15 those of C, 16 that of dt.
template <class SHAPE> struct large_group_rows {
    typedef SHAPE shape;
    enum { DT = 2 * LARGE_REST, GROUP_PACKETS = LARGE_CONV_BC / 2 }; // lane; packets of a group
    const solo_args &a;
    const large_block<SHAPE> &b;
    const row r;
    int lane, channel, kept;
    size_t place;
    uint2 *group, *own;          // packets: the group's, and that of the lane's two rows
    solo_taps<shape::CONV> taps; // of B and C

    __device__ __forceinline__ large_group_rows(const solo_args &args,
                                                const large_block<SHAPE> &block)
        : a(args), b(block), r(args.rows[0]) {
        enum { BLOCKS = shape::BLOCKS / shape::BC_GROUPS }; // of a group
        lane = threadIdx.x % 32, kept = a.width - 1;
        channel = shape::INNER + b.rest_row(min(lane, DT - 1));
        place = taps.place(r, kept, channel);
        group = a.packets + shape::REST + blockIdx.x / BLOCKS * GROUP_PACKETS;
        own = group + lane / LARGE_REST * (GROUP_PACKETS / 2) +
              (blockIdx.x % BLOCKS * LARGE_REST + lane % LARGE_REST) / 2;
    }
    __device__ __forceinline__ void fetch(int layer) {
        taps.fetch(a, r, kept, place, layer, channel);
    }
    // dt without its bias to the block; B and C behind convolution and SiLU, two numbers a packet,
    // to the group's blocks.
    __device__ __forceinline__ void give(int layer, uint32_t tag) const {
        const float *parts = b.floats(shape::REST_PARTS) + min(lane, DT);
        const float v =
            sum_of<shape::WARPS, shape::REST_PITCH>(parts) * b.input_scale(a) * (1 / shape::GIVEN);
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        const uint32_t is = pack_bf16(0.f, silu(taps.past() + taps.tap[0] * low_half(stored)));
        const uint32_t odd = __shfl_down_sync(~0u, is, 1);
        if (lane < DT && lane % 2 == 0)
            publish_words(own, is >> 16 | odd, 0, tag);
        if (lane == DT)
            b.floats(shape::XDB)[LARGE_CONV_BC] = v;
        if (lane < DT && r.slot >= 0)
            taps.keep(a, r, kept, place, layer, stored);
    }
    // The group's B and C.
    __device__ __forceinline__ void collect(uint32_t tag) const {
        uint4 v[2];
        poll(
            v,
            [&](int i, uint4 &is) { is = two_packets(group + i * (GROUP_PACKETS / 2) + lane * 2); },
            [&](int, uint4 is) { return (((is.y ^ tag) | (is.w ^ tag)) & 255) == 0; });
#pragma unroll
        for (int i = 0; i < 2; i++)
            *(float4 *)(b.floats(shape::XDB) + i * LARGE_STATES + lane * 4) = make_float4(
                low_half(v[i].x), high_half(v[i].x), low_half(v[i].z), high_half(v[i].z));
    }
};

template <class SHAPE>
__device__ __forceinline__ void large_group(const solo_args &a, const large_block<SHAPE> &b) {
    typedef SHAPE shape;
    uint32_t tag = first_tag(a);
    large_group_rows<SHAPE> group(a, b);
    group.fetch(0);
    large_rows<SHAPE> rows(a, b);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        solo_sync<LARGE_U>((shape::WARPS + shape::X_WARPS) * 32);
        group.give(layer, tag);
        group.collect(tag);
        solo_signal<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (layer + 1 < a.n_layers)
            group.fetch(layer + 1);
        rows.step(layer, tag);
    }
}

#endif

} // namespace ssm

#endif
