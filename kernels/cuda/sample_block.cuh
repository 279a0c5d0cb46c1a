// SPDX-License-Identifier: Apache-2.0
// What drawing a token is made of (sample.cu): a draw, its random number, and sums, maxima and
// searches over a row of logits by one block of DRAW_THREADS. Every thread of the block calls them;
// results come to all.
#ifndef SSM_KERNELS_CUDA_SAMPLE_BLOCK_CUH
#define SSM_KERNELS_CUDA_SAMPLE_BLOCK_CUH

#include "cuda.h"
#include "util.cuh"

namespace ssm {

enum { DRAW_THREADS = 1024 };

struct draw {
    uint64_t seed, position;
    int32_t row, slot, target, n_top;
    float temperature, top_p, min_p, typical_p, presence, frequency, repetition;
    int32_t top_k;
    int32_t n_bias, n_allowed, n_banned, n_counts; // lists lie one after the other at `lists`
    int32_t lists;                                 // offset in words
    int32_t unused;
};

// ---- Philox, as in kernels/sampling/philox.h

static __device__ double philox_uniform(uint64_t seed, uint64_t position) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c0 << 32 | c1) >> 11) * 0x1p-53;
}

struct scratchpad {
    float f[32];
    double d[32];
    uint64_t u[33];
    int32_t i[32];
};

// f(i, row[i]) for the thread's ids, ascending: so many loads at once that the row's trip from L2
// is not what counts.
template <class F> __device__ __forceinline__ void each(const float *row, int32_t n, F f) {
    enum { AT_ONCE = 8 };
#pragma unroll 1
    for (int32_t first = threadIdx.x; first < n; first += AT_ONCE * DRAW_THREADS) {
        float v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v[k] = first + k * DRAW_THREADS < n ? row[first + k * DRAW_THREADS] : 0.f;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (first + k * DRAW_THREADS < n)
                f(first + k * DRAW_THREADS, v[k]);
        }
    }
}

static __device__ uint64_t warp_sum_mass(uint64_t v) {
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    return v;
}

static __device__ double block_sum_double(double v, scratchpad *s) {
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    if ((threadIdx.x & 31) == 0)
        s->d[threadIdx.x >> 5] = v;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < DRAW_THREADS / 32; i++)
        sum += s->d[i];
    __syncthreads();
    return sum;
}

// What warps left is added up, or compared, by every warp for itself.
static __device__ uint64_t block_sum_mass(uint64_t v, scratchpad *s) {
    v = warp_sum_mass(v);
    if ((threadIdx.x & 31) == 0)
        s->u[threadIdx.x >> 5] = v;
    __syncthreads();
    const uint64_t sum = warp_sum_mass(s->u[threadIdx.x & 31]);
    __syncthreads();
    return sum;
}

// The larger value, then the lower id. id -1: nothing.
static __device__ void warp_best(float *value, int32_t *id) {
    for (int o = 16; o; o >>= 1) {
        const float v = __shfl_xor_sync(~0u, *value, o);
        const int32_t i = __shfl_xor_sync(~0u, *id, o);
        if (i >= 0 && (*id < 0 || v > *value || (v == *value && i < *id)))
            *value = v, *id = i;
    }
}

static __device__ void block_best(float *value, int32_t *id, scratchpad *s) {
    const int lane = threadIdx.x & 31;
    warp_best(value, id);
    if (lane == 0)
        s->f[threadIdx.x >> 5] = *value, s->i[threadIdx.x >> 5] = *id;
    __syncthreads();
    *value = s->f[lane], *id = s->i[lane];
    warp_best(value, id);
    __syncthreads();
}

static __device__ uint64_t warp_scan_mass(uint64_t v) { // inclusive
    for (int o = 1; o < 32; o <<= 1) {
        const uint64_t before = __shfl_up_sync(~0u, v, o);
        v += (int)(threadIdx.x & 31) >= o ? before : 0;
    }
    return v;
}

// Sum of what the threads before this one hold; *total: of all.
static __device__ uint64_t block_scan_mass(uint64_t v, uint64_t *total, scratchpad *s) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint64_t inclusive = warp_scan_mass(v);
    if (lane == 31)
        s->u[warp] = inclusive;
    __syncthreads();
    const uint64_t of_warps = warp_scan_mass(s->u[lane]);
    __syncthreads();
    const uint64_t before = __shfl_sync(~0u, of_warps, max(warp - 1, 0));
    *total = __shfl_sync(~0u, of_warps, 31);
    return (warp > 0 ? before : 0) + inclusive - v;
}

// A fixed-point weight of a value of at most 1.
__device__ __forceinline__ uint64_t mass_of(float weight) {
    return (uint64_t)(weight * 0x1p40f + 0.5f);
}

// Larger floats, larger keys.
__device__ __forceinline__ uint32_t order_of(float v) {
    const uint32_t b = __float_as_uint(v + 0.f); // -0 as 0
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// The lowest id at which the mass of ids [0, id] that pass exceeds `target`; -1: none does. Threads
// take ids in contiguous runs.
template <class F>
static __device__ int32_t find_in_order(int32_t n, uint64_t target, F mass, scratchpad *s) {
    __shared__ int32_t found;
    const int32_t run = (n + DRAW_THREADS - 1) / DRAW_THREADS;
    const int32_t first = min((int32_t)threadIdx.x * run, n), end = min(first + run, n);
    uint64_t sum = 0, total;
    for (int32_t i = first; i < end; i++)
        sum += mass(i);
    if (threadIdx.x == 0)
        found = -1;
    uint64_t before = block_scan_mass(sum, &total, s);
    if (before <= target && target < before + sum) {
        for (int32_t i = first; i < end; i++) {
            before += mass(i);
            if (target < before) {
                found = i;
                break;
            }
        }
    }
    __syncthreads();
    const int32_t result = found;
    __syncthreads();
    return result;
}

// The same where `target` is a share of all mass, in [0, 1): a warp takes a run of ids, then the
// block the run in which it is.
template <class F>
static __device__ int32_t find_share(const float *w, int32_t n, double part, F mass,
                                     scratchpad *s) {
    enum { AT_ONCE = 8 };
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int32_t run = (n + DRAW_THREADS / 32 - 1) / (DRAW_THREADS / 32);
    const int32_t first = min(warp * run, n), end = min(first + run, n);
    uint64_t sum = 0;
#pragma unroll 1
    for (int32_t at = first + lane; at < end; at += AT_ONCE * 32) {
        float v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v[k] = at + k * 32 < end ? w[at + k * 32] : -INFINITY;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            sum += mass(v[k]);
    }
    sum = warp_sum_mass(sum);
    if (lane == 0)
        s->u[warp] = sum;
    __syncthreads();
    const uint64_t of_warps = warp_scan_mass(s->u[lane]), total = __shfl_sync(~0u, of_warps, 31);
    __syncthreads();
    const uint64_t target = min((uint64_t)(part * (double)total), total - 1);
    const int hit = __ffs(__ballot_sync(~0u, target < of_warps)) - 1; // there is mass
    const uint64_t before = __shfl_sync(~0u, of_warps, max(hit - 1, 0));
    const int32_t base = min(hit * run, n);
    const int32_t at = find_in_order(
        min(run, n - base), target - (hit > 0 ? before : 0),
        [&](int32_t i) { return mass(w[base + i]); }, s);
    return at < 0 ? -1 : base + at;
}

// Keeps the shortest prefix, in the order of larger key then lower id, whose mass reaches `wanted`
// (at least one id, all if they do not): the rest of w becomes -inf. key(i) is a float; mass(i) is
// 0 for ids that are out.
template <class K, class M>
static __device__ void keep_prefix(float *w, int32_t n, uint64_t wanted, K key, M mass,
                                   scratchpad *s) {
    wanted = max(wanted, (uint64_t)1);
    uint32_t low = 0, high = 0xffffffffu; // mass(order >= low) reaches it, of order > high not
    uint64_t above = 0;                   // mass of orders > high
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2 + ((high - low) & 1);
        uint64_t sum = 0;
        for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
            const uint32_t order = order_of(key(i));
            sum += order >= middle ? mass(i) : 0;
        }
        sum = block_sum_mass(sum, s);
        if (sum >= wanted) {
            low = middle;
        } else {
            high = middle - 1;
            above = sum;
        }
    }
    // Of those that share the last key, the lowest ids that are needed.
    const uint32_t last = low;
    const int32_t end = find_in_order(
        n, wanted - above - 1,
        [&](int32_t i) { return order_of(key(i)) == last ? mass(i) : (uint64_t)0; }, s);
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
        const uint32_t order = order_of(key(i));
        if (order < last || (order == last && end >= 0 && i > end))
            w[i] = -INFINITY;
    }
    __syncthreads();
}

// *mine: of the thread's ids.
static __device__ float row_max(const float *w, int32_t n, int32_t *id, float *mine,
                                scratchpad *s) {
    float best = -INFINITY;
    int32_t at = -1;
    each(w, n, [&](int32_t i, float v) {
        if (v > best)
            best = v, at = i;
    });
    *mine = best;
    block_best(&best, &at, s);
    *id = at;
    return best;
}

} // namespace ssm

#endif
