// SPDX-License-Identifier: Apache-2.0
// resident.cu's first half of a layer: in_proj's columns, what follows them, and x_proj.
#ifndef SSM_KERNELS_CUDA_RESIDENT_IN_CUH
#define SSM_KERNELS_CUDA_RESIDENT_IN_CUH

#include "resident.cuh"

namespace ssm {

#if SSM_HOPPER

// How far a worker is in the rings, and its place.
template <int NW> struct resident_worker {
    turn<resident_shape<NW>::SLOTS> slot;
    turn<X_STAGES> x;
    int warp, lane, g, q, group, layer;
    int first, in_layer; // slots of the ring: before this layer, in a layer
    uint32_t zero;       // which the compiler does not know
    row own;             // of the token whose sums this thread ends after in_proj

    __device__ __forceinline__ resident_worker(const resident_args &a) {
        warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        group = warp / 4, layer = 0, first = 0, in_layer = 0, zero = (uint32_t)a.tokens >> 16;
    }
    __device__ __forceinline__ int own_place() const { // among the rank's tokens
        return warp % 4 * 8 + g;
    }
};

// The next slot of the ring, full.
template <int NW>
__device__ __forceinline__ int next_slot(const resident_block<NW> &b, resident_worker<NW> &w) {
    const int at = w.slot.at;
    barrier_wait(b.full + at * 8, w.slot.phase);
    w.slot.next();
    return at;
}
// By each warp when it has read it. An arrive overtakes reads that queue behind the SM's loads from
// L2, so that the slot could be filled again in front of them: `bits` is something of all that was
// read, or was made of it, and the arrive's address waits for it.
template <int NW>
__device__ __forceinline__ void give_back(const resident_block<NW> &b, const resident_worker<NW> &w,
                                          int slot, uint32_t bits) {
    __syncwarp();
    if (w.lane == 0)
        barrier_arrive(b.empty + slot * 8 + (bits & w.zero));
}

// [64 tokens][NW rows] of a group over PIECES pieces of 64 columns. From the last two pieces on the
// ring asks for nothing from slot `limit` on.
template <int NW, int PIECES>
__device__ __forceinline__ void columns(const resident_block<NW> &b, resident_worker<NW> &w,
                                        int limit, float (&acc)[NW / 2]) {
    typedef resident_shape<NW> shape;
#pragma unroll
    for (int i = 0; i < NW / 2; i++)
        acc[i] = 0;
    int slot_before = 0, x_before = 0;
#pragma unroll 1
    for (int p = 0; p < PIECES; p++) {
        if (p == PIECES - 2 && limit < NO_LIMIT && threadIdx.x == 0)
            b.ask_up_to(limit);
        barrier_wait(b.full + w.slot.at * 8, w.slot.phase);
        barrier_wait(b.x_full + w.x.at * 8, w.x.phase);
        fence_async(); // token rows came by cp.async
        const uint64_t x = tile_at(b.x_ring + w.x.at * X_STAGE);
        const uint64_t rows = tile_at(b.slots + w.slot.at * shape::SLOT + w.group * NW * 128);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) // 16 columns are 32 bytes
            wgmma(acc, x + k * 2, rows + k * 2);
        wgmma_commit();
        wgmma_wait<1>();
        if (p > 0 && w.lane == 0) { // the piece before is done with
            barrier_arrive(b.empty + slot_before * 8);
            barrier_arrive(b.x_empty + x_before * 8);
        }
        slot_before = w.slot.at, x_before = w.x.at;
        w.slot.next(), w.x.next();
    }
    wgmma_wait<0>();
    if (w.lane == 0) {
        barrier_arrive(b.empty + slot_before * 8);
        barrier_arrive(b.x_empty + x_before * 8);
    }
#pragma unroll
    for (int i = 0; i < NW / 2; i++) // nothing reads a sum before this
        asm volatile("" : "+f"(acc[i])::"memory");
}

// What the convolution of a thread's pairs of channels needs, asked for ahead of time.
template <int NW> struct resident_taps {
    enum { BLOCKS = resident_shape<NW>::FIRST_X / 8 };
    float2 taps[BLOCKS][5];      // of the input 0 to 3 tokens ago; the bias
    uint32_t history[BLOCKS][3]; // the inputs 1 to 3 tokens ago

    __device__ __forceinline__ void ask(const resident_args &a, const resident_block<NW> &b,
                                        const resident_worker<NW> &w) {
        typedef resident_shape<NW> shape;
        const resident_layer &l = a.layers[w.layer];
        const int first = b.cluster * NW + w.group * shape::FIRST_X + 2 * w.q;
        const int n = (w.group ? NW - shape::FIRST_X : shape::FIRST_X) / 8, kept = a.width - 1;
        const bool there = w.own.slot >= 0 && !w.own.fresh;
        const bf16 *from = a.ring + w.layer * a.ring_pitch +
                           (size_t)(there ? w.own.slot : 0) * kept * shape::INNER + first;
        int e = w.own.ring;
#pragma unroll
        for (int k = 0; k < 3; k++) {
            e = e == 0 ? kept - 1 : e - 1;
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                history[i][k] = 0;
                if (there && k < kept && i < n)
                    history[i][k] = load_word(from + (size_t)e * shape::INNER + i * 8);
            }
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                taps[i][k] = make_float2(0, 0);
                if (k < a.width && i < n)
                    taps[i][k] = load_pair(l.conv_weight + (size_t)(kept - k) * shape::INNER +
                                           first + i * 8);
            }
            taps[i][4] = i < n ? load_pair(l.conv_bias + first + i * 8) : make_float2(0, 0);
        }
    }

    // Convolution and SiLU of the i-th pair.
    __device__ __forceinline__ uint32_t convolve(int i, uint32_t raw) const {
        float lo = taps[i][4].x + taps[i][0].x * low_half(raw);
        float hi = taps[i][4].y + taps[i][0].y * high_half(raw);
#pragma unroll
        for (int k = 0; k < 3; k++) {
            lo += taps[i][k + 1].x * low_half(history[i][k]);
            hi += taps[i][k + 1].y * high_half(history[i][k]);
        }
        return pack_bf16(silu(lo), silu(hi));
    }
};

// A pair of channels of this step into the slot's ring.
template <int NW>
__device__ __forceinline__ void keep_input(const resident_args &a, const resident_worker<NW> &w,
                                           int channel, uint32_t raw) {
    enum { INNER = resident_shape<NW>::INNER };
    const int kept = a.width - 1;
    bf16 *entries = a.ring + w.layer * a.ring_pitch + (size_t)w.own.slot * kept * INNER + channel;
    if (w.own.fresh) { // before a sequence all reads as zero from now on
#pragma unroll 1
        for (int e = 0; e < kept; e++)
            *(uint32_t *)(entries + (size_t)e * INNER) = 0;
    }
    *(uint32_t *)(entries + (size_t)w.own.ring * INNER) = raw;
}

// 1 / root mean square of the thread's token, from its sums of squares by tile.
template <int NW>
__device__ __forceinline__ float scale_of(const resident_args &a, const resident_worker<NW> &w,
                                          float4 squares) {
    if (w.layer == 0) // normed by a kernel of its own
        return 1.f;
    float sum = (squares.x + squares.y) + (squares.z + squares.w);
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    return rsqrtf(sum * (1.f / resident_shape<NW>::WIDTH) + a.eps);
}

// in_proj: the peer ends half of the tokens, this block the others: x after its convolution and z
// to shared memory.
template <int NW>
__device__ __forceinline__ void in_proj(const resident_args &a, const resident_block<NW> &b,
                                        resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    enum { BLOCKS = NW / 8, BYTES = NW * 32 }; // of eight rows; from a warp to its peer
    resident_taps<NW> conv;
    conv.ask(a, b, w);
    const int token = token_of(b.rank, w.own_place());
    barrier_wait(b.go, w.layer & 1);
    const float4 squares = load_shared_sum(&a.scratch->squares[token][w.q * 4]);
    float acc[NW / 2];
    columns<NW, shape::IN_PIECES>(b, w, NO_LIMIT, acc);
    workers_sync(); // x's place is free
    float2 *to = (float2 *)(b.x_place() + w.warp * BYTES) + w.lane;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
        to[i * 32] = b.rank ? make_float2(acc[4 * i], acc[4 * i + 1])
                            : make_float2(acc[4 * i + 2], acc[4 * i + 3]);
    fence_async();
    __syncwarp();
    const uint32_t arrived = b.arrived + w.warp * 8;
    if (w.lane == 0) {
        barrier_expect(arrived, BYTES);
        copy_to_peer(peer_address(shared_address(b.peer_place() + w.warp * BYTES), b.rank ^ 1),
                     shared_address(b.x_place() + w.warp * BYTES), BYTES,
                     peer_address(arrived, b.rank ^ 1));
    }
    const float by = scale_of(a, w, squares);
    barrier_wait(arrived, w.layer & 1);
    const float2 *from = (const float2 *)(b.peer_place() + w.warp * BYTES) + w.lane;
    uint32_t *x = (uint32_t *)(b.x() + w.own_place() * shape::PITCH);
    uint32_t *z = (uint32_t *)(b.z() + w.own_place() * shape::PITCH);
    const int n_x = (w.group ? NW - shape::FIRST_X : shape::FIRST_X) / 8; // blocks of x
    const int first_z = w.group ? NW - shape::FIRST_X : 0;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
        const float2 other = from[i * 32];
        const float lo = (b.rank ? acc[4 * i + 2] : acc[4 * i]) + other.x;
        const float hi = (b.rank ? acc[4 * i + 3] : acc[4 * i + 1]) + other.y;
        const uint32_t raw = pack_bf16(lo * by, hi * by);
        if (i < resident_taps<NW>::BLOCKS && i < n_x) {
            const int channel = w.group * shape::FIRST_X + i * 8 + 2 * w.q;
            x[channel / 2] = conv.convolve(i < resident_taps<NW>::BLOCKS ? i : 0, raw);
            if (w.own.slot >= 0)
                keep_input(a, w, b.cluster * NW + channel, raw);
        } else {
            z[(first_z + (i - n_x) * 8) / 2 + w.q] = raw;
        }
    }
    __syncwarp();
    if (w.lane == 0) // the peer's sums may be overwritten there
        arrive_at_peer(peer_address(b.taken, b.rank ^ 1));
    workers_sync();
    if (threadIdx.x == 0)
        b.ask_up_to(w.first + shape::IN_PIECES + shape::X_SLOTS);
}

__device__ __forceinline__ void mma_8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// The cluster's channels' share of x_proj's sums, of the rank's tokens.
template <int NW>
__device__ __forceinline__ void x_proj_parts(const resident_args &a, const resident_block<NW> &b,
                                             resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    enum { TILES = shape::N_X / 8, A_WARP = (TILES + 7) / 8, STEPS = NW / 16 };
    int slot[2];
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        slot[i] = next_slot(b, w);
    float c[A_WARP][2][4] = {};
    const bf16 *x = b.x() + w.lane % 16 * shape::PITCH + w.lane / 16 * 8;
    const char *rows[A_WARP];
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = min(w.warp + 8 * k, TILES - 1) * 8 + w.g;
        rows[k] = b.slot(n < X_PROJ_ROWS ? slot[0] : slot[shape::X_SLOTS - 1]) +
                  n % X_PROJ_ROWS * (NW * 2) + w.q * 4;
    }
#pragma unroll
    for (int s = 0; s < STEPS + NW % 16 / 8; s++) {
        uint32_t v[2][4];
        ldmatrix(v[0], x + s * 16);
        ldmatrix(v[1], x + 16 * shape::PITCH + s * 16);
#pragma unroll
        for (int k = 0; k < A_WARP; k++) {
            const uint32_t b0 = *(const uint32_t *)(rows[k] + s * 32);
            if (s == STEPS) { // eight channels are left
                mma_8(c[k][0], v[0][0], v[0][1], b0);
                mma_8(c[k][1], v[1][0], v[1][1], b0);
                continue;
            }
            const uint32_t b1 = *(const uint32_t *)(rows[k] + s * 32 + 16);
            mma(c[k][0], v[0][0], v[0][1], v[0][2], v[0][3], b0, b1);
            mma(c[k][1], v[1][0], v[1][1], v[1][2], v[1][3], b0, b1);
        }
    }
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < A_WARP; k++)
        bits |= __float_as_uint(c[k][0][0]) | __float_as_uint(c[k][1][0]);
#pragma unroll
    for (int i = 0; i < shape::X_SLOTS; i++)
        give_back(b, w, slot[i], bits);
    char *staged = b.x_place() + shape::PEER; // in front lie sums on their way to the peer
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int n = (w.warp + 8 * k) * 8 + 2 * w.q;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            if (n < shape::N_X)
                *(float2 *)(staged + (m * 8 + w.g) * (shape::N_X * 4) +
                            shape::swizzled(w.g, n / 4) * 16 + n % 4 * 4) =
                    make_float2(c[k][m / 2][m % 2 * 2], c[k][m / 2][m % 2 * 2 + 1]);
        }
    }
    fence_async();
    workers_sync();
    if (threadIdx.x == 0) {
        if (b.mine > 0)
            store_run(x_parts_of<NW>(a) +
                          (size_t)(b.rank * RESIDENT_CLUSTERS + b.cluster) * HALF_ROWS * shape::N_X,
                      shared_address(staged), (uint32_t)(b.mine * shape::N_X * 4));
        count_up(&a.scratch->counts.parts[b.rank]);
        b.ask_up_to(NO_LIMIT);
    }
}

// Adds up a 64th of the rank's sums of x_proj, in order of cluster: a warp eight of them, then
// those of the warps.
template <int NW>
__device__ __forceinline__ void x_proj_sums(const resident_args &a, const resident_block<NW> &b,
                                            const resident_worker<NW> &w) {
    typedef resident_shape<NW> shape;
    const int units = b.mine * shape::N_X / 4; // of four numbers
    const int unit = b.cluster * units / RESIDENT_CLUSTERS + w.lane;
    const bool live = unit < (b.cluster + 1) * units / RESIDENT_CLUSTERS;
    float4 *sums = (float4 *)b.peer_place(); // [warp][lane]
    workers_wait(&a.scratch->counts.parts[b.rank], RESIDENT_CLUSTERS * (w.layer + 1));
    float4 v[8];
    const float *from = x_parts_of<NW>(a) + (live ? unit : 0) * 4 +
                        (size_t)(b.rank * RESIDENT_CLUSTERS + w.warp * 8) * HALF_ROWS * shape::N_X;
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = load_shared_sum(from + (size_t)i * HALF_ROWS * shape::N_X);
#pragma unroll
    for (int i = 1; i < 8; i++)
        add4(v[0], v[i]);
    sums[w.warp * 32 + w.lane] = v[0];
    workers_sync();
    if (w.warp == 0) {
        float4 sum = sums[w.lane];
#pragma unroll
        for (int i = 1; i < 8; i++)
            add4(sum, sums[i * 32 + w.lane]);
        const int r = unit / (shape::N_X / 4);
        const int n = shape::swizzled(r, unit % (shape::N_X / 4)) * 4;
        if (live && n < shape::RANK)
            *(uint2 *)(dt_of<NW>(a, b.rank) + r * shape::RANK + n) =
                make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
        else if (live)
            *(float4 *)(bc_of<NW>(a, b.rank) + r * 32 + n - shape::RANK) = sum;
        __syncwarp();
        if (w.lane == 0)
            count_up(&a.scratch->counts.sums[b.rank]);
    }
}

#endif

} // namespace ssm

#endif
