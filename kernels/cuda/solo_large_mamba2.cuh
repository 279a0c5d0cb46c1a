// SPDX-License-Identifier: Apache-2.0
// What is Mamba-2's own in solo_large_mamba2.cu, which has the design: a row each of B, C and dt,
// and the states of a block's channels.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_MAMBA2_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_MAMBA2_CUH

#include "solo_large_packed.cuh"
#include "solo_large_rows.cuh"

namespace ssm {

#if SSM_HOPPER

// ---- in_proj's rows of B, C and dt: a warp a row, whose weights are in registers a layer ahead

// WORKER: how the products' warps keep the input.
template <class WORKER> struct large_rest_row {
    typedef typename WORKER::shape shape;
    enum { N = shape::WIDTH / 128 }; // fours of columns, a lane's
    const solo_args &a;
    const large_block<shape> &b;
    const row r;
    int lane, warp, row_at, kept;
    size_t place;
    uint2 w[N];
    solo_taps<shape::CONV> taps; // of B and C

    __device__ __forceinline__ large_rest_row(const solo_args &args,
                                              const large_block<shape> &block)
        : a(args), b(block), r(args.rows[0]) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::X_WARP;
        row_at = warp * shape::BLOCKS + blockIdx.x, kept = a.width - 1;
        place = taps.place(r, kept, shape::INNER + row_at);
    }
    __device__ __forceinline__ bool is_dt() const {
        return warp == 2;
    }
    __device__ __forceinline__ bool has_row() const {
        return !is_dt() || (int)blockIdx.x < shape::HEADS;
    }
    __device__ __forceinline__ void fetch(int layer) {
        if (!has_row())
            return;
        const bf16 *from = a.layers[layer].rest + (size_t)row_at * shape::WIDTH;
#pragma unroll
        for (int i = 0; i < N; i++)
            w[i] = load_once2(from + WORKER::dealt_column(i, lane));
        if (!is_dt())
            taps.fetch(a, r, kept, place, layer, shape::INNER + row_at);
    }
    // The row's number: dt without its bias; B or C behind convolution and SiLU.
    __device__ __forceinline__ float number(int layer) const {
        const uint32_t u = b.address(shape::U);
        float c[4] = {};
#pragma unroll
        for (int i = 0; i < N; i++) {
            const uint2 x = WORKER::dealt_input(u, i, lane);
            c[0] += low_half(w[i].x) * low_half(x.x), c[1] += high_half(w[i].x) * high_half(x.x);
            c[2] += low_half(w[i].y) * low_half(x.y), c[3] += high_half(w[i].y) * high_half(x.y);
        }
        const float scale = b.input_scale(a);
        const float v = warp_sum((c[0] + c[1]) + (c[2] + c[3])) * scale * (1 / shape::GIVEN);
        if (is_dt())
            return v;
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        if (lane == 0 && r.slot >= 0)
            taps.keep(a, r, kept, place, layer, stored);
        return high_half(pack_bf16(0.f, silu(taps.past() + taps.tap[0] * low_half(stored))));
    }
};

// All blocks' rows of B, or of C; of dt those of the block's heads.
template <class SHAPE>
__device__ __forceinline__ void collect_rest(const solo_args &a, const large_block<SHAPE> &b,
                                             int warp, uint32_t tag) {
    typedef SHAPE shape;
    const int lane = threadIdx.x % 32;
    float *to = b.floats(shape::XDB) + warp * LARGE_STATES;
    const uint2 *from = a.packets + shape::REST + warp * shape::BLOCKS;
    if (warp < 2) {
        uint4 v[shape::BLOCKS / 64];
        poll(
            v, [&](int i, uint4 &is) { is = two_packets(from + (i * 32 + lane) * 2); },
            [&](int, uint4 is) { return (((is.y ^ tag) | (is.w ^ tag)) & 255) == 0; });
#pragma unroll
        for (int i = 0; i < shape::BLOCKS / 64; i++)
            *(uint2 *)(to + (i * 32 + lane) * 2) = make_uint2(v[i].x, v[i].z);
        return;
    }
    const int head = b.first / LARGE_HEAD, n = (b.first + shape::CH - 1) / LARGE_HEAD + 1 - head;
    uint2 v[1];
    poll(
        v,
        [&](int, uint2 &is) {
            if (lane < n)
                is = packet(from + head + lane);
        },
        [&](int, uint2 is) { return lane >= n || ((is.y ^ tag) & 255) == 0; });
    if (lane < n)
        to[lane] = __uint_as_float(v[0].x);
}

template <class WORKER>
__device__ __forceinline__ void large_rest(const solo_args &a,
                                           const large_block<typename WORKER::shape> &b) {
    typedef typename WORKER::shape shape;
    uint32_t tag = first_tag(a);
    large_rest_row<WORKER> rest(a, b);
    rest.fetch(0);
    large_rows<shape> rows(a, b);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        solo_sync<LARGE_U>((shape::WARPS + shape::X_WARPS) * 32);
        if (rest.has_row()) {
            const float v = rest.number(layer);
            if (rest.lane == 0)
                publish_words(a.packets + shape::REST + rest.row_at, __float_as_uint(v), 0, tag);
        }
        collect_rest(a, b, rest.warp, tag);
        solo_signal<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        if (layer + 1 < a.n_layers)
            rest.fetch(layer + 1);
        if (rest.warp == shape::X_WARPS - 1)
            rows.step(layer, tag);
    }
}

// ---- states

__device__ __forceinline__ uint4 load_own16(const void *p) { // this step's slot, as load_own()
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// A warp eight channels, four lanes a channel, of whose 128 states a lane has every fourth sixteen
// bytes; the convolution by all four.
template <class SHAPE> struct large_heads {
    typedef SHAPE shape;
    typedef typename shape::state S;
    enum { V = 16 / sizeof(S), UNITS = LARGE_STATES / 4 / V };
    const solo_args &a;
    const large_block<SHAPE> &b;
    const row r;
    int lane, warp, q, c, kept, head;
    size_t place;
    char *states;
    solo_taps<shape::CONV> taps; // of the layer, as all below
    uint4 raw[UNITS];
    float decay, skip, bias, norm;

    __device__ __forceinline__ large_heads(const solo_args &args, const large_block<SHAPE> &block)
        : a(args), b(block), r(args.rows[0]) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - shape::STATE_WARP;
        q = lane & 3, c = warp * 8 + (lane >> 2), kept = a.width - 1;
        head = (b.first + c) / LARGE_HEAD, place = taps.place(r, kept, b.first + c);
        states = a.state +
                 (((size_t)max(r.slot, 0) * shape::INNER + b.first + c) * LARGE_STATES + q * V) *
                     sizeof(S);
    }
    __device__ __forceinline__ void fetch(int layer) {
        const solo_layer &l = a.layers[layer];
        taps.fetch(a, r, kept, place, layer, b.first + c);
#pragma unroll
        for (int i = 0; i < UNITS; i++)
            raw[i] = load_own16(states + layer * a.state_pitch + i * 64);
        decay = load_once1(l.decay + head), skip = load_once1(l.skip + head);
        bias = load_once1(l.dt_bias + head), norm = load_once1(l.gate_norm + b.first + c);
    }
    // The channel's x; scale: the input's.
    __device__ __forceinline__ float convolve(int layer, float &scale) const {
        const float past = taps.past();
        const float v = b.x_sum(a, layer, c, scale);
        const uint32_t stored = pack_bf16(v, v); // what the ring will give back
        if (q == 0 && r.slot >= 0)
            taps.keep(a, r, kept, place, layer, stored);
        return high_half(pack_bf16(0.f, silu(past + taps.tap[0] * low_half(stored))));
    }
    // The states, one token on; the channel's y without its gate, to all four lanes.
    __device__ __forceinline__ float advance(float x) {
        const float *sums = b.floats(shape::XDB), *bs = sums + q * V, *cs = bs + LARGE_STATES;
        const float dt = sums[LARGE_CONV_BC + head - b.first / LARGE_HEAD];
        const float delta = fminf(fmaxf(softplus(dt + bias), a.dt_min), a.dt_max);
        const float keeps = exp2_fast(delta * decay), input = delta * x;
        const bool none = r.fresh || r.slot < 0;
        float y = 0;
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            float h[V], v[V], w[V];
            load<V>((const S *)&raw[i], h);
            load<V>(bs + i * 4 * V, v);
            load<V>(cs + i * 4 * V, w);
#pragma unroll
            for (int k = 0; k < V; k++) {
                h[k] = keeps * (none ? 0.f : h[k]) + input * v[k];
                y += h[k] * w[k];
            }
            store<V>((S *)&raw[i], h);
        }
        y += __shfl_xor_sync(~0u, y, 1);
        y += __shfl_xor_sync(~0u, y, 2);
        return y + skip * x;
    }
    // The layer's y before its norm but times that norm's weight, to all blocks, with its squares.
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        float scale;
        const float x = convolve(layer, scale);
        solo_sync<LARGE_XDB>((shape::X_WARPS + shape::STATE_WARPS) * 32);
        float y = advance(x);
        solo_sync<LARGE_Z>((shape::WARPS + shape::STATE_WARPS) * 32);
        y *= silu(sum_of<shape::WARPS, shape::CH>(b.floats(shape::Z_PARTS) + c) * scale);
        const float square = y * y, squares = square + __shfl_down_sync(~0u, square, 4);
        y *= norm * shape::GIVEN;
        const float odd = __shfl_down_sync(~0u, y, 4);
        if (lane % 8 == 0)
            publish_words(a.packets + shape::YS + (b.first + c) / 2, pack_bf16(y, odd),
                          __float_as_uint(squares), tag);
        if (r.slot >= 0) {
#pragma unroll
            for (int i = 0; i < UNITS; i++)
                *(uint4 *)(states + layer * a.state_pitch + i * 64) = raw[i];
        }
        if (layer + 1 < a.n_layers)
            fetch(layer + 1);
    }
};

#endif

} // namespace ssm

#endif
