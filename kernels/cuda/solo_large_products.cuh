// SPDX-License-Identifier: Apache-2.0
// solo_large.cu's products, and the warp that asks for their weights.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_PRODUCTS_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_PRODUCTS_CUH

#include "solo_large.cuh"

namespace ssm {

#if SSM_HOPPER

// ---- asking: a slot at a time, in the order in which they are read

template <class SHAPE> struct large_asks {
    typedef SHAPE shape;
    large_block<SHAPE> b, there; // there: of what was asked for FLIGHT slots ago
    uint64_t once;
    int asked;

    __device__ __forceinline__ large_asks(const large_block<SHAPE> &block)
        : b(block), there(block), once(policy_once()), asked(0) {
    }
    // Until there may be one more slot under way.
    __device__ __forceinline__ void wait() {
        if (asked >= shape::SLOTS)
            solo_wait(b.empty + b.at * 8, b.phase ^ 1);
        if (asked >= shape::FLIGHT) {
            solo_wait(there.full + there.at * 8, there.phase);
            there.next();
        }
    }
    __device__ __forceinline__ uint32_t slot() const {
        return b.slots + b.at * shape::SLOT;
    }
    __device__ __forceinline__ uint32_t full() const {
        return b.full + b.at * 8;
    }
    __device__ __forceinline__ void next() {
        b.next(), asked++;
    }
    // Eight rows by a part of their columns a slot.
    __device__ __forceinline__ void rows(const bf16 *from, int n, int cols, int part, int pitch) {
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int group = 0; group < n; group += 8) {
            const int count = min(8, n - group), bytes = part * 2;
#pragma unroll 1
            for (int col = 0; col < cols; col += part) {
                wait();
                if (lane == 0)
                    barrier_expect(full(), count * bytes);
                __syncwarp();
                if (lane < count)
                    copy_run(slot() + lane * pitch, from + (size_t)(group + lane) * cols + col,
                             bytes, full(), once);
                next();
            }
        }
    }
    // A group's B, C and dt; dt's one row as a slot of four, its parts (large_products::rest()).
    __device__ __forceinline__ void rest(const bf16 *from) {
        enum { PART = shape::WARPS * shape::IN_CB * 32, PARTS = shape::WIDTH / PART };
#pragma unroll 1
        for (int i = 0; i < shape::REST_ROWS; i += LARGE_REST) {
            const bool dt = i == 2 * LARGE_REST;
            rows(from + (size_t)b.rest_row(i) * shape::WIDTH, dt ? PARTS : LARGE_REST,
                 dt ? PART : shape::WIDTH, PART, shape::IN_PITCH);
        }
    }
    __device__ __forceinline__ void layer(const solo_layer &l) {
        if constexpr (shape::BC_GROUPS > 1)
            rest(l.rest);
#pragma unroll 1
        for (int z = 0; z < 2; z++)
            rows(l.in_proj +
                     (size_t)((shape::GATED ? 1 - z : z) * shape::INNER + b.first) * shape::WIDTH,
                 shape::CH, shape::WIDTH, shape::WARPS * shape::IN_CB * 32, shape::IN_PITCH);
        rows(l.out_proj + (size_t)blockIdx.x * shape::OUT_ROWS * shape::INNER, shape::OUT_ROWS,
             shape::INNER, shape::WARPS * shape::OUT_CB * 32, shape::OUT_PITCH);
    }
};

// ---- in_proj and out_proj

// A warp that has its columns of all rows, and what it needs of the block.
template <class SHAPE> struct large_worker {
    typedef SHAPE shape;
    const solo_args &a;
    large_block<SHAPE> b;
    int lane, warp, g, q;

    __device__ __forceinline__ large_worker(const solo_args &args, const large_block<SHAPE> &block)
        : a(args), b(block) {
        lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane >> 2, q = lane & 3;
    }
    // The warp's columns of what all blocks gave, to shared memory. column(chunk): the first of
    // four of its NB * 32; put(chunk, v, w): those; add(i, v): what the packets of the lane's i-th
    // four have beside them.
    template <int NB, class COLUMN, class PUT, class ADD>
    __device__ __forceinline__ void collect(const uint2 *from, uint32_t tag, const COLUMN &column,
                                            const PUT &put, const ADD &add) const {
        constexpr int CHUNKS = NB * 8, N = (CHUNKS + 31) / 32;
        uint4 v[N];
        poll(
            v,
            [&](int i, uint4 &is) {
                if (i * 32 + lane < CHUNKS)
                    is = two_packets(from + column(i * 32 + lane) / 2);
            },
            [&](int i, uint4 is) {
                return i * 32 + lane >= CHUNKS || (((is.y ^ tag) | (is.w ^ tag)) & 255) == 0;
            });
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i * 32 + lane < CHUNKS) {
                put(i * 32 + lane, v[i].x, v[i].z);
                add(i, __uint_as_float(v[i].y & ~255u) + __uint_as_float(v[i].w & ~255u));
            }
        }
        __syncwarp();
    }
    // Groups: the warp's sums of squares, to all warps. squares: of the lane's fours of y, of a
    // group each.
    __device__ __forceinline__ void give_squares(const float (&squares)[shape::BC_GROUPS]) const {
        float mine = 0;
#pragma unroll
        for (int i = 0; i < shape::BC_GROUPS; i++) {
            const float all = warp_sum(squares[i]);
            mine = lane == i ? all : mine;
        }
        if (lane < shape::BC_GROUPS)
            b.floats(shape::Y_SQUARES)[warp * shape::BC_GROUPS + lane] = mine;
    }
    // Once all warps' are there.
    __device__ __forceinline__ void take_squares() const {
        solo_sync<LARGE_Y>(shape::WARPS * 32);
    }
    // What y of a group is multiplied by.
    __device__ __forceinline__ float norm_of(int group) const {
        const float *squares = b.floats(shape::Y_SQUARES) + group;
        return rsqrt_fast(sum_of<shape::WARPS, shape::BC_GROUPS>(squares) *
                              (1.f * shape::BC_GROUPS / shape::INNER) +
                          a.gate_eps);
    }
    // The first layer's input; returns the lane's squares.
    template <class COLUMN, class PUT>
    __device__ __forceinline__ float embed(const COLUMN &column, const PUT &put) const {
        const int32_t token = known_token(a.tokens[0], a.drawn);
        float square = 0;
#pragma unroll 1
        for (int chunk = lane; chunk < shape::IN_NB * 8; chunk += 32) {
            const int c = column(chunk);
            const uint2 e = *(const uint2 *)(a.embedding + (size_t)token * shape::WIDTH + c);
            float4 n = *(const float4 *)(a.first_norm + c);
            n.x *= shape::GIVEN, n.y *= shape::GIVEN, n.z *= shape::GIVEN, n.w *= shape::GIVEN;
            const float r[4] = {low_half(e.x), high_half(e.x), low_half(e.y), high_half(e.y)};
            put(chunk, pack_bf16(r[0] * n.x, r[1] * n.y), pack_bf16(r[2] * n.z, r[3] * n.w));
            square += (r[0] * r[0] + r[1] * r[1]) + (r[2] * r[2] + r[3] * r[3]);
        }
        __syncwarp();
        return square;
    }
};

template <int N> __device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
}

// bf16: two slots of eight rows at a time.
template <class SHAPE> struct large_products : large_worker<SHAPE> {
    typedef SHAPE shape;
    using large_worker<SHAPE>::b, large_worker<SHAPE>::lane, large_worker<SHAPE>::warp,
        large_worker<SHAPE>::g, large_worker<SHAPE>::q;
    using large_worker<SHAPE>::large_worker;

    // Sums of the next eight rows over the warp's columns: rows 2 q and 2 q + 1, in lane q. Two
    // slots at a time: what one waits for passes beside the other's. x: the warp's columns, which
    // the matrix instruction has as its first operand's first row. NORMED: parts are groups of y.
    template <int NB, int CB, int PITCH, bool NORMED = false>
    __device__ __forceinline__ float2 group(uint32_t x) {
        constexpr int PARTS = NB / CB;
        float2 sum = make_float2(0, 0);
        float c[4][4] = {};
        const uint32_t row = b.slots + g * PITCH + warp * CB * 64 + q * 16;
#pragma unroll
        for (int part = 0; part < PARTS; part += 2) {
            const int n = part + 1 < PARTS ? 2 : 1;
            uint4 w[2][CB];
            uint32_t empty[2];
#pragma unroll
            for (int i = 0; i < n; i++) {
                empty[i] = b.empty + b.at * 8;
                solo_wait(b.full + b.at * 8, b.phase);
#pragma unroll
                for (int k = 0; k < CB; k++)
                    w[i][k] = load_shared(row + b.at * shape::SLOT + k * 64);
                b.next();
            }
#pragma unroll
            for (int k = 0; k < CB; k++) {
#pragma unroll
                for (int i = 0; i < n; i++) {
                    uint4 v = make_uint4(0, 0, 0, 0);
                    if (lane < 4)
                        v = load_shared(x + ((part + i) * CB + k) * 64 + q * 16);
                    mma(c[2 * i], v.x, 0, v.y, 0, w[i][k].x, w[i][k].y);
                    mma(c[2 * i + 1], v.z, 0, v.w, 0, w[i][k].z, w[i][k].w);
                }
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < n; i++) {
                if (lane == 0)
                    barrier_arrive_after(empty[i], c[2 * i][0] + c[2 * i + 1][0]);
                if constexpr (NORMED) {
                    const float by = this->norm_of(part + i);
                    sum.x += (c[2 * i][0] + c[2 * i + 1][0]) * by;
                    sum.y += (c[2 * i][1] + c[2 * i + 1][1]) * by;
                }
            }
            if constexpr (NORMED)
                clear(c);
        }
        if constexpr (NORMED)
            return sum;
        return make_float2((c[0][0] + c[1][0]) + (c[2][0] + c[3][0]),
                           (c[0][1] + c[1][1]) + (c[2][1] + c[3][1]));
    }
    // Of one row, whose parts are a slot's rows; x's are the first operand's, so a part's sum is
    // where row and column are the same.
    __device__ __forceinline__ float one_row(uint32_t x) {
        enum { CB = shape::IN_CB, PARTS = shape::IN_NB / CB };
        const uint32_t at =
            b.slots + b.at * shape::SLOT + g * shape::IN_PITCH + warp * CB * 64 + q * 16;
        const uint32_t empty = b.empty + b.at * 8;
        float c[2][4] = {};
        solo_wait(b.full + b.at * 8, b.phase);
        b.next();
#pragma unroll
        for (int k = 0; k < CB; k++) {
            const uint4 w = load_shared(at + k * 64);
            uint4 v = make_uint4(0, 0, 0, 0);
            if (g < PARTS)
                v = load_shared(x + (g * CB + k) * 64 + q * 16);
            mma(c[0], v.x, 0, v.y, 0, w.x, w.y);
            mma(c[1], v.z, 0, v.w, 0, w.z, w.w);
        }
        __syncwarp();
        const float even = c[0][0] + c[1][0], odd = c[0][1] + c[1][1];
        if (lane == 0)
            barrier_arrive_after(empty, even);
        return warp_sum(g >= PARTS || g / 2 != q ? 0.f : g % 2 ? odd : even);
    }
    // The first of four columns that are the chunk-th of the warp's.
    template <int CB> __device__ __forceinline__ int column(int chunk) const {
        const int i = chunk * 4;
        return (i / (CB * 32) * shape::WARPS + warp) * CB * 32 + i % (CB * 32);
    }
    __device__ __forceinline__ int in_column(int chunk) const {
        return column<shape::IN_CB>(chunk);
    }
    __device__ __forceinline__ int out_column(int chunk) const {
        return column<shape::OUT_CB>(chunk);
    }
    // All columns dealt to 32 lanes in fours, a lane's i-th: of what eight lanes have in a row, in
    // each of the warps' parts. Where it begins, and the input's four numbers there (u: the
    // block's input).
    static __device__ __forceinline__ int dealt_column(int i, int lane) {
        return ((i / shape::IN_CB * 4 + lane / 8) * shape::IN_CB * 8 + i % shape::IN_CB * 8 +
                lane % 8) *
               4;
    }
    static __device__ __forceinline__ uint2 dealt_input(uint32_t u, int i, int lane) {
        const int run = i / shape::IN_CB, of_warp = run % 2 * 4 + lane / 8;
        const int chunk = run / 2 * shape::IN_CB * 8 + i % shape::IN_CB * 8 + lane % 8;
        return load_shared2(u + of_warp * shape::IN_NB * 64 + chunk * 8);
    }
    __device__ __forceinline__ uint32_t u_at() const {
        return b.address(shape::U) + warp * shape::IN_NB * 64;
    }
    __device__ __forceinline__ uint32_t y_at() const {
        return b.address(shape::Y) + warp * shape::OUT_NB * 64;
    }
    __device__ __forceinline__ void put_in(int chunk, uint32_t v, uint32_t w) const {
        store_shared2(u_at() + chunk * 8, v, w);
    }
    __device__ __forceinline__ void put_out(int chunk, uint32_t v, uint32_t w) const {
        store_shared2(y_at() + chunk * 8, v, w);
    }
    __device__ __forceinline__ void rest() { // of groups
        float *parts = b.floats(shape::REST_PARTS) + warp * shape::REST_PITCH + 2 * q;
#pragma unroll 1
        for (int i = 0; i < 2; i++) {
            const float2 c = group<shape::IN_NB, shape::IN_CB, shape::IN_PITCH>(u_at());
            if (g == 0)
                *(float2 *)(parts + i * LARGE_REST) = c;
        }
        const float dt = one_row(u_at());
        if (lane == 0)
            parts[2 * LARGE_REST] = dt;
    }
    __device__ __forceinline__ void in_proj() {
        const uint32_t u = u_at();
        constexpr int THREADS = (shape::WARPS + shape::STATE_WARPS) * 32;
        float *xs = b.floats(shape::X_PARTS) + warp * shape::CH + 2 * q;
        float *zs = b.floats(shape::Z_PARTS) + warp * shape::CH + 2 * q;
#pragma unroll 1
        for (int i = 0; i < 2 * shape::GROUPS; i++) {
            const float2 c = group<shape::IN_NB, shape::IN_CB, shape::IN_PITCH>(u);
            if (g == 0)
                *(float2 *)(i < shape::GROUPS ? xs + i * 8 : zs + (i - shape::GROUPS) * 8) = c;
            if (i == shape::GROUPS - 1)
                solo_signal<LARGE_X>(THREADS);
        }
        solo_signal<LARGE_Z>(THREADS);
    }
    __device__ __forceinline__ void out_proj() {
        const uint32_t y = y_at();
        if constexpr (shape::BC_GROUPS > 1)
            this->take_squares();
        float *outs = b.floats(shape::OUT_PARTS) + warp * shape::OUT_GROUPS * 8 + 2 * q;
#pragma unroll 1
        for (int i = 0; i < shape::OUT_GROUPS; i++) {
            const float2 c =
                group<shape::OUT_NB, shape::OUT_CB, shape::OUT_PITCH, (shape::BC_GROUPS > 1)>(y);
            if (g == 0)
                *(float2 *)(outs + i * 8) = c;
        }
        solo_signal<LARGE_OUT>((shape::WARPS + 1) * 32);
    }
};

// All layers' products by one warp; WORKER: large_products, or large_packed.
template <class WORKER> __device__ __forceinline__ void large_multiply(WORKER w) {
    typedef typename WORKER::shape shape;
    uint32_t tag = first_tag(w.a);
    const auto in = [&](int chunk) { return w.in_column(chunk); };
    const auto out = [&](int chunk) { return w.out_column(chunk); };
    const auto put_in = [&](int chunk, uint32_t v, uint32_t x) { w.put_in(chunk, v, x); };
    const auto put_out = [&](int chunk, uint32_t v, uint32_t x) { w.put_out(chunk, v, x); };
    float square = w.embed(in, put_in);
#pragma unroll 1
    for (int layer = 0; layer < w.a.n_layers; layer++, tag++) {
        if (layer > 0) {
            square = 0;
            w.template collect<shape::IN_NB>(w.a.packets + shape::US, tag, in, put_in,
                                             [&](int, float v) { square += v; });
        }
        square = warp_sum(square);
        if (w.lane == 0)
            w.b.floats(shape::SQUARES)[w.warp] = square;
        if constexpr (shape::BC_GROUPS > 1)
            w.rest();
        if constexpr (shape::GATED)
            solo_signal<LARGE_U>((shape::WARPS + shape::X_WARPS) * 32);
        w.in_proj();
        float gated[shape::BC_GROUPS] = {};
        w.template collect<shape::OUT_NB>(
            w.a.packets + shape::YS, tag, out, put_out,
            [&](int i, float v) { gated[shape::BC_GROUPS > 1 ? i : 0] += v; });
        if constexpr (shape::BC_GROUPS > 1) {
            w.give_squares(gated);
        } else if constexpr (shape::GATED) {
            const float all = warp_sum(gated[0]);
            if (w.lane == 0)
                w.b.floats(shape::Y_SQUARES)[w.warp] = all;
        }
        w.out_proj();
    }
}
template <class ASKS> __device__ __forceinline__ void large_ask(const solo_args &a, ASKS asks) {
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++)
        asks.layer(a.layers[layer]);
}

#endif

} // namespace ssm

#endif
