// SPDX-License-Identifier: Apache-2.0
// The sampler against a naive one in double that sorts everything, over random parameters; Philox
// against its published vectors; draws against their probabilities.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sampling/philox.h"
#include "kernels/sampling/sampler.h"
#include "tests/suite.h"

START_TEST(philox_gives_the_published_vectors) {
    const struct {
        uint32_t counter[4], key[2], out[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox4x32(vectors[i].counter, vectors[i].key, out);
        ck_assert_mem_eq(out, vectors[i].out, sizeof out);
    }
}
END_TEST

static void plain_params(ssm_sampling *p) {
    *p = (ssm_sampling){.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
}

// ---- the naive sampler

typedef struct naive {
    int32_t n; // of candidates, likeliest first
    int32_t *id;
    double *logit;
    double *p;
} naive;

static void sort_by(naive *c, const double *key) { // larger first, then lower id: insertion sort
    double *k = malloc((size_t)c->n * sizeof *k);
    for (int32_t i = 0; i < c->n; i++) {
        const int32_t id = c->id[i];
        const double logit = c->logit[i], this = key[i];
        int32_t at = i;
        for (; at > 0 && (k[at - 1] < this || (k[at - 1] == this && c->id[at - 1] > id)); at--) {
            k[at] = k[at - 1];
            c->id[at] = c->id[at - 1];
            c->logit[at] = c->logit[at - 1];
        }
        k[at] = this;
        c->id[at] = id;
        c->logit[at] = logit;
    }
    free(k);
}

static void softmax(naive *c, double temperature) {
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < c->n; i++)
        max = fmax(max, c->logit[i]);
    for (int32_t i = 0; i < c->n; i++)
        sum += c->p[i] = exp((c->logit[i] - max) / temperature);
    for (int32_t i = 0; i < c->n; i++)
        c->p[i] /= sum;
}

static void cut_at_mass(naive *c, double mass) {
    double sum = 0;
    int32_t n = 0;
    while (n < c->n && sum < mass)
        sum += c->p[n++];
    c->n = n > 0 ? n : 1;
}

static void naive_typical(naive *c, double mass) {
    double entropy = 0;
    softmax(c, 1);
    for (int32_t i = 0; i < c->n; i++)
        entropy -= c->p[i] > 0 ? c->p[i] * log(c->p[i]) : 0;
    double *key = malloc((size_t)c->n * sizeof *key);
    for (int32_t i = 0; i < c->n; i++)
        key[i] = -fabs(-log(c->p[i]) - entropy);
    sort_by(c, key);
    free(key);
    softmax(c, 1);
    cut_at_mass(c, mass);
    sort_by(c, c->logit);
}

static void naive_adjust(double *l, int32_t n, const float *logits, const ssm_sample *s) {
    const ssm_sampling *p = s->params;
    for (int32_t i = 0; i < n; i++)
        l[i] = p->n_allowed > 0 ? -INFINITY : (double)logits[i];
    for (int32_t i = 0; i < p->n_allowed; i++)
        l[p->allowed[i]] = (double)logits[p->allowed[i]];
    for (int32_t i = 0; i < s->n_counts; i++) {
        const ssm_token_count *c = &s->counts[i];
        double *x = &l[c->id];
        if (c->generated > 0 || c->in_prompt)
            *x = *x > 0 ? *x / (double)p->repetition_penalty : *x * (double)p->repetition_penalty;
        if (c->generated > 0)
            *x -= (double)p->presence_penalty + (double)p->frequency_penalty * c->generated;
    }
    for (int32_t i = 0; i < p->n_bias; i++)
        l[p->bias[i].id] += (double)p->bias[i].bias;
    for (int32_t i = 0; i < s->n_banned; i++)
        l[s->banned[i]] = -INFINITY;
}

static void naive_filter(naive *c, const ssm_sampling *p) {
    sort_by(c, c->logit);
    if (p->top_k > 0 && p->top_k < c->n)
        c->n = p->top_k;
    if (p->typical_p < 1)
        naive_typical(c, (double)p->typical_p);
    softmax(c, 1);
    if (p->top_p < 1) {
        cut_at_mass(c, (double)p->top_p);
        softmax(c, 1);
    }
    int32_t n = 0;
    while (n < c->n && c->p[n] >= (double)p->min_p * c->p[0])
        n++;
    c->n = n;
}

static int32_t naive_draw(const float *logits, int32_t n, const ssm_sample *s) {
    double *l = malloc((size_t)n * sizeof *l);
    naive c = {.id = malloc((size_t)n * sizeof *c.id),
               .logit = malloc((size_t)n * sizeof *c.logit),
               .p = malloc((size_t)n * sizeof *c.p)};
    naive_adjust(l, n, logits, s);
    for (int32_t i = 0; i < n; i++) {
        if (l[i] > -INFINITY) {
            c.id[c.n] = i;
            c.logit[c.n++] = l[i];
        }
    }
    int32_t drawn = -1;
    if (c.n > 0 && s->params->temperature == 0) {
        sort_by(&c, c.logit);
        drawn = c.id[0];
    } else if (c.n > 0) {
        naive_filter(&c, s->params);
        double *key = malloc((size_t)c.n * sizeof *key);
        for (int32_t i = 0; i < c.n; i++)
            key[i] = -c.id[i];
        sort_by(&c, key);
        free(key);
        softmax(&c, (double)s->params->temperature);
        double left = philox_uniform(s->seed, s->position);
        int32_t i = 0;
        while (i < c.n - 1 && left >= c.p[i])
            left -= c.p[i++];
        drawn = c.id[i];
    }
    free(l);
    free(c.id);
    free(c.logit);
    free(c.p);
    return drawn;
}

// ---- random cases

static uint64_t state = 1;
static double uniform(void) {
    return philox_uniform(42, state++);
}
static int32_t below(int32_t n) {
    return (int32_t)(uniform() * n);
}

static void random_logits(float *logits, int32_t n) {
    const double spread = 0.2 + 6 * uniform();
    const bool coarse = below(4) == 0; // many ties
    for (int32_t i = 0; i < n; i++) {
        const double u = uniform() + uniform() + uniform() + uniform() - 2;
        logits[i] = (float)(coarse ? round(u * spread) : u * spread);
    }
}

static void random_params(ssm_sampling *p, int32_t n) {
    plain_params(p);
    const float temperatures[] = {0, 0.2f, 0.7f, 1, 1.5f, 2};
    p->temperature = temperatures[below(6)];
    if (below(2))
        p->top_k = 1 + below(below(2) ? 50 : n + 5);
    if (below(2))
        p->top_p = below(8) == 0 ? 0 : (float)uniform();
    if (below(3) == 0)
        p->min_p = (float)(0.3 * uniform());
    if (below(3) == 0)
        p->typical_p = (float)(0.05 + 0.95 * uniform());
    if (below(2)) {
        p->repetition_penalty = (float)(0.7 + uniform());
        p->frequency_penalty = (float)(uniform() - 0.5);
        p->presence_penalty = (float)(uniform() - 0.5);
    }
}

START_TEST(draws_equal_the_naive_sampler) {
    const int32_t sizes[] = {1, 2, 17, 63, 64, 65, 300, 1024, 2500};
    for (int round = 0; round < 1500; round++) {
        const int32_t n = sizes[round % 9];
        float *logits = malloc((size_t)n * sizeof *logits);
        ssm_sampling params;
        ssm_logit_bias bias[3];
        ssm_token_count counts[8];
        int32_t allowed[40], banned[4];
        random_logits(logits, n);
        random_params(&params, n);
        ssm_sample s = {.slot = -1,
                        .target = -1,
                        .n_top = 0,
                        .params = &params,
                        .seed = (uint64_t)round * 977,
                        .position = (uint64_t)below(100)};
        params.bias = bias;
        params.n_bias = below(4);
        for (int i = 0; i < params.n_bias; i++)
            bias[i] = (ssm_logit_bias){below(n), (float)(4 * uniform() - 2)};
        params.allowed = allowed;
        params.n_allowed = below(5) == 0 ? 1 + below(40) : 0;
        for (int i = 0; i < params.n_allowed; i++)
            allowed[i] = below(n);
        s.banned = banned;
        s.n_banned = below(5);
        for (int i = 0; i < s.n_banned; i++)
            banned[i] = below(n);
        s.counts = counts;
        for (int i = 0; i < 8 && i < n; i++)
            counts[s.n_counts++] =
                (ssm_token_count){i * (n / 8 > 0 ? n / 8 : 1), below(4), below(2)};
        if (n < 8)
            s.n_counts = 1;
        ssm_sampler sampler;
        ssm_sampled out;
        ck_assert_int_eq(ssm_sampler_init(&sampler, n), 0);
        ssm_sampler_draw(&sampler, logits, &s, &out);
        ck_assert_msg(out.token == naive_draw(logits, n, &s), "round %d of %d ids", round, n);
        ssm_sampler_dispose(&sampler);
        free(logits);
    }
}
END_TEST

START_TEST(logprobs_are_of_the_raw_logits) {
    enum { N = 1000, K = 20 };
    float logits[N];
    random_logits(logits, N);
    logits[77] = logits[500] = 40; // a tie at the top
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += exp((double)logits[i] - 40);
    ssm_sampler sampler;
    ck_assert_int_eq(ssm_sampler_init(&sampler, N), 0);
    ssm_sampling params;
    plain_params(&params);
    params.temperature = 0.5f;
    params.top_k = 3;
    for (int32_t k = 0; k <= K; k++) {
        ssm_sampled out;
        const ssm_sample s = {.slot = -1, .target = 123, .n_top = k, .params = &params};
        ssm_sampler_draw(&sampler, logits, &s, &out);
        ck_assert_int_eq(out.token, 123);
        ck_assert(fabs((double)out.logprob - ((double)logits[123] - 40 - log(sum))) <= 1e-5);
        ck_assert_int_eq(out.n_top, k);
        for (int32_t i = 0; i < k; i++) {
            int before = 0; // ids that must be listed before this one
            const int32_t id = out.top_ids[i];
            for (int j = 0; j < N; j++)
                before += logits[j] > logits[id] || (logits[j] == logits[id] && j < id);
            ck_assert_int_eq(before, i);
            const double want = (double)logits[id] - 40 - log(sum);
            ck_assert(fabs((double)out.top_logprobs[i] - want) <= 1e-5);
        }
    }
    ssm_sampler_dispose(&sampler);
}
END_TEST

START_TEST(what_is_not_finite_draws_nothing) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        for (int at = 0; at < 70; at++) {
            float logits[71] = {0};
            logits[at] = bad[i];
            ssm_sampler sampler;
            ssm_sampling params;
            ssm_sampled out;
            plain_params(&params);
            ck_assert_int_eq(ssm_sampler_init(&sampler, 70), 0);
            const ssm_sample s = {.slot = -1, .target = -1, .n_top = 2, .params = &params};
            ssm_sampler_draw(&sampler, logits, &s, &out);
            ck_assert_int_eq(out.token, -1);
            ck_assert_int_eq(out.n_top, 0);
            ck_assert(isnan(out.logprob));
            ssm_sampler_dispose(&sampler);
        }
    }
}
END_TEST

START_TEST(nothing_allowed_draws_nothing) {
    const float logits[4] = {1, 2, 3, 4};
    const int32_t only = 2, past_the_limit = 3;
    ssm_sampler sampler;
    ssm_sampling params;
    ssm_sampled out;
    plain_params(&params);
    ck_assert_int_eq(ssm_sampler_init(&sampler, 3), 0);
    ssm_sample s = {.slot = -1, .target = -1, .n_top = 20, .params = &params};
    params.allowed = &only;
    params.n_allowed = 1;
    ssm_sampler_draw(&sampler, logits, &s, &out);
    ck_assert_int_eq(out.token, 2);
    ck_assert_int_eq(out.n_top, 3); // padding rows are not listed
    s.banned = &only;
    s.n_banned = 1;
    ssm_sampler_draw(&sampler, logits, &s, &out);
    ck_assert_int_eq(out.token, -1);
    params.allowed = &past_the_limit;
    ssm_sampler_draw(&sampler, logits, &s, &out);
    ck_assert_int_eq(out.token, -1);
    ssm_sampler_dispose(&sampler);
}
END_TEST

// Pearson's statistic of 20,000 draws by position against the softmax, with and without filters.
START_TEST(draws_follow_their_probabilities) {
    enum { N = 40, DRAWS = 20000 };
    float logits[N];
    for (int i = 0; i < N; i++)
        logits[i] = (float)(2 * sin(i * 1.7));
    for (int filters = 0; filters < 2; filters++) {
        ssm_sampler sampler;
        ssm_sampling params;
        plain_params(&params);
        params.temperature = 0.8f;
        params.top_k = filters ? 12 : 0;
        ck_assert_int_eq(ssm_sampler_init(&sampler, N), 0);
        int count[N] = {0};
        for (uint64_t i = 0; i < DRAWS; i++) {
            ssm_sampled out;
            const ssm_sample s = {
                .slot = -1, .target = -1, .n_top = -1, .params = &params, .seed = 7, .position = i};
            ssm_sampler_draw(&sampler, logits, &s, &out);
            count[out.token]++;
        }
        double p[N], sum = 0, chi = 0;
        int live = 0;
        for (int i = 0; i < N; i++) {
            int before = 0;
            for (int j = 0; j < N; j++)
                before += logits[j] > logits[i];
            p[i] = filters && before >= 12 ? 0 : exp((double)logits[i] / 0.8);
            sum += p[i];
        }
        for (int i = 0; i < N; i++) {
            const double expect = DRAWS * p[i] / sum;
            if (expect == 0) {
                ck_assert_int_eq(count[i], 0);
                continue;
            }
            live++;
            chi += (count[i] - expect) * (count[i] - expect) / expect;
        }
        // within 4 standard deviations of the mean of a chi-square of live - 1 degrees
        ck_assert_msg(fabs(chi - (live - 1)) <= 4 * sqrt(2.0 * (live - 1)), "chi-square %g", chi);
        ssm_sampler_dispose(&sampler);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("sampler");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, philox_gives_the_published_vectors);
    tcase_add_test(tc, draws_equal_the_naive_sampler);
    tcase_add_test(tc, logprobs_are_of_the_raw_logits);
    tcase_add_test(tc, what_is_not_finite_draws_nothing);
    tcase_add_test(tc, nothing_allowed_draws_nothing);
    tcase_add_test(tc, draws_follow_their_probabilities);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
