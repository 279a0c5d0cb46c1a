// SPDX-License-Identifier: Apache-2.0
// Penalties, bans and filters of one row by one block (sample.cu), the long way: what a filter
// leaves out becomes -inf in the block's scratch.
#ifndef SSM_KERNELS_CUDA_SAMPLE_FILTER_CUH
#define SSM_KERNELS_CUDA_SAMPLE_FILTER_CUH

#include "sample_block.cuh"

namespace ssm {

static __device__ bool needs_copy(const draw &d) {
    const bool penalties =
        d.n_counts > 0 && (d.repetition != 1 || d.frequency != 0 || d.presence != 0);
    return penalties || d.n_bias > 0 || d.n_allowed > 0 || d.n_banned > 0;
}

static __device__ bool has_filters(const draw &d, int32_t n) {
    return (d.top_k > 0 && d.top_k < n) || d.typical_p < 1 || d.top_p < 1 || d.min_p > 0;
}

static __device__ float penalised(const draw &d, const ssm_token_count &c, float logit) {
    if (c.in_prompt || c.generated > 0)
        logit = logit > 0 ? logit / d.repetition : logit * d.repetition;
    logit -= d.frequency * (float)c.generated;
    return c.generated > 0 ? logit - d.presence : logit;
}

static __device__ void adjust(const draw &d, const int32_t *lists, const float *raw, float *w,
                              int32_t n) {
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

static __device__ uint64_t share(float part, uint64_t total) {
    return (uint64_t)((double)part * (double)total);
}

static __device__ uint64_t total_mass(const float *w, int32_t n, float max, scratchpad *s) {
    uint64_t sum = 0;
    each(w, n, [&](int32_t, float v) { sum += mass_of(expf(v - max)); });
    return block_sum_mass(sum, s);
}

static __device__ void keep_typical(const draw &d, float *w, int32_t n, float max, scratchpad *s) {
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

static __device__ void filter(const draw &d, float *w, int32_t n, scratchpad *s) {
    int32_t unused;
    float own;
    auto logit = [&](int32_t i) { return w[i]; };
    if (d.top_k > 0 && d.top_k < n)
        keep_prefix(
            w, n, (uint64_t)d.top_k, logit, [&](int32_t i) { return (uint64_t)(w[i] > -INFINITY); },
            s);
    float max = row_max(w, n, &unused, &own, s);
    if (d.typical_p < 1) {
        keep_typical(d, w, n, max, s);
        max = row_max(w, n, &unused, &own, s);
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

} // namespace ssm

#endif
