// SPDX-License-Identifier: Apache-2.0
// resident.cu of 17 to 64 rows with in_proj and out_proj in 12 bits a weight (packed.cuh):
// falcon-mamba-7b's products, and what stands right behind them. Everything else is resident.cu's.
//
// A group's weights are the first operand of the warp groups' matrix instruction: a lane unpacks
// what it has of sixteen rows, while the instructions of the piece of columns before are under way,
// and gives it from registers. Token rows are the second, from shared memory, so that sums lie the
// other way around than resident.cu's: a lane has two rows of weights and pairs of tokens. Those of
// x and z go to rows of tokens in shared memory, from where the convolution goes on as
// resident.cu's.
//
// The instruction takes weights' rows by 64. A cluster of falcon-mamba-7b has 128 rows of x and of
// z, a group half of them; a group of out_proj has 128. Of other widths' shares (80 rows at 2.8b)
// something is left over, which cost more than fewer bytes gained (large-steps.md).
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
// Predicted for 17 to 32 rows: 3.4. What the second and third line waited for was the ring's warp,
// 1,000 cycles a slot (large-steps.md). From 33 rows on shared memory has room for four slots, of
// which two can be under way.
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

template <class BASE> struct packed_rows_worker {
    typedef BASE shape;
    enum { SUMS = shape::ROWS / 2, A_WARP = shape::HALF_ROWS / 4 }; // a lane's of 64 rows; tokens
    typedef uint32_t inputs[A_WARP];
    typedef float gates[SUMS];
    enum { TILES = shape::NW / 16, S_BYTES = packed_shape<BASE>::TAKEN_E };
    static_assert(shape::GROUP_ROWS == 64 && shape::OUT_GROUP == 128, "rows by 64");
    static_assert((int)shape::SLOTS_FLIGHT + 2 <= (int)shape::SLOTS,
                  "turns, as packed_shape has them");
    const resident_block<BASE> &b;
    resident_worker<BASE> &w;
    packed_slots<BASE> slots;
    int part; // sixteen rows of 64; in the convolution every A_WARP tokens

    __device__ __forceinline__ packed_rows_worker(const resident_block<BASE> &block,
                                                  resident_worker<BASE> &worker)
        : b(block), w(worker), slots{block, worker}, part(worker.warp % 4) {
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
        return b.cluster * shape::NW + w.group * 64 + 2 * w.lane;
    }
    __device__ __forceinline__ void ask(const resident_args &a, convolution &c) const {
        const resident_layer &l = a.layers[w.layer];
        const int kept = a.width - 1;
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const row r = own(k);
            const bool there = r.slot >= 0 && !r.fresh;
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
            if (j < a.width)
                c.taps[j] = load_pair(l.conv_weight + (size_t)(kept - j) * shape::CONV + channel());
        }
        c.taps[4] = load_pair(l.conv_bias + channel());
    }

    // ---- products

    // A lane's weights of two tiles, rows g and g + 8, as four matrix instructions take them.
    static __device__ __forceinline__ void take(uint32_t (&v)[4][4], const char *slot, int tile) {
        const int at = tile * 32 + threadIdx.x % 32;
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const uint4 s = ((const uint4 *)slot)[at + row * 32];
            const uint2 e = ((const uint2 *)(slot + S_BYTES))[at + row * 32];
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                const uint4 eight =
                    unit ? unpack(make_uint2(s.z, s.w), e.y) : unpack(make_uint2(s.x, s.y), e.x);
                v[2 * unit][row] = eight.x, v[2 * unit][2 + row] = eight.y;
                v[2 * unit + 1][row] = eight.z, v[2 * unit + 1][2 + row] = eight.w;
            }
        }
    }

    // d [SETS][64 rows][shape::ROWS tokens] += a group's weights times token rows, over so many
    // pieces of 64 columns, of which a slot has A_SLOT. limit, kept: as columns().
    template <int SETS, int A_SLOT>
    __device__ __forceinline__ void columns(float (&d)[SETS][SUMS], int pieces, int limit,
                                            int kept) {
        uint32_t v[2][SETS][4][4];
        int slot_before = 0, x_before = 0;
        auto done = [&](bool keep, bool slot) { // with the piece before, and with its slot
            if (w.lane == 0) {
                if (!keep)
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
                // Tiles of a slot, of in_proj: [piece][tile]; of out_proj: [warp][piece][tile].
#pragma unroll
                for (int m = 0; m < SETS; m++)
                    take(v[i % 2][m], slot,
                         SETS == 1 ? i * TILES + part * 2 : part * TILES + i * (TILES / 2) + m * 2);
                barrier_wait(b.x_full + w.x.at * 8, w.x.phase);
                fence_async(); // token rows came by cp.async
                const uint64_t x = tile_at(b.x_ring + w.x.at * shape::X_STAGE);
                wgmma_fence();
#pragma unroll
                for (int m = 0; m < SETS; m++) {
#pragma unroll
                    for (int k = 0; k < 4; k++) // 16 columns are 32 bytes
                        wgmma_registers(d[m], v[i % 2][m][k], x + k * 2);
                }
                wgmma_commit();
                wgmma_wait<1>();
                if (p + i > 0)
                    done(p + i > pieces - kept, i == 0);
                x_before = w.x.at;
                w.x.next();
            }
            slot_before = w.slot.at;
            slots.next();
        }
        wgmma_wait<0>();
        done(kept > 0, true);
#pragma unroll
        for (int m = 0; m < SETS; m++)
            wgmma_touch(d[m]);
    }

    // The sums of eight tokens of each rank side by side, as to_peer() takes them.
    static __device__ __forceinline__ void arrange(float (&to)[SUMS], const float (&d)[SUMS]) {
#pragma unroll
        for (int i = 0; i < SUMS; i++) // [two eights][row][rank][token]
            to[i] = d[i / 8 * 8 + i / 2 % 2 * 4 + i / 4 % 2 * 2 + i % 2];
    }
    // What the rank's tokens' sums are multiplied by; a group has its own.
    __device__ __forceinline__ float *scales() const {
        return (float *)(b.staged() + shape::STAGED) + w.group * shape::HALF_ROWS;
    }
    // Sums of the rank's tokens, the peer's with them, to rows of tokens.
    __device__ __forceinline__ void put(bf16 *rows, const float (&sums)[SUMS],
                                        const char *place) const {
        const float *by = scales() + 2 * w.q;
        bf16 *to = rows + 2 * w.q * shape::PITCH + w.group * 64 + part * 16 + w.g;
#pragma unroll
        for (int i = 0; i < SUMS / 4; i++) { // [eight tokens][row]
            const float2 other = ((const float2 *)(place + w.warp * (SUMS * 64)))[w.lane + i * 32];
            const float lo = (b.rank ? sums[4 * i + 2] : sums[4 * i]) + other.x;
            const float hi = (b.rank ? sums[4 * i + 3] : sums[4 * i + 1]) + other.y;
            const float2 scale = *(const float2 *)(by + i / 2 * 8);
            bf16 *at = to + i / 2 * 8 * shape::PITCH + i % 2 * 8;
            at[0] = from_float<bf16>(lo * scale.x);
            at[shape::PITCH] = from_float<bf16>(hi * scale.y);
        }
    }

    // As resident_in.cuh's; z's factors are left in shared memory.
    __device__ __forceinline__ float in_proj_x(const resident_args &a, inputs &raw) {
        convolution c;
        ask(a, c);
        const int token = b.token(w.own_place());
        barrier_wait(b.go, w.layer & 1);
        const resident_squares<BASE> squares(a, token, w.q);
        float d[1][SUMS] = {}, sums[SUMS];
        columns<1, 4>(d, shape::IN_PIECES, NO_LIMIT, shape::X_STAGES);
        w.x.phase ^= 1; // as they were
        arrange(sums, d[0]);
        to_peer(b, w, sums, b.peer_place(), b.arrived);
        const float by = squares.scale(a) * a.layers[w.layer].packed_in_by;
        if (w.q == 0)
            scales()[w.own_place()] = by;
        named_sync(w.group + 2, 128);
        barrier_wait(b.arrived + w.warp * 8, w.layer & 1);
        put(b.x(), sums, b.peer_place());
        named_sync(w.group + 2, 128);
        uint32_t *x = (uint32_t *)(b.x() + part * A_WARP * shape::PITCH + w.group * 64) + w.lane;
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            raw[k] = x[k * (shape::PITCH / 2)];
            x[k * (shape::PITCH / 2)] = convolve_pair(c.taps, c.history[k], raw[k]);
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
            if (r.slot >= 0)
                keep_input(a, w, r, channel(), raw[k]);
        }
    }
    __device__ __forceinline__ void in_proj_z(gates &z) {
        float d[1][SUMS] = {};
        columns<1, 4>(d, shape::IN_PIECES, NO_LIMIT, 0);
        arrange(z, d[0]);
        to_peer(b, w, z, b.peer_place() + shape::FROM_PEER, b.z_arrived);
    }
    __device__ __forceinline__ void keep_z(const gates &z, float) const {
        barrier_wait(b.z_arrived + w.warp * 8, w.layer & 1);
        put(b.z(), z, b.peer_place() + shape::FROM_PEER);
    }

    __device__ __forceinline__ void out_proj_shares(const resident_args &a) {
        float d[2][SUMS] = {};
        columns<2, 2>(d, shape::OUT_PIECES, w.first + w.in_layer, 0);
        const float by = a.layers[w.layer].packed_out_by;
        // Two lanes have two rows of two tokens: each takes a token's.
        const bool odd = w.g % 2;
        float *to = shares_of<BASE>(a) +
                    (size_t)(b.split * shape::ROWS + 2 * w.q + odd) * shape::WIDTH +
                    b.tile * shape::TILE_ROWS + w.group * 128 + part * 32 + w.g / 2 * 2;
#pragma unroll
        for (int j = 0; j < shape::ROWS / 8; j++) { // eights of tokens
            if (j * 8 >= a.tokens)
                break;
#pragma unroll
            for (int m = 0; m < 4; m++) { // of 16 rows, the first or the last eight
                const float *two = d[m / 2] + 4 * j + m % 2 * 2;
                const float mine = odd ? two[1] : two[0];
                const float other = __shfl_xor_sync(~0u, odd ? two[0] : two[1], 4);
                *(float2 *)(to + (size_t)(j * 8) * shape::WIDTH + m * 8) =
                    odd ? make_float2(other * by, mine * by) : make_float2(mine * by, other * by);
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
