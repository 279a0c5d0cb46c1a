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
// What a draw takes is latency, so rows are read eight ids a thread at once, few keys are sorted by
// counting those above each, and what warps have found goes through shared memory once. us a draw
// of one row of 50,280 ids, of 1,024 rows (H200, launches behind each other, before and after; the
// same tokens and log-probabilities in 10,296 draws of rows with ties, flat, peaked, with NaN):
//
//                                        1 row            1,024 rows
//   greedy                               11.2    8.9      95     84
//   temperature 1                        28.1   16.6     241    147
//   temperature 0.7, 5 log-probabilities 45.7   29.5     361    253
//   top_k 40, top_p 0.9                  33.3   21.3     280    182
//   min_p 0.05                           24.3   17.2     230    159
//   300 banned, 20 log-probabilities     66.7   41.5     556    420
//   top_p 0.95 (a flat row's long way)    313    280    2,504  2,267
//
// A few draws are arguments of the launch. More of them, and lists, are copied beside the step
// whose rows they are for (step.cu): a copy in the stream would stand between the two.
//
// Results go straight to pinned host memory, in CALLS rounds: collect waits for the oldest.
#include <stdlib.h>
#include <string.h>

#include "sample_few.cuh"

namespace ssm {

enum { CALLS = 8, TURNS = STEP_TURNS, FEW_DRAWS = 32 }; // CALLS: uncollected

struct sampler_state {
    int32_t most;      // draws a call
    size_t list_words; // room for the lists of a call
    char *pinned[CALLS];
    ssm_sampled *results[CALLS]; // pinned, written by the device
    cudaEvent_t copied[CALLS], done[CALLS];
    int32_t n[CALLS];
    int first, used;
    char *on_device[TURNS]; // draws, then lists
    float *scratch;         // [blocks][vocab]
    int32_t n_blocks;
};

static __device__ int32_t choose(const draw &d, const int32_t *lists, const float *raw,
                                 float *scratch, int32_t n, float raw_max, int32_t raw_best,
                                 float mine, scratchpad *s) {
    const float *w = raw;
    float max = raw_max;
    int32_t best = raw_best;
    const bool copied = needs_copy(d);
    if (copied) {
        adjust(d, lists, raw, scratch, n);
        w = scratch;
        max = row_max(w, n, &best, &mine, s);
    }
    if (!(max > -INFINITY) || max == INFINITY)
        return -1;
    if (!(d.temperature > 0))
        return best;
    const float scale = d.temperature > 1e-30f ? 1.f / d.temperature : 1e30f;
    const double uniform = philox_uniform(d.seed, d.position);
    if (has_filters(d, n)) {
        const int32_t token = choose_few(d, w, n, max, mine, scale, uniform, s);
        if (token != -2)
            return token;
        for (int32_t i = threadIdx.x; !copied && i < n; i += DRAW_THREADS)
            scratch[i] = raw[i];
        __syncthreads();
        filter(d, scratch, n, s);
        w = scratch;
        max = row_max(w, n, &best, &mine, s);
    }
    return find_share(
        w, n, uniform, [&](float v) { return mass_of(expf((v - max) * scale)); }, s);
}

// The n_top likeliest of the raw row: from a short list, or one pass each.
static __device__ void list_top(const float *raw, int32_t n, int32_t n_top, double log_total,
                                float mine, ssm_sampled *out, scratchpad *s) {
    __shared__ uint64_t keys[LIST];
    const int32_t count = min(n_top, n);
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

struct few_draws {
    draw d[FEW_DRAWS];
};

// draws NULL: they are in `few`.
__global__ void __launch_bounds__(DRAW_THREADS)
    draw_kernel(const __grid_constant__ few_draws few, const draw *draws, const int32_t *lists,
                int32_t n_draws, const float *logits, int32_t vocab, int32_t n, float *scratch,
                int32_t *drawn, ssm_sampled *results) {
    __shared__ scratchpad s;
    float *mine = scratch + (size_t)blockIdx.x * vocab;
    for (int32_t k = blockIdx.x; k < n_draws; k += gridDim.x) {
        const draw d = draws ? draws[k] : few.d[k];
        const float *raw = logits + (size_t)d.row * vocab;
        ssm_sampled *out = &results[k];
        bool finite = true;
        float max = -INFINITY;
        int32_t best = -1;
        each(raw, n, [&](int32_t i, float v) {
            finite &= isfinite(v);
            if (v > max)
                max = v, best = i;
        });
        const float own = max; // of the thread's ids
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
                each(raw, n, [&](int32_t, float v) { sum += expf(v - max); });
                log_total = (double)max + log(block_sum_double((double)sum, &s));
            }
            if (d.n_top > 0)
                list_top(raw, n, d.n_top, log_total, own, out, &s);
            token = d.target >= 0 ? d.target
                                  : choose(d, lists + d.lists, raw, mine, n, max, best, own, &s);
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
    const size_t bytes = ((size_t)s->most * sizeof(draw) + 15) / 16 * 16;
    return bytes > LEAST_COPY ? bytes : (size_t)LEAST_COPY;
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
        SSM_TRY(event_make(d, &s->copied[i], err));
        SSM_TRY(event_make(d, &s->done[i], err));
    }
    for (int i = 0; i < TURNS; i++)
        SSM_TRY(device_alloc(d, (void **)&s->on_device[i], bytes, err));
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
        event_free(s->copied[i]);
        event_free(s->done[i]);
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

static_assert(CALLS % TURNS == 0, "calls take turns");
static_assert(sizeof(ssm_token_count) == 12 && sizeof(ssm_logit_bias) == 8, "lists are words");

// Packs the draws, their lists into the call's pinned block; returns the lists' words, or an error.
static int pack_all(const sampler_state *s, const ssm_sample *samples, int32_t n, draw *draws,
                    int32_t *lists, ssm_error *err) {
    size_t words = 0;
    for (int32_t i = 0; i < n; i++) {
        const size_t more = samples[i].target >= 0 ? 0 : list_words(&samples[i]);
        if (words + more > s->list_words)
            return ssm_error_set(err, SSM_EINVAL, "n",
                                 "penalties, biases and bans of %d draws are too many", n);
        draws[i] = pack(&samples[i], lists, (int32_t)words);
        words += more;
    }
    return (int)words;
}

// So many bytes of the call's pinned block, from `at` on, to the device.
static int send_ahead(device *d, int call, size_t at, size_t bytes, ssm_error *err) {
    sampler_state *s = d->draw;
    if (bytes == 0)
        return 0;
    bytes = bytes > LEAST_COPY ? bytes : (size_t)LEAST_COPY;
    SSM_CUDA(d,
             cudaMemcpyAsync(s->on_device[call % TURNS] + at, s->pinned[call] + at, bytes,
                             cudaMemcpyHostToDevice, d->ahead),
             err);
    return 0;
}

// n draws and so many words of lists; either may be none.
static int send_lists(device *d, int call, int32_t n, size_t words, ssm_error *err) {
    sampler_state *s = d->draw;
    const cudaEvent_t read = s->done[(call + CALLS - TURNS) % CALLS], copied = s->copied[call];
    if (n == 0 && words == 0)
        return 0;
    SSM_CUDA(d, cudaStreamWaitEvent(d->ahead, read, 0), err);
    SSM_TRY(send_ahead(d, call, 0, (size_t)n * sizeof(draw), err));
    SSM_TRY(send_ahead(d, call, draw_area(s), words * sizeof(int32_t), err));
    SSM_CUDA(d, cudaEventRecord(copied, d->ahead), err);
    SSM_CUDA(d, cudaStreamWaitEvent(d->stream, copied, 0), err);
    return 0;
}

int sample(ssm_device *dev, const ssm_sample *samples, int32_t n, ssm_error *err) {
    device *d = (device *)dev;
    sampler_state *s = d->draw;
    SSM_TRY(device_refuse(d, err));
    if (n > s->most || s->used == CALLS)
        return ssm_error_set(err, SSM_EBUSY, "n", "%d draws do not fit: collect earlier ones first",
                             n);
    const int call = (s->first + s->used) % CALLS;
    SSM_CUDA(d, cudaEventSynchronize(s->copied[call]), err);
    few_draws few = {};
    const bool at_hand = n <= FEW_DRAWS;
    char *pinned = s->pinned[call], *on_device = s->on_device[call % TURNS];
    const int words = pack_all(s, samples, n, at_hand ? few.d : (draw *)pinned,
                               (int32_t *)(pinned + draw_area(s)), err);
    if (words < 0)
        return words;
    SSM_TRY(send_lists(d, call, at_hand ? 0 : n, (size_t)words, err));
    SSM_CUDA(d,
             launch(d, draw_kernel, dim3((unsigned)(n < s->n_blocks ? n : s->n_blocks)),
                    DRAW_THREADS, 0, false, few, at_hand ? NULL : (const draw *)on_device,
                    (const int32_t *)(on_device + draw_area(s)), n, (const float *)d->logits,
                    d->g.vocab_size, d->vocab_limit, s->scratch, d->drawn, s->results[call]),
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
