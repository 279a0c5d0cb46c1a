// SPDX-License-Identifier: Apache-2.0
// The sampler of the CPU backends: logits in, a token and log-probabilities out.
//
// Order: penalties (repetition, then frequency and presence), bias, bans; top_k, typical_p, top_p
// and min_p, each on the probabilities that the one before left, renormalised, at temperature 1;
// then temperature and the draw. Temperature 0 takes the largest logit after penalties and bans
// whatever the filters say. Ties go to the lower id everywhere. Log-probabilities are of the raw
// logits over all ids below the vocabulary's limit.
//
// A survey of the row (one pass) gives the maximum of each block of 64 ids and whether all are
// finite. The k-th largest block maximum bounds the k-th largest logit from below, so a top_k needs
// only the entries of about k blocks that pass it; top_p tries 32, then 256 blocks, then
// everything. Filters work on a list of entries in the order of ids; each one finds by weighted
// selection (select.c) the last pick that stays and compacts the list, so nothing is ever sorted
// but the listed top entries. The draw inverts the cumulative sum in the order of ids with one
// 53-bit Philox number of (seed, position), so it depends on nothing else.
//
// Tried and dropped: sorting (4 ms a row of 50,280), one Gumbel variate an id (12,570 Philox calls
// a row), restoring a patched row instead of copying it (rows may be drawn from by two threads).
#include "sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "philox.h"
#include "vector.h"

int ssm_sampler_init(ssm_sampler *s, int32_t vocab_limit) {
    const size_t n = (size_t)vocab_limit;
    const size_t blocks = (n + SAMPLER_BLOCK - 1) / SAMPLER_BLOCK;
    *s = (ssm_sampler){.n = vocab_limit, .n_blocks = (int32_t)blocks};
    s->work = malloc(n * sizeof *s->work);
    s->block_max = malloc(blocks * sizeof *s->block_max);
    s->block_mass = malloc(blocks * sizeof *s->block_mass);
    s->entries = malloc(n * sizeof *s->entries);
    s->picks = malloc(n * sizeof *s->picks);
    if (s->work && s->block_max && s->block_mass && s->entries && s->picks)
        return 0;
    ssm_sampler_dispose(s);
    return SSM_ENOMEM;
}

void ssm_sampler_dispose(ssm_sampler *s) {
    free(s->work);
    free(s->block_max);
    free(s->block_mass);
    free(s->entries);
    free(s->picks);
    *s = (ssm_sampler){0};
}

static int32_t block_len(const ssm_sampler *s, int32_t block) {
    const int32_t left = s->n - block * SAMPLER_BLOCK;
    return left < SAMPLER_BLOCK ? left : SAMPLER_BLOCK;
}

static float max_of(const float *x, int32_t n) {
    f32x4 a = f32x4_splat(-INFINITY);
    int32_t i = 0;
    for (; i + 4 <= n; i += 4)
        a = f32x4_max(a, f32x4_load(x + i));
    float m = -INFINITY;
    for (int lane = 0; lane < 4; lane++)
        m = a[lane] > m ? a[lane] : m;
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

// Fills block_max and returns the maximum of all.
static float survey(ssm_sampler *s, const float *logits) {
    float m = -INFINITY;
    for (int32_t b = 0; b < s->n_blocks; b++) {
        s->block_max[b] = max_of(logits + (size_t)b * SAMPLER_BLOCK, block_len(s, b));
        m = s->block_max[b] > m ? s->block_max[b] : m;
    }
    return m;
}

static bool all_finite(const float *x, int32_t n) {
    i32x4 bad = {0, 0, 0, 0};
    int32_t i = 0;
    for (; i + 4 <= n; i += 4)
        bad |= ((i32x4)f32x4_load(x + i) & 0x7f800000) == 0x7f800000;
    bool ok = (bad[0] | bad[1] | bad[2] | bad[3]) == 0;
    for (; i < n; i++)
        ok &= isfinite(x[i]) != 0;
    return ok;
}

// Sum of exp((x - shift) * scale), every term at most 1.
static double sum_exp(const float *x, int32_t n, float shift, float scale) {
    f32x4 sum = f32x4_splat(0);
    int32_t i = 0;
    for (; i + 4 <= n; i += 4)
        sum += f32x4_exp((f32x4_load(x + i) - shift) * scale);
    double total = ((double)sum[0] + (double)sum[1]) + ((double)sum[2] + (double)sum[3]);
    for (; i < n; i++)
        total += (double)f32x4_exp(f32x4_splat((x[i] - shift) * scale))[0];
    return total;
}

// By blocks, so that the sums of four lanes stay short; leaves the blocks' masses for a draw.
static double block_masses(ssm_sampler *s, const float *logits, float shift, float scale) {
    double total = 0;
    for (int32_t b = 0; b < s->n_blocks; b++) {
        s->block_mass[b] =
            sum_exp(logits + (size_t)b * SAMPLER_BLOCK, block_len(s, b), shift, scale);
        total += s->block_mass[b];
    }
    return total;
}

static int32_t find_lowest(const ssm_sampler *s, const float *logits, float value) {
    for (int32_t b = 0; b < s->n_blocks; b++) {
        if (s->block_max[b] != value)
            continue;
        int32_t i = b * SAMPLER_BLOCK;
        while (logits[i] != value)
            i++;
        return i;
    }
    return -1;
}

// ---- lists of entries

// Entries of all ids that can be among the `blocks` largest (see above), in the order of ids.
static int32_t gather(ssm_sampler *s, const float *logits, int32_t blocks) {
    float bound = -INFINITY;
    if (blocks < s->n_blocks) {
        for (int32_t b = 0; b < s->n_blocks; b++)
            s->picks[b] = (sampler_pick){s->block_max[b], b, 1.0f};
        bound = sampler_select(s->picks, s->n_blocks, blocks).key;
    }
    int32_t n = 0;
    for (int32_t b = 0; b < s->n_blocks; b++) {
        if (s->block_max[b] < bound)
            continue;
        const int32_t first = b * SAMPLER_BLOCK, end = first + block_len(s, b);
        for (int32_t i = first; i < end; i++) {
            s->entries[n] = (sampler_entry){logits[i], i};
            n += logits[i] >= bound && logits[i] > -INFINITY;
        }
    }
    return n;
}

// Compacts entries to those whose key comes no later than the last pick that stays.
static int32_t keep(ssm_sampler *s, const float *keys, int32_t n, sampler_pick last) {
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        const sampler_entry e = s->entries[i];
        const float key = keys ? keys[i] : e.logit;
        s->entries[kept] = e;
        kept += key > last.key || (key == last.key && e.id <= last.id);
    }
    return kept;
}

static int32_t keep_top(ssm_sampler *s, int32_t n, int32_t k) {
    if (k >= n)
        return n;
    for (int32_t i = 0; i < n; i++)
        s->picks[i] = (sampler_pick){s->entries[i].logit, s->entries[i].id, 1.0f};
    return keep(s, NULL, n, sampler_select(s->picks, n, k));
}

static float max_entry(const ssm_sampler *s, int32_t n) {
    float m = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        m = s->entries[i].logit > m ? s->entries[i].logit : m;
    return m;
}

static float exp_of(float x) {
    return f32x4_exp(f32x4_splat(x))[0];
}

// Fills picks by logit with weight exp(logit - shift); returns the sum of the weights.
static double weigh(ssm_sampler *s, int32_t n, float shift) {
    double total = 0;
    for (int32_t i = 0; i < n; i++) {
        const sampler_entry e = s->entries[i];
        s->picks[i] = (sampler_pick){e.logit, e.id, exp_of(e.logit - shift)};
        total += (double)s->picks[i].weight;
    }
    return total;
}

// Locally typical sampling (Meister et al. 2022): keeps ids whose surprise is nearest the entropy.
static int32_t keep_typical(ssm_sampler *s, int32_t n, float mass) {
    const float shift = max_entry(s, n);
    const double total = weigh(s, n, shift);
    double surprise = 0; // entropy = log(total) + sum p (shift - logit)
    for (int32_t i = 0; i < n; i++)
        surprise += (double)s->picks[i].weight * (double)(shift - s->entries[i].logit);
    const double entropy = surprise / total; // less log(total), which every id's surprise has too
    float *keys = s->work; // the entries hold all that is still needed of the logits
    for (int32_t i = 0; i < n; i++) {
        keys[i] = -(float)fabs((double)(shift - s->entries[i].logit) - entropy);
        s->picks[i].key = keys[i];
    }
    return keep(s, keys, n, sampler_select(s->picks, n, (double)mass * total));
}

// Nucleus (Holtzman et al. 2020) over the n entries, which hold `total` of mass in all or are the
// larger part of it. -1: they do not reach the mass, more entries are needed.
static int32_t keep_nucleus(ssm_sampler *s, int32_t n, float shift, double mass, bool is_all) {
    if (weigh(s, n, shift) < mass && !is_all)
        return -1;
    return keep(s, NULL, n, sampler_select(s->picks, n, mass));
}

static int32_t nucleus_of_all(ssm_sampler *s, const float *logits, float max, float top_p) {
    const double mass = (double)top_p * block_masses(s, logits, max, 1.0f);
    for (int32_t blocks = 32; blocks < s->n_blocks; blocks *= 8) {
        const int32_t n = keep_nucleus(s, gather(s, logits, blocks), max, mass, false);
        if (n > 0)
            return n;
    }
    return keep_nucleus(s, gather(s, logits, s->n_blocks), max, mass, true);
}

static int32_t keep_likely(ssm_sampler *s, int32_t n, float min_p) {
    const float bound = max_entry(s, n) + logf(min_p);
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        const sampler_entry e = s->entries[i];
        s->entries[kept] = e;
        kept += e.logit >= bound;
    }
    return kept;
}

// ---- penalties, bias, bans

static float penalised(const ssm_sampling *p, const ssm_token_count *count, float logit) {
    if (count->in_prompt || count->generated > 0)
        logit = logit > 0 ? logit / p->repetition_penalty : logit * p->repetition_penalty;
    logit -= p->frequency_penalty * (float)count->generated;
    return count->generated > 0 ? logit - p->presence_penalty : logit;
}

static bool has_penalty(const ssm_sampling *p) {
    return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

static void apply_allowed(float *work, int32_t n, const float *from, const ssm_sampling *p) {
    for (int32_t i = 0; i < n; i++)
        work[i] = -INFINITY;
    for (int32_t i = 0; i < p->n_allowed; i++) {
        if ((uint32_t)p->allowed[i] < (uint32_t)n)
            work[p->allowed[i]] = from[p->allowed[i]];
    }
}

// The logits to draw from: the row itself if nothing changes it. Changes leave a new survey.
static const float *adjust(ssm_sampler *s, const float *logits, const ssm_sample *sample,
                           float *max) {
    const ssm_sampling *p = sample->params;
    const uint32_t n = (uint32_t)s->n;
    const bool penalise = sample->n_counts > 0 && has_penalty(p);
    if (!penalise && p->n_bias == 0 && p->n_allowed == 0 && sample->n_banned == 0)
        return logits;
    if (p->n_allowed > 0)
        apply_allowed(s->work, s->n, logits, p);
    else
        memcpy(s->work, logits, n * sizeof *s->work);
    for (int32_t i = 0; penalise && i < sample->n_counts; i++) {
        const uint32_t id = (uint32_t)sample->counts[i].id;
        if (id < n)
            s->work[id] = penalised(p, &sample->counts[i], s->work[id]);
    }
    for (int32_t i = 0; i < p->n_bias; i++) {
        if ((uint32_t)p->bias[i].id < n)
            s->work[p->bias[i].id] += p->bias[i].bias;
    }
    for (int32_t i = 0; i < sample->n_banned; i++) {
        if ((uint32_t)sample->banned[i] < n)
            s->work[sample->banned[i]] = -INFINITY;
    }
    *max = survey(s, s->work);
    return s->work;
}

// ---- the draw

static float inverse_temperature(const ssm_sampling *p) {
    return p->temperature > 1e-30f ? 1.0f / p->temperature : 1e30f;
}

static int32_t draw_from_all(ssm_sampler *s, const float *logits, float max, float scale,
                             double uniform) {
    double left = uniform * block_masses(s, logits, max, scale);
    int32_t b = 0;
    while (b < s->n_blocks - 1 && left >= s->block_mass[b])
        left -= s->block_mass[b++];
    while (s->block_mass[b] == 0) // rounding ran past the last block with mass
        b--;
    int32_t drawn = -1;
    const int32_t first = b * SAMPLER_BLOCK, end = first + block_len(s, b);
    for (int32_t i = first; i < end; i++) {
        const float weight = exp_of((logits[i] - max) * scale);
        if (weight == 0)
            continue;
        drawn = i;
        if (left < (double)weight)
            break;
        left -= (double)weight;
    }
    assert(drawn >= 0);
    return drawn;
}

static int32_t draw_from_entries(ssm_sampler *s, int32_t n, float scale, double uniform) {
    assert(n >= 1);
    const float max = max_entry(s, n);
    double total = 0;
    for (int32_t i = 0; i < n; i++) {
        s->picks[i].weight = exp_of((s->entries[i].logit - max) * scale);
        total += (double)s->picks[i].weight;
    }
    double left = uniform * total;
    int32_t drawn = -1;
    for (int32_t i = 0; i < n; i++) {
        if (s->picks[i].weight == 0)
            continue;
        drawn = s->entries[i].id;
        if (left < (double)s->picks[i].weight)
            break;
        left -= (double)s->picks[i].weight;
    }
    return drawn;
}

static int32_t filter(ssm_sampler *s, const float *logits, const ssm_sampling *p, float max) {
    const bool typical = p->typical_p < 1, nucleus = p->top_p < 1;
    int32_t n;
    bool nucleus_done = false;
    if (p->top_k > 0 && p->top_k < s->n) {
        n = keep_top(s, gather(s, logits, p->top_k), p->top_k);
    } else if (nucleus && !typical) {
        n = nucleus_of_all(s, logits, max, p->top_p);
        nucleus_done = true;
    } else {
        n = gather(s, logits, s->n_blocks);
    }
    if (typical)
        n = keep_typical(s, n, p->typical_p);
    if (nucleus && !nucleus_done) {
        const float shift = max_entry(s, n);
        n = keep_nucleus(s, n, shift, (double)p->top_p * weigh(s, n, shift), true);
    }
    return p->min_p > 0 ? keep_likely(s, n, p->min_p) : n;
}

static int32_t choose(ssm_sampler *s, const float *raw, const ssm_sample *sample, float max) {
    const ssm_sampling *p = sample->params;
    const float *logits = adjust(s, raw, sample, &max);
    if (!(max > -INFINITY) || max == INFINITY)
        return -1;
    if (!(p->temperature > 0))
        return find_lowest(s, logits, max);
    const double uniform = philox_uniform(sample->seed, sample->position);
    const float scale = inverse_temperature(p);
    const bool filters =
        (p->top_k > 0 && p->top_k < s->n) || p->typical_p < 1 || p->top_p < 1 || p->min_p > 0;
    if (!filters)
        return draw_from_all(s, logits, max, scale, uniform);
    return draw_from_entries(s, filter(s, logits, p, max), scale, uniform);
}

// ---- log-probabilities

static void list_top(ssm_sampler *s, const float *logits, double log_total, int32_t k,
                     ssm_sampled *out) {
    k = k < s->n ? k : s->n;
    const int32_t n = keep_top(s, gather(s, logits, k), k);
    for (int32_t i = 0; i < n; i++) { // in the order of ids, so that equal ones stay in it
        const sampler_entry e = s->entries[i];
        int32_t at = i;
        for (; at > 0 && s->picks[at - 1].key < e.logit; at--)
            s->picks[at] = s->picks[at - 1];
        s->picks[at] = (sampler_pick){e.logit, e.id, 0};
    }
    for (int32_t i = 0; i < n; i++) {
        out->top_ids[i] = s->picks[i].id;
        out->top_logprobs[i] = (float)((double)s->picks[i].key - log_total);
    }
    out->n_top = n;
}

void ssm_sampler_draw(ssm_sampler *s, const float *logits, const ssm_sample *sample,
                      ssm_sampled *out) {
    assert(sample->n_top <= SSM_MAX_LOGPROBS);
    out->token = -1;
    out->logprob = NAN;
    out->n_top = 0;
    if (!all_finite(logits, s->n))
        return;
    const float max = survey(s, logits);
    double log_total = 0;
    if (sample->n_top >= 0)
        log_total = (double)max + log(block_masses(s, logits, max, 1.0f));
    if (sample->n_top > 0)
        list_top(s, logits, log_total, sample->n_top, out);
    out->token = sample->target >= 0 ? sample->target : choose(s, logits, sample, max);
    if (sample->n_top >= 0 && out->token >= 0)
        out->logprob =
            out->token < s->n ? (float)((double)logits[out->token] - log_total) : -INFINITY;
}
