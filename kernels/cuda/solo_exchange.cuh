// SPDX-License-Identifier: Apache-2.0
// How solo.cu's warps and blocks give each other numbers. Nobody waits for ever: some seconds on,
// the launch ends with an error.
//
// - Within a cluster by stores that a barrier of the block they go to counts (st.async).
// - To other clusters by packets of eight bytes in memory: two numbers whose lowest four bits are
//   the exchange's number, so that one relaxed load tells whether they are there; no fence, no
//   counter, nothing to reset. A packet's place is written once a layer, always with the next
//   number; launches go on counting (solo_args.launches).
//
// No buffer is needed twice: whoever writes a place again has what depends on everybody's having
// read it. (x_proj's packets of layer l + 1 follow u, that all blocks' sums of out_proj, those y,
// that x_proj's sums of layer l. u follows out_proj's sums of all of the cluster, those y of all,
// that z of this block, the last to read u.)
#ifndef SSM_KERNELS_CUDA_SOLO_EXCHANGE_CUH
#define SSM_KERNELS_CUDA_SOLO_EXCHANGE_CUH

#include "poll.cuh"
#include "solo.cuh"

namespace ssm {

#if SSM_HOPPER

// ---- waiting

__device__ __forceinline__ void solo_wait(uint32_t barrier, int parity) {
#pragma unroll 1
    for (int tries = 0; tries < 1 << 22; tries++) {
        if (barrier_try(barrier, parity))
            return;
    }
    __trap();
}

// Named barriers of a block: what `threads` in all give or wait for.
enum { X_SUMS = 1, OWN_X, Z_SUMS };
template <int ID> __device__ __forceinline__ void solo_sync(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}
template <int ID> __device__ __forceinline__ void solo_signal(int threads) {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}

// ---- to the cluster's blocks

__device__ __forceinline__ void send(uint32_t to, uint32_t word, uint32_t barrier) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
        "r"(word), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void send_two(uint32_t to, uint32_t v, uint32_t w, uint32_t barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, "
                 "[%3];" ::"r"(to),
                 "r"(v), "r"(w), "r"(barrier)
                 : "memory");
}
// Lane N s + p holds word p of N (4 or 8): all N to each block.
template <int N>
__device__ __forceinline__ void send_words(uint32_t to, uint32_t word, uint32_t barrier, int lane) {
#pragma unroll
    for (int peer = lane / N; peer < SOLO_BLOCKS; peer += 32 / N)
        send(peer_address(to + lane % N * 4, peer), word, peer_address(barrier, peer));
}

// ---- to other clusters

// Of this launch's first exchange; the counter moves on at its end.
__device__ __forceinline__ uint32_t first_tag(const solo_args &a) {
    return *a.launches * SOLO_LAYERS + 1;
}
__device__ __forceinline__ void store_packet(uint2 *to, uint32_t v, uint32_t w) {
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"((uint64_t)w << 32 | v)
                 : "memory");
}
__device__ __forceinline__ void publish(uint2 *to, float a, float b, uint32_t tag) {
    store_packet(to, (__float_as_uint(a) & ~15u) | (tag & 15),
                 (__float_as_uint(b) & ~15u) | (tag >> 4 & 15));
}
__device__ __forceinline__ uint2 packet(const uint2 *from) {
    uint64_t v;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
    return make_uint2((uint32_t)v, (uint32_t)(v >> 32));
}
// Packets of publish(): lane, 32 + lane, .. of `most`.
template <int N>
__device__ __forceinline__ void gather_all(uint2 (&v)[N], const uint2 *from, uint32_t tag,
                                           int most) {
    const int lane = threadIdx.x % 32;
    const uint32_t low = tag & 15, high = tag >> 4 & 15;
    poll(
        v,
        [&](int i, uint2 &to) {
            if (i * 32 + lane < most)
                to = packet(from + i * 32 + lane);
        },
        [&](int i, uint2 is) {
            return i * 32 + lane >= most || ((is.x & 15) == low && (is.y & 15) == high);
        });
}
// What packets hold, over all those of lanes `from` apart.
template <int N> __device__ __forceinline__ float2 sum_packets(const uint2 (&v)[N], int from) {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < N; i++)
        sum.x += __uint_as_float(v[i].x & ~15u), sum.y += __uint_as_float(v[i].y & ~15u);
#pragma unroll
    for (int o = from; o < 32; o *= 2) {
        sum.x += __shfl_xor_sync(~0u, sum.x, o);
        sum.y += __shfl_xor_sync(~0u, sum.y, o);
    }
    return sum;
}
// Sums over the clusters' packets [cluster][8]: to lane p, 8 + p, 16 + p and 24 + p those of p.
// Before some time has passed since a block's own packets nothing is there, and who asks is in the
// way of what comes.
template <int CLUSTERS, int PATIENCE>
__device__ __forceinline__ float2 gather(const uint2 *from, uint32_t tag) {
    uint2 v[(CLUSTERS + 3) / 4] = {};
    const int start = PATIENCE > 0 ? (int)clock() : 0;
    while (PATIENCE > 0 && (int)clock() - start < PATIENCE)
        ;
    gather_all(v, from, tag, CLUSTERS * 8);
    return sum_packets(v, 8);
}

// ---- a block: what all its threads know

template <int M, int CH, class S> struct solo_block {
    typedef solo_shape<M, CH, S> shape;
    char *memory, *beside;
    uint32_t bar_u, bar_x, bar_xdb, bar_y, full, empty;
    int rank, cluster, first; // first: channel

    __device__ __forceinline__ solo_block(char *p) {
        memory = p, beside = p + shape::STAGES * shape::IN;
        rank = blockIdx.x % SOLO_BLOCKS, cluster = blockIdx.x / SOLO_BLOCKS;
        first = blockIdx.x * CH;
        const uint32_t at = address(shape::BARRIERS);
        bar_u = at, bar_x = at + 8, bar_xdb = at + 16, bar_y = at + 24, full = at + 32,
        empty = at + 64;
    }
    __device__ __forceinline__ uint32_t address(int offset) const {
        return shared_address(beside + offset);
    }
    __device__ __forceinline__ float *floats(int offset) const {
        return (float *)(beside + offset);
    }
    // The ring: a layer's rows of in_proj, x before z.
    __device__ __forceinline__ uint32_t rows(int layer) const {
        return shared_address(memory + layer % shape::STAGES * shape::IN);
    }
    __device__ __forceinline__ uint32_t of(uint32_t barrier, int layer) const {
        return barrier + layer % shape::STAGES * 8;
    }
    __device__ __forceinline__ int phase(int layer) const {
        return layer / shape::STAGES & 1;
    }
    __device__ __forceinline__ void expect_u() const {
        barrier_expect(bar_u, M * 4);
    }
    __device__ __forceinline__ void expect_x() const {
        barrier_expect(bar_x, shape::C * 2);
    }
    __device__ __forceinline__ void expect_xdb() const {
        barrier_expect(bar_xdb, shape::N_X * 4);
    }
    __device__ __forceinline__ void expect_y() const {
        barrier_expect(bar_y, shape::C * 2);
    }
    __device__ __forceinline__ void init() const { // one thread
        barrier_init(bar_u, 1), barrier_init(bar_x, 1);
        barrier_init(bar_xdb, 1), barrier_init(bar_y, 1);
        for (int i = 0; i < shape::STAGES; i++)
            barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, shape::IN_WARPS);
        barriers_ready();
        expect_u(), expect_x(), expect_xdb(), expect_y();
    }
};

#endif

} // namespace ssm

#endif
