// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's states in steps of few rows, which write them: the cluster's channels one
// token on. States come through the ring, a token's in PARTS slots.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_AT_ONCE_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_AT_ONCE_CUH

#include "resident_heads_states.cuh"

namespace ssm {

#if SSM_HOPPER

// N partial sums a lane, over LANES lanes: lane q has that of number q / (LANES / N) in part[0].
template <int LANES, int N> __device__ __forceinline__ void deal_sums(float (&part)[N], int q) {
    int apart = LANES / 2;
#pragma unroll
    for (int o = N / 2; o; o >>= 1, apart >>= 1) {
        const bool upper = (q & apart) != 0;
#pragma unroll
        for (int i = 0; i < o; i++) {
            const float keep = upper ? part[i + o] : part[i];
            const float give = upper ? part[i] : part[i + o];
            part[i] = keep + __shfl_xor_sync(~0u, give, apart);
        }
    }
#pragma unroll
    for (; apart; apart >>= 1)
        part[0] += __shfl_xor_sync(~0u, part[0], apart);
}

// All warps share a token's rows, a row's 128 states lie across 16 (fp16) or 32 lanes.
template <class SHAPE, class S> struct heads_at_once : heads_states<SHAPE, S, false> {
    typedef SHAPE shape;
    typedef heads_states<SHAPE, S, false> base;
    using base::bc, base::weights;
    enum {
        V = 16 / sizeof(S),
        LANES = HEAD_STATES / V,
        AT_ONCE = 32 / LANES, // rows
        PARTS = base::source::PARTS,
        PART_ROWS = shape::NW / PARTS,
        OF_WARP = (PART_ROWS + RESIDENT_WARPS - 1) / RESIDENT_WARPS,
        STEPS = (OF_WARP + AT_ONCE - 1) / AT_ONCE,
        SUMS = STEPS <= 1   ? 1
               : STEPS <= 2 ? 2
               : STEPS <= 4 ? 4
               : STEPS <= 8 ? 8
                            : 16,
        APART = LANES / SUMS // lanes that end up with the same sum
    };
    static_assert((int)SUMS >= (int)STEPS && (int)SUMS <= (int)LANES, "a sum a lane");
    static_assert(PARTS * RESIDENT_WARPS <= shape::SQUARES, "room for their squares");

    float skip[PARTS], norm[PARTS]; // of the row whose y this lane ends
    uint4 raw[STEPS];

    __device__ __forceinline__ heads_at_once(const heads_args &a, const resident_block<SHAPE> &b)
        : base(a, b) {
    }
    // There are no entries.
    __device__ __forceinline__ void ask_entries(const heads_args &, const resident_block<SHAPE> &,
                                                const resident_worker<SHAPE> &) {
    }
    __device__ __forceinline__ void keep(const heads_args &, const resident_block<SHAPE> &,
                                         const resident_worker<SHAPE> &) const {
    }

    // ---- places

    static __device__ __forceinline__ int row_of(const resident_worker<SHAPE> &w, int i) {
        return w.warp * OF_WARP + i * AT_ONCE + w.lane / LANES; // of a part
    }
    static __device__ __forceinline__ bool live(const resident_worker<SHAPE> &w, int i) {
        return (OF_WARP % AT_ONCE == 0 || i * AT_ONCE + w.lane / LANES < OF_WARP) &&
               (RESIDENT_WARPS * OF_WARP == PART_ROWS || row_of(w, i) < PART_ROWS);
    }
    static __device__ __forceinline__ int head_of(const resident_block<SHAPE> &b, int row) {
        return (b.cluster * shape::NW + row) / HEAD - base::first_head(b);
    }

    // Constants of the layer.
    __device__ __forceinline__ void constants(const heads_args &a, const resident_block<SHAPE> &b,
                                              const resident_worker<SHAPE> &w) {
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int row = min(p * PART_ROWS + row_of(w, end_step(w)), shape::NW - 1);
            const int channel = b.cluster * shape::NW + row;
            skip[p] = __ldg(a.layers[w.layer].skip + channel / HEAD);
            norm[p] = __ldg(a.gate_norm[w.layer] + channel);
        }
    }
    // The step whose row's y this lane ends.
    static __device__ __forceinline__ int end_step(const resident_worker<SHAPE> &w) {
        return w.lane % LANES / APART;
    }
    // delta and decay of the heads of the rank's tokens.
    __device__ __forceinline__ void weigh(const heads_args &a, const resident_block<SHAPE> &b,
                                          const resident_worker<SHAPE> &w) const {
        const int token = threadIdx.x / shape::OF_CLUSTER;
        if (token < b.mine) {
            const int h = threadIdx.x % shape::OF_CLUSTER;
            float rate;
            const float delta = base::delta_of(a, b, w, token, h, &rate);
            ((float2 *)weights(b, token))[h] = make_float2(delta, exp2_fast(delta * rate));
        }
        workers_sync();
    }

    // ---- the states

    // Where this lane's states of a part lie; what: of own.
    static __device__ __forceinline__ char *state_at(const heads_args &a,
                                                     const resident_block<SHAPE> &b,
                                                     const resident_worker<SHAPE> &w, int what,
                                                     int part) {
        const size_t row = (size_t)max(what >> 1, 0) * shape::INNER + b.cluster * shape::NW +
                           part * PART_ROWS + row_of(w, 0);
        return a.state + w.layer * a.state_pitch +
               (row * HEAD_STATES + w.lane % LANES * V) * sizeof(S);
    }
    // The next slot, and this lane's of its states to raw.
    struct taken {
        int slot;
        uint32_t bits;
    };
    __device__ __forceinline__ taken take(const resident_block<SHAPE> &b, resident_worker<SHAPE> &w,
                                          int token) {
        const int what = __shfl_sync(~0u, base::own, token);
        const bool zero = what < 0 || (what & 1);
        taken t = {next_slot(b, w), 0};
        const char *from =
            b.slot(t.slot) + row_of(w, 0) * (HEAD_STATES * sizeof(S)) + w.lane % LANES * 16;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            raw[i] = make_uint4(0, 0, 0, 0);
            if (!zero && live(w, i))
                raw[i] = *(const uint4 *)(from + i * AT_ONCE * HEAD_STATES * sizeof(S));
            t.bits |= raw[i].x;
        }
        return t;
    }

    // Sums over a row's states and whatever else y has but for x's own part, of all rows of a part:
    // y in place of z, and its square. own: what the token's x is multiplied by, besides D.
    __device__ __forceinline__ void end_part(const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w, int token, int part,
                                             float (&y)[SUMS], float2 own_x) const {
        const int q = w.lane % LANES;
        deal_sums<LANES>(y, q);
        const int end = end_step(w), row = part * PART_ROWS + row_of(w, end);
        float square = 0;
        if (q % APART == 0 && end < STEPS && live(w, end)) {
            const float x = to_float(b.x()[token * shape::PITCH + row]);
            bf16 *at = b.z() + token * shape::PITCH + row;
            const float own = pick(skip, part) + (head_of(b, row) ? own_x.y : own_x.x);
            const float v = (y[0] + own * x) * silu(to_float(*at));
            square = v * v;
            *at = from_float<bf16>(v * pick(norm, part));
        }
        square = warp_sum(square);
        if (w.lane == 0)
            base::squares(b, token)[part * RESIDENT_WARPS + w.warp] = square;
    }
    static __device__ __forceinline__ float pick(const float (&of)[PARTS], int part) {
        return PARTS > 1 && part ? of[PARTS - 1] : of[0];
    }

    // A part of a token's states one token on, while the next ones come.
    __device__ __forceinline__ void part_on(const heads_args &a, const resident_block<SHAPE> &b,
                                            resident_worker<SHAPE> &w, int token, int part,
                                            bool more) {
        const int q = w.lane % LANES;
        float vb[V], vc[V], y[SUMS] = {};
        load<V>(bc(b, token, q * V), vb);
        load<V>(bc(b, token, HEAD_STATES + q * V), vc);
        const float2 *of = (const float2 *)weights(b, token);
        const float2 first = of[0], second = of[1];
        const bf16 *x = b.x() + token * shape::PITCH + part * PART_ROWS;
        const int what = __shfl_sync(~0u, base::own, token);
        char *to = state_at(a, b, w, what, part);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int row = min(row_of(w, i), PART_ROWS - 1);
            const float2 now = head_of(b, part * PART_ROWS + row) ? second : first;
            const float input = now.x * to_float(x[row]);
            float h[V];
            load<V>((const S *)&raw[i], h);
#pragma unroll
            for (int v = 0; v < V; v++) {
                h[v] = now.y * h[v] + input * vb[v];
                y[i] += h[v] * vc[v];
            }
            ssm::store<V>((S *)&raw[i], h);
            store_state(to + i * AT_ONCE * HEAD_STATES * sizeof(S), raw[i],
                        what >= 0 && live(w, i));
        }
        taken next;
        if (more)
            next = take(b, w, token + (part + 1) / PARTS);
        end_part(b, w, token, part, y, make_float2(0, 0));
        if (more)
            give_back(b, w, next.slot, next.bits);
    }

    __device__ __forceinline__ void advance(const heads_args &a, const resident_block<SHAPE> &b,
                                            resident_worker<SHAPE> &w) {
        copies_wait();
        workers_sync();
        weigh(a, b, w);
        const int n = b.mine * PARTS;
        if (n > 0) {
            const taken t = take(b, w, 0);
            give_back(b, w, t.slot, t.bits);
        }
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            if (!shape::EXCHANGED && i == n - 1 && threadIdx.x == 0)
                b.ask_up_to(w.first + w.in_layer - shape::OUT_PIECES);
            part_on(a, b, w, i / PARTS, i % PARTS, i + 1 < n);
        }
        base::template give_y<PARTS * RESIDENT_WARPS>(a, b, w);
    }
};

#endif

} // namespace ssm

#endif
