// SPDX-License-Identifier: Apache-2.0
// resident.cu's middle of a layer: the states of the cluster's channels one token on.
#ifndef SSM_KERNELS_CUDA_RESIDENT_ADVANCE_CUH
#define SSM_KERNELS_CUDA_RESIDENT_ADVANCE_CUH

#include "packed.cuh"
#include "resident_x_proj.cuh"

namespace ssm {

#if SSM_HOPPER

// A warp's tokens are every eighth of the rank's; a lane holds 16 bytes of states of a channel in
// each of GROUPS groups of channels. States come through the ring: whole tokens, OF_SLOT at once.
template <class SHAPE, class S> struct resident_states {
    enum {
        V = 16 / sizeof(S),
        LANES = 16 / V,
        OF_GROUP = 32 / LANES,
        GROUPS = (SHAPE::NW + OF_GROUP - 1) / OF_GROUP,
        ENDS = (GROUPS + LANES - 1) / LANES, // sums of y that a lane ends
        TOKENS = SHAPE::OWN_ROWS / 8,
        ROW_BYTES = SHAPE::NW * 16 * sizeof(S), // of a token
        ROOM = SHAPE::SLOT / ROW_BYTES,
        OF_SLOT = ROOM >= 8   ? 8
                  : ROOM >= 4 ? 4
                  : ROOM >= 2 ? 2
                              : 1,
        DT_TILES = SHAPE::NW / 8, // of dt_proj's rows: a warp has every fourth, for half of the
        DT_PARTS = SHAPE::OWN_ROWS / SHAPE::SETS / 16, // tokens, or every eighth, for all
        DT_APART = 8 / DT_PARTS,
        BIASES = (DT_TILES + DT_APART - 1) / DT_APART,
        LATE = GROUPS <= 5 ? 2 : 1 // tokens of a warp whose states are stored behind the count:
    };                             // as many as registers hold
    typedef SHAPE shape;
    float decay[GROUPS][V], skip[ENDS];
    float2 bias[BIASES]; // of dt_proj: of the channels whose delta this thread makes

    uint4 raw[GROUPS];        // of a token
    uint4 late[LATE][GROUPS]; // those before the last one, from the back
    int own; // lane k: of the warp's token k: slot * 2 + whether it begins from nothing; -1: none

    __device__ __forceinline__ resident_states(const resident_args &a,
                                               const resident_block<SHAPE> &b, int warp) {
        const int lane = threadIdx.x % 32, token = token_of(b.rank, lane * 8 + warp);
        own = -1;
        if (lane < TOKENS && token < a.tokens) {
            const row r = a.rows[token];
            own = r.slot < 0 ? -1 : r.slot * 2 + (r.fresh != 0);
        }
    }
    static __device__ __forceinline__ int channel(const resident_worker<SHAPE> &w, int i) {
        return i * OF_GROUP + w.lane / LANES;
    }
    static __device__ __forceinline__ int end_channel(const resident_worker<SHAPE> &w, int j) {
        return channel(w, j * LANES + w.lane % LANES);
    }
    static __device__ __forceinline__ int dt_tile(const resident_worker<SHAPE> &w, int t) {
        return w.warp / DT_PARTS + DT_APART * t;
    }
    // Constants of the layer, which carry_sums() has left where x's sums from the peer were.
    __device__ __forceinline__ void constants(const resident_block<SHAPE> &b,
                                              const resident_worker<SHAPE> &w) {
        barrier_wait(b.constants, w.layer & 1);
        const float *decays = (const float *)b.peer_place() + w.lane % LANES * V;
        const float *skips = (const float *)b.peer_place() + SHAPE::NW * 16,
                    *biases = skips + SHAPE::NW;
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
            load<V>(decays + min(channel(w, i), SHAPE::NW - 1) * 16, decay[i]);
#pragma unroll
        for (int j = 0; j < ENDS; j++)
            skip[j] = skips[min(end_channel(w, j), SHAPE::NW - 1)];
#pragma unroll
        for (int t = 0; t < BIASES; t++)
            bias[t] = *(const float2 *)(biases + min(dt_tile(w, t), DT_TILES - 1) * 8 + 2 * w.q);
    }

    // What dt's products are multiplied by lies behind C.
    static __device__ __forceinline__ float *norm_at(char *dt, int token) {
        return x_bc_at<SHAPE>(dt) + token * shape::BC_PITCH + 32;
    }
    // B and C are normed where they lie, dt's products later. Eight threads a token.
    static __device__ __forceinline__ void norm_sums(const resident_args &a, char *dt) {
        const int token = threadIdx.x / 8;
        if (token < shape::HALF_ROWS) // whole warps
            norm_token(a, dt, token, threadIdx.x % 8);
        workers_sync();
    }
    static __device__ __forceinline__ void norm_token(const resident_args &a, char *dt, int token,
                                                      int part) {
        float *four = x_bc_at<SHAPE>(dt) + token * shape::BC_PITCH + part * 4, square = 0;
        const uint4 *from =
            (const uint4 *)(dt + token * shape::DT_PITCH + part * (shape::RANK / 4));
        float4 bc = *(const float4 *)four;
        float of_bc = (bc.x * bc.x + bc.y * bc.y) + (bc.z * bc.z + bc.w * bc.w);
#pragma unroll
        for (int i = 0; i < shape::RANK / 64; i++) {
            float v[8];
            load<8>((const bf16 *)(from + i), v);
#pragma unroll
            for (int k = 0; k < 8; k++)
                square += v[k] * v[k];
        }
#pragma unroll
        for (int o = 1; o < 8; o *= 2) {
            square += __shfl_xor_sync(~0u, square, o);
            if (o < 4)
                of_bc += __shfl_xor_sync(~0u, of_bc, o);
        }
        const float by = a.bc_dt_eps < 0 ? 1 : rsqrtf(of_bc * (1.f / 16) + a.bc_dt_eps);
        *(float4 *)four = make_float4(bc.x * by, bc.y * by, bc.z * by, bc.w * by);
        if (part == 0)
            *norm_at(dt, token) =
                a.bc_dt_eps < 0 ? 1 : rsqrtf(square * (1.f / shape::RANK) + a.bc_dt_eps);
    }

    // delta and delta x of all channels and the rank's tokens, to shared memory. dt: rows of
    // DT_PITCH bytes. A warp reads what it multiplies of dt once for all its tiles: shared memory's
    // 128 bytes a cycle are what this takes.
    __device__ __forceinline__ void deltas(const resident_block<SHAPE> &b,
                                           resident_worker<SHAPE> &w, char *dt) {
        int slots[shape::DT_SLOTS];
#pragma unroll
        for (int i = 0; i < shape::DT_SLOTS; i++)
            slots[i] = next_slot(b, w);
        const char *rows[BIASES];
        const int g = made_anew<SHAPE>(w.g);
#pragma unroll
        for (int t = 0; t < BIASES; t++) {
            const int row = min(dt_tile(w, t), DT_TILES - 1) * 8 + g;
            int at = slots[0];
#pragma unroll
            for (int i = 1; i < shape::DT_SLOTS; i++)
                at = row < i * shape::DT_ROWS ? at : slots[i];
            rows[t] = b.slot(at) + row % shape::DT_ROWS * (shape::RANK * 2) + w.q * 16;
        }
        float *pairs = (float *)b.peer_place(); // [token][channel][2]
        uint32_t bits = 0;
#pragma unroll
        for (int s = 0; s < shape::SETS; s++) {
            const int first = s * 32 + w.warp % DT_PARTS * 16 + w.g; // token
            const char *of = dt + first * shape::DT_PITCH + w.q * 16;
            float c[BIASES][4] = {};
#pragma unroll
            for (int k = 0; k < shape::RANK; k += 32) {
                const bool there = k + w.q * 8 < shape::RANK;
                const uint4 none = make_uint4(0, 0, 0, 0);
                const uint4 lo = there ? *(const uint4 *)(of + k * 2) : none;
                const uint4 hi = there ? *(const uint4 *)(of + k * 2 + 8 * shape::DT_PITCH) : none;
#pragma unroll
                for (int t = 0; t < BIASES; t++) {
                    const uint4 d = there ? *(const uint4 *)(rows[t] + k * 2) : none;
                    mma(c[t], lo.x, hi.x, lo.y, hi.y, d.x, d.y);
                    mma(c[t], lo.z, hi.z, lo.w, hi.w, d.z, d.w);
                }
            }
#pragma unroll
            for (int t = 0; t < BIASES; t++)
                bits |= __float_as_uint(c[t][0]);
            if (s == shape::SETS - 1) {
#pragma unroll
                for (int i = 0; i < shape::DT_SLOTS; i++)
                    give_back(b, w, slots[i], bits);
            }
#pragma unroll
            for (int t = 0; t < BIASES; t++) {
                const int tile = dt_tile(w, t), channel = tile * 8 + 2 * w.q;
                if (tile >= DT_TILES)
                    break;
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const int r = first + m * 8;
                    const uint32_t x = *(const uint32_t *)(b.x() + r * shape::PITCH + channel);
                    const float by = shape::NORMS ? *norm_at(dt, r) : 1;
                    const float d0 = softplus(c[t][m * 2] * by + bias[t].x);
                    const float d1 = softplus(c[t][m * 2 + 1] * by + bias[t].y);
                    *(float4 *)(pairs + (r * SHAPE::NW + channel) * 2) =
                        make_float4(d0, d0 * low_half(x), d1, d1 * high_half(x));
                }
            }
        }
        workers_sync();
    }

    static __device__ __forceinline__ void copy(uint4 (&to)[GROUPS], const uint4 (&from)[GROUPS]) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
            to[i] = from[i];
    }

    // Slots of the ring with eight tokens' states, of which a warp reads one's.
    struct taken {
        int slots[8 / OF_SLOT];
        uint32_t bits;
    };
    __device__ __forceinline__ taken take(const resident_block<SHAPE> &b, resident_worker<SHAPE> &w,
                                          int k) {
        const bool fresh = __shfl_sync(~0u, own, k) & 1;
        taken t;
        t.bits = 0;
#pragma unroll
        for (int i = 0; i < 8 / OF_SLOT; i++) {
            t.slots[i] = next_slot(b, w);
            if (w.warp / OF_SLOT == i) {
                const char *from = b.slot(t.slots[i]) + w.warp % OF_SLOT * ROW_BYTES;
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    raw[j] =
                        fresh ? make_uint4(0, 0, 0, 0) : ((const uint4 *)from)[j * 32 + w.lane];
                    t.bits |= raw[j].x;
                }
            }
        }
        return t;
    }
    __device__ __forceinline__ void give(const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w, const taken &t) const {
#pragma unroll
        for (int i = 0; i < 8 / OF_SLOT; i++)
            give_back(b, w, t.slots[i], t.bits);
    }
    __device__ __forceinline__ void store(const resident_args &a, const resident_block<SHAPE> &b,
                                          const resident_worker<SHAPE> &w, int k,
                                          const uint4 (&states)[GROUPS]) const {
        const int row = __shfl_sync(~0u, own, k);
        const size_t first = (size_t)max(row >> 1, 0) * shape::INNER + b.cluster * SHAPE::NW;
        char *to = a.state + w.layer * a.state_pitch + first * 16 * sizeof(S) + w.lane * 16;
#pragma unroll
        for (int i = 0; i < GROUPS; i++)
            store_state(to + i * 512, states[i],
                        row >= 0 && (SHAPE::NW % OF_GROUP == 0 || channel(w, i) < SHAPE::NW));
    }

    // One token's states, and y in place of its x, while the next one's states come from the ring.
    // bc: rows of BC_PITCH floats.
    __device__ __forceinline__ void token_on(const resident_args &a, const resident_block<SHAPE> &b,
                                             resident_worker<SHAPE> &w, const float *bc, int k) {
        const int r = k * 8 + w.warp, q = w.lane % LANES;
        const float2 *pairs = (const float2 *)b.peer_place() + r * SHAPE::NW;
        float vb[V], vc[V], y[ENDS][LANES] = {};
        load<V>(bc + r * shape::BC_PITCH + q * V, vb);
        load<V>(bc + r * shape::BC_PITCH + 16 + q * V, vc);
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            const float2 pair = pairs[min(channel(w, i), SHAPE::NW - 1)];
            float h[V], sum = 0;
            load<V>((const S *)&raw[i], h);
#pragma unroll
            for (int v = 0; v < V; v++)
                h[v] = exp2_fast(pair.x * decay[i][v]) * h[v] + pair.y * vb[v];
#pragma unroll
            for (int v = 0; v < V; v++)
                sum += h[v] * vc[v];
            ssm::store<V>((S *)&raw[i], h);
            y[i / LANES][i % LANES] = sum;
        }
        const int behind = b.mine / 8 - 1 - k; // tokens
        if (behind >= LATE)
            store(a, b, w, k, raw);
#pragma unroll
        for (int i = 1; i < LATE; i++) {
            if (behind == i)
                copy(late[i - 1], raw);
        }
        const bool more = behind > 0;
        taken next;
        if (more)
            next = take(b, w, k + 1);
        bf16 *x = b.x() + r * shape::PITCH;
        const bf16 *z = b.z() + r * shape::PITCH;
#pragma unroll
        for (int j = 0; j < ENDS; j++) {
            spread_sums<LANES>(y[j], q);
            const int c = end_channel(w, j);
            if (c < SHAPE::NW) {
                const float vx = to_float(x[c]), vz = to_float(z[c]);
                x[c] = from_float<bf16>((y[j][0] + skip[j] * vx) * silu(vz));
            }
        }
        if (more)
            give(b, w, next);
    }
    // Sixteen bytes of a token's y, as out_proj takes them.
    static __device__ __forceinline__ uint4 y_unit(const bf16 *of, int at) {
        if constexpr (shape::MANY) { // packed_rows_place() of these are in a row
            const uint32_t *from =
                (const uint32_t *)(of + at / 64 * 64 + packed_rows_column(at % 64));
            return given(make_uint4(from[0], from[8], from[16], from[24]));
        }
        return *(const uint4 *)(of + at);
    }
    // The warp's rows of y where a cluster has no whole 64 columns: a lane has a word of each.
    __device__ __forceinline__ void store_y_words(const resident_args &a,
                                                  const resident_block<SHAPE> &b,
                                                  const resident_worker<SHAPE> &w) const {
        enum { SPANNED = (SHAPE::NW + 48 + 63) / 64 };
        const int first = b.cluster * SHAPE::NW, column = packed_rows_column(w.lane / 4 * 8);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const int r = i * 8 + w.warp;
            if (r >= b.mine)
                break;
            const bf16 *of = b.x() + r * shape::PITCH;
            bf16 *to = a.y + (size_t)token_of(b.rank, r) * shape::INNER + 2 * w.lane;
#pragma unroll
            for (int k = 0; k < SPANNED; k++) {
                const int begin = (first / 64 + k) * 64;
                const int c = begin + column + w.lane % 4 * 16 - first; // among the cluster's
                if (c >= 0 && c < SHAPE::NW)
                    *(uint32_t *)(to + begin) =
                        times(*(const uint32_t *)(of + c), PACKED_GIVEN_TWICE);
            }
        }
    }
    // The warp's rows of y. Returns whether others see them already.
    __device__ __forceinline__ bool store_y(const resident_args &a, const resident_block<SHAPE> &b,
                                            const resident_worker<SHAPE> &w) const {
        enum { UNITS = SHAPE::NW / 8 };
        [[maybe_unused]] uint64_t before = 0;
        __syncwarp();
#pragma unroll
        for (int i = w.lane; i < TOKENS * UNITS; i += 32) {
            const int r = i / UNITS * 8 + w.warp, v = i % UNITS * 8;
            if (r >= b.mine)
                continue;
            const uint4 y = y_unit(b.x() + r * shape::PITCH, v);
            uint4 *to = (uint4 *)(a.y + (size_t)token_of(b.rank, r) * shape::INNER +
                                  b.cluster * SHAPE::NW + v);
            if constexpr (shape::EXCHANGED)
                before |= exchange(to, y);
            else
                *to = y;
        }
        return shape::EXCHANGED && exchanged(before);
    }

    // x_proj's sums, once they are there, to shared memory: under way.
    __device__ __forceinline__ void ask_sums(const resident_args &a, const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w) const {
        barrier_wait(b.open, w.layer & 1);
        copy_x_sums<SHAPE, RESIDENT_WORKERS>(a, b, made_anew<SHAPE>((int)threadIdx.x));
    }
    __device__ __forceinline__ void advance(const resident_args &a, const resident_block<SHAPE> &b,
                                            resident_worker<SHAPE> &w) {
        char *dt = b.staged();
        const float *bc = x_bc_at<SHAPE>(dt);
        if constexpr (shape::EXCHANGED)
            barrier_wait(b.open, w.layer & 1);
        else
            copies_wait();
        workers_sync();
        if constexpr (shape::NORMS)
            norm_sums(a, dt);
        deltas(b, w, dt);
        if (b.mine > 0)
            give(b, w, take(b, w, 0));
#pragma unroll 1
        for (int k = 0; k * 8 < b.mine; k++) {
            if (!shape::EXCHANGED && k * 8 + 8 == b.mine && threadIdx.x == 0) // the last one
                b.ask_up_to(w.first + w.in_layer - shape::OUT_PIECES);
            token_on(a, b, w, bc, k);
        }
        bool back = false;
        if constexpr (shape::MANY && SHAPE::NW % 64 != 0)
            store_y_words(a, b, w);
        else
            back = store_y(a, b, w);
        fence_async(); // the peer's copies may follow
        workers_sync();
        if (threadIdx.x == 0) {
            count_exchanged(&scratch_of<SHAPE>(a).y[b.split], back);
            b.ask_up_to(NO_LIMIT);
        }
        const int last = b.mine / 8 - 1;
#pragma unroll
        for (int i = LATE - 1; i >= 0; i--) {
            if (last >= i)
                store(a, b, w, last - i, i > 0 ? late[max(i - 1, 0)] : raw);
        }
    }
};

#endif

} // namespace ssm

#endif
