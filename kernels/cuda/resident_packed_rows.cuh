// SPDX-License-Identifier: Apache-2.0
// resident.cu of more than 16 rows with in_proj and out_proj in 12 bits a weight (packed.cuh): the
// products, and what stands right behind them. Everything else is resident.cu's. 17 to 32 rows of
// 2.8b, and of 1.4b with states in fp16; 17 to 64 of falcon-mamba-7b.
//
// A group's weights are the first operand of the warp groups' matrix instruction: a lane unpacks
// what it has of sixteen rows, while the instructions of the piece of columns before are under way,
// and gives it from registers. Token rows are the second, from shared memory, so that sums lie the
// other way around than resident.cu's: a lane has two rows of weights and pairs of tokens. Those of
// x and z go to rows of tokens in shared memory, from where the convolution goes on as
// resident.cu's.
//
// The instruction takes weights' rows by 64, sixteen a warp, two eights of which may be apart.
// falcon-mamba-7b's groups have 64 rows of x and of z and 128 of out_proj. 2.8b's have 40: an eight
// for each warp, a second one for the first, and zeros; and 80 of out_proj, 20 a warp: two eights
// and, of an eight that holds both of a slot's pieces of columns (packed_format.h), the four of
// either, with zeros in the others' places, so that both sums stand in one accumulator, eight rows
// of it, and are added up at the end. 1.4b's have 32 and 64: an eight for each warp, sixteen.
//
// u's columns of a block all have their own stages where there is room (2.8b: 20, 80 KB of 32 rows,
// and seven slots): they are asked for at once, and z multiplies what x has left.
//
// H200 (2026-11-30), falcon-mamba-7b, fp16 states, ms a step:  b17   b32   b40   b64
//   bf16 weights, in each of these runs                        4.26  4.39  4.61  4.89
//   slots of 12 KB, 64 token rows                              4.52  4.66  4.86  5.24
//   32 token rows where there are no more, eight stages        4.24  4.31
//   slots of 24 KB (bf16 in that run 4.38, 4.46, 4.73, 5.02)   3.42  3.62  4.45  5.03
//   + the ring's quicker turns (fill_ring; 4.33, 4.49, 4.71,
//     5.04)                                                    3.40  3.65  4.45  4.94
//   + out_proj's slots by one lane; L2 not asked ahead from 33
//     rows on, where two slots are under way (4.39, 4.64, 4.92)      3.51  4.38  4.75
//   + addresses made anew in each layer (made_anew): less is
//     spilled (before, in turns, b32 3.50, b64 4.75)                 3.48        4.62
// Predicted for 17 to 32 rows: 3.4. What the second and third line waited for was the ring's warp,
// 1,000 cycles a slot (large-steps.md). From 33 rows on shared memory has room for four slots, of
// which two can be under way.
//
// Other widths, the last form, in turns with bf16 weights (in brackets): 2.8b b24 1.718 (1.874),
// b32 1.800 (1.923), fp32 states 1.865 (1.976), 1.988 (2.068); 1.4b b24 1.039 (1.083), b32 1.105
// (1.117), fp32 1.136 (1.138), 1.208 (1.194); 790m b24 0.851 (0.850), b32 0.880 (0.878). Predicted
// for 2.8b: 1.6 and 1.65. large-steps.md has what was tried, and why not from 33 rows on.
//
// A lane has sixteen neighbouring columns of 64 (packed_format.h), the instruction wants four here
// and there. So u and y lie in the order of packed_rows_place() in memory; and they are given
// PACKED_GIVEN there, for what comes from shared memory cannot be multiplied on its way. The last
// layer's u, the head's, lies as it always does.
#ifndef SSM_KERNELS_CUDA_RESIDENT_PACKED_ROWS_CUH
#define SSM_KERNELS_CUDA_RESIDENT_PACKED_ROWS_CUH

#include "resident_packed.cuh"

namespace ssm {

#if SSM_HOPPER

// Of shared memory, or zeros. A branch that the compiler saw would make it wait for each of the
// matrix instructions that follow.
__device__ __forceinline__ uint4 load_if(bool there, const uint4 *p) {
    uint4 v;
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
                 "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
                 "@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "r"(shared_address(p)), "r"((int)there)
                 : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_if(bool there, const uint2 *p) {
    uint2 v;
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n"
                 "@p ld.shared.v2.u32 {%0,%1}, [%2];\n}"
                 : "=&r"(v.x), "=&r"(v.y)
                 : "r"(shared_address(p)), "r"((int)there)
                 : "memory");
    return v;
}

template <class BASE> struct packed_rows_worker {
    typedef BASE shape;
    typedef packed_shape<BASE> packed;
    enum {
        A_WARP = shape::HALF_ROWS / 4,                 // tokens
        TILES = packed::TILES,                         // of eight rows, a group's of in_proj
        EIGHTS = (TILES + 3) / 4,                      // a warp's of these, or one less
        SUMS = shape::ROWS / 2,                        // a lane's of 64 rows, half of them of eight
        LANES = shape::GROUP_ROWS / 2,                 // that have a pair of the group's channels
        OUT_EIGHTS = packed::OUT_FULL + packed::MIXED, // a warp's of out_proj
        OUT_SETS = (OUT_EIGHTS + 1) / 2,
        SENT = SUMS / 8 * 256 // bytes of a warp's eight rows, half of the tokens
    };
    static_assert(TILES >= 4 && EIGHTS <= 2, "one or two eights a warp");
    static_assert(2 * (int)TILES * (int)SENT <= (int)shape::FROM_PEER, "room");
    typedef uint32_t inputs[A_WARP];
    typedef float gates[EIGHTS][SUMS / 2];
    const resident_block<BASE> &b;
    resident_worker<BASE> &w;
    packed_slots<BASE> slots;
    int part;       // of the group's warps
    uint32_t first; // all bits where a lane's row of four is of a slot's first piece

    __device__ __forceinline__ packed_rows_worker(const resident_block<BASE> &block,
                                                  resident_worker<BASE> &worker)
        : b(block), w(worker), slots{block, worker}, part(worker.warp % 4),
          first(kept_word(worker.g < 4 ? ~0u : 0)) { // or there were a branch
    }

    // ---- convolution: a lane has a pair of the group's channels of the warp's tokens

    struct convolution {
        float2 taps[5]; // convolve_pair()
        uint32_t history[A_WARP][3];
    };
    // Of the warp's k-th token, by a lane whose own_place() it is.
    __device__ __forceinline__ row own(int k) const {
        row r;
        r.slot = __shfl_sync(~0u, w.own.slot, k * 4);
        r.ring = __shfl_sync(~0u, w.own.ring, k * 4);
        r.fresh = __shfl_sync(~0u, w.own.fresh, k * 4);
        return r;
    }
    __device__ __forceinline__ int channel() const {
        return b.cluster * shape::NW + w.group * shape::GROUP_ROWS + 2 * w.lane;
    }
    __device__ __forceinline__ bool has_channel() const {
        return LANES == 32 || w.lane < LANES;
    }
    __device__ __forceinline__ void ask(const resident_args &a, convolution &c) const {
        const resident_layer &l = a.layers[w.layer];
        const int kept = a.width - 1;
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const row r = own(k);
            const bool there = r.slot >= 0 && !r.fresh && has_channel();
            const bf16 *from = a.ring + w.layer * a.ring_pitch +
                               (size_t)(there ? r.slot : 0) * kept * shape::CONV + channel();
            int e = r.ring;
#pragma unroll
            for (int j = 0; j < 3; j++) {
                e = e == 0 ? kept - 1 : e - 1;
                c.history[k][j] = 0;
                if (there && j < kept)
                    c.history[k][j] = load_word(from + (size_t)e * shape::CONV);
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            c.taps[j] = make_float2(0, 0);
            if (j < a.width && has_channel())
                c.taps[j] = load_pair(l.conv_weight + (size_t)(kept - j) * shape::CONV + channel());
        }
        c.taps[4] = make_float2(0, 0);
        if (has_channel())
            c.taps[4] = load_pair(l.conv_bias + channel());
    }

    // ---- products

    // A lane's row of a slot's tile as four matrix instructions take it: row g of their sixteen, or
    // g + 8; zeros where not all warps have such a tile and this one has not.
    typedef uint32_t operand[4][4];
    static __device__ __forceinline__ void take(operand &v, int half, const char *slot, int tile,
                                                bool all = true, bool there = true) {
        const int at = tile * 32 + threadIdx.x % 32;
        const uint4 *lower = (const uint4 *)slot + at;
        const uint2 *upper = (const uint2 *)(slot + packed::TAKEN_E) + at;
        const uint4 s = all ? *lower : load_if(there, lower);
        const uint2 e = all ? *upper : load_if(there, upper);
#pragma unroll
        for (int unit = 0; unit < 2; unit++) {
            const uint4 eight =
                unit ? unpack(make_uint2(s.z, s.w), e.y) : unpack(make_uint2(s.x, s.y), e.x);
            v[2 * unit][half] = eight.x, v[2 * unit][2 + half] = eight.y;
            v[2 * unit + 1][half] = eight.z, v[2 * unit + 1][2 + half] = eight.w;
        }
    }
    // Of in_proj's slot, [piece][tile]: the warp's eights.
    struct in_slot {
        const packed_rows_worker &of;
        __device__ __forceinline__ void take(operand &v, const char *slot, int piece, int) {
#pragma unroll
            for (int i = 0; i < EIGHTS; i++)
                of.take(v, i, slot, piece * TILES + of.tile_of(i), all_have(i), of.has_tile(i));
        }
    };
    // Of out_proj's, [warp][piece][tile], behind them four rows of both pieces.
    struct out_slot {
        enum { FULL = packed::OUT_FULL };
        const packed_rows_worker &of;
        operand four;
        __device__ __forceinline__ void take(operand &v, const char *slot, int piece, int set) {
            const int first = of.part * TILES;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int t = 2 * set + half;
                if (t < FULL)
                    of.take(v, half, slot, first + piece * FULL + t);
                if (!packed::MIXED || t != FULL)
                    continue;
                if (piece == 0)
                    of.take(four, half, slot, first + 2 * FULL);
#pragma unroll
                for (int k = 0; k < 8; k++)
                    v[k / 2][k % 2 * 2 + half] =
                        four[k / 2][k % 2 * 2 + half] & (piece ? ~of.first : of.first);
            }
        }
    };

    // d [SETS][64 rows][shape::ROWS tokens] += a group's weights times token rows, over so many
    // pieces of 64 columns, of which a slot, SLOT's, has A_SLOT. A piece's operand of a set is
    // unpacked while the one before it is multiplied. limit, kept: as columns().
    template <int A_SLOT, int SETS, class SLOT>
    __device__ __forceinline__ void columns(float (&d)[SETS][SUMS], SLOT of, int pieces, int limit,
                                            int kept) {
        operand v[2] = {};
        int slot_before = 0, x_before = 0;
        auto done = [&](int piece, bool slot) { // with its token rows, and with the slot before
            if (w.lane == 0) {
                if (piece < pieces - kept)
                    barrier_arrive(b.x_empty + x_before * 8);
                if (slot)
                    barrier_arrive_as<2>(b.empty + slot_before * 8);
            }
        };
#pragma unroll 1
        for (int p = 0; p < pieces; p += A_SLOT) {
            if (p == pieces - A_SLOT && limit < NO_LIMIT && threadIdx.x == 0)
                b.ask_up_to(limit);
            const char *slot = b.slot(slots.wait());
#pragma unroll
            for (int i = 0; i < A_SLOT; i++) {
#pragma unroll
                for (int m = 0; m < SETS; m++) {
                    operand &now = v[(i * SETS + m) % 2];
                    of.take(now, slot, i, m);
                    if (m == 0) {
                        barrier_wait(b.x_full + w.x.at * 8, w.x.phase);
                        fence_async(); // token rows came by cp.async
                    }
                    const uint64_t x = tile_at(b.x_ring + w.x.at * shape::X_STAGE);
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < 4; k++) // 16 columns are 32 bytes
                        wgmma_registers(d[m], now[k], x + k * 2);
                    wgmma_commit();
                    wgmma_wait<1>();
                    if (m == 0 && p + i > 0)
                        done(p + i - 1, i == 0);
                }
                x_before = w.x.at;
                w.x.next();
            }
            slot_before = w.slot.at;
            slots.next();
        }
        wgmma_wait<0>();
        done(pieces - 1, true);
#pragma unroll
        for (int m = 0; m < SETS; m++)
            wgmma_touch(d[m]);
    }

    // The tile of in_proj's of the warp's i-th eight rows, and whether there is one.
    __device__ __forceinline__ int tile_of(int i) const {
        return part + 4 * i;
    }
    static __device__ __forceinline__ bool all_have(int i) {
        return (i + 1) * 4 <= TILES;
    }
    __device__ __forceinline__ bool has_tile(int i) const {
        return all_have(i) || tile_of(i) < TILES;
    }
    // Eights of tokens of either rank side by side: [eight rows][two eights][rank][token].
    static __device__ __forceinline__ void arrange(gates &to, const float (&d)[SUMS]) {
#pragma unroll
        for (int h = 0; h < EIGHTS; h++) {
#pragma unroll
            for (int i = 0; i < SUMS / 2; i++)
                to[h][i] = d[i / 2 * 4 + h * 2 + i % 2];
        }
    }
    // Where a warp's sums of its i-th eight rows go.
    __device__ __forceinline__ int sent_to(int i) const {
        return (w.group * TILES + tile_of(i)) * SENT;
    }
    // As to_peer(), of the eight rows that there are.
    __device__ __forceinline__ void send_sums(const gates &sums, char *place,
                                              uint32_t barriers) const {
        const uint32_t arrived = barriers + w.warp * 8, there = peer_address(arrived, b.rank ^ 1);
        const uint32_t to = peer_address(shared_address(place), b.rank ^ 1) + w.lane * 8;
        if (w.lane == 0)
            barrier_expect(arrived, has_tile(0) * SENT + (EIGHTS > 1 && has_tile(1)) * SENT);
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            if (has_tile(i))
                give_sums(b, sums[i], to + sent_to(i), there);
        }
    }
    // What the rank's tokens' sums are multiplied by; a group has its own.
    __device__ __forceinline__ float *scales() const {
        return (float *)(b.staged() + shape::STAGED) + w.group * shape::HALF_ROWS;
    }
    // Sums of the rank's tokens, the peer's with them, to rows of tokens.
    __device__ __forceinline__ void put(bf16 *rows, const gates &sums, const char *place) const {
        const float *by = scales() + 2 * w.q;
        bf16 *to = rows + 2 * w.q * shape::PITCH + w.group * shape::GROUP_ROWS + w.g;
#pragma unroll
        for (int h = 0; h < EIGHTS; h++) {
            if (!has_tile(h))
                break;
            const float2 *others = (const float2 *)(place + sent_to(h)) + w.lane;
#pragma unroll
            for (int i = 0; i < SUMS / 8; i++) { // eights of tokens
                const float2 other = others[i * 32];
                const float lo = (b.rank ? sums[h][4 * i + 2] : sums[h][4 * i]) + other.x;
                const float hi = (b.rank ? sums[h][4 * i + 3] : sums[h][4 * i + 1]) + other.y;
                const float2 scale = *(const float2 *)(by + i * 8);
                bf16 *at = to + i * 8 * shape::PITCH + tile_of(h) * 8;
                at[0] = from_float<bf16>(lo * scale.x);
                at[shape::PITCH] = from_float<bf16>(hi * scale.y);
            }
        }
    }

    // As resident_in.cuh's; z's factors are left in shared memory.
    __device__ __forceinline__ float in_proj_x(const resident_args &a, inputs &raw) {
        convolution c;
        ask(a, c);
        const int token = b.token(w.own_place());
        barrier_wait(b.go, w.layer & 1);
        const resident_squares<BASE> squares(a, token, w.q);
        float d[1][SUMS] = {};
        gates sums;
        columns<4>(d, in_slot{*this}, shape::IN_PIECES, NO_LIMIT, shape::X_STAGES);
        w.x.phase ^= 1; // as they were
        arrange(sums, d[0]);
        send_sums(sums, b.peer_place(), b.arrived);
        const float by = squares.scale(a) * a.layers[w.layer].packed_in_by;
        if (w.q == 0)
            scales()[w.own_place()] = by;
        named_sync(w.group + 2, 128);
        barrier_wait(b.arrived + w.warp * 8, w.layer & 1);
        put(b.x(), sums, b.peer_place());
        named_sync(w.group + 2, 128);
        uint32_t *x =
            (uint32_t *)(b.x() + part * A_WARP * shape::PITCH + w.group * shape::GROUP_ROWS) +
            w.lane;
        if (has_channel()) {
#pragma unroll
            for (int k = 0; k < A_WARP; k++) {
                raw[k] = x[k * (shape::PITCH / 2)];
                x[k * (shape::PITCH / 2)] = convolve_pair(c.taps, c.history[k], raw[k]);
            }
        }
        workers_sync();
        if (threadIdx.x == 0)
            b.ask_up_to(w.first + shape::IN_SLOTS + shape::X_SLOTS);
        return by;
    }
    __device__ __forceinline__ void keep_inputs(const resident_args &a, const inputs &raw) const {
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const row r = own(k);
            if (r.slot >= 0 && has_channel())
                keep_input(a, w, r, channel(), raw[k]);
        }
    }
    __device__ __forceinline__ void in_proj_z(gates &z) {
        float d[1][SUMS] = {};
        columns<4>(d, in_slot{*this}, shape::IN_PIECES, NO_LIMIT, 0);
        arrange(z, d[0]);
        send_sums(z, b.peer_place() + shape::FROM_PEER, b.z_arrived);
    }
    __device__ __forceinline__ void keep_z(const gates &z, float) const {
        barrier_wait(b.z_arrived + w.warp * 8, w.layer & 1);
        put(b.z(), z, b.peer_place() + shape::FROM_PEER);
    }

    __device__ __forceinline__ void out_proj_shares(const resident_args &a) {
        float d[OUT_SETS][SUMS] = {};
        columns<2>(d, out_slot{*this}, shape::OUT_PIECES, w.first + w.in_layer, 0);
        const float by = a.layers[w.layer].packed_out_by;
        // Two lanes have two rows of two tokens: each takes a token's.
        const bool odd = w.g % 2;
        float *to = shares_of<BASE>(a) +
                    (size_t)(b.split * shape::ROWS + 2 * w.q + odd) * shape::WIDTH +
                    b.tile * shape::TILE_ROWS + w.group * shape::OUT_GROUP +
                    part * packed::OUT_ROWS + w.g / 2 * 2;
#pragma unroll
        for (int j = 0; j < shape::ROWS / 8; j++) { // eights of tokens
            if (j * 8 >= a.tokens)
                break;
#pragma unroll
            for (int t = 0; t < OUT_EIGHTS; t++) {
                float *two = d[t / 2] + 4 * j + t % 2 * 2;
                const bool four = t == packed::OUT_FULL; // rows, of two pieces of columns
                if (four) {
                    two[0] += __shfl_xor_sync(~0u, two[0], 16);
                    two[1] += __shfl_xor_sync(~0u, two[1], 16);
                }
                const float mine = odd ? two[1] : two[0];
                const float other = __shfl_xor_sync(~0u, odd ? two[0] : two[1], 4);
                if (!four || w.g < 4)
                    *(float2 *)(to + (size_t)(j * 8) * shape::WIDTH + t * 8) =
                        odd ? make_float2(other * by, mine * by)
                            : make_float2(mine * by, other * by);
            }
        }
        workers_sync();
        if (threadIdx.x == 0)
            count_up(&scratch_of<BASE>(a).shares[b.tile]);
    }
};

#endif

} // namespace ssm

#endif
