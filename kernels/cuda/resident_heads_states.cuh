// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's middle of a layer: the states of the cluster's channels one token on.
#ifndef SSM_KERNELS_CUDA_RESIDENT_HEADS_STATES_CUH
#define SSM_KERNELS_CUDA_RESIDENT_HEADS_STATES_CUH

#include "resident_heads_in.cuh"
#include "resident_out.cuh"

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

// All warps share a token's rows, a row's 128 states lie across 16 (fp16) or 32 lanes. States come
// through the ring, a token's in PARTS slots.
template <class SHAPE, class S, bool REPLAY> struct heads_states {
    typedef SHAPE shape;
    typedef heads_source<SHAPE, S, REPLAY> source;
    enum {
        V = 16 / sizeof(S),
        LANES = HEAD_STATES / V,
        AT_ONCE = 32 / LANES, // rows
        PARTS = source::PARTS,
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
    int own; // lane k: of the rank's token k: slot * 2 + whether it begins from nothing; -1: none

    __device__ __forceinline__ heads_states(const resident_args &a,
                                            const resident_block<SHAPE> &b) {
        const int lane = threadIdx.x % 32;
        own = -1;
        if (lane < b.mine) {
            const row r = a.rows[b.token(lane)];
            own = r.slot < 0 ? -1 : r.slot * 2 + (r.fresh != 0);
        }
    }

    // ---- places

    static __device__ __forceinline__ int row_of(const resident_worker<SHAPE> &w, int i) {
        return w.warp * OF_WARP + i * AT_ONCE + w.lane / LANES; // of a part
    }
    static __device__ __forceinline__ bool live(const resident_worker<SHAPE> &w, int i) {
        return (OF_WARP % AT_ONCE == 0 || i * AT_ONCE + w.lane / LANES < OF_WARP) &&
               (RESIDENT_WARPS * OF_WARP == PART_ROWS || row_of(w, i) < PART_ROWS);
    }
    static __device__ __forceinline__ int first_head(const resident_block<SHAPE> &b) {
        return b.cluster * shape::NW / HEAD;
    }
    static __device__ __forceinline__ int head_of(const resident_block<SHAPE> &b, int row) {
        return (b.cluster * shape::NW + row) / HEAD - first_head(b);
    }
    static __device__ __forceinline__ char *staged(const resident_block<SHAPE> &b) {
        return shape::STAGED_APART ? b.staged() : b.peer_place();
    }
    // Of a token of the rank: what its states and inputs weigh; squares of what is normed, by part
    // and warp.
    static __device__ __forceinline__ float *weights(const resident_block<SHAPE> &b, int token) {
        return (float *)staged(b) + token * shape::WEIGHTS;
    }
    static __device__ __forceinline__ float *squares(const resident_block<SHAPE> &b, int token) {
        return (float *)staged(b) + shape::HALF_ROWS * shape::WEIGHTS + token * shape::SQUARES;
    }
    // B, C (128 numbers on) and dt (256 on) of a token from its n-th number on: where token rows
    // were, which no longer are read. A row of 128 bytes has 64 numbers.
    static __device__ __forceinline__ const bf16 *bc(const resident_block<SHAPE> &b, int token,
                                                     int n) {
        return (const bf16 *)(b.x_place() + n / 64 * shape::X_STAGE + token * 128) + n % 64;
    }

    // ---- before them

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
    // B, C and dt, once they are there. All of z is multiplied, and where its last token rows were
    // is B's and C's room now.
    __device__ __forceinline__ void ask(const heads_args &a, const resident_block<SHAPE> &b,
                                        const resident_worker<SHAPE> &w) const {
        enum { UNITS = shape::EXTRAS / 8 };
        barrier_wait(b.open, w.layer & 1);
        workers_sync();
        const bf16 *from = extras_of<SHAPE>(a) + (size_t)b.token(0) * shape::EXTRAS;
#pragma unroll 4
        for (int i = threadIdx.x; i < b.mine * UNITS; i += RESIDENT_WORKERS)
            copy_async((void *)bc(b, i / UNITS, i % UNITS * 8),
                       from + (size_t)(i / UNITS) * shape::EXTRAS + i % UNITS * 8, true);
        copies_commit();
    }
    // delta of a token's head, by the cluster's heads; rate: A log2 e.
    static __device__ __forceinline__ float delta_of(const heads_args &a,
                                                     const resident_block<SHAPE> &b,
                                                     const resident_worker<SHAPE> &w, int token,
                                                     int h, float *rate) {
        const int head = min(first_head(b) + h, shape::HEADS - 1);
        const resident_layer &l = a.layers[w.layer];
        const float dt = to_float(*bc(b, token, 2 * HEAD_STATES + head));
        *rate = __ldg(l.decay + head);
        return fminf(fmaxf(softplus(dt + __ldg(l.dt_bias + head)), a.dt_min), a.dt_max);
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
        const int what = __shfl_sync(~0u, own, token);
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
            squares(b, token)[part * RESIDENT_WARPS + w.warp] = square;
    }
    static __device__ __forceinline__ float pick(const float (&of)[PARTS], int part) {
        return PARTS > 1 && part ? of[PARTS - 1] : of[0];
    }

    // y of all rows, and the sums of its squares, N of each token, to all blocks.
    template <int N>
    __device__ __forceinline__ void give_y(const heads_args &a, const resident_block<SHAPE> &b,
                                           const resident_worker<SHAPE> &w) const {
        enum { UNITS = shape::NW / 8 };
        workers_sync();
#pragma unroll 2
        for (int i = threadIdx.x; i < b.mine * UNITS; i += RESIDENT_WORKERS) {
            const int token = i / UNITS, v = i % UNITS * 8;
            *(uint4 *)(a.y + (size_t)b.token(token) * shape::INNER + b.cluster * shape::NW + v) =
                *(const uint4 *)(b.z() + token * shape::PITCH + v);
        }
        if (threadIdx.x < b.mine) {
            const float *from = squares(b, threadIdx.x);
            float sum = 0;
#pragma unroll
            for (int i = 0; i < N; i++)
                sum += from[i];
            gated_of<SHAPE>(a)[b.token(threadIdx.x) * RESIDENT_CLUSTERS + b.cluster] = sum;
        }
        fence_async(); // the peer's copies may follow
        workers_sync();
        if (threadIdx.x == 0) {
            count_up(&scratch_of<SHAPE>(a).y[b.split]);
            b.ask_up_to(NO_LIMIT);
        }
    }
};

// Steps of few rows: states are written in each.
template <class SHAPE, class S> struct heads_at_once : heads_states<SHAPE, S, false> {
    typedef SHAPE shape;
    typedef heads_states<SHAPE, S, false> base;
    using base::raw, base::row_of, base::live, base::head_of, base::bc, base::weights;
    enum { V = base::V, LANES = base::LANES, AT_ONCE = base::AT_ONCE, PARTS = base::PARTS };
    enum { PART_ROWS = base::PART_ROWS, STEPS = base::STEPS, SUMS = base::SUMS };

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
        char *to = base::state_at(a, b, w, what, part);
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
        typename base::taken next;
        if (more)
            next = base::take(b, w, token + (part + 1) / PARTS);
        base::end_part(b, w, token, part, y, make_float2(0, 0));
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
            const typename base::taken t = base::take(b, w, 0);
            give_back(b, w, t.slot, t.bits);
        }
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            if (i == n - 1 && threadIdx.x == 0)
                b.ask_up_to(w.first + w.in_layer - shape::OUT_PIECES);
            part_on(a, b, w, i / PARTS, i % PARTS, i + 1 < n);
        }
        base::template give_y<PARTS * RESIDENT_WARPS>(a, b, w);
    }
};

// What a token's sums of out_proj are multiplied by: all its y are there when its shares are.
template <class SHAPE> struct gated_squares {
    typedef residual_part<SHAPE> part_of;
    float2 v[part_of::TOKENS];

    __device__ __forceinline__ gated_squares(const resident_args &a, const part_of &part) {
#pragma unroll
        for (int k = 0; k < part_of::TOKENS; k++)
            v[k] = load_shared_pair(gated_of<SHAPE>(a) + part.token(k) * RESIDENT_CLUSTERS +
                                    part.lane * 2);
    }
    __device__ __forceinline__ float scale(const resident_args &a, int k) const {
        const float sum = warp_sum(v[k].x + v[k].y);
        return rsqrtf(sum * (1.f / SHAPE::INNER) + a.gate_eps);
    }
};

#endif

} // namespace ssm

#endif
