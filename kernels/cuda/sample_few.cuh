// SPDX-License-Identifier: Apache-2.0
// Filters the short way (sample.cu): the likeliest ids of a row sorted in shared memory, top_k,
// top_p and min_p as prefixes of that list.
#ifndef SSM_KERNELS_CUDA_SAMPLE_FEW_CUH
#define SSM_KERNELS_CUDA_SAMPLE_FEW_CUH

#include "sample_filter.cuh"

namespace ssm {

enum { LIST = 2048, FEW = 256 }; // FEW: how many a top_p without top_k is expected to need

// A v of which at least k threads have one that is no smaller, and not many more than k if there is
// such a v, as an order.
static __device__ uint32_t block_kth_largest(uint32_t order, int k) {
    uint32_t low = 0, high = 0xffffffffu;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2 + ((high - low) & 1);
        const int n = __syncthreads_count(order >= middle);
        if (n >= k)
            low = middle;
        else
            high = middle - 1;
        if (n >= k && n <= k + k / 8 + 8)
            break;
    }
    return low;
}

enum { RANKED = 256 };

// Descending, by each key's rank: no two are the same.
static __device__ void block_sort_few(uint64_t *keys, int n) {
    const uint64_t mine = (int)threadIdx.x < n ? keys[threadIdx.x] : 0;
    int rank = 0;
    if ((int)threadIdx.x < n) {
#pragma unroll 8
        for (int i = 0; i < n; i++)
            rank += keys[i] > mine;
    }
    __syncthreads();
    if ((int)threadIdx.x < n)
        keys[rank] = mine;
    __syncthreads();
}

// Descending; n is rounded up to a power of two by zeros.
static __device__ void block_sort(uint64_t *keys, int n) {
    if (n <= RANKED)
        return block_sort_few(keys, n);
    int size = 2;
    while (size < n)
        size *= 2;
    for (int i = n + threadIdx.x; i < size; i += DRAW_THREADS)
        keys[i] = 0;
    __syncthreads();
    for (int k = 2; k <= size; k *= 2) {
        for (int j = k / 2; j > 0; j /= 2) {
            for (int i = threadIdx.x; i < size; i += DRAW_THREADS) {
                const int other = i ^ j;
                if (other > i && (keys[i] < keys[other]) == ((i & k) == 0)) {
                    const uint64_t t = keys[i];
                    keys[i] = keys[other];
                    keys[other] = t;
                }
            }
            __syncthreads();
        }
    }
}

__device__ __forceinline__ float value_of(uint64_t key) { // order_of's inverse
    const uint32_t o = (uint32_t)(key >> 32);
    return __uint_as_float(o & 0x80000000u ? o & 0x7fffffffu : ~o);
}

// All ids whose order is at least `bound`, sorted; their number, or more than LIST.
static __device__ int gather(const float *w, int32_t n, uint32_t bound, uint64_t *keys) {
    __shared__ int count;
    if (threadIdx.x == 0)
        count = 0;
    __syncthreads();
    each(w, n, [&](int32_t i, float v) {
        const uint32_t order = order_of(v);
        if (order >= bound && v > -INFINITY) {
            const int at = atomicAdd(&count, 1);
            if (at < LIST)
                keys[at] = (uint64_t)order << 32 | (uint32_t)~i;
        }
    });
    __syncthreads();
    const int found = count;
    __syncthreads();
    if (found <= LIST)
        block_sort(keys, found);
    return found;
}

// How many of the first m keys it takes to reach a mass, at least one; m + 1: all do not.
static __device__ int prefix_of(const uint64_t *keys, int m, uint64_t wanted, float max,
                                scratchpad *s) {
    __shared__ int found;
    const int i = 2 * threadIdx.x;
    const uint64_t a = i < m ? mass_of(expf(value_of(keys[i]) - max)) : 0;
    const uint64_t b = i + 1 < m ? mass_of(expf(value_of(keys[i + 1]) - max)) : 0;
    uint64_t total;
    if (threadIdx.x == 0)
        found = m + 1;
    const uint64_t before = block_scan_mass(a + b, &total, s);
    wanted = wanted > 0 ? wanted : 1;
    if (before < wanted && wanted <= before + a + b)
        found = wanted <= before + a ? i + 1 : i + 2;
    __syncthreads();
    const int result = found;
    __syncthreads();
    return result;
}

static __device__ int32_t draw_from(uint64_t *keys, int m, float max, float scale, double uniform,
                                    scratchpad *s) {
    for (int i = threadIdx.x; i < m; i += DRAW_THREADS) // by id: ~id is in the low half
        keys[i] = keys[i] << 32 | keys[i] >> 32;
    __syncthreads();
    block_sort(keys, m);
    auto mass = [&](int i) { return mass_of(expf((value_of(keys[i] << 32) - max) * scale)); };
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < m; i += DRAW_THREADS)
        sum += mass(i);
    const uint64_t total = block_sum_mass(sum, s);
    const uint64_t target = min((uint64_t)(uniform * (double)total), total - 1);
    const int at = find_in_order(m, target, mass, s);
    return at < 0 ? -1 : (int32_t) ~(uint32_t)(keys[at] >> 32);
}

// The token, or -2 where only the long way can tell. mine: the largest of the thread's ids.
static __device__ int32_t choose_few(const draw &d, const float *w, int32_t n, float max,
                                     float mine, float scale, double uniform, scratchpad *s) {
    __shared__ uint64_t keys[LIST];
    const bool top_k = d.top_k > 0 && d.top_k < n, nucleus = d.top_p < 1;
    if (d.typical_p < 1 || (top_k && d.top_k > DRAW_THREADS))
        return -2;
    uint32_t bound;
    if (top_k || nucleus) {
        bound = block_kth_largest(order_of(mine), top_k ? d.top_k : FEW);
    } else {
        bound = order_of(max + logf(d.min_p));
    }
    int m = gather(w, n, bound, keys);
    if (m > LIST || m == 0)
        return -2;
    m = top_k ? min(m, d.top_k) : m;
    if (nucleus) {
        uint64_t total = 0;
        if (top_k) {
            for (int i = threadIdx.x; i < m; i += DRAW_THREADS)
                total += mass_of(expf(value_of(keys[i]) - max));
            total = block_sum_mass(total, s);
        } else {
            total = total_mass(w, n, max, s);
        }
        const int kept = prefix_of(keys, m, share(d.top_p, total), max, s);
        if (kept > m)
            return -2;
        m = kept;
    }
    if (d.min_p > 0) {
        const float least = max + logf(d.min_p);
        const int i = 2 * threadIdx.x;
        const int a = __syncthreads_count(i < m && value_of(keys[i]) >= least);
        m = a + __syncthreads_count(i + 1 < m && value_of(keys[i + 1]) >= least);
    }
    return draw_from(keys, m, max, scale, uniform, s);
}

} // namespace ssm

#endif
