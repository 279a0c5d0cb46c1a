// SPDX-License-Identifier: Apache-2.0
// solo.cu's products, by the warps that make them.
#ifndef SSM_KERNELS_CUDA_SOLO_PRODUCTS_CUH
#define SSM_KERNELS_CUDA_SOLO_PRODUCTS_CUH

#include "solo_rows.cuh"

namespace ssm {

#if SSM_HOPPER

// ---- in_proj: the block's rows, a warp a share of the columns

template <int M, int CH, class S> struct in_role {
    typedef solo_shape<M, CH, S> shape;
    const solo_block<M, CH, S> &b;
    int lane, warp, g, q, tile, split;
    float *squares, *parts;

    __device__ __forceinline__ in_role(const solo_block<M, CH, S> &block) : b(block) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane >> 2, q = lane & 3;
        tile = warp % shape::TILES, split = warp / shape::TILES;
        squares = b.floats(shape::SQUARES) + split;
        parts = b.floats(shape::PARTS) + split * CH + tile * 16 + g;
    }
    // The block's sums of sixteen rows. The first parts of them are in registers.
    template <class X>
    __device__ __forceinline__ float2 sums(tile_rows<shape::IN_AHEAD> &rows, uint32_t at,
                                           const X &x) const {
        float c[4][4] = {};
        float2 sum = dots<shape::NARROW>(c, rows, x);
#pragma unroll
        for (int k = shape::IN_AHEAD; k < shape::IN_PARTS; k += shape::IN_AHEAD) {
            load_rows(rows, at + k * 64, 8 * shape::IN_PITCH);
            sum = dots<shape::NARROW>(c, rows, [&](int i) { return x(k + i); });
        }
        return sum;
    }
    __device__ __forceinline__ void step(int layer) {
        tile_rows<shape::IN_AHEAD> rows;
        const uint32_t u =
            b.address(shape::U) + (split * shape::IN_PARTS * 64 + q * 16) * (shape::NARROW ? 2 : 1);
        const uint32_t at = b.rows(layer) + (tile * 16 + g) * shape::IN_PITCH +
                            split * shape::IN_PARTS * 64 + q * 16;
        solo_wait(b.of(b.full, layer), b.phase(layer));
        load_rows(rows, at, 8 * shape::IN_PITCH);
        solo_wait(b.bar_u, layer & 1);
        if constexpr (!shape::NARROW) {
            static_assert(shape::NARROW || shape::IN_PARTS == shape::IN_AHEAD, "for z, too");
            uint4 kept[shape::IN_AHEAD];
#pragma unroll
            for (int k = 0; k < shape::IN_AHEAD; k++)
                kept[k] = load_shared(u + k * 64);
            multiply(
                layer, rows, at, [&](int k) { return kept[k]; }, [] {});
            return;
        }
        float square = 0;
        const auto x = [&](int k) {
            const uint4 v = load_column<true>(u + k * 128, lane);
            const uint4 w = load_column<true>(u + k * 128 + 16, lane);
            square += (__uint_as_float(v.y) + __uint_as_float(v.w)) +
                      (__uint_as_float(w.y) + __uint_as_float(w.w));
            return make_uint4(v.x, v.z, w.x, w.z);
        };
        multiply(layer, rows, at, x, [&] {
            square += __shfl_xor_sync(~0u, square, 1);
            square += __shfl_xor_sync(~0u, square, 2);
            if (lane == 0 && tile == 0)
                *squares = square;
        });
    }
    // x, then z; after(): once x has had the input.
    template <class X, class AFTER>
    __device__ __forceinline__ void multiply(int layer, tile_rows<shape::IN_AHEAD> &rows,
                                             uint32_t at, const X &x, const AFTER &after) {
        float2 c = sums(rows, at, x);
        if (q == 0)
            parts[0] = c.x, parts[8] = c.y;
        after();
        solo_signal<X_SUMS>((shape::IN_WARPS + 1) * 32);
        if (threadIdx.x == 0)
            b.expect_u();

        // z, while x goes its way
        const uint32_t z = at + CH * shape::IN_PITCH;
        load_rows(rows, z, 8 * shape::IN_PITCH);
        c = sums(rows, z, x);
        if (q == 0)
            parts[shape::SPLITS * CH] = c.x, parts[shape::SPLITS * CH + 8] = c.y;
        solo_signal<Z_SUMS>((shape::IN_WARPS + shape::STATE_WARPS) * 32);
        if (lane == 0)
            barrier_arrive_after(b.of(b.empty, layer), c.x + c.y);
    }
};

// ---- x_proj: the block's rows, its cluster's columns; all clusters' sums to the cluster

template <int M, int CH, class S>
__device__ __forceinline__ void x_sums(const solo_args &a, const solo_block<M, CH, S> &b) {
    uint32_t tag = first_tag(a);
    typedef solo_shape<M, CH, S> shape;
    const int lane = threadIdx.x % 32, g = lane >> 2, q = lane & 3, pair = lane % 8;
    const uint2 *from = a.packets + shape::OUT_PACKETS + b.rank * shape::CLUSTERS * 8;
    uint2 *to = a.packets + (from - a.packets) + b.cluster * 8 + g;
    const uint32_t xdb = b.address(shape::XDB) + (b.rank * shape::X_ROWS + pair * 2) * 4;
    const int row_at = b.rank * shape::X_ROWS + min(2 * g, shape::X_ROWS - 2);
    const size_t at = (size_t)row_at * shape::INNER + b.cluster * shape::C + q * 8;
    tile_rows<shape::C_PARTS> rows;
    ahead_rows(rows, a.layers[0].x_proj + at, shape::INNER);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        solo_wait(b.bar_x, layer & 1);
        const uint32_t x = b.address(shape::XC) + q * 16;
        const float2 c = dots<shape::NARROW>(
            rows, [&](int k) { return load_column<shape::NARROW>(x + k * 64, lane); });
        if (q == 0)
            publish(to, c.x, c.y, tag);
        if (lane == 0)
            b.expect_x();
        const float2 sum = gather<shape::CLUSTERS, shape::PATIENCE>(from, tag);
        if (pair * 2 < shape::X_ROWS) {
#pragma unroll
            for (int peer = lane / 8; peer < SOLO_BLOCKS; peer += 4)
                send_two(peer_address(xdb, peer), __float_as_uint(sum.x), __float_as_uint(sum.y),
                         peer_address(b.bar_xdb, peer));
        }
        if (layer + 1 < a.n_layers)
            ahead_rows(rows, a.layers[layer + 1].x_proj + at, shape::INNER);
    }
}

// ---- out_proj: the block's rows, its cluster's columns; the residual, in registers

template <int M, int CH, class S> struct out_role {
    typedef solo_shape<M, CH, S> shape;
    const solo_args &a;
    const solo_block<M, CH, S> &b;
    int lane, warp, q, mine; // mine: of the residual, this row and the next
    const uint2 *from;
    uint2 *to;
    size_t at;
    float r0, r1;
    tile_rows<shape::C_PARTS> rows;
    uint2 norm;

    __device__ __forceinline__ out_role(const solo_args &args, const solo_block<M, CH, S> &block,
                                        int first_warp)
        : a(args), b(block) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32 - first_warp, q = lane & 3;
        const int g = lane >> 2, first = b.rank * shape::OUT_ROWS + warp * 16;
        mine = first + lane % 8 * 2;
        from = a.packets + (b.rank * shape::OUT_WARPS + warp) * shape::CLUSTERS * 8;
        to = a.packets + (from - a.packets) + b.cluster * 8 + g;
        at = (size_t)(first + 2 * g) * shape::INNER + b.cluster * shape::C + q * 8;
    }
    // The next layer's input, to all of the cluster.
    __device__ __forceinline__ void give(float2 n) {
        const uint32_t word = pack_bf16(r0 * n.x, r1 * n.y);
        const uint32_t square = __float_as_uint(r0 * r0 + r1 * r1);
        const uint32_t u = b.address(shape::U) + mine * (shape::NARROW ? 4 : 2);
        const uint32_t squares = b.address(shape::SQUARES) + mine * 2;
#pragma unroll
        for (int peer = lane / 8; peer < SOLO_BLOCKS; peer += 4) {
            const uint32_t barrier = peer_address(b.bar_u, peer);
            if constexpr (shape::NARROW) {
                send_two(peer_address(u, peer), word, square, barrier);
            } else {
                send(peer_address(u, peer), word, barrier);
                send(peer_address(squares, peer), square, barrier);
            }
        }
    }
    __device__ __forceinline__ void start() {
        const int32_t token = known_token(a.tokens[0], a.drawn);
        const uint32_t embedded = *(const uint32_t *)(a.embedding + (size_t)token * M + mine);
        r0 = low_half(embedded), r1 = high_half(embedded);
        give(*(const float2 *)(a.first_norm + mine));
    }
    __device__ __forceinline__ void fetch(int layer) {
        ahead_rows(rows, a.layers[layer].out_proj + at, shape::INNER);
        norm = load_once2(a.layers[layer].next_norm + mine);
    }
    __device__ __forceinline__ void step(int layer, uint32_t tag) {
        solo_wait(b.bar_y, layer & 1);
        const uint32_t y = b.address(shape::Y) + q * 16;
        const float2 c = dots<shape::NARROW>(
            rows, [&](int k) { return load_column<shape::NARROW>(y + k * 64, lane); });
        if (q == 0)
            publish(to, c.x, c.y, tag);
        if (warp == 0 && lane == 0)
            b.expect_y();
        const float2 sum = gather<shape::CLUSTERS, shape::PATIENCE>(from, tag);
        r0 += sum.x, r1 += sum.y;
        const float2 n = make_float2(__uint_as_float(norm.x), __uint_as_float(norm.y));
        if (layer + 1 < a.n_layers)
            give(n);
        else if (b.cluster == 0)
            leave(n);
    }
    __device__ __forceinline__ void leave(float2 n) { // for the head
        float square = r0 * r0 + r1 * r1;
#pragma unroll
        for (int o = 1; o < 8; o *= 2)
            square += __shfl_xor_sync(~0u, square, o);
        if (lane < 8)
            *(uint32_t *)(a.u + mine) = pack_bf16(r0 * n.x, r1 * n.y);
        if (lane == 0)
            a.squares[b.rank * shape::OUT_WARPS + warp] = square;
    }
};

// ---- warps of one part

template <int M, int CH, class S>
__device__ __forceinline__ void in_sums(const solo_args &a, const solo_block<M, CH, S> &b) {
    in_role<M, CH, S> in(b);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++)
        in.step(layer);
}

template <int M, int CH, class S>
__device__ __forceinline__ void out_sums(const solo_args &a, const solo_block<M, CH, S> &b) {
    uint32_t tag = first_tag(a);
    out_role<M, CH, S> out(a, b, solo_shape<M, CH, S>::OUT_WARP);
    out.start();
    out.fetch(0);
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        out.step(layer, tag);
        if (layer + 1 < a.n_layers)
            out.fetch(layer + 1);
    }
}

// ---- or of both, where a layer's share of out_proj takes too many registers for a layer ahead

template <int M, int CH, class S>
__device__ __forceinline__ void all_sums(const solo_args &a, const solo_block<M, CH, S> &b) {
    uint32_t tag = first_tag(a);
    in_role<M, CH, S> in(b);
    out_role<M, CH, S> out(a, b, 0);
    out.start();
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++, tag++) {
        in.step(layer);
        out.fetch(layer);
        out.step(layer, tag);
    }
}

#endif

} // namespace ssm

#endif
