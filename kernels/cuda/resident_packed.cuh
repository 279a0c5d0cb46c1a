// SPDX-License-Identifier: Apache-2.0
// resident.cu of up to 16 rows with in_proj and out_proj in 12 bits a weight (packed.cuh): the
// products, and what stands right behind them. Everything else is resident.cu's.
//
// Mamba-2's, too (resident_heads_packed.cu): there B, C and dt are eight rows in bf16 behind the
// second group's slots of x, which that group multiplies with the tokens that it has in registers.
//
// Token rows, 16 at most, are the first operand of a warp's matrix instruction (m16n8k16), weights
// the second, as few_packed.cu has them: unpacked in registers, times 2^90 on the other side. The
// groups' instruction would take 64 token rows, and weights from shared memory alone.
//
// A slot of the ring in in_proj is one of solo_large.cu's slots as it lies there: half of the
// cluster's rows, a group of warps', by 256 columns, a quarter of which is a warp's. So four warps'
// sums are added up, with four of the peer's: what is the peer's goes there from each warp, the
// rest to the group's warps, which have every fourth eight of the channels from then on (of 16 rows
// each block ends eight). In out_proj a slot has a group's rows by 128 columns, a warp's its
// quarter of the rows.
//
// Room for 16 token rows, not 64, and slots no larger than packed ones make more of them than
// resident.cu has (2.8b: nine, not six), so that more has come by the time that a phase begins.
// Where slots are small anyway it loses: 1.4b b8 1.04 ms, 790m 0.81, on other cards 1.01 and 0.77
// without.
//
// All of a block's columns of u that there is room for (all but falcon-mamba-7b's, half of these)
// stay in shared memory from x to z, which begins with them: stages of token rows have 128 columns
// of 16 rows, as two tiles of 128 bytes a row, 16-byte parts swapped by row.
#ifndef SSM_KERNELS_CUDA_RESIDENT_PACKED_CUH
#define SSM_KERNELS_CUDA_RESIDENT_PACKED_CUH

#include "packed.cuh"
#include "resident_out.cuh"

namespace ssm {

enum { RESIDENT_PACKED_ROWS = 16 };

template <class BASE> struct packed_shape : BASE {
    typedef BASE base;
    enum {
        NW = BASE::NW,
        TILES = NW / 16,               // packed_tiles()
        TAKEN = TILES * PACKED_TILE,   // bytes of solo_large.cu's slot, a block's
        TAKEN_E = TILES * 4 * 32 * 16, // where its E begin
        OUT_ROWS = NW / 4,             // of out_proj, a block's
        OUT_FULL = OUT_ROWS / 8,       // tiles of each 64 columns; four rows may be left
        MIXED = OUT_ROWS % 8 != 0,
        OUT_E = TAKEN_E,    // of four blocks' rows by 128 columns
        PART = TILES * 256, // bytes of a warp's sums of eight tokens
        PARTS = base::X_STAGES * base::X_STAGE -
                6 * PART, // where those that stay here lie behind the stages
        STAGE = RESIDENT_PACKED_ROWS * 256,
        STAGES_ROOM = PARTS / STAGE / 2 * 2, // a turn has two
        STAGES = (int)STAGES_ROOM < (int)base::IN_SLOTS ? STAGES_ROOM : base::IN_SLOTS,
        TURNS = base::IN_PIECES / 4,      // of 256 columns
        KEPT_FROM = TURNS - STAGES / 2,   // x's turns whose token rows z begins with
        OUT_TURNS = base::OUT_PIECES / 2, // of 128
        EXTRA_BYTES = base::EXTRA * 512   // of 256 columns
    };
    static_assert(TAKEN + EXTRA_BYTES <= (int)base::SLOT, "a slot");
    static_assert(TAKEN % 1024 == 0 && (base::EXTRA == 0 || base::EXTRA == 8), "swizzled boxes");
    static_assert((int)TILES == (int)base::IN_BLOCKS, "a group's rows are a block's there");
    static_assert(base::EXTRA == 0 || 6 * 256 <= (int)base::ACTS,
                  "extra rows' sums, for z's place");
    static_assert(base::X_GROUP + base::GROUP_ROWS == base::X_ROWS, "and the others' behind them");
    static_assert(STAGES % 2 == 0, "both stages of a turn");
    static_assert(base::MANY || (int)STAGES <= (int)base::X_BARRIERS, "barriers");
    // A group never waits for the other's slots. Before it comes to such a place again, one or two
    // turns on from what it waited for last, that slot must have come, or the wait, which knows odd
    // passes from even ones alone, would end too soon: of what is asked for behind it, only
    // SLOTS_FLIGHT can be under way with it.
    static_assert((int)base::SLOTS_FLIGHT + 2 <= (int)base::SLOTS, "turns");
};

// Slots of z that come first: those of the last columns of x, whose token rows are still there.
template <class SHAPE, bool P> constexpr int kept_slots() {
    if constexpr (P && SHAPE::EXCHANGED)
        return packed_shape<SHAPE>::STAGES;
    else
        return SHAPE::KEPT_SLOTS;
}

#if SSM_HOPPER

// A group of warps takes every other slot of the ring.
template <class BASE> struct packed_slots {
    const resident_block<BASE> &b;
    resident_worker<BASE> &w;

    // The group's next slot, once it is there.
    __device__ __forceinline__ int wait() const {
        if (w.group)
            w.slot.next();
        barrier_wait(b.full + w.slot.at * 8, w.slot.phase);
        return w.slot.at;
    }
    __device__ __forceinline__ void next() const {
        w.slot.next();
        if (!w.group)
            w.slot.next();
    }
};

template <class BASE> struct packed_worker {
    typedef packed_shape<BASE> shape;
    typedef BASE base;
    enum { TILES = shape::TILES, X_TILES = base::X_BLOCKS };       // X_TILES: with the extra rows'
    enum { OWNED = (TILES + 3) / 4, X_OWNED = (X_TILES + 3) / 4 }; // that a warp ends, by turn
    typedef uint32_t inputs[X_OWNED];
    typedef float2 gates[OWNED];
    const resident_block<base> &b;
    resident_worker<base> &w;
    packed_slots<base> slots;
    turn<shape::STAGES> x;
    int part; // of a slot's columns, or rows

    __device__ __forceinline__ packed_worker(const resident_block<base> &block,
                                             resident_worker<base> &worker)
        : b(block), w(worker), slots{block, worker}, part(worker.warp % 4) {
    }
    // A lane's sixteen columns of 64, of tokens g and g + 8.
    struct operand {
        uint4 v[2][2];
    };
    __device__ __forceinline__ void load(operand &o, int stage, int tile) const {
        const char *at = b.x_place() + stage * shape::STAGE + tile * (shape::STAGE / 2);
#pragma unroll
        for (int t = 0; t < 2; t++) {
#pragma unroll
            for (int u = 0; u < 2; u++)
                o.v[t][u] =
                    given(*(const uint4 *)(at + (t * 8 + w.g) * 128 + ((2 * w.q + u) ^ w.g) * 16));
        }
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const operand &o,
                                                    const uint4 &lower, const uint2 &upper) {
        multiply_packed(c, o.v[0], o.v[1], lower, upper);
    }
    // bits: of sums that all that was read of it has gone into (give_back).
    __device__ __forceinline__ void slot_done(uint32_t bits) {
        if (w.lane == 0)
            barrier_arrive_as<2>(b.empty + w.slot.at * 8 + (bits & w.zero));
        slots.next();
    }

    // Extra rows' tile of the warp's 64 columns.
    __device__ __forceinline__ void multiply_extra(float (&c)[4], const operand &o,
                                                   const char *tile) const {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const uint4 v = *(const uint4 *)(tile + w.g * 128 + ((2 * w.q + u) ^ w.g) * 16);
            mma(c, o.v[0][u].x, o.v[1][u].x, o.v[0][u].y, o.v[1][u].y, v.x, v.y);
            mma(c, o.v[0][u].z, o.v[1][u].z, o.v[0][u].w, o.v[1][u].w, v.z, v.w);
        }
    }
    // in_proj's rows of x, or z: [4 i + ...] as columns()' sums, of a quarter of the columns. N:
    // tiles of a group's rows, and of extra ones.
    template <int N> __device__ __forceinline__ void in_columns(bool is_z, float (&acc)[N]) {
        float(&c)[N / 4][4] = (float(&)[N / 4][4]) acc;
        operand o;
#pragma unroll 1
        for (int i = 0; i < shape::TURNS; i++) {
            if (part / 2)
                x.next();
            barrier_wait(b.x_full + x.at * 8, x.phase);
            load(o, x.at, part % 2);
            const char *from = b.slot(slots.wait());
            const uint4 *s = (const uint4 *)from + part * TILES * 32 + w.lane;
            const uint2 *e = (const uint2 *)(from + shape::TAKEN_E) + part * TILES * 32 + w.lane;
            uint32_t bits = 0;
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply(c[t], o, s[t * 32], e[t * 32]);
            if constexpr (N / 4 > TILES) {
                if (w.group)
                    multiply_extra(c[TILES], o, from + shape::TAKEN + part * 1024);
            }
#pragma unroll
            for (int t = 0; t < N / 4; t++)
                bits |= __float_as_uint(c[t][0]);
            __syncwarp();
            if (w.lane == 0 && (is_z || i < shape::KEPT_FROM))
                barrier_arrive_as<2>(b.x_empty + x.at * 8 + (bits & w.zero));
            slot_done(bits);
            x.next();
            if (part / 2 == 0)
                x.next();
        }
        if (!is_z)
            x.phase ^= 1; // as it was
    }

    // The j-th tile that the warp ends of its group's, if it is one; the extra rows' is behind the
    // second group's.
    __device__ __forceinline__ int tile_of(int j) const {
        return j * 4 + part;
    }
    __device__ __forceinline__ bool is_extra_tile(int t) const {
        return base::EXTRA > 0 && w.group && t == TILES;
    }
    __device__ __forceinline__ int row_of(int t) const { // among the cluster's
        return w.group * shape::GROUP_ROWS + t * 8 + 2 * w.q;
    }

    // The peer's tokens' sums to it, the own ones to the warp whose tile it is. place: for the
    // peer's.
    template <int N, int OWNED>
    __device__ __forceinline__ void give(const float (&acc)[N], float2 (&mine)[OWNED], char *place,
                                         uint32_t barriers) const {
        to_peer(b, w, acc, place, barriers);
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const float2 own = b.rank ? make_float2(acc[4 * i + 2], acc[4 * i + 3])
                                      : make_float2(acc[4 * i], acc[4 * i + 1]);
            if (i % 4 == part)
                mine[i / 4] = own;
            else
                *parts((part - i + 3) & 3, i) = own;
        }
        named_sync(w.group + 2, 128);
    }
    // The i-th tile's, of the group's k-th warp behind the one whose it is. Of the extra rows:
    // where z goes later on.
    __device__ __forceinline__ float2 *parts(int k, int i) const {
        char *at = b.x_place() + shape::PARTS + (w.group * 3 + k) * shape::PART + i * 256;
        if (base::EXTRA > 0 && i >= TILES)
            at = (char *)b.z() + (w.group * 3 + k) * 256;
        return (float2 *)at + w.lane;
    }
    __device__ __forceinline__ void wait_peer(uint32_t barriers) const {
#pragma unroll
        for (int k = 0; k < 4; k++)
            barrier_wait(barriers + (w.group * 4 + k) * 8, w.layer & 1);
    }
    // The pair of channels of tile t, all columns, once the peer's are there: as both(). Those of
    // either rank's columns are added up from the same warp on, so that bits do not depend on whose
    // token it is. N: tiles that the peer sends.
    template <int N>
    __device__ __forceinline__ uint32_t all(const float2 &mine, const char *place, int t,
                                            float by) const {
        float2 v[8];
        v[0] = mine;
#pragma unroll
        for (int k = 1; k < 4; k++)
            v[k] = *parts(k - 1, t);
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[4 + k] = ((const float2 *)(place + (w.group * 4 + (part + k & 3)) *
                                                     (N * 256)))[w.lane + t * 32];
#pragma unroll
        for (int k = 0; k < 8; k += 4) {
            v[k].x = (v[k].x + v[k + 1].x) + (v[k + 2].x + v[k + 3].x);
            v[k].y = (v[k].y + v[k + 1].y) + (v[k + 2].y + v[k + 3].y);
        }
        return pack_bf16((v[0].x + v[4].x) * by, (v[0].y + v[4].y) * by);
    }

    // in_proj_x() and what follows it there.
    __device__ __forceinline__ float in_proj_x(const resident_args &a, inputs &raw) {
        resident_taps<base, X_OWNED> conv;
        const int first = b.cluster * base::NW + row_of(0);
        int last = (TILES - 1) * 8; // of tiles that are none: any
        if constexpr (base::EXTRA > 0)
            last = w.group ? extra_channel(b) + 2 * w.q - first : last;
        conv.ask(
            a, w, first, [&](int j) { return tile_of(j) < TILES ? tile_of(j) * 8 : last; },
            [&](int j) { return tile_of(j) < TILES || is_extra_tile(tile_of(j)); });
        const int token = b.token(w.own_place());
        barrier_wait(b.go, w.layer & 1);
        const resident_squares<base> squares(a, token, w.q);
        float acc[4 * X_TILES] = {};
        in_columns(false, acc);
        float2 mine[X_OWNED];
        give(acc, mine, b.peer_place(), b.arrived);
        const float scale = squares.scale(a), by = scale * a.layers[w.layer].packed_in_by;
        wait_peer(b.arrived);
        uint32_t *to = (uint32_t *)(b.x() + w.own_place() * shape::PITCH);
#pragma unroll
        for (int j = 0; j < X_OWNED; j++) {
            const int t = tile_of(j);
            if (t < TILES) {
                raw[j] = all<X_TILES>(mine[j], b.peer_place(), t, by);
                to[row_of(t) / 2] = conv.convolve(j, raw[j]);
            }
            if constexpr (base::EXTRA > 0) {
                if (is_extra_tile(t)) {
                    raw[j] = all<X_TILES>(mine[j], b.peer_place(), t, scale * (1.f / PACKED_GIVEN));
                    give_extra(a, b, w, extra_convolved(b) ? conv.convolve(j, raw[j]) : raw[j]);
                }
            }
        }
        workers_sync();
        if (!base::EXCHANGED && threadIdx.x == 0)
            b.ask_up_to(w.first + shape::IN_SLOTS + shape::X_SLOTS);
        return by;
    }
    // As resident_in.cuh has it.
    __device__ __forceinline__ void keep_inputs(const resident_args &a, const inputs &raw) const {
        if (w.own.slot < 0)
            return;
#pragma unroll
        for (int j = 0; j < X_OWNED; j++) {
            const int t = tile_of(j);
            if (t < TILES)
                keep_input(a, w, w.own, b.cluster * base::NW + row_of(t), raw[j]);
            if constexpr (base::EXTRA > 0) {
                if (is_extra_tile(t) && extra_convolved(b))
                    keep_input(a, w, w.own, extra_channel(b) + 2 * w.q, raw[j]);
            }
        }
    }
    __device__ __forceinline__ void in_proj_z(gates &z) {
        float acc[4 * TILES] = {};
        in_columns(true, acc);
        give(acc, z, b.peer_place() + shape::FROM_PEER, b.z_arrived);
    }
    __device__ __forceinline__ void keep_z(const gates &mine, float by) const {
        wait_peer(b.z_arrived);
        uint32_t *z = (uint32_t *)(b.z() + w.own_place() * shape::PITCH);
#pragma unroll
        for (int j = 0; j < OWNED; j++) {
            const int t = tile_of(j);
            if (t < TILES)
                z[row_of(t) / 2] = all<TILES>(mine[j], b.peer_place() + shape::FROM_PEER, t, by);
        }
    }

    __device__ __forceinline__ void out_proj_shares(const resident_args &a) {
        enum { FULL = shape::OUT_FULL };
        float c[FULL][4] = {}, mixed[2][4] = {};
#pragma unroll 1
        for (int i = 0; i < shape::OUT_TURNS; i++) {
            if (i == shape::OUT_TURNS - 1 && threadIdx.x == 0)
                b.ask_up_to(w.first + w.in_layer);
            operand o[2];
            barrier_wait(b.x_full + x.at * 8, x.phase);
            load(o[0], x.at, 0), load(o[1], x.at, 1);
            const char *from = b.slot(slots.wait());
            const uint4 *s = (const uint4 *)from + part * TILES * 32 + w.lane;
            const uint2 *e = (const uint2 *)(from + shape::OUT_E) + part * TILES * 32 + w.lane;
#pragma unroll
            for (int r = 0; r < 2; r++) {
#pragma unroll
                for (int f = 0; f < FULL; f++)
                    multiply(c[f], o[r], s[(r * FULL + f) * 32], e[(r * FULL + f) * 32]);
            }
            if (shape::MIXED) {
                const uint4 lower = s[2 * FULL * 32];
                const uint2 upper = e[2 * FULL * 32];
                multiply(mixed[0], o[0], lower, upper), multiply(mixed[1], o[1], lower, upper);
            }
            uint32_t bits = __float_as_uint(mixed[0][0]) | __float_as_uint(mixed[1][0]);
#pragma unroll
            for (int f = 0; f < FULL; f++)
                bits |= __float_as_uint(c[f][0]);
            __syncwarp();
            if (w.lane == 0)
                barrier_arrive(b.x_empty + x.at * 8 + (bits & w.zero));
            slot_done(bits);
            x.next();
        }
        const float by = a.layers[w.layer].packed_out_by;
        float *to = shares_of<base>(a) + (size_t)(b.split * RESIDENT_ROWS + w.g) * shape::WIDTH +
                    b.tile * shape::TILE_ROWS + w.group * shape::NW + part * shape::OUT_ROWS +
                    2 * w.q;
#pragma unroll
        for (int t = 0; t < 2; t++) {
            float *row = to + (size_t)t * (base::HALVES ? b.mine : 8) * shape::WIDTH;
            const bool live = base::HALVES ? w.g < b.mine : w.g + 8 * t < a.tokens;
#pragma unroll
            for (int f = 0; f < FULL; f++) {
                if (live)
                    *(float2 *)(row + f * 8) = make_float2(c[f][2 * t] * by, c[f][2 * t + 1] * by);
            }
            if (shape::MIXED) { // four rows of the first 64 columns, the same of the second
                const float lo = __shfl_down_sync(~0u, mixed[1][2 * t], 2);
                const float hi = __shfl_down_sync(~0u, mixed[1][2 * t + 1], 2);
                if (live && w.q < 2)
                    *(float2 *)(row + FULL * 8) =
                        make_float2((mixed[0][2 * t] + lo) * by, (mixed[0][2 * t + 1] + hi) * by);
            }
        }
        workers_sync();
        if (threadIdx.x == 0)
            count_up(&scratch_of<base>(a).shares[b.tile]);
    }
};

#endif

} // namespace ssm

#endif
