// SPDX-License-Identifier: Apache-2.0
// Draws: the reference sampler's, and the same from steps that run ahead of the host.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

static void random_logits(float *logits, int32_t n) {
    const double spread = 0.2 + 6 * random_number();
    const bool coarse = below(4) == 0;
    for (int32_t i = 0; i < n; i++) {
        double u = -2;
        for (int k = 0; k < 4; k++)
            u += random_number();
        logits[i] = (float)(coarse ? round(u * spread) : u * spread);
    }
}

static void random_sampling(ssm_sampling *p, int32_t n) {
    const float temperatures[] = {0, 0.2f, 0.7f, 1, 1.5f, 2};
    *p = (ssm_sampling){
        .temperature = temperatures[below(6)], .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    if (below(2))
        p->top_k = 1 + below(below(2) ? 50 : n + 5);
    if (below(2))
        p->top_p = below(8) == 0 ? 0 : (float)random_number();
    if (below(3) == 0)
        p->min_p = (float)(0.3 * random_number());
    if (below(4) == 0)
        p->typical_p = (float)(0.05 + 0.95 * random_number());
    if (below(2)) {
        p->repetition_penalty = (float)(0.7 + random_number());
        p->frequency_penalty = (float)(random_number() - 0.5);
        p->presence_penalty = (float)(random_number() - 0.5);
    }
}

enum { LISTS = 24 };
typedef struct wish { // one sample's parameters and lists
    ssm_sampling params;
    ssm_logit_bias bias[LISTS];
    int32_t banned[LISTS], allowed[LISTS];
    ssm_token_count counts[LISTS];
} wish;

static void random_sample(ssm_sample *s, wish *w, int32_t row, int32_t vocab) {
    random_sampling(&w->params, vocab);
    *s = (ssm_sample){.row = row,
                      .slot = row % SLOTS,
                      .target = below(6) == 0 ? below(vocab) : -1,
                      .n_top = below(SSM_MAX_LOGPROBS + 2) - 1,
                      .seed = (uint64_t)below(1 << 30) << 31 | (uint64_t)below(1 << 30),
                      .position = (uint64_t)below(1000),
                      .params = &w->params,
                      .banned = w->banned,
                      .counts = w->counts};
    w->params.bias = w->bias, w->params.allowed = w->allowed;
    w->params.n_bias = below(2) ? below(LISTS) : 0;
    w->params.n_allowed = below(6) == 0 ? 1 + below(LISTS - 1) : 0;
    s->n_banned = below(2) ? below(LISTS) : 0;
    s->n_counts = below(2) ? LISTS : 0;
    for (int i = 0; i < LISTS; i++) {
        w->bias[i] = (ssm_logit_bias){below(vocab), (float)(4 * random_number() - 2)};
        w->banned[i] = below(vocab);
        w->allowed[i] = below(vocab);
        w->counts[i] = (ssm_token_count){i * (vocab / LISTS), below(4), below(2)};
    }
}

static bool same_draw(const ssm_sampled *a, const ssm_sampled *b) {
    bool same = a->token == b->token && a->n_top == b->n_top &&
                (fabs((double)a->logprob - (double)b->logprob) <= 1e-4 ||
                 (isnan(a->logprob) && isnan(b->logprob)) || a->logprob == b->logprob);
    for (int i = 0; i < a->n_top && same; i++)
        same = a->top_ids[i] == b->top_ids[i] &&
               fabs((double)a->top_logprobs[i] - (double)b->top_logprobs[i]) <= 1e-4;
    return same;
}

// Where the two sums differ by rounding, a draw at a boundary may fall on either side: one in
// hundreds is allowed to.
START_TEST(draws_are_the_reference_samplers) {
    pair p;
    ssm_error err = {0};
    pair_open(&p, _i, 0);
    int different = 0, drawn = 0;
    for (int round = 0; round < 6; round++) {
        static wish wishes[ROWS];
        ssm_sample samples[ROWS];
        static ssm_sampled a[ROWS], b[ROWS];
        const int32_t n = round == 0 ? 1 : 1 + below(ROWS);
        float *logits = malloc((size_t)p.cuda.vocab * sizeof *logits);
        for (int32_t i = 0; i < n; i++) {
            random_logits(logits, p.cuda.vocab);
            if (below(30) == 0)
                logits[below(p.cuda.vocab)] = NAN;
            must(p.cuda.b->logits_write(p.cuda.d, i, logits, &err), &err);
            must(p.reference.b->logits_write(p.reference.d, i, logits, &err), &err);
            random_sample(&samples[i], &wishes[i], i, p.cuda.vocab);
        }
        must(p.cuda.b->sample(p.cuda.d, samples, n, &err), &err);
        must(p.reference.b->sample(p.reference.d, samples, n, &err), &err);
        must(p.cuda.b->collect(p.cuda.d, a, n, &err), &err);
        must(p.reference.b->collect(p.reference.d, b, n, &err), &err);
        for (int32_t i = 0; i < n; i++, drawn++) {
            if (same_draw(&a[i], &b[i]))
                continue;
            const ssm_sampling *w = &wishes[i].params;
            printf(
                "  draw differs: %d (%g) for %d (%g), top %d for %d: t %g k %d p %g m %g typ %g\n",
                a[i].token, (double)a[i].logprob, b[i].token, (double)b[i].logprob, a[i].n_top,
                b[i].n_top, (double)w->temperature, w->top_k, (double)w->top_p, (double)w->min_p,
                (double)w->typical_p);
            different++;
        }
        free(logits);
    }
    ck_assert_msg(different * 200 <= drawn + 199, "%s: %d of %d draws differ", p.what, different,
                  drawn);
    pair_close(&p);
}
END_TEST

// Several steps ahead of the host, each fed by what the one before drew, are the same steps.
START_TEST(running_ahead_draws_the_same) {
    small_model m;
    rig r;
    ssm_error err = {0};
    enum { N = 5, STEPS = 12 };
    int32_t ids[2][STEPS][N];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 6);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    const ssm_sampling params = {
        .temperature = 1, .top_p = 0.95f, .typical_p = 1, .repetition_penalty = 1};
    for (int ahead = 0; ahead < 2; ahead++) {
        int32_t tokens[N], collected = 0;
        for (int step = 0; step < STEPS; step++) {
            ssm_segment segments[N];
            ssm_sample samples[N];
            ssm_sampled out[N];
            for (int i = 0; i < N; i++) {
                if (step == 0)
                    tokens[i] = 10 + i;
                else
                    tokens[i] = ahead ? SSM_TOKEN_SAMPLED : ids[0][step - 1][i];
                segments[i] = (ssm_segment){7 * i + ahead, i, 1, step == 0, SSM_WANT_LAST};
                samples[i] = (ssm_sample){.row = i,
                                          .slot = segments[i].slot,
                                          .target = -1,
                                          .n_top = -1,
                                          .seed = 100 + (uint64_t)i,
                                          .position = (uint64_t)step,
                                          .params = &params};
            }
            rig_step(&r, tokens, segments, N);
            must(r.b->sample(r.d, samples, N, &err), &err);
            if (ahead && step < 2)
                continue;
            must(r.b->collect(r.d, out, N, &err), &err);
            for (int i = 0; i < N; i++)
                ids[ahead][collected][i] = out[i].token;
            collected++;
        }
        for (; collected < STEPS; collected++) {
            ssm_sampled out[N];
            must(r.b->collect(r.d, out, N, &err), &err);
            for (int i = 0; i < N; i++)
                ids[ahead][collected][i] = out[i].token;
        }
    }
    ck_assert_int_eq(memcmp(ids[0], ids[1], sizeof ids[0]), 0);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void sampling_tests(TCase *tc, cuda_part part) {
    if (part == PART_QUICK)
        tcase_add_loop_test(tc, draws_are_the_reference_samplers, 1, 2);
    if (part == PART_ALL)
        tcase_add_loop_test(tc, draws_are_the_reference_samplers, 0, 4);
    if (part == PART_ALL || part == PART_FEW)
        tcase_add_loop_test(tc, running_ahead_draws_the_same, 0, N_SHAPES);
}
