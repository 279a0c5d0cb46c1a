// SPDX-License-Identifier: Apache-2.0
// What a warp of replay.cu does with one item: products of its base and entries with C, and the
// fold of entries into the base. Everything on the matrix units but fp32 bases times C.
#ifndef SSM_KERNELS_CUDA_REPLAY_ITEM_CUH
#define SSM_KERNELS_CUDA_REPLAY_ITEM_CUH

#include "replay.cuh"

namespace ssm {

struct replay_args {
    const float *decay, *skip, *dt_bias; // [heads]
    const float *gate_norm;              // [d_inner], with squares
    const bf16 *xc;                      // [token row][conv_dim]: x, B, C
    const bf16 *in;                      // [token row][n_in]: z first, dt last
    bf16 *y;                             // [token row][d_inner]
    float *squares;                      // [token row][heads] or NULL
    void *state;                         // S [slot][heads][P][N], this layer's bases
    bf16 *x;                             // [slot][heads][parts][REPLAY_HELD][R]
    bf16 *b;                             // [slot][groups][REPLAY_HELD][N]
    float *dt;                           // [slot][REPLAY_HELD][heads]
    const row *rows;
    const int32_t *held;   // of each row: entries | fold << 8
    const int32_t *starts; // [warps + 1] first of a warp's heads, counted over rows
    int heads, groups, d_inner, conv_dim, n_in;
    float dt_min, dt_max;
};

// Where in a walk over items (token row, head, part) a warp stands.
struct replay_place {
    int index, item; // of the token row; of the row's items
    row r;
    int held;
    bool fold;

    __device__ __forceinline__ void look(const replay_args &a) {
        const int4 raw = __ldg((const int4 *)(a.rows + index));
        r.at = raw.x, r.slot = raw.y, r.ring = raw.z, r.fresh = raw.w;
        const int code = __ldg(a.held + index);
        held = code & 255, fold = code >> 8 != 0;
    }
    __device__ __forceinline__ void start(const replay_args &a, int at, int items) {
        index = at / items, item = at - index * items;
        look(a);
    }
    __device__ __forceinline__ void next(const replay_args &a, int items, bool more) {
        if (++item == items && more)
            index++, item = 0, look(a);
    }
};

__device__ __forceinline__ uint32_t transpose8x8(uint32_t v) {
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

// c += a b like mma of util.cuh, fp16 operands
__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// B of all entries and this token as fragments, their products with C, and C: once a row and group.
// fp16 bases meet C in fp16, scaled by a power of two so that no C is lost (scale undoes it).
template <class S> struct replay_group {
    static constexpr int V = 16 / (int)sizeof(S), W = V / 2;
    uint32_t b[16][2]; // tile of 8 states; entries 0..7, 8..15. Rows of entries: [entry g][state]
    float dot;         // lane j: B_j . C
    uint32_t c16[sizeof(S) == 2 ? 4 : 1][2]; // of 32 states: see read_base
    float c[sizeof(S) == 2 ? 1 : V], scale;

    __device__ __forceinline__ void load_row(const replay_args &a, const replay_place &p, int of) {
        const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
        const bf16 *now = a.xc + (size_t)p.r.at * a.conv_dim + a.d_inner + of * REPLAY_N;
        const bf16 *c_now = now + a.groups * REPLAY_N;
        const bf16 *ring = a.b + ((size_t)p.r.slot * a.groups + of) * REPLAY_HELD * REPLAY_N;
        uint32_t cf[16];
#pragma unroll
        for (int blk = 0; blk < 16 / W; blk++) {
            const int n = blk * 4 * V + q * V;
            words<W> v[3] = {};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int j = g + h * 8;
                if (j <= p.held)
                    v[h] = load_words<W>((j < p.held ? ring + j * REPLAY_N : now) + n);
            }
            v[2] = load_words<W>(c_now + n);
#pragma unroll
            for (int i = 0; i < W; i++)
                b[blk * W + i][0] = v[0].w[i], b[blk * W + i][1] = v[1].w[i],
                            cf[blk * W + i] = v[2].w[i];
        }
        finish(cf, p.fold);
        if constexpr (sizeof(S) == 4)
            load<V>(c_now + lane * V, c);
    }
    // From b and C's words as they lie beside it: the rest but c.
    __device__ __forceinline__ void finish(const uint32_t (&cf)[16], bool fold) {
        const int lane = threadIdx.x & 31, g = lane >> 2;
        float sum[4] = {};
#pragma unroll
        for (int t = 0; t < 16; t += 2)
            mma(sum, b[t][0], b[t][1], b[t + 1][0], b[t + 1][1], cf[t], cf[t + 1]);
        const float low = __shfl_sync(~0u, sum[0], lane * 4 & 31);
        const float high = __shfl_sync(~0u, sum[2], lane * 4 & 31);
        dot = lane < 8 ? low : high;
        if (fold) {
#pragma unroll
            for (int t = 0; t < 16; t++)
                b[t][0] = transpose8x8(b[t][0]), b[t][1] = transpose8x8(b[t][1]);
        }
        if constexpr (sizeof(S) == 2) {
            uint32_t most = 0;
#pragma unroll
            for (int t = 0; t < 16; t++)
                most = max(most, max(cf[t] & 0x7fff, cf[t] >> 16 & 0x7fff));
            most = max(most, __shfl_xor_sync(~0u, most, 1));
            most = max(most, __shfl_xor_sync(~0u, most, 2));
            const int up = min(141 - (int)(most >> 7), 126); // the largest to 2^14 and more
            const float factor = __int_as_float((127 + up) << 23);
            scale = __int_as_float((127 - up) << 23);
#pragma unroll
            for (int blk = 0; blk < 4; blk++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int t = 2 * i;
                    const uint32_t here = g & 1 ? cf[blk * 4 + t + 1] : cf[blk * 4 + t];
                    const uint32_t beside =
                        g & 1 ? cf[(blk ^ 1) * 4 + t + 1] : cf[(blk ^ 1) * 4 + t];
                    const uint32_t pair = g & 2 ? beside : here;
                    asm("cvt.rn.f16x2.f32 %0, %1, %2;"
                        : "=r"(c16[blk][i])
                        : "f"(high_half(pair) * factor), "f"(low_half(pair) * factor));
                }
            }
        }
    }
};

// base . C for the lane's own rows, by the matrix units: a lane's 16 bytes, words w0 to w3 of a
// row, are all four registers of a left operand. w0 and w2 then count as row g, w1 and w3 as row g
// + 8, and the right operand's column says which of C's numbers meet them: even columns those of w0
// and w2, odd ones those of w1 and w3; y is the sum of one result from either half. Odd rows take
// the 64 bytes beside those of even rows, so that eight lanes meet all banks: columns 2, 3, 6, 7
// hold the C for them, and their results lie in lanes of odd q.
// Of a tile of 16 rows: `even`, `odd` are the lane's rows 2 g, 2 g + 1 and its 16 bytes by q.
// Results, still to be scaled, of both where has_base().
__device__ __forceinline__ void read_base_tile(const char *even, const char *odd,
                                               const replay_group<f16> &group, float (&v)[2]) {
    const int beside = (threadIdx.x >> 2 & 1) * 64;
    const char *const rows[2] = {even, odd};
#pragma unroll
    for (int t = 0; t < 2; t++) {
        const char *const at[2] = {rows[t] + beside, rows[t] + 64 - beside};
        float c[4] = {};
#pragma unroll
        for (int blk = 0; blk < 4; blk++) {
            const uint4 w = *(const uint4 *)(at[blk & 1] + blk / 2 * 128);
            mma_f16(c, w.x, w.y, w.z, w.w, group.c16[blk][0], group.c16[blk][1]);
        }
        v[t] = c[0] + c[3];
    }
}
__device__ __forceinline__ bool has_base(void) {
    const int lane = threadIdx.x & 31;
    return (lane & 1) == (lane >> 2 & 1);
}

__device__ __forceinline__ void read_base(const char *stage, const replay_group<f16> &group,
                                          float (&y)[2]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const char *rows = stage + 2 * g * REPLAY_N * 2 + q * 16;
    float v[8];
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const char *even = rows + m * 16 * REPLAY_N * 2;
        read_base_tile(even, even + REPLAY_N * 2, group, (float(&)[2])v[2 * m]);
    }
    // lanes of q and q ^ 1 own rows of tiles 2 q, 2 q + 1; one of the two has the results of both
    const bool has = has_base();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float even = q & 2 ? v[4 + i] : v[i], odd = q & 2 ? v[6 + i] : v[2 + i];
        const float mine = q & 1 ? odd : even, others = q & 1 ? even : odd;
        const float given = __shfl_xor_sync(~0u, others, 1);
        y[i] = (has ? mine : given) * group.scale;
    }
}

__device__ __forceinline__ void read_base(const char *stage, const replay_group<float> &group,
                                          float (&y)[1]) {
    const int lane = threadIdx.x & 31;
    const float *s = (const float *)stage + lane * 4;
    float v[32];
#pragma unroll
    for (int i = 0; i < 32; i++) { // the order in which the reduction deals rows to lanes
        float h[4];
        load<4>(s + ((i & 1) * 16 + (i >> 2) * 2 + (i >> 1 & 1)) * REPLAY_N, h);
        v[i] = h[0] * group.c[0] + h[1] * group.c[1] + h[2] * group.c[2] + h[3] * group.c[3];
    }
#pragma unroll
    for (int step = 0; step < 5; step++) {
        const int o = 16 >> step;
        const bool upper = lane & o;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            if (i < o) {
                const float give = upper ? v[i] : v[i + o], keep = upper ? v[i + o] : v[i];
                v[i] = keep + __shfl_xor_sync(~0u, give, o);
            }
        }
    }
    y[0] = v[0];
}

// x of a tile of 16 rows, all entries, as a left operand: rows of x, columns of entries.
template <int R>
__device__ __forceinline__ void load_entries(uint32_t (&x)[4], const bf16 *entries, int tile) {
    const int lane = threadIdx.x & 31, entry = (lane & 7) + (lane >> 4) * 8;
    const int row = tile * 16 + (lane >> 3 & 1); // the first of its eight
    ldmatrix_transposed(x, entries + entry * R + replay_position<R>(entry, row));
}

// The sum over earlier entries of coefficient x; lane j holds entry j's coefficient.
template <class S>
__device__ __forceinline__ void read_entries(const bf16 *entries, float coefficient, int held,
                                             float (&y)[replay_shape<S>::OWN]) {
    typedef replay_shape<S> shape;
    const int lane = threadIdx.x & 31, q = lane & 3;
    uint32_t high[2], low[2], live[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int j = 2 * q + 8 * h;
        const float k0 = __shfl_sync(~0u, coefficient, j),
                    k1 = __shfl_sync(~0u, coefficient, j + 1);
        const float a = j < held ? k0 : 0.f, b = j + 1 < held ? k1 : 0.f;
        high[h] = pack_bf16(a, b);
        low[h] = pack_bf16(a - low_half(high[h]), b - high_half(high[h]));
        live[h] = (j < held ? 0xffffu : 0) | (j + 1 < held ? 0xffff0000u : 0);
    }
    float c[shape::R / 16][4] = {};
#pragma unroll
    for (int m = 0; m < shape::R / 16; m++) {
        uint32_t x[4]; // beyond the last entry: anything
        load_entries<shape::R>(x, entries, m);
        x[0] &= live[0], x[1] &= live[0], x[2] &= live[1], x[3] &= live[1];
        mma(c[m], x[0], x[1], x[2], x[3], low[0], low[1]);
        mma(c[m], x[0], x[1], x[2], x[3], high[0], high[1]);
    }
    if constexpr (shape::OWN == 2) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float a = q & 1 ? c[1][2 * i] : c[0][2 * i];
            const float b = q & 1 ? c[3][2 * i] : c[2][2 * i];
            y[i] += q & 2 ? b : a;
        }
    } else {
        const float a = q & 1 ? c[1][0] : c[0][0], b = q & 1 ? c[1][2] : c[0][2];
        y[0] += q & 2 ? b : a;
    }
}

// S = decay S + (weight x)^T B in shared memory: products of bf16 with the weighted x in two parts
// (three for fp32 states). weight: lane j's.
template <class S>
__device__ __forceinline__ void fold_item(char *stage, float decay, float weight,
                                          const uint32_t (&b)[16][2]) {
    typedef replay_shape<S> shape;
    constexpr int V = shape::V, W = V / 2, SPLIT = sizeof(S) == 4 ? 3 : 2;
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        w[i] = __shfl_sync(~0u, weight, 2 * q + i / 2 * 8 + i % 2);
#pragma unroll 1
    for (int m = 0; m < shape::R / 16; m++) {
        uint32_t raw[4], x[SPLIT][4];
        load_entries<shape::R>(raw, (const bf16 *)(stage + shape::BASE), m);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float w0 = w[i / 2 * 2], w1 = w[i / 2 * 2 + 1];
            float low = w0 != 0 ? w0 * low_half(raw[i]) : 0; // beyond the last entry: anything
            float high = w1 != 0 ? w1 * high_half(raw[i]) : 0;
#pragma unroll
            for (int s = 0; s < SPLIT; s++) {
                x[s][i] = pack_bf16(low, high);
                low -= low_half(x[s][i]), high -= high_half(x[s][i]);
            }
        }
        S *rows = (S *)stage + (m * 16 + 2 * g) * REPLAY_N + q * V;
#pragma unroll
        for (int blk = 0; blk < 16 / W; blk++) {
            float even[V], odd[V];
            load<V>(rows + blk * 4 * V, even);
            load<V>(rows + blk * 4 * V + REPLAY_N, odd);
#pragma unroll
            for (int i = 0; i < W; i++) {
                float c[4] = {decay * even[2 * i], decay * even[2 * i + 1], decay * odd[2 * i],
                              decay * odd[2 * i + 1]};
#pragma unroll
                for (int s = SPLIT - 1; s >= 0; s--)
                    mma(c, x[s][0], x[s][1], x[s][2], x[s][3], b[blk * W + i][0],
                        b[blk * W + i][1]);
                even[2 * i] = c[0], even[2 * i + 1] = c[1];
                odd[2 * i] = c[2], odd[2 * i + 1] = c[3];
            }
            store<V>(rows + blk * 4 * V, even);
            store<V>(rows + blk * 4 * V + REPLAY_N, odd);
        }
    }
}

} // namespace ssm

#endif
