// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's states that are not written every token: replay.cu's bases and entries, fp16,
// of the cluster's channels. resident_heads_replay.cu has the design.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_REPLAY_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_REPLAY_CUH

#include "replay_item.cuh"
#include "resident_heads_states.cuh"

namespace ssm {

#if SSM_HOPPER

// 16 rows of a head as entries lie, and so as the matrix units take them: the m-th that the
// cluster has rows of, of which the first one may begin in front of the cluster's.
template <class SHAPE> struct heads_tile {
    enum { IN_FRONT = SHAPE::NW % 16, ALL = (SHAPE::NW + IN_FRONT + 15) / 16 };
    static_assert(IN_FRONT % 8 == 0, "eights of rows");
    int row, head, at; // of the cluster, below 0 in front of its first; the head; which tile of it

    __device__ __forceinline__ heads_tile(const resident_block<SHAPE> &b, int m) {
        const int first = b.cluster * SHAPE::NW, channel = first / 16 * 16 + m * 16;
        row = channel - first, head = channel / HEAD - first / HEAD, at = channel % HEAD / 16;
    }
    static __device__ __forceinline__ bool live(int row) {
        return !IN_FRONT || (row >= 0 && row < SHAPE::NW);
    }
    static __device__ __forceinline__ int in(int row) { // one that is live
        return IN_FRONT ? min(max(row, 0), SHAPE::NW - 1) : row;
    }
};

template <class SHAPE, class S> struct heads_replay : heads_states<SHAPE, S, true> {
    typedef SHAPE shape;
    typedef heads_states<SHAPE, S, true> base;
    typedef heads_tile<SHAPE> tile;
    using base::bc, base::weights;
    enum { V = 16 / sizeof(S), W = V / 2, BLOCKS = 16 / W }; // as replay_group
    // a token's floats in shared memory: by head and entry what y takes of its x, what the base
    // takes; by head the base's decay
    enum { TAKEN = 0, FOLDED = 32, DECAY = 64 };
    typedef words<W> entries_of_b[BLOCKS][2]; // entries g, g + 8; beyond the last: zeros
    static_assert(sizeof(S) == 2, "fp32: resident_heads_replay.cu");

    float skip[shape::OF_CLUSTER], norm[tile::ALL]; // of heads; of the rows whose y this lane ends
    int code;            // lane k: of the rank's token k: entries | 256 if then none
    entries_of_b b_then; // of the warp's next token
    float dt_then[shape::OF_CLUSTER];

    __device__ __forceinline__ heads_replay(const heads_args &a, const resident_block<SHAPE> &b)
        : base(a, b) {
        code = 0;
        if (base::own >= 0)
            code = a.held[b.token(threadIdx.x % 32)];
    }
    __device__ __forceinline__ int held(int token) const {
        return __shfl_sync(~0u, code, token) & 255;
    }
    // Of all layers' slots; of a token that has none: any.
    __device__ __forceinline__ size_t slot(const heads_args &a, const resident_worker<SHAPE> &w,
                                           int token) const {
        return (size_t)w.layer * a.n_slots + max(__shfl_sync(~0u, base::own, token) >> 1, 0);
    }

    // ---- before B, C and dt are there

    // Of a tile: the row whose y this lane ends, if it does.
    static __device__ __forceinline__ int end_row(const resident_worker<SHAPE> &w) {
        return 2 * w.g + w.q / 2;
    }
    // Constants of the layer.
    __device__ __forceinline__ void constants(const heads_args &a, const resident_block<SHAPE> &b,
                                              const resident_worker<SHAPE> &w) {
#pragma unroll
        for (int h = 0; h < shape::OF_CLUSTER; h++)
            skip[h] =
                __ldg(a.layers[w.layer].skip + min(base::first_head(b) + h, shape::HEADS - 1));
#pragma unroll
        for (int m = 0; m < tile::ALL; m++)
            norm[m] = __ldg(a.gate_norm[w.layer] + b.cluster * shape::NW +
                            tile::in(tile(b, m).row + end_row(w)));
    }
    __device__ __forceinline__ void ask_b(const heads_args &a, const resident_worker<SHAPE> &w,
                                          int token, entries_of_b &to) const {
        const int n = held(token);
        const bf16 *from = a.entries_b + slot(a, w, token) * (REPLAY_HELD * REPLAY_N) + w.q * V;
#pragma unroll
        for (int blk = 0; blk < BLOCKS; blk++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                to[blk][h] = {};
                if (w.g + h * 8 < n)
                    to[blk][h] = load_words<W>(from + (w.g + h * 8) * REPLAY_N + blk * 4 * V);
            }
        }
    }
    // And of this token itself, the n-th: of(i) gives words of its B from the i-th number on.
    template <class OF>
    static __device__ __forceinline__ void add_own_b(const resident_worker<SHAPE> &w, int n,
                                                     entries_of_b &to, const OF &of) {
#pragma unroll
        for (int blk = 0; blk < BLOCKS; blk++) {
            const words<W> own = of(blk * 4 * V + w.q * V);
#pragma unroll
            for (int h = 0; h < 2; h++)
                to[blk][h] = w.g + h * 8 == n ? own : to[blk][h];
        }
    }
    // B and dt of a token's entries.
    __device__ __forceinline__ void ask_token(const heads_args &a, const resident_block<SHAPE> &b,
                                              const resident_worker<SHAPE> &w, int token) {
        const float *from =
            a.entries_dt + (slot(a, w, token) * REPLAY_HELD + w.lane) * shape::HEADS;
        ask_b(a, w, token, b_then);
#pragma unroll
        for (int h = 0; h < shape::OF_CLUSTER; h++) {
            dt_then[h] = 0;
            if (w.lane < held(token))
                dt_then[h] = from[min(base::first_head(b) + h, shape::HEADS - 1)];
        }
    }
    __device__ __forceinline__ void ask_entries(const heads_args &a, const resident_block<SHAPE> &b,
                                                const resident_worker<SHAPE> &w) {
        // Also where there is none, or registers were kept for a former one from layer to layer.
        ask_token(a, b, w, min(w.warp, b.mine - 1));
    }

    // ---- a token

    // What its entries weigh, and C as the matrix units take it.
    __device__ __forceinline__ void weigh(const heads_args &a, const resident_block<SHAPE> &b,
                                          const resident_worker<SHAPE> &w, int token,
                                          replay_group<S> &group) {
        const int n = held(token);
        uint32_t c[16];
        add_own_b(w, n, b_then, [&](int i) { return load_words<W>(bc(b, token, i)); });
#pragma unroll
        for (int blk = 0; blk < BLOCKS; blk++) {
            const words<W> of = load_words<W>(bc(b, token, HEAD_STATES + blk * 4 * V + w.q * V));
#pragma unroll
            for (int i = 0; i < W; i++) {
                c[blk * W + i] = of.w[i];
                group.b[blk * W + i][0] = b_then[blk][0].w[i];
                group.b[blk * W + i][1] = b_then[blk][1].w[i];
            }
        }
        group.finish(c, false);
        float *to = weights(b, token);
#pragma unroll
        for (int h = 0; h < shape::OF_CLUSTER; h++) {
            float rate, decay;
            const float delta = base::delta_of(a, b, w, token, h, &rate);
            const float dt = w.lane < n ? dt_then[h] : w.lane == n ? delta : 0.f;
            const float weight = entry_weight(dt, rate, &decay);
            if (w.lane < 16) {
                to[TAKEN + h * 16 + w.lane] = weight * group.dot;
                to[FOLDED + h * 16 + w.lane] = weight;
            }
            if (w.lane == 0)
                to[DECAY + h] = decay;
        }
        __syncwarp();
    }
    // Its y of the cluster's rows, in place of z; the sum of their squares, a lane's. at: the slot.
    __device__ __forceinline__ float advance_token(const resident_block<SHAPE> &b,
                                                   const resident_worker<SHAPE> &w, int token,
                                                   int at, const replay_group<S> &group) const {
        const int n = held(token);
        const bool zero = __shfl_sync(~0u, base::own, token) & 1; // or there is none
        const float *of = weights(b, token);
        uint32_t high[shape::OF_CLUSTER][2], low[shape::OF_CLUSTER][2], live[2];
        float decay[shape::OF_CLUSTER], own_x[shape::OF_CLUSTER], square = 0;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int j = 2 * w.q + 8 * k;
            live[k] = (j < n ? 0xffffu : 0) | (j + 1 < n ? 0xffff0000u : 0);
#pragma unroll
            for (int h = 0; h < shape::OF_CLUSTER; h++) {
                const float2 two = *(const float2 *)(of + TAKEN + h * 16 + j);
                const float first = j < n ? two.x : 0.f, second = j + 1 < n ? two.y : 0.f;
                high[h][k] = pack_bf16(first, second);
                low[h][k] = pack_bf16(first - low_half(high[h][k]), second - high_half(high[h][k]));
            }
        }
#pragma unroll
        for (int h = 0; h < shape::OF_CLUSTER; h++)
            decay[h] = of[DECAY + h] * group.scale, own_x[h] = of[TAKEN + h * 16 + n] + skip[h];
        const char *rows = b.slot(at) + w.q * 16;
        const bf16 *entries = (const bf16 *)(b.slot(at) + base::source::PART_BYTES);
#pragma unroll
        for (int m = 0; m < tile::ALL; m++) {
            const tile t(b, m);
            const int two = t.row + 2 * w.g, mine = t.row + end_row(w);
            float v[2] = {}, c[4] = {};
            if (!zero)
                read_base_tile(rows + tile::in(two) * (HEAD_STATES * 2),
                               rows + tile::in(two + 1) * (HEAD_STATES * 2), group, v);
            if (n > 0) {
                uint32_t x[4]; // beyond the last entry: anything
                load_entries<HEAD>(x, entries + t.head * (REPLAY_HELD * HEAD), t.at);
                x[0] &= live[0], x[1] &= live[0], x[2] &= live[1], x[3] &= live[1];
                mma(c, x[0], x[1], x[2], x[3], t.head ? low[1][0] : low[0][0],
                    t.head ? low[1][1] : low[0][1]);
                mma(c, x[0], x[1], x[2], x[3], t.head ? high[1][0] : high[0][0],
                    t.head ? high[1][1] : high[0][1]);
            }
            if (!has_base() || !tile::live(mine))
                continue;
            bf16 *z = b.z() + token * shape::PITCH + mine;
            const float sum =
                (t.head ? decay[1] : decay[0]) * (w.q / 2 ? v[1] : v[0]) + (w.q / 2 ? c[2] : c[0]);
            const float own = t.head ? own_x[1] : own_x[0];
            const float y =
                (sum + own * to_float(b.x()[token * shape::PITCH + mine])) * silu(to_float(*z));
            square += y * y;
            *z = from_float<bf16>(y * norm[m]);
        }
        return square;
    }

    __device__ __forceinline__ void advance(const heads_args &a, const resident_block<SHAPE> &b,
                                            resident_worker<SHAPE> &w) {
        copies_wait();
        workers_sync();
        if (!shape::EXCHANGED && threadIdx.x == 0)
            b.ask_up_to(w.first + w.in_layer - shape::OUT_PIECES);
        keep_b(a, b, w);
        turn<shape::SLOTS> at = w.slot;
        at.skip(w.warp);
#pragma unroll 1
        for (int token = w.warp; token < b.mine; token += RESIDENT_WARPS) {
            replay_group<S> group;
            weigh(a, b, w, token, group);
            if (token + RESIDENT_WARPS < b.mine)
                ask_token(a, b, w, token + RESIDENT_WARPS);
            b.wait_asked(w.layer, token);
            barrier_wait(b.full + at.at * 8, at.phase);
            const float square = warp_sum(advance_token(b, w, token, at.at, group));
            if (w.lane == 0) { // all that was read of the slot has been used
                barrier_arrive_as<RESIDENT_WARPS>(b.empty + at.at * 8);
                base::squares(b, token)[0] = square;
            }
            at.skip(RESIDENT_WARPS);
        }
        w.slot.skip(b.mine);
        base::template give_y<1>(a, b, w);
    }

    // ---- what the next steps need

    static __device__ __forceinline__ uint32_t pair(bf16 low, bf16 high) {
        return (uint32_t)__bfloat16_as_ushort(low) | (uint32_t)__bfloat16_as_ushort(high) << 16;
    }
    // B of one token, the cluster's number, to its entries: while it is in shared memory.
    __device__ __forceinline__ void keep_b(const heads_args &a, const resident_block<SHAPE> &b,
                                           const resident_worker<SHAPE> &w) const {
        const int token = min(b.cluster, 31), n = __shfl_sync(~0u, code, token);
        const bool there = __shfl_sync(~0u, base::own, token) >= 0;
        bf16 *to = a.entries_b + (slot(a, w, token) * REPLAY_HELD + n) * REPLAY_N;
        const int i = threadIdx.x * 8;
        if (b.cluster < b.mine && there && n < 256 && i < REPLAY_N)
            *(uint4 *)(to + i) = *(const uint4 *)bc(b, token, i);
    }
    // The bases of tokens that take their entries, and x and dt of the others, to their entries:
    // nothing in this step waits for them.
    __device__ __forceinline__ void keep(const heads_args &a, const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w) const {
        fold_all(a, b, w);
        enum { UNITS = shape::NW / 4, ALL = UNITS + shape::OF_CLUSTER }; // of a token:
        // four even rows of eight, or odd ones; a head's dt
        const int n = b.mine * ALL;
#pragma unroll 2
        for (int i = threadIdx.x; i < (n + 31) / 32 * 32; i += RESIDENT_WORKERS) {
            const int token = min(i / ALL, b.mine - 1), unit = i % ALL;
            const bool there = __shfl_sync(~0u, base::own, token) >= 0;
            const int at = __shfl_sync(~0u, code, token);
            const size_t of = slot(a, w, token) * REPLAY_HELD; // entries of one number a slot
            if (i >= n || !there || at >= 256)
                continue;
            if (unit < UNITS) {
                const int row = unit / 2 * 8 + unit % 2, channel = b.cluster * shape::NW + row;
                const bf16 *x = b.x() + token * shape::PITCH + row;
                bf16 *to = a.entries_x + of * shape::INNER +
                           (channel / HEAD * REPLAY_HELD + at) * HEAD +
                           replay_position<HEAD>(at, channel % HEAD);
                *(uint2 *)to = make_uint2(pair(x[0], x[2]), pair(x[4], x[6]));
                continue;
            }
            const int h = unit - UNITS, channel = (base::first_head(b) + h) * HEAD;
            if (channel >= b.cluster * shape::NW && channel < (b.cluster + 1) * shape::NW)
                a.entries_dt[(of + at) * shape::HEADS + channel / HEAD] =
                    weights(b, token)[FOLDED + h * 16 + at];
        }
    }
    // A tile of a base that takes its entries: what of that lies in memory.
    struct folding {
        uint4 raw[BLOCKS][2]; // of rows 2 g, 2 g + 1
        uint32_t x[4];        // entries g, of even rows and of odd ones, and g + 8
    };
    __device__ __forceinline__ S *rows_of(const heads_args &a, const resident_block<SHAPE> &b,
                                          const resident_worker<SHAPE> &w, size_t slot,
                                          const tile &t) const {
        const size_t row = slot * shape::INNER + b.cluster * shape::NW;
        return (S *)a.state + (row + tile::in(t.row + 2 * w.g)) * HEAD_STATES + w.q * V;
    }
    __device__ __forceinline__ void ask_fold(const heads_args &a, const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w, int token,
                                             const tile &t, folding &f) const {
        const int n = held(token);
        const bool zero = __shfl_sync(~0u, base::own, token) & 1;
        const size_t of = slot(a, w, token);
        const S *rows = rows_of(a, b, w, of, t);
#pragma unroll
        for (int blk = 0; blk < BLOCKS; blk++) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                f.raw[blk][odd] = make_uint4(0, 0, 0, 0);
                if (!zero)
                    f.raw[blk][odd] = *(const uint4 *)(rows + blk * 4 * V + odd * HEAD_STATES);
            }
        }
        const bf16 *entries = a.entries_x + of * (shape::INNER * REPLAY_HELD) +
                              (base::first_head(b) + t.head) * (REPLAY_HELD * HEAD) + 2 * w.q;
        const bf16 *own_x = b.x() + token * shape::PITCH;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = w.g + i / 2 * 8, r = t.row + i % 2 + 4 * w.q;
            f.x[i] = 0;
            if (j < n)
                f.x[i] = *(const uint32_t *)(entries + j * HEAD +
                                             replay_position<HEAD>(j, t.at * 16 + i % 2));
            else if (j == n)
                f.x[i] = pair(own_x[tile::in(r)], own_x[tile::in(r + 2)]);
        }
    }
    // decay S + (weight x)^T B in place, x in two parts, as replay_item.cuh's fold_item() has it.
    __device__ __forceinline__ void fold(const heads_args &a, const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w, int token, const tile &t,
                                         const folding &f, const entries_of_b &of_b) const {
        const float *of = weights(b, token);
        const float *weight = of + FOLDED + t.head * 16 + 2 * w.q;
        const float decay = of[DECAY + t.head];
        S *rows = rows_of(a, b, w, slot(a, w, token), t);
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; i++) { // rows g of the tile, g + 8; then entries 8 on
            const float2 by = *(const float2 *)(weight + i / 2 * 8);
            const uint32_t x = transpose8x8(f.x[i]);
            const float first = by.x * low_half(x), second = by.y * high_half(x);
            high[i] = pack_bf16(first, second);
            low[i] = pack_bf16(first - low_half(high[i]), second - high_half(high[i]));
        }
#pragma unroll
        for (int blk = 0; blk < BLOCKS; blk++) {
            float even[V], odd[V];
            load<V>((const S *)&f.raw[blk][0], even);
            load<V>((const S *)&f.raw[blk][1], odd);
#pragma unroll
            for (int i = 0; i < W; i++) {
                const uint32_t b0 = transpose8x8(of_b[blk][0].w[i]),
                               b1 = transpose8x8(of_b[blk][1].w[i]);
                float c[4] = {decay * even[2 * i], decay * even[2 * i + 1], decay * odd[2 * i],
                              decay * odd[2 * i + 1]};
                mma(c, low[0], low[1], low[2], low[3], b0, b1);
                mma(c, high[0], high[1], high[2], high[3], b0, b1);
                even[2 * i] = c[0], even[2 * i + 1] = c[1];
                odd[2 * i] = c[2], odd[2 * i + 1] = c[3];
            }
            if (tile::live(t.row + 2 * w.g)) {
                store<V>(rows + blk * 4 * V, even);
                store<V>(rows + blk * 4 * V + HEAD_STATES, odd);
            }
        }
    }
    // Of all tokens that do: a warp a tile, or two of a token where they are more than warps then,
    // whose loads wait for memory together.
    __device__ __forceinline__ void fold_all(const heads_args &a, const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w) const {
        enum { TOGETHER = tile::ALL > 3 ? 2 : 1, PARTS = (tile::ALL + TOGETHER - 1) / TOGETHER };
        const uint32_t which = __ballot_sync(~0u, code >= 256);
        const int n = __popc(which) * PARTS;
#pragma unroll 1
        for (int i = w.warp; i < n; i += RESIDENT_WARPS) {
            const int token = (int)__fns(which, 0, i / PARTS + 1), m = i % PARTS * TOGETHER;
            const bool both = TOGETHER == 2 && m + 1 < tile::ALL;
            const tile t0(b, m), t1(b, m + 1);
            folding f0, f1;
            ask_fold(a, b, w, token, t0, f0);
            if (both)
                ask_fold(a, b, w, token, t1, f1);
            entries_of_b of_b;
            ask_b(a, w, token, of_b);
            const bf16 *own_b = extras_of<SHAPE>(a) + (size_t)b.token(token) * shape::EXTRAS;
            add_own_b(w, held(token), of_b, [&](int k) { return load_shared_words<W>(own_b + k); });
            fold(a, b, w, token, t0, f0, of_b);
            if (both)
                fold(a, b, w, token, t1, f1, of_b);
        }
    }
};

#endif

} // namespace ssm

#endif
