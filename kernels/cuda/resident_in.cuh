// SPDX-License-Identifier: Apache-2.0
// resident.cu's beginning of a layer: in_proj's columns and the convolution.
#ifndef SSM_KERNELS_CUDA_RESIDENT_IN_CUH
#define SSM_KERNELS_CUDA_RESIDENT_IN_CUH

#include "resident.cuh"

namespace ssm {

#if SSM_HOPPER

// How far a worker is in the rings, and its place.
template <class SHAPE> struct resident_worker {
    turn<SHAPE::SLOTS> slot;
    turn<SHAPE::X_STAGES> x;
    int warp, lane, g, q, group, layer;
    int first, in_layer; // slots of the ring: before this layer, in a layer
    uint32_t zero;       // which the compiler does not know
    row own;             // of the token whose sums this thread ends after in_proj

    __device__ __forceinline__ resident_worker(const resident_args &a) {
        warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        group = warp / 4, layer = 0, first = 0, in_layer = 0, zero = (uint32_t)a.tokens >> 16;
    }
    __device__ __forceinline__ int own_place() const { // among the rank's tokens
        if constexpr (SHAPE::MANY)
            return (warp % 4) * (SHAPE::HALF_ROWS / 4) + g % (SHAPE::HALF_ROWS / 4);
        if constexpr (SHAPE::PACKED)
            return g;
        if constexpr (SHAPE::TALL)
            return group * 32 + warp % 4 * 8 + g;
        return warp % 4 * 8 + g;
    }
};

// A number of this thread's. Of MANY the compiler is not to know it outside of a layer: it would
// keep addresses all the while for which there are no registers, and what is spilled is read behind
// the copy engine's loads.
template <class SHAPE> __device__ __forceinline__ int made_anew(int v) {
    if constexpr (SHAPE::MANY)
        return (int)kept_word((uint32_t)v);
    return v;
}

// The next slot of the ring, full.
template <class SHAPE>
__device__ __forceinline__ int next_slot(const resident_block<SHAPE> &b,
                                         resident_worker<SHAPE> &w) {
    const int at = w.slot.at;
    barrier_wait(b.full + at * 8, w.slot.phase);
    w.slot.next();
    return at;
}
// By each warp when it has read it. An arrive overtakes reads that queue behind the SM's loads from
// L2, so that the slot could be filled again in front of them: `bits` is something of all that was
// read, or was made of it, and the arrive's address waits for it.
template <class SHAPE>
__device__ __forceinline__ void give_back(const resident_block<SHAPE> &b,
                                          const resident_worker<SHAPE> &w, int slot,
                                          uint32_t bits) {
    __syncwarp();
    if (w.lane == 0)
        barrier_arrive(b.empty + slot * 8 + (bits & w.zero));
}

// [64 tokens][ROWS] of a group over so many pieces of 64 columns, added to acc, two a turn. A slot
// has A_SLOT pieces of PIECE_ROWS rows; the group's begin at `row`. From the last two pieces on the
// ring asks for nothing from slot `limit` on. The last `kept` pieces' token rows stay where they
// are.
template <class SHAPE, int ROWS, int A_SLOT, int PIECE_ROWS = SHAPE::TILE_ROWS / A_SLOT>
__device__ __forceinline__ void columns(const resident_block<SHAPE> &b, resident_worker<SHAPE> &w,
                                        int pieces, int row, int limit, float (&acc)[ROWS / 2],
                                        int kept = 0) {
    typedef SHAPE shape;
    int slot_before = 0, x_before = 0;
    row = __shfl_sync(~0u, row, 0); // one to the compiler, too: descriptors without R2UR
    int set = 0;                    // bytes
    if constexpr (shape::TALL)
        set = __shfl_sync(~0u, w.group, 0) * 8192;
    auto done = [&](bool keep, bool slot) { // with the piece before, and with its slot
        if (w.lane == 0) {
            if (!keep)
                barrier_arrive(b.x_empty + x_before * 8);
            if (slot)
                barrier_arrive(b.empty + slot_before * 8);
        }
    };
#pragma unroll 1
    for (int p = 0; p < pieces; p += 2) {
        if (p == (pieces - 2) / 2 * 2 && limit < NO_LIMIT && threadIdx.x == 0)
            b.ask_up_to(limit);
        uint64_t rows = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (p + i >= pieces)
                break;
            if (i % A_SLOT == 0) {
                barrier_wait(b.full + w.slot.at * 8, w.slot.phase);
                rows = tile_at(b.slots + w.slot.at * shape::SLOT + row * 128);
            }
            barrier_wait(b.x_full + w.x.at * 8, w.x.phase);
            fence_async(); // token rows came by cp.async
            wgmma_piece(acc, tile_at(b.x_ring + w.x.at * shape::X_STAGE + set),
                        rows + i % A_SLOT * (PIECE_ROWS * 128 / 16));
            wgmma_wait<1>();
            if (p + i > 0)
                done(p + i > pieces - kept, i % A_SLOT == 0);
            x_before = w.x.at;
            w.x.next();
            if (i % A_SLOT == A_SLOT - 1) {
                slot_before = w.slot.at;
                w.slot.next();
            }
        }
    }
    wgmma_wait<0>();
    done(kept > 0, true);
    wgmma_touch(acc);
}

// Of in_proj's rows of x, or z. What x's last columns leave of u, z begins with.
template <class SHAPE>
__device__ __forceinline__ void in_columns_x(const resident_block<SHAPE> &b,
                                             resident_worker<SHAPE> &w,
                                             float (&acc)[SHAPE::X_GROUP / 2]) {
    typedef SHAPE shape;
    columns<SHAPE, shape::X_GROUP, shape::A_SLOT, shape::X_ROWS>(
        b, w, shape::IN_PIECES, w.group * (shape::X_ROWS - shape::X_GROUP), NO_LIMIT, acc,
        shape::X_STAGES);
    w.x.phase ^= 1; // as they were
}
template <class SHAPE>
__device__ __forceinline__ void in_columns_z(const resident_block<SHAPE> &b,
                                             resident_worker<SHAPE> &w,
                                             float (&acc)[SHAPE::GROUP_ROWS / 2]) {
    typedef SHAPE shape;
    columns<SHAPE, shape::GROUP_ROWS, shape::A_SLOT, shape::NW>(
        b, w, shape::IN_PIECES, w.group * (shape::NW - shape::GROUP_ROWS), NO_LIMIT, acc);
}

// The peer's tokens' sums of so many blocks, a lane's from `to` on.
template <class SHAPE, int N>
__device__ __forceinline__ void give_sums(const resident_block<SHAPE> &b, const float (&acc)[N],
                                          uint32_t to, uint32_t there) {
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        store_to_peer(to + i * 256,
                      b.rank ? make_float2(acc[4 * i], acc[4 * i + 1])
                             : make_float2(acc[4 * i + 2], acc[4 * i + 3]),
                      there);
}
// These to it: from a warp's registers to the same warp's place there.
template <class SHAPE, int N>
__device__ __forceinline__ void to_peer(const resident_block<SHAPE> &b,
                                        const resident_worker<SHAPE> &w, const float (&acc)[N],
                                        char *place, uint32_t barriers) {
    enum { BYTES = N / 4 * 256 };
    const uint32_t arrived = barriers + w.warp * 8, there = peer_address(arrived, b.rank ^ 1);
    const uint32_t to =
        peer_address(shared_address(place + w.warp * BYTES), b.rank ^ 1) + w.lane * 8;
    if (w.lane == 0)
        barrier_expect(arrived, BYTES);
    give_sums(b, acc, to, there);
}
// The i-th pair of channels of this thread's token, both blocks' columns.
template <class SHAPE, int N>
__device__ __forceinline__ uint32_t both(const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w, const float (&acc)[N],
                                         const char *place, int i, float by) {
    enum { BYTES = N / 4 * 256 };
    const float2 other = ((const float2 *)(place + w.warp * BYTES))[w.lane + i * 32];
    const float lo = (b.rank ? acc[4 * i + 2] : acc[4 * i]) + other.x;
    const float hi = (b.rank ? acc[4 * i + 3] : acc[4 * i + 1]) + other.y;
    return pack_bf16(lo * by, hi * by);
}

// A thread's i-th pair of x's rows: whether the other group has it, its row, and the channel of the
// convolution. Extra rows: resident_heads_in.cuh.
template <class SHAPE> __device__ __forceinline__ bool others_row(int group, int i) {
    if constexpr (SHAPE::APART)
        return !group && i == SHAPE::X_BLOCKS - 1;
    return !SHAPE::TALL && group && i < (2 * SHAPE::X_GROUP - SHAPE::X_ROWS) / 8;
}
template <class SHAPE>
__device__ __forceinline__ int row_of_x(const resident_worker<SHAPE> &w, int i) {
    return w.group * (SHAPE::X_ROWS - SHAPE::X_GROUP) + i * 8 + 2 * w.q;
}
template <class SHAPE> __device__ __forceinline__ bool is_extra(int group, int i) {
    return SHAPE::EXTRA > 0 && group && i == SHAPE::X_BLOCKS - 1;
}
template <class SHAPE>
__device__ __forceinline__ int convolved(const resident_block<SHAPE> &b,
                                         const resident_worker<SHAPE> &w, int i, int row) {
    if constexpr (SHAPE::EXTRA > 0) {
        if (is_extra<SHAPE>(w.group, i))
            return extra_channel(b) + 2 * w.q;
    }
    return b.cluster * SHAPE::NW + row;
}

// Convolution and SiLU of a pair of channels. taps: of the input 0 to 3 tokens ago; the bias.
// history: the inputs 1 to 3 tokens ago.
__device__ __forceinline__ uint32_t convolve_pair(const float2 (&taps)[5],
                                                  const uint32_t (&history)[3], uint32_t raw) {
    float lo = taps[4].x + taps[0].x * low_half(raw);
    float hi = taps[4].y + taps[0].y * high_half(raw);
#pragma unroll
    for (int k = 0; k < 3; k++) {
        lo += taps[k + 1].x * low_half(history[k]);
        hi += taps[k + 1].y * high_half(history[k]);
    }
    return pack_bf16(silu(lo), silu(hi));
}

// What the convolution of a thread's pairs of channels needs, asked for ahead of time.
template <class SHAPE, int BLOCKS = SHAPE::X_BLOCKS> struct resident_taps {
    float2 taps[BLOCKS][5]; // convolve_pair()
    uint32_t history[BLOCKS][3];

    __device__ __forceinline__ void ask(const resident_args &a, const resident_block<SHAPE> &b,
                                        const resident_worker<SHAPE> &w) {
        const int first =
            b.cluster * SHAPE::NW + w.group * (SHAPE::X_ROWS - SHAPE::X_GROUP) + 2 * w.q;
        int last = (BLOCKS - 1) * 8;
        if constexpr (SHAPE::EXTRA > 0)
            last = convolved(b, w, BLOCKS - 1, row_of_x(w, BLOCKS - 1)) - first;
        ask(
            a, w, first, [=](int i) { return SHAPE::EXTRA && i == BLOCKS - 1 ? last : i * 8; },
            [](int) { return true; });
    }
    // The i-th pair is behind(i) channels behind `first`, if is_there(i).
    template <class BEHIND, class IS_THERE>
    __device__ __forceinline__ void ask(const resident_args &a, const resident_worker<SHAPE> &w,
                                        int first, BEHIND behind, IS_THERE is_there) {
        typedef SHAPE shape;
        const resident_layer &l = a.layers[w.layer];
        const int kept = a.width - 1;
        const bool there = w.own.slot >= 0 && !w.own.fresh;
        const bf16 *from = a.ring + w.layer * a.ring_pitch +
                           (size_t)(there ? w.own.slot : 0) * kept * shape::CONV + first;
        int e = w.own.ring;
#pragma unroll
        for (int k = 0; k < 3; k++) {
            e = e == 0 ? kept - 1 : e - 1;
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                history[i][k] = 0;
                if (there && k < kept && is_there(i))
                    history[i][k] = load_word(from + (size_t)e * shape::CONV + behind(i));
            }
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                taps[i][k] = make_float2(0, 0);
                if (k < a.width && is_there(i))
                    taps[i][k] = load_pair(l.conv_weight + (size_t)(kept - k) * shape::CONV +
                                           first + behind(i));
            }
            taps[i][4] = make_float2(0, 0);
            if (is_there(i))
                taps[i][4] = load_pair(l.conv_bias + first + behind(i));
        }
    }

    __device__ __forceinline__ uint32_t convolve(int i, uint32_t raw) const {
        return convolve_pair(taps[i], history[i], raw);
    }
};

// A pair of channels of this step into the slot's ring.
template <class SHAPE>
__device__ __forceinline__ void keep_input(const resident_args &a, const resident_worker<SHAPE> &w,
                                           const row &own, int channel, uint32_t raw) {
    enum { CONV = SHAPE::CONV };
    const int kept = a.width - 1;
    bf16 *entries = a.ring + w.layer * a.ring_pitch + (size_t)own.slot * kept * CONV + channel;
    if (own.fresh) { // before a sequence all reads as zero from now on
#pragma unroll 1
        for (int e = 0; e < kept; e++)
            *(uint32_t *)(entries + (size_t)e * CONV) = 0;
    }
    *(uint32_t *)(entries + (size_t)own.ring * CONV) = raw;
}

// All of the thread's: called once the share of x_proj is on its way, for nothing waits for them.
template <class SHAPE>
__device__ __forceinline__ void keep_inputs(const resident_args &a, const resident_block<SHAPE> &b,
                                            const resident_worker<SHAPE> &w,
                                            const uint32_t (&raw)[SHAPE::X_BLOCKS]) {
    typedef SHAPE shape;
#pragma unroll
    for (int i = 0; i < shape::X_BLOCKS; i++) {
        if (others_row<SHAPE>(w.group, i))
            continue;
        if constexpr (shape::EXTRA > 0) {
            if (is_extra<SHAPE>(w.group, i) && !extra_convolved(b))
                continue;
        }
        const int row = row_of_x(w, i);
        if (w.own.slot >= 0)
            keep_input(a, w, w.own, convolved(b, w, i, row), raw[i]);
    }
}

// Of the thread's token, four lanes a token.
template <class SHAPE> struct resident_squares {
    enum { N = SHAPE::OUT_TILES / 16 };
    float4 v[N];

    __device__ __forceinline__ resident_squares(const resident_args &a, int token, int q) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = load_shared_sum(&scratch_of<SHAPE>(a).squares[token][i * 16 + q * 4]);
    }
    // 1 / root mean square.
    __device__ __forceinline__ float scale(const resident_args &a) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < N; i++)
            sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        return rsqrtf(sum * (1.f / SHAPE::WIDTH) + a.eps);
    }
};

// in_proj's rows of x: the peer ends half of the tokens, this block the others, after their
// convolution to shared memory; what went into it to raw. Rows beyond them go to give_extra().
// Returns what z's sums are to be multiplied by.
template <class SHAPE>
__device__ __forceinline__ float in_proj_x(const resident_args &a, const resident_block<SHAPE> &b,
                                           resident_worker<SHAPE> &w,
                                           uint32_t (&raw)[SHAPE::X_BLOCKS]) {
    typedef SHAPE shape;
    resident_taps<SHAPE> conv;
    conv.ask(a, b, w);
    const int token = b.token(w.own_place());
    barrier_wait(b.go, w.layer & 1);
    const resident_squares<SHAPE> squares(a, token, w.q);
    float acc[shape::X_GROUP / 2] = {};
    in_columns_x(b, w, acc);
    char *x_place = b.peer_place();
    to_peer(b, w, acc, x_place, b.arrived);
    const float by = squares.scale(a);
    barrier_wait(b.arrived + w.warp * 8, w.layer & 1);
    uint32_t *x = (uint32_t *)(b.x() + w.own_place() * shape::PITCH);
#pragma unroll
    for (int i = 0; i < shape::X_BLOCKS; i++) {
        raw[i] = both(b, w, acc, x_place, i, by);
        if (others_row<SHAPE>(w.group, i))
            continue;
        if constexpr (shape::EXTRA > 0) {
            if (is_extra<SHAPE>(w.group, i)) {
                give_extra(a, b, w, extra_convolved(b) ? conv.convolve(i, raw[i]) : raw[i]);
                continue;
            }
        }
        const int row = row_of_x(w, i);
        x[row / 2] = conv.convolve(i, raw[i]);
    }
    workers_sync();
    if (!shape::EXCHANGED && threadIdx.x == 0)
        b.ask_up_to(w.first + shape::IN_SLOTS + shape::X_SLOTS);
    return by;
}

// Its rows of z, once all columns are multiplied.
template <class SHAPE>
__device__ __forceinline__ void send_z(const resident_block<SHAPE> &b,
                                       const resident_worker<SHAPE> &w,
                                       const float (&acc)[SHAPE::GROUP_ROWS / 2]) {
    typedef SHAPE shape;
    to_peer(b, w, acc, b.peer_place() + shape::FROM_PEER, b.z_arrived);
}
template <class SHAPE>
__device__ __forceinline__ void keep_z(const resident_block<SHAPE> &b,
                                       const resident_worker<SHAPE> &w,
                                       const float (&acc)[SHAPE::GROUP_ROWS / 2], float by) {
    typedef SHAPE shape;
    barrier_wait(b.z_arrived + w.warp * 8, w.layer & 1);
    uint32_t *z = (uint32_t *)(b.z() + w.own_place() * shape::PITCH);
#pragma unroll
    for (int i = 0; i < shape::IN_BLOCKS; i++) {
        const uint32_t raw = both(b, w, acc, b.peer_place() + shape::FROM_PEER, i, by);
        if (!shape::TALL && w.group && i < (2 * shape::GROUP_ROWS - SHAPE::NW) / 8)
            continue;
        z[(w.group * (SHAPE::NW - shape::GROUP_ROWS) + i * 8) / 2 + w.q] = raw;
    }
}

#endif

} // namespace ssm

#endif
