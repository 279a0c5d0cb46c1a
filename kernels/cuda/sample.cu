// SPDX-License-Identifier: Apache-2.0
// Sampling where the logits are: only ids and the log-probabilities that were asked for leave the
// device. The rules are those of kernels/sampling/sampler.c, with the same random numbers:
// penalties and bias, bans; top_k, typical_p, top_p, min_p, each over what the one before left;
// temperature; one Philox number inverts the cumulative sum in the order of ids. Ties go to the
// lower id.
//
// A block of 1,024 threads takes a row; a changed row (penalties, bans) is copied to the block's
// scratch first. Filters mostly need few ids: the K-th largest of the threads' own maxima bounds
// the K-th largest logit from below, the ids above it (usually a little more than K) are sorted in
// shared memory, and top_k, top_p and min_p are prefixes of that list. Where the list cannot be
// shown to hold the answer (flat rows, typical_p) a filter takes the long way: 32 halvings of the
// key's range, each a pass over the row that sums the mass above the middle (about 2 us at 50,280
// ids), ids dropping out by becoming -inf in scratch. Masses are 2^-40 fixed point in 64 bits,
// whose sums do not depend on their order: both ways and every run give the same token.
//
// Results go straight to pinned host memory, in CALLS rounds: collect waits for the oldest.
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "util.cuh"

namespace ssm {

enum { CALLS = 8, DRAW_THREADS = 1024 };

struct draw {
    uint64_t seed, position;
    int32_t row, slot, target, n_top;
    float temperature, top_p, min_p, typical_p, presence, frequency, repetition;
    int32_t top_k;
    int32_t n_bias, n_allowed, n_banned, n_counts; // lists lie one after the other at `lists`
    int32_t lists;                                 // offset in words
    int32_t unused;
};

struct sampler_state {
    int32_t most;      // draws a call
    size_t list_words; // room for the lists of a call
    char *pinned[CALLS];
    ssm_sampled *results[CALLS]; // pinned, written by the device
    cudaEvent_t copied[CALLS], done[CALLS];
    int32_t n[CALLS];
    int first, used;
    char *on_device; // draws, then lists
    float *scratch;  // [blocks][vocab]
    int32_t n_blocks;
};

// ---- Philox, as in kernels/sampling/philox.h

__device__ double philox_uniform(uint64_t seed, uint64_t position) {
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

// ---- block-wide pieces. Every thread of the block calls them; results come to all.

struct scratchpad {
    float f[32];
    double d[32];
    uint64_t u[33];
    int32_t i[32];
};

__device__ double block_sum_double(double v, scratchpad *s) {
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

__device__ uint64_t block_sum_mass(uint64_t v, scratchpad *s) {
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    if ((threadIdx.x & 31) == 0)
        s->u[threadIdx.x >> 5] = v;
    __syncthreads();
    uint64_t sum = 0;
    for (int i = 0; i < DRAW_THREADS / 32; i++)
        sum += s->u[i];
    __syncthreads();
    return sum;
}

// The larger value, then the lower id. id -1: nothing.
__device__ void block_best(float *value, int32_t *id, scratchpad *s) {
    auto merge = [&](float v, int32_t i) {
        if (i >= 0 && (*id < 0 || v > *value || (v == *value && i < *id)))
            *value = v, *id = i;
    };
    for (int o = 16; o; o >>= 1) {
        const float v = __shfl_xor_sync(~0u, *value, o);
        const int32_t i = __shfl_xor_sync(~0u, *id, o);
        merge(v, i);
    }
    if ((threadIdx.x & 31) == 0)
        s->f[threadIdx.x >> 5] = *value, s->i[threadIdx.x >> 5] = *id;
    __syncthreads();
    for (int w = 0; w < DRAW_THREADS / 32; w++)
        merge(s->f[w], s->i[w]);
    __syncthreads();
}

// Sum of what the threads before this one hold; *total: of all.
__device__ uint64_t block_scan_mass(uint64_t v, uint64_t *total, scratchpad *s) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint64_t inclusive = v;
    for (int o = 1; o < 32; o <<= 1) {
        const uint64_t before = __shfl_up_sync(~0u, inclusive, o);
        inclusive += lane >= o ? before : 0;
    }
    if (lane == 31)
        s->u[warp] = inclusive;
    __syncthreads();
    uint64_t before = 0, sum = 0;
    for (int w = 0; w < DRAW_THREADS / 32; w++) {
        before += w < warp ? s->u[w] : 0;
        sum += s->u[w];
    }
    __syncthreads();
    *total = sum;
    return before + inclusive - v;
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
__device__ int32_t find_in_order(int32_t n, uint64_t target, F mass, scratchpad *s) {
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

// Keeps the shortest prefix, in the order of larger key then lower id, whose mass reaches `wanted`
// (at least one id, all if they do not): the rest of w becomes -inf. key(i) is a float; mass(i) is
// 0 for ids that are out.
template <class K, class M>
__device__ void keep_prefix(float *w, int32_t n, uint64_t wanted, K key, M mass, scratchpad *s) {
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

__device__ float row_max(const float *w, int32_t n, int32_t *id, scratchpad *s) {
    float best = -INFINITY;
    int32_t at = -1;
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
        if (w[i] > best)
            best = w[i], at = i;
    }
    block_best(&best, &at, s);
    *id = at;
    return best;
}

// ---- stages

__device__ bool needs_copy(const draw &d) {
    const bool penalties =
        d.n_counts > 0 && (d.repetition != 1 || d.frequency != 0 || d.presence != 0);
    return penalties || d.n_bias > 0 || d.n_allowed > 0 || d.n_banned > 0;
}

__device__ bool has_filters(const draw &d, int32_t n) {
    return (d.top_k > 0 && d.top_k < n) || d.typical_p < 1 || d.top_p < 1 || d.min_p > 0;
}

__device__ float penalised(const draw &d, const ssm_token_count &c, float logit) {
    if (c.in_prompt || c.generated > 0)
        logit = logit > 0 ? logit / d.repetition : logit * d.repetition;
    logit -= d.frequency * (float)c.generated;
    return c.generated > 0 ? logit - d.presence : logit;
}

__device__ void adjust(const draw &d, const int32_t *lists, const float *raw, float *w, int32_t n) {
    const ssm_logit_bias *bias = (const ssm_logit_bias *)lists;
    const int32_t *allowed = lists + 2 * d.n_bias, *banned = allowed + d.n_allowed;
    const ssm_token_count *counts = (const ssm_token_count *)(banned + d.n_banned);
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
        w[i] = d.n_allowed > 0 ? -INFINITY : raw[i];
    __syncthreads();
    for (int32_t i = threadIdx.x; i < d.n_allowed; i += DRAW_THREADS) {
        if ((uint32_t)allowed[i] < (uint32_t)n)
            w[allowed[i]] = raw[allowed[i]];
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < d.n_counts; i += DRAW_THREADS) { // each id once
        const int32_t id = counts[i].id;
        if ((uint32_t)id < (uint32_t)n)
            w[id] = penalised(d, counts[i], w[id]);
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < d.n_bias; i += DRAW_THREADS) { // an id's first entry adds all
        const int32_t id = bias[i].id;
        bool first = (uint32_t)id < (uint32_t)n;
        for (int32_t k = 0; first && k < i; k++)
            first = bias[k].id != id;
        for (int32_t k = i; first && k < d.n_bias; k++) {
            if (bias[k].id == id)
                w[id] += bias[k].bias;
        }
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < d.n_banned; i += DRAW_THREADS) {
        if ((uint32_t)banned[i] < (uint32_t)n)
            w[banned[i]] = -INFINITY;
    }
    __syncthreads();
}

__device__ uint64_t share(float part, uint64_t total) {
    return (uint64_t)((double)part * (double)total);
}

__device__ uint64_t total_mass(const float *w, int32_t n, float max, scratchpad *s) {
    uint64_t sum = 0;
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
        sum += mass_of(expf(w[i] - max));
    return block_sum_mass(sum, s);
}

__device__ void keep_typical(const draw &d, float *w, int32_t n, float max, scratchpad *s) {
    double surprise = 0, total = 0;
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
        if (w[i] > -INFINITY) {
            const float p = expf(w[i] - max);
            total += (double)p;
            surprise += (double)p * (double)(max - w[i]);
        }
    }
    total = block_sum_double(total, s);
    const double entropy = block_sum_double(surprise, s) / total;
    const uint64_t mass = total_mass(w, n, max, s);
    keep_prefix(
        w, n, share(d.typical_p, mass),
        [&](int32_t i) {
            return w[i] > -INFINITY ? -(float)fabs((double)(max - w[i]) - entropy) : -INFINITY;
        },
        [&](int32_t i) { return mass_of(expf(w[i] - max)); }, s);
}

__device__ void filter(const draw &d, float *w, int32_t n, scratchpad *s) {
    int32_t unused;
    auto logit = [&](int32_t i) { return w[i]; };
    if (d.top_k > 0 && d.top_k < n)
        keep_prefix(
            w, n, (uint64_t)d.top_k, logit, [&](int32_t i) { return (uint64_t)(w[i] > -INFINITY); },
            s);
    float max = row_max(w, n, &unused, s);
    if (d.typical_p < 1) {
        keep_typical(d, w, n, max, s);
        max = row_max(w, n, &unused, s);
    }
    if (d.top_p < 1)
        keep_prefix(
            w, n, share(d.top_p, total_mass(w, n, max, s)), logit,
            [&](int32_t i) { return mass_of(expf(w[i] - max)); }, s);
    if (d.min_p > 0) {
        const float bound = max + logf(d.min_p);
        for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
            if (!(w[i] >= bound))
                w[i] = -INFINITY;
        }
        __syncthreads();
    }
}

// ---- the short way

enum { LIST = 2048, FEW = 256 }; // FEW: how many a top_p without top_k is expected to need

// The largest v of which at least k threads have one that is no smaller, as an order.
__device__ uint32_t block_kth_largest(uint32_t order, int k) {
    uint32_t low = 0, high = 0xffffffffu;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2 + ((high - low) & 1);
        if (__syncthreads_count(order >= middle) >= k)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Descending; n is rounded up to a power of two by zeros.
__device__ void block_sort(uint64_t *keys, int n) {
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
__device__ int gather(const float *w, int32_t n, uint32_t bound, uint64_t *keys) {
    __shared__ int count;
    if (threadIdx.x == 0)
        count = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
        const uint32_t order = order_of(w[i]);
        if (order >= bound && w[i] > -INFINITY) {
            const int at = atomicAdd(&count, 1);
            if (at < LIST)
                keys[at] = (uint64_t)order << 32 | (uint32_t)~i;
        }
    }
    __syncthreads();
    const int found = count;
    __syncthreads();
    if (found <= LIST)
        block_sort(keys, found);
    return found;
}

// How many of the first m keys it takes to reach a mass, at least one; m + 1: all do not.
__device__ int prefix_of(const uint64_t *keys, int m, uint64_t wanted, float max, scratchpad *s) {
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

__device__ int32_t draw_from(uint64_t *keys, int m, float max, float scale, double uniform,
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

// The token, or -2 where only the long way can tell.
__device__ int32_t choose_few(const draw &d, const float *w, int32_t n, float max, float scale,
                              double uniform, scratchpad *s) {
    __shared__ uint64_t keys[LIST];
    const bool top_k = d.top_k > 0 && d.top_k < n, nucleus = d.top_p < 1;
    if (d.typical_p < 1 || (top_k && d.top_k > DRAW_THREADS))
        return -2;
    uint32_t bound;
    if (top_k || nucleus) {
        float mine = -INFINITY;
        for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
            mine = fmaxf(mine, w[i]);
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

__device__ int32_t choose(const draw &d, const int32_t *lists, const float *raw, float *scratch,
                          int32_t n, float raw_max, int32_t raw_best, scratchpad *s) {
    const float *w = raw;
    float max = raw_max;
    int32_t best = raw_best;
    const bool copied = needs_copy(d);
    if (copied) {
        adjust(d, lists, raw, scratch, n);
        w = scratch;
        max = row_max(w, n, &best, s);
    }
    if (!(max > -INFINITY) || max == INFINITY)
        return -1;
    if (!(d.temperature > 0))
        return best;
    const float scale = d.temperature > 1e-30f ? 1.f / d.temperature : 1e30f;
    const double uniform = philox_uniform(d.seed, d.position);
    if (has_filters(d, n)) {
        const int32_t token = choose_few(d, w, n, max, scale, uniform, s);
        if (token != -2)
            return token;
        for (int32_t i = threadIdx.x; !copied && i < n; i += DRAW_THREADS)
            scratch[i] = raw[i];
        __syncthreads();
        filter(d, scratch, n, s);
        w = scratch;
        max = row_max(w, n, &best, s);
    }
    auto mass = [&](int32_t i) { return mass_of(expf((w[i] - max) * scale)); };
    uint64_t sum = 0;
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
        sum += mass(i);
    const uint64_t total = block_sum_mass(sum, s);
    const uint64_t target = min((uint64_t)(uniform * (double)total), total - 1);
    return find_in_order(n, target, mass, s);
}

// The n_top likeliest of the raw row: from a short list, or one pass each.
__device__ void list_top(const float *raw, int32_t n, int32_t n_top, double log_total,
                         ssm_sampled *out, scratchpad *s) {
    __shared__ uint64_t keys[LIST];
    const int32_t count = min(n_top, n);
    float mine = -INFINITY;
    for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
        mine = fmaxf(mine, raw[i]);
    const int found = gather(raw, n, block_kth_largest(order_of(mine), count), keys);
    if (threadIdx.x == 0)
        out->n_top = count;
    if (found <= LIST) {
        if ((int)threadIdx.x < count) {
            const uint64_t key = keys[threadIdx.x];
            out->top_ids[threadIdx.x] = (int32_t) ~(uint32_t)key;
            out->top_logprobs[threadIdx.x] = (float)((double)value_of(key) - log_total);
        }
        __syncthreads();
        return;
    }
    float last = INFINITY;
    int32_t last_id = -1;
    for (int32_t k = 0; k < count; k++) {
        float best = -INFINITY;
        int32_t at = -1;
        for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
            const float v = raw[i];
            if ((v < last || (v == last && i > last_id)) && (at < 0 || v > best))
                best = v, at = i;
        }
        block_best(&best, &at, s);
        last = best, last_id = at;
        if (threadIdx.x == 0) {
            out->top_ids[k] = at;
            out->top_logprobs[k] = (float)((double)best - log_total);
        }
    }
}

__global__ void __launch_bounds__(DRAW_THREADS)
    draw_kernel(const draw *draws, const int32_t *lists, int32_t n_draws, const float *logits,
                int32_t vocab, int32_t n, float *scratch, int32_t *drawn, ssm_sampled *results) {
    __shared__ scratchpad s;
    float *mine = scratch + (size_t)blockIdx.x * vocab;
    for (int32_t k = blockIdx.x; k < n_draws; k += gridDim.x) {
        const draw d = draws[k];
        const float *raw = logits + (size_t)d.row * vocab;
        ssm_sampled *out = &results[k];
        bool finite = true;
        float max = -INFINITY;
        int32_t best = -1;
        for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS) {
            const float v = raw[i];
            finite &= isfinite(v);
            if (v > max)
                max = v, best = i;
        }
        finite = __syncthreads_and(finite);
        block_best(&max, &best, &s);
        int32_t token = -1;
        float logprob = NAN;
        if (threadIdx.x == 0)
            out->n_top = 0;
        if (finite) {
            double log_total = 0;
            if (d.n_top >= 0) {
                float sum = 0;
                for (int32_t i = threadIdx.x; i < n; i += DRAW_THREADS)
                    sum += expf(raw[i] - max);
                log_total = (double)max + log(block_sum_double((double)sum, &s));
            }
            if (d.n_top > 0)
                list_top(raw, n, d.n_top, log_total, out, &s);
            token =
                d.target >= 0 ? d.target : choose(d, lists + d.lists, raw, mine, n, max, best, &s);
            if (d.n_top >= 0 && token >= 0)
                logprob = token < n ? (float)((double)raw[token] - log_total) : -INFINITY;
        }
        if (threadIdx.x == 0) {
            out->token = token;
            out->logprob = logprob;
            if (d.slot >= 0) // a failed draw ends its session; until then any token will do
                drawn[d.slot] = token > 0 ? token : 0;
        }
        __syncthreads();
    }
}

// ---- host side

static size_t draw_area(const sampler_state *s) {
    return ((size_t)s->most * sizeof(draw) + 15) / 16 * 16;
}

int sampler_create(device *d, ssm_error *err) {
    sampler_state *s = d->draw = (sampler_state *)calloc(1, sizeof *s);
    if (!s)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the sampler");
    s->most = d->n_slots + d->max_rows;
    s->list_words = ((size_t)1 << 19) + 8 * (size_t)d->g.vocab_size;
    s->n_blocks = s->most < 2 * d->n_sms ? s->most : 2 * d->n_sms;
    const size_t bytes = draw_area(s) + s->list_words * sizeof(int32_t);
    for (int i = 0; i < CALLS; i++) {
        SSM_CUDA(d, cudaMallocHost((void **)&s->pinned[i], bytes), err);
        SSM_CUDA(d, cudaMallocHost((void **)&s->results[i], (size_t)s->most * sizeof(ssm_sampled)),
                 err);
        SSM_CUDA(d, cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming), err);
        SSM_CUDA(d, cudaEventCreateWithFlags(&s->done[i], cudaEventDisableTiming), err);
    }
    SSM_TRY(device_alloc(d, (void **)&s->on_device, bytes, err));
    return device_alloc(d, (void **)&s->scratch,
                        (size_t)s->n_blocks * d->g.vocab_size * sizeof(float), err);
}

void sampler_free(device *d) {
    sampler_state *s = d->draw;
    if (!s)
        return;
    for (int i = 0; i < CALLS; i++) {
        cudaFreeHost(s->pinned[i]);
        cudaFreeHost(s->results[i]);
        if (s->copied[i])
            cudaEventDestroy(s->copied[i]);
        if (s->done[i])
            cudaEventDestroy(s->done[i]);
    }
    free(s);
    d->draw = NULL;
}

static int32_t *append(int32_t *to, const void *from, size_t words) {
    if (words > 0)
        memcpy(to, from, words * sizeof *to);
    return to + words;
}

static size_t list_words(const ssm_sample *s) {
    return 2 * (size_t)s->params->n_bias + (size_t)s->params->n_allowed + (size_t)s->n_banned +
           3 * (size_t)s->n_counts;
}

static draw pack(const ssm_sample *s, int32_t *lists, int32_t at) {
    const ssm_sampling *p = s->params;
    draw d = {};
    d.seed = s->seed, d.position = s->position;
    d.row = s->row, d.slot = s->slot, d.target = s->target, d.n_top = s->n_top;
    d.lists = at;
    if (s->target >= 0 || !p)
        return d;
    d.temperature = p->temperature, d.top_k = p->top_k, d.top_p = p->top_p, d.min_p = p->min_p;
    d.typical_p = p->typical_p, d.presence = p->presence_penalty;
    d.frequency = p->frequency_penalty, d.repetition = p->repetition_penalty;
    d.n_bias = p->n_bias, d.n_allowed = p->n_allowed;
    d.n_banned = s->n_banned, d.n_counts = s->n_counts;
    int32_t *to = append(lists + at, p->bias, 2 * (size_t)p->n_bias);
    to = append(to, p->allowed, (size_t)p->n_allowed);
    to = append(to, s->banned, (size_t)s->n_banned);
    append(to, s->counts, 3 * (size_t)s->n_counts);
    return d;
}

static_assert(sizeof(ssm_token_count) == 12 && sizeof(ssm_logit_bias) == 8, "lists are words");

int sample(ssm_device *dev, const ssm_sample *samples, int32_t n, ssm_error *err) {
    device *d = (device *)dev;
    sampler_state *s = d->draw;
    SSM_TRY(device_refuse(d, err));
    if (n > s->most || s->used == CALLS)
        return ssm_error_set(err, SSM_EBUSY, "n", "%d draws do not fit: collect earlier ones first",
                             n);
    const int call = (s->first + s->used) % CALLS;
    SSM_CUDA(d, cudaEventSynchronize(s->copied[call]), err);
    draw *draws = (draw *)s->pinned[call];
    int32_t *lists = (int32_t *)(s->pinned[call] + draw_area(s));
    size_t words = 0;
    for (int32_t i = 0; i < n; i++) {
        const size_t more = samples[i].target >= 0 ? 0 : list_words(&samples[i]);
        if (words + more > s->list_words)
            return ssm_error_set(err, SSM_EINVAL, "n",
                                 "penalties, biases and bans of %d draws "
                                 "are too many",
                                 n);
        draws[i] = pack(&samples[i], lists, (int32_t)words);
        words += more;
    }
    char *device_lists = s->on_device + draw_area(s);
    SSM_CUDA(d,
             cudaMemcpyAsync(s->on_device, draws, (size_t)n * sizeof(draw), cudaMemcpyHostToDevice,
                             d->stream),
             err);
    if (words > 0)
        SSM_CUDA(d,
                 cudaMemcpyAsync(device_lists, lists, words * sizeof(int32_t),
                                 cudaMemcpyHostToDevice, d->stream),
                 err);
    SSM_CUDA(d, cudaEventRecord(s->copied[call], d->stream), err);
    SSM_CUDA(d,
             launch(d, draw_kernel, dim3((unsigned)(n < s->n_blocks ? n : s->n_blocks)),
                    DRAW_THREADS, 0, false, (const draw *)s->on_device,
                    (const int32_t *)device_lists, n, (const float *)d->logits, d->g.vocab_size,
                    d->vocab_limit, s->scratch, d->drawn, s->results[call]),
             err);
    SSM_CUDA(d, cudaEventRecord(s->done[call], d->stream), err);
    s->n[call] = n;
    s->used++;
    return 0;
}

int collect(ssm_device *dev, ssm_sampled *out, int32_t n, ssm_error *err) {
    device *d = (device *)dev;
    sampler_state *s = d->draw;
    SSM_TRY(device_refuse(d, err));
    if (s->used == 0 || s->n[s->first] != n)
        return ssm_error_set(err, SSM_EINVAL, "n", "no sample call of %d draws is uncollected", n);
    SSM_CUDA(d, cudaEventSynchronize(s->done[s->first]), err);
    memcpy(out, s->results[s->first], (size_t)n * sizeof *out);
    s->first = (s->first + 1) % CALLS;
    s->used--;
    return 0;
}

} // namespace ssm
