// SPDX-License-Identifier: Apache-2.0
// One sequence, cut and placed in every way, is the same sequence.
//
// A prompt whole, in chunks of 1, 3, 64, 1000 and off by one, beside other prompts in one plan, in
// slots that hold NaN from before: the same logits and the same state. CPU backends promise this
// bit for bit; a GPU promises it of the places, and of cuts and company only within rounding, since
// the number of token rows chooses its kernels (kernels/backend.h).
#include "golden.h"
#include "tests/suite.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int32_t chunks[] = {1, 2, 3, 63, 64, 65, 1000};
enum { N_CHUNKS = sizeof chunks / sizeof chunks[0], LENGTH = 130, LONG = 1100 };
#if defined(__SANITIZE_ADDRESS__)
enum { REFERENCE_STRIDE = 3 }; // its slow loops know no blocks: 1, 63 and 1000 reach all there is
#else
enum { REFERENCE_STRIDE = 1 };
#endif

// Every model once: long enough a prompt from its golden prompts, one after the other.
static int32_t *long_prompt(const golden *g, int32_t n) {
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    int32_t filled = 0;
    for (int i = 0; filled < n; i = (i + 1) % g->n_prompts) {
        for (int32_t k = 0; k < g->prompts[i].n_ids && filled < n; k++)
            ids[filled++] = g->prompts[i].ids[k];
    }
    return ids;
}

typedef struct result {
    float *all, *state; // [n][vocab]; canonical
} result;

static result run(runner *r, const int32_t *ids, int32_t n, int32_t chunk) {
    result out = {malloc((size_t)n * (size_t)r->vocab * sizeof(float)),
                  malloc(r->state_floats * sizeof(float))};
    runner_feed(r, 1, ids, n, chunk, true, out.all, NULL);
    runner_read(r, 1, out.state);
    return out;
}

static void result_dispose(result *x) {
    free(x->all);
    free(x->state);
}

// fp32 sums of up to a thousand terms in another order, through some layers of a trained model.
#define ROUNDING 1e-4

static bool is_same(const runner *r, const float *a, const float *b, size_t n) {
    if (strcmp(r->backend->name, "cuda") != 0)
        return memcmp(a, b, n * sizeof *a) == 0;
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double e = (double)a[i] - (double)b[i];
        difference += e * e;
        norm += (double)b[i] * (double)b[i];
    }
    return difference <= ROUNDING * ROUNDING * norm; // not for NaN
}

static void check_same(const result *a, const result *b, int32_t n, const runner *r,
                       const char *folder, int32_t chunk) {
    if (!r->same_bits) {
        const double off = max_difference(a->all, b->all, (size_t)n * (size_t)r->vocab);
        const double moved = max_difference(a->state, b->state, r->state_floats);
        ck_assert_msg(off <= 1e-3 && moved <= 1e-3, "%s: off by %g, state by %g with chunks of %d",
                      folder, off, moved, chunk);
        return;
    }
    ck_assert_msg(is_same(r, a->all, b->all, (size_t)n * (size_t)r->vocab),
                  "%s: logits change with chunks of %d", folder, chunk);
    ck_assert_msg(is_same(r, a->state, b->state, r->state_floats),
                  "%s: the state changes with chunks of %d", folder, chunk);
}

// In one assertion: Check writes a record of each, which takes longer than the arithmetic.
static bool are_finite(const float *x, size_t n) {
    size_t i = 0;
    while (i < n && isfinite(x[i]))
        i++;
    return i == n;
}

static const golden_model *model_at(int i) {
    return i < golden_n_trained ? &golden_trained[i] : &golden_odd[i - golden_n_trained];
}

START_TEST(chunks_agree) {
    const golden_model *m = model_at(_i / golden_n_backends);
    golden g;
    runner r;
    golden_open(&g, m->folder);
    runner_open(&r, golden_backends[_i % golden_n_backends], ssm_model_weights(g.model));
    // Every chunk size is cut somewhere; past 1,000 tokens only where that is cheap.
    const bool small = ssm_model_get_info(g.model)->d_model <= 24;
    const int32_t n = ssm_model_get_info(g.model)->d_model > 128 ? 70 : small ? LONG : LENGTH;
    int32_t *ids = long_prompt(&g, n);
    result whole = run(&r, ids, n, 0);
    ck_assert(are_finite(whole.all, (size_t)n * (size_t)r.vocab));
    const int stride = strcmp(r.backend->name, "reference") == 0 ? REFERENCE_STRIDE : 1;
    for (int i = 0; i < N_CHUNKS; i += stride) {
        result cut = run(&r, ids, n, chunks[i]);
        check_same(&cut, &whole, n, &r, m->folder, chunks[i]);
        result_dispose(&cut);
    }
    result_dispose(&whole);
    free(ids);
    runner_close(&r);
    golden_close(&g);
}
END_TEST

// ---- company

enum { PROMPTS = 9, ROWS = PROMPTS };

// All prompts in one plan, a slot each, those slots poisoned before.
static void feed_together(runner *r, const golden *g, int32_t n_prompts) {
    int32_t ids[4096];
    ssm_segment segments[PROMPTS];
    int32_t n = 0;
    for (int32_t i = 0; i < n_prompts; i++) {
        const golden_prompt *p = &g->prompts[i];
        const int32_t count = p->n_ids < 50 ? p->n_ids : 50;
        segments[i] = (ssm_segment){
            .slot = PROMPTS - i, .first = n, .count = count, .fresh = true, .want = SSM_WANT_LAST};
        memcpy(ids + n, p->ids, (size_t)count * sizeof *ids);
        n += count;
        runner_poison(r, PROMPTS - i);
    }
    ssm_error err = {0};
    const ssm_plan plan = {ids, n, segments, n_prompts};
    ck_assert_int_le(n, r->max_tokens);
    ck_assert_msg(r->backend->step(r->device, &plan, &err) == 0, "%s", err.message);
}

// Then each alone, in a slot of its own.
START_TEST(company_does_not_matter) {
    const golden_model *m = model_at(_i / golden_n_backends);
    golden g;
    runner r;
    golden_open(&g, m->folder);
    runner_open(&r, golden_backends[_i % golden_n_backends], ssm_model_weights(g.model));
    const int32_t n = g.n_prompts < PROMPTS ? g.n_prompts : PROMPTS;
    const size_t vocab = (size_t)r.vocab;
    float *together = malloc(PROMPTS * vocab * sizeof(float)),
          *alone = malloc(vocab * sizeof(float));
    float *states[2] = {malloc(r.state_floats * sizeof(float)),
                        malloc(r.state_floats * sizeof(float))};
    ssm_error err = {0};
    feed_together(&r, &g, n);
    for (int32_t i = 0; i < n; i++)
        ck_assert_int_eq(r.backend->logits_read(r.device, i, together + (size_t)i * vocab, &err),
                         0);
    for (int32_t i = 0; i < n; i++) {
        const golden_prompt *p = &g.prompts[i];
        runner_feed(&r, 0, p->ids, p->n_ids < 50 ? p->n_ids : 50, 0, true, NULL, alone);
        ck_assert_msg(is_same(&r, alone, together + (size_t)i * vocab, vocab),
                      "%s: prompt %d answers differently in company", m->folder, i);
        runner_read(&r, 0, states[0]);
        runner_read(&r, PROMPTS - i, states[1]);
        ck_assert(is_same(&r, states[0], states[1], r.state_floats));
    }
    free(together);
    free(alone);
    free(states[0]);
    free(states[1]);
    runner_close(&r);
    golden_close(&g);
}
END_TEST

// ---- prompts shorter than the convolution, over slots full of NaN

START_TEST(short_prompts_in_poisoned_slots) {
    const golden_model *m = model_at(_i / golden_n_backends);
    golden g;
    runner r;
    golden_open(&g, m->folder);
    runner_open(&r, golden_backends[_i % golden_n_backends], ssm_model_weights(g.model));
    const ssm_geometry *geometry = &ssm_model_weights(g.model)->geometry;
    int32_t *ids = long_prompt(&g, 4);
    for (int32_t n = 1; n <= 4; n++) {
        for (int32_t slot = 0; slot < RUNNER_SLOTS; slot++)
            runner_poison(&r, slot);
        result whole = run(&r, ids, n, 0), cut = run(&r, ids, n, 1);
        check_same(&cut, &whole, n, &r, m->folder, 1);
        ck_assert(are_finite(whole.state, r.state_floats));
        // Channels of the convolution hold zeros where no token has been yet; H3's shift SSM, which
        // stands in its place, has a B for every number.
        const bool has_tail = geometry->kind != SSM_BLOCK_H3;
        for (int32_t k = 0; has_tail && k < geometry->d_conv - 1 - n; k++)
            ck_assert_msg(whole.state[k] == 0, "%s: a state of %d tokens begins with %g", m->folder,
                          n, (double)whole.state[k]);
        result_dispose(&whole);
        result_dispose(&cut);
    }
    free(ids);
    runner_close(&r);
    golden_close(&g);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("golden chunks");
    TCase *tc = tcase_create("models");
    const int n = (golden_n_trained + golden_n_odd) * golden_n_backends;
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, chunks_agree, 0, n);
    tcase_add_loop_test(tc, company_does_not_matter, 0, n);
    tcase_add_loop_test(tc, short_prompts_in_poisoned_slots, 0, n);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
