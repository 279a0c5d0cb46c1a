// SPDX-License-Identifier: Apache-2.0
// resident.cu's end of a layer: out_proj and the residual; the first layer's input.
#ifndef SSM_KERNELS_CUDA_RESIDENT_OUT_CUH
#define SSM_KERNELS_CUDA_RESIDENT_OUT_CUH

#include <type_traits>

#include "packed.cuh"
#include "resident_in.cuh"

namespace ssm {

#if SSM_HOPPER

__device__ __forceinline__ void store_four(float *p, const float4 &v, bool on) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
                 "@p st.global.v4.f32 [%4], {%0,%1,%2,%3};\n}" ::"f"(v.x),
                 "f"(v.y), "f"(v.z), "f"(v.w), "l"(p), "r"((int)on)
                 : "memory");
}

// out_proj: this block's share of a tile's sums.
template <class SHAPE>
__device__ __forceinline__ void
out_proj_shares(const resident_args &a, const resident_block<SHAPE> &b, resident_worker<SHAPE> &w) {
    typedef SHAPE shape;
    enum { ROWS = shape::OUT_GROUP, APART = shape::TALL ? 0 : ROWS }; // of the groups
    float acc[ROWS / 2] = {};
    columns<SHAPE, ROWS, 1>(b, w, shape::OUT_PIECES, w.group * APART, w.first + w.in_layer, acc);
    int t = w.warp % 4 * 16 + w.g, apart = 8; // a thread's tokens
    if constexpr (shape::TALL)
        t += w.group * 64;
    if constexpr (shape::HALVES)
        t = w.own_place(), apart = b.mine;
    const int end = shape::HALVES ? t < b.mine ? NO_LIMIT : 0 : a.tokens;
    float *to = shares_of<SHAPE>(a) + (size_t)(b.split * SHAPE::ROWS + t) * shape::WIDTH +
                b.tile * shape::TILE_ROWS + w.group * APART;
    // A thread has two rows of the weights of every eight: of two eights its neighbour's two, too.
    const bool odd = w.q % 2;
#pragma unroll
    for (int i = 0; i + 1 < ROWS / 8; i += 2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float *mine = acc + 4 * i + 2 * half;
            const float x = __shfl_xor_sync(~0u, odd ? mine[0] : mine[4], 1);
            const float y = __shfl_xor_sync(~0u, odd ? mine[1] : mine[5], 1);
            store_four(to + apart * half * shape::WIDTH + (i + odd) * 8 + w.q / 2 * 4,
                       odd ? make_float4(x, y, mine[4], mine[5])
                           : make_float4(mine[0], mine[1], x, y),
                       t + apart * half < end);
        }
    }
    if constexpr (ROWS / 8 % 2) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (t + apart * half < end)
                *(float2 *)(to + apart * half * shape::WIDTH + ROWS - 8 + 2 * w.q) =
                    make_float2(acc[ROWS / 2 - 4 + 2 * half], acc[ROWS / 2 - 3 + 2 * half]);
        }
    }
    workers_sync();
    if (threadIdx.x == 0)
        count_up(&scratch_of<SHAPE>(a).shares[b.tile]);
}

// A split's share of the token rows, an eighth or a quarter, by a tile of the residual: a warp has
// every eighth of these tokens.
template <class SHAPE> struct residual_part {
    typedef SHAPE shape;
    enum {
        TOKENS =
            (SHAPE::ROWS / shape::OUT_SPLITS + RESIDENT_WARPS - 1) / RESIDENT_WARPS, // a warp's
        UNITS = shape::TILE_ROWS / 4,                                                // of four
        A_LANE = (UNITS + 31) / 32,
        WIDTH = shape::WIDTH
    };
    int first, n, column, lane, warp;       // token; the split's tokens
    bool live;                              // the warp has any
    float4 v[TOKENS][A_LANE], norm[A_LANE]; // the residual; the next layer's norm, or nothing

    __device__ __forceinline__ residual_part(const resident_args &a, const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w)
        : first(b.split * (a.tokens / shape::OUT_SPLITS) + w.warp), n(a.tokens / shape::OUT_SPLITS),
          column(b.tile * shape::TILE_ROWS), lane(w.lane), warp(w.warp), live(w.warp < n) {
    }
    // Of one token `live` has said it; of two both are loaded, there or not.
    __device__ __forceinline__ bool there(int k) const {
        return TOKENS == 1 || warp + k * RESIDENT_WARPS < n;
    }
    __device__ __forceinline__ int token(int k) const { // one that is there
        return first + (there(k) ? k * RESIDENT_WARPS : 0);
    }
    __device__ __forceinline__ int unit(int i) const { // the same
        return min(i * 32 + lane, UNITS - 1) * 4;
    }
    __device__ __forceinline__ void ask_norm(const float *from) {
#pragma unroll
        for (int i = 0; i < A_LANE; i++)
            norm[i] = load_shared_sum(from + column + unit(i));
    }
    // Four columns of an input, from the tile's at-th on. head: nobody's but the head's.
    __device__ __forceinline__ void store_input(bf16 *u, int at, uint2 four, bool head) const {
        if (shape::MANY && !head) { // packed_rows_place(): two pairs
            const int from = column + at;
            u += from / 64 * 64 + packed_rows_place(from % 64) - column;
            *(uint32_t *)u = times(four.x, PACKED_GIVEN_TWICE);
            *(uint32_t *)(u + 8) = times(four.y, PACKED_GIVEN_TWICE);
        } else {
            *(uint2 *)(u + at) = four;
        }
    }
    // The next layer's, or the head's, input and its sums of squares.
    __device__ __forceinline__ void give(const resident_args &a, int tile, bool head) const {
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            if (!there(k))
                continue;
            float square = 0;
#pragma unroll
            for (int i = 0; i < A_LANE; i++) {
                const int at = (i * 32 + lane) * 4;
                const float4 r = v[k][i];
                const float of = (r.x * r.x + r.y * r.y) + (r.z * r.z + r.w * r.w);
                square += at < UNITS * 4 ? of : 0.f;
                if (at < UNITS * 4)
                    store_input(a.u + (size_t)token(k) * WIDTH + column, at,
                                make_uint2(pack_bf16(r.x * norm[i].x, r.y * norm[i].y),
                                           pack_bf16(r.z * norm[i].z, r.w * norm[i].w)),
                                head);
            }
            square = warp_sum(square);
            if (lane == 0)
                scratch_of<SHAPE>(a).squares[token(k)][tile] = square;
        }
    }
    __device__ __forceinline__ void store(const resident_args &a) const { // read by nobody else
#pragma unroll
        for (int k = 0; k < TOKENS; k++) {
            float *out = a.residual + (size_t)token(k) * WIDTH + column;
#pragma unroll
            for (int i = 0; i < A_LANE; i++)
                store_four(out + (i * 32 + lane) * 4, v[k][i], there(k) && i * 32 + lane < UNITS);
        }
    }
};

// The tokens' embeddings: the residual and the first layer's input. All other blocks use counters
// that were wiped here: they wait for this block's input first.
template <class SHAPE>
__device__ __forceinline__ void first_input(const resident_args &a, const resident_block<SHAPE> &b,
                                            const resident_worker<SHAPE> &w) {
    residual_part<SHAPE> part(a, b, w);
    if (blockIdx.x == 0 && threadIdx.x < resident_scratch<SHAPE>::WIPED)
        scratch_of<SHAPE>(a).parts[threadIdx.x].n = 0;
    if (part.live) {
        part.ask_norm(a.first_norm);
#pragma unroll
        for (int k = 0; k < part.TOKENS; k++) {
            const int id = known_token(a.ids[part.token(k)], a.drawn);
            const bf16 *from = a.embedding + (size_t)id * SHAPE::WIDTH + part.column;
#pragma unroll
            for (int i = 0; i < part.A_LANE; i++) {
                const uint2 four = *(const uint2 *)(from + part.unit(i));
                part.v[k][i] = make_float4(low_half(four.x), high_half(four.x), low_half(four.y),
                                           high_half(four.y));
            }
        }
        part.give(a, b.tile, false);
    }
    workers_sync();
    if (threadIdx.x == 0) {
        count_up(&scratch_of<SHAPE>(a).input);
        b.ask_up_to(NO_LIMIT);
    }
    if (part.live)
        part.store(a);
}

// What a token's sums are multiplied by: nothing here, in Mamba-2 its gated norm
// (resident_heads_states.cuh).
struct ungated {
    template <class PART> __device__ __forceinline__ ungated(const resident_args &, const PART &) {
    }
    __device__ __forceinline__ float scale(const resident_args &, int) const {
        return 1;
    }
};
template <class SHAPE> struct gated_squares;

// Adds the shares up for the block's part of the tokens onto the residual; the next layer's input
// and its sums of squares.
template <class SHAPE>
__device__ __forceinline__ void residual(const resident_args &a, const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w) {
    typedef SHAPE shape;
    enum { SPLITS = shape::OUT_SPLITS };
    residual_part<SHAPE> part(a, b, w);
    auto &v = part.v;
    if (part.live) {
#pragma unroll
        for (int k = 0; k < part.TOKENS; k++) {
            const float *before = a.residual + (size_t)part.token(k) * shape::WIDTH + part.column;
#pragma unroll
            for (int i = 0; i < part.A_LANE; i++)
                v[k][i] = load_shared_sum(before + part.unit(i));
        }
        part.ask_norm(a.layers[w.layer].next_norm);
    }
    workers_wait(&scratch_of<SHAPE>(a).shares[b.tile], SPLITS * (w.layer + 1));
    if (part.live) {
        float4 sum[part.TOKENS][part.A_LANE][SPLITS];
        [[maybe_unused]] const std::conditional_t<shape::GATED, gated_squares<SHAPE>, ungated>
            gates(a, part);
#pragma unroll
        for (int k = 0; k < part.TOKENS; k++) {
            const float *from =
                shares_of<SHAPE>(a) + (size_t)part.token(k) * shape::WIDTH + part.column;
#pragma unroll
            for (int i = 0; i < part.A_LANE; i++) {
#pragma unroll
                for (int s = 0; s < SPLITS; s++)
                    sum[k][i][s] = load_shared_sum(from + (size_t)s * SHAPE::ROWS * shape::WIDTH +
                                                   part.unit(i));
            }
        }
#pragma unroll
        for (int k = 0; k < part.TOKENS; k++) {
            [[maybe_unused]] const float by = gates.scale(a, k);
#pragma unroll
            for (int i = 0; i < part.A_LANE; i++) {
#pragma unroll
                for (int s = 1; s < SPLITS; s++)
                    add4(sum[k][i][0], sum[k][i][s]);
                if constexpr (shape::GATED)
                    scale4(sum[k][i][0], by);
                add4(v[k][i], sum[k][i][0]);
            }
        }
        part.give(a, b.tile, w.layer + 1 == a.n_layers);
    }
    workers_sync();
    if (threadIdx.x == 0) {
        if (w.layer + 1 < a.n_layers)
            count_up(&scratch_of<SHAPE>(a).input);
        else if (blockIdx.x == 0) // shares are here, so all have waited for the last input
            scratch_of<SHAPE>(a).input.n = 0;
        b.ask_up_to(NO_LIMIT);
    }
    if (part.live)
        part.store(a);
}

#endif

} // namespace ssm

#endif
