// SPDX-License-Identifier: Apache-2.0
// Random requests through a whole engine on one device: prompts that begin alike, choices that fork
// (n > 1), sessions that go on turn after turn, cancellations, saved states on the device and in
// the host's memory, all in company. Each request runs alone as well, on an engine of one slot
// without saved states, and must come to the same answer.
//
// What "the same" is depends on the device. A CPU's kernels give equal bits whatever the company.
// But LTI models' prompts run as convolutions where that is faster, and where they are cut is a
// matter of what else is in the step: their rounding is fp32's.
// A GPU's products are chosen by the number of rows in a step, so the order of their sums differs
// with it: with fp32 weights logprobs differ by less than 2e-4; with bf16 an activation now and
// then rounds the other way (2^-9 of itself), which at these models' logits comes to some
// hundredths. A token may differ only where the two likeliest were closer than that; then the two
// texts are different ones and are compared no further.
//
// SSM_TEST_DEVICE=cuda SSM_TEST_TRAFFIC=2500 is what gpu_check.sh runs, 12,500 requests (without
// a GPU the test runs on the CPU, 30 requests a model). Sanitizers look at the engine, whose
// threads and memory are the same for every model: TSan has the small models alone, ASan all but
// bf16's forms and the dense one, which test_backend and test_lti have.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "support/consumer.h"
#include "tests/suite.h"

enum { BASES = 4, LONGEST = 300, WINDOW = 48, NAMES = 20, TURNS_TEXT = 4096 };

typedef enum place { EVERYWHERE, NOT_TSAN, PLAIN } place; // sanitizers, that is

typedef struct form {
    const char *path;
    ssm_dtype weights;
    float tolerance; // of a logprob, where the device is no CPU
    bool is_lti;     // there too: a prompt runs as convolutions, cut where others leave it room
    place where;
} form;

typedef struct talk { // a session's text so far
    int32_t text[TURNS_TEXT];
    size_t n;
    bool is_busy;
} talk;

typedef struct visit {
    waiter company, alone;
    int32_t n; // choices
    int talk;  // -1: no session
    bool is_open, is_cancelled;
} visit;

typedef struct tally {
    int answers, cancelled, turns, near_ties, tokens;
    float worst;
} tally;

static ssm_model *model;
static consumer con, plain;
static int32_t vocab, bases[BASES][LONGEST];
static talk talks[NAMES];
static tally seen;
static float tolerance; // 0: equal bits
static uint32_t seed;

static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 4) * below >> 28);
}

static const char *device_name(void) {
    const char *name = getenv("SSM_TEST_DEVICE");
    return name ? name : "cpu";
}

static int n_requests(void) {
    const char *text = getenv("SSM_TEST_TRAFFIC");
    return text ? atoi(text) : 30;
}

static ssm_engine *open_engine(ssm_dtype weights, bool company) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    const int64_t state = (int64_t)ssm_model_get_info(model)->saved_bytes;
    o.device = device_name();
    o.weight_dtype = weights;
    o.max_sessions = company ? 24 : 1;
    o.threads = 1;
    o.cache_bytes = company ? 12 * state : 0;
    o.cache_host_bytes = company ? (uint64_t)(20 * state) : 0;
    o.checkpoint_tokens = 64;
    o.chunk_tokens = company ? 96 : 0;
    o.poison_slots = true;
    const int rc = ssm_engine_create(model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s: %s", o.device, rc ? err.message : "");
    return engine;
}

// ---- a request, twice

static size_t random_prompt(int32_t *out, uint32_t most) {
    const size_t n = 1 + draw(draw(3) ? most / 8 : most),
                 same = draw(3) ? n : draw((uint32_t)n + 1);
    const int32_t *base = bases[draw(BASES)];
    for (size_t i = 0; i < n; i++)
        out[i] = i < same ? base[i] : 1 + (int32_t)draw((uint32_t)vocab - 1);
    return n;
}

// By name in company, the whole text so far alone.
static void take_turn(ssm_request *r, ssm_request *whole, int k) {
    talk *t = &talks[k];
    static char names[NAMES][8];
    snprintf(names[k], sizeof names[k], "s%d", k);
    t->is_busy = true;
    memcpy(t->text + t->n, r->prompt, r->n_prompt * sizeof *t->text);
    t->n += r->n_prompt;
    r->session = names[k];
    r->n = whole->n = 1;
    whole->prompt = t->text;
    whole->n_prompt = t->n;
}

static void submit(visit *v) {
    int32_t prompt[LONGEST];
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = random_prompt(prompt, LONGEST);
    r.n = draw(6) ? 1 : 2 + (int32_t)draw(4);
    r.max_tokens = 1 + draw(12);
    r.logprobs = 2;
    r.ignore_eos = true;
    ssm_request whole = r;
    whole.cache_prompt = false;
    const int k = (int)draw(2 * NAMES);
    v->talk = k < NAMES && !talks[k].is_busy && talks[k].n + LONGEST + 16 < TURNS_TEXT ? k : -1;
    if (v->talk >= 0)
        take_turn(&r, &whole, v->talk);
    v->n = r.n;
    v->is_open = true;
    v->is_cancelled = v->talk < 0 && draw(10) == 0; // an aborted turn would leave its session
    ck_assert_int_eq(consumer_submit(&con, &v->company, &r), 0);
    ck_assert_int_eq(consumer_submit(&plain, &v->alone, &whole), 0);
    if (v->is_cancelled)
        ssm_engine_cancel(con.engine, v->company.id, draw(2) ? -1 : 0);
}

// ---- comparing

static void compare(const answer *a, const answer *b, int32_t n) {
    ck_assert_int_le(n, a->n);
    ck_assert_int_le(n, b->n);
    for (int32_t i = 0; i < n; i++) {
        if (a->tokens[i] != b->tokens[i]) {
            ck_assert_msg(a->gaps[i] < 2 * tolerance && b->gaps[i] < 2 * tolerance,
                          "token %d: %d leads by %g, alone %d by %g", i, a->tokens[i],
                          (double)a->gaps[i], b->tokens[i], (double)b->gaps[i]);
            seen.near_ties++;
            return;
        }
        const float apart = fabsf(a->logprobs[i] - b->logprobs[i]);
        ck_assert_msg(apart <= tolerance, "token %d: %.9g, alone %.9g", i, (double)a->logprobs[i],
                      (double)b->logprobs[i]);
        seen.worst = apart > seen.worst ? apart : seen.worst;
        seen.tokens++;
    }
}

static void finish(visit *v) {
    while (!v->company.dones)
        consumer_take(&con);
    while (!v->alone.dones)
        consumer_take(&plain);
    ck_assert_msg(v->company.error == 0, "%s", v->company.message);
    ck_assert_msg(v->alone.error == 0, "%s", v->alone.message);
    for (int32_t i = 0; i < v->n; i++) {
        const answer *a = &v->company.choices[i], *b = &v->alone.choices[i];
        ck_assert_int_eq(b->finish, SSM_FINISH_LENGTH);
        ck_assert(v->is_cancelled || (a->finish == SSM_FINISH_LENGTH && a->n == b->n));
        compare(a, b, a->n < b->n ? a->n : b->n);
        seen.answers++;
    }
    seen.cancelled += v->is_cancelled;
    if (v->talk >= 0) { // what the session holds is what was said in company
        talk *t = &talks[v->talk];
        const answer *a = &v->company.choices[0];
        memcpy(t->text + t->n, a->tokens, (size_t)a->n * sizeof *a->tokens);
        t->n += (size_t)a->n;
        t->is_busy = false;
        seen.turns++;
    }
    waiter_dispose(&v->company);
    waiter_dispose(&v->alone);
    v->is_open = false;
}

static void run_traffic(const form *f) {
    static visit visits[WINDOW];
    ssm_error err;
    const int rc = ssm_model_open(f->path, &model, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    vocab = ssm_model_get_info(model)->vocab_size;
    tolerance = strcmp(device_name(), "cpu") == 0 && !f->is_lti ? 0 : f->tolerance;
    memset(visits, 0, sizeof visits);
    memset(talks, 0, sizeof talks);
    seen = (tally){0};
    consumer_init(&con, open_engine(f->weights, true));
    consumer_init(&plain, open_engine(f->weights, false));
    for (int k = 0; k < BASES; k++) {
        for (int i = 0; i < LONGEST; i++)
            bases[k][i] =
                k > 0 && i < 70 * k ? bases[0][i] : 1 + (int32_t)draw((uint32_t)vocab - 1);
    }
    for (int i = 0; i < n_requests(); i++) {
        visit *v = &visits[draw(WINDOW)];
        if (v->is_open)
            finish(v);
        submit(v);
    }
    for (int i = 0; i < WINDOW; i++) {
        if (visits[i].is_open)
            finish(&visits[i]);
    }
    ssm_stats stats;
    ssm_engine_get_stats(con.engine, &stats);
    printf("%s, %s, %s: %d answers as alone, %d tokens, %d turns of sessions, %d cancelled, %d "
           "near ties, "
           "worst logprob %.2g; %llu of %llu prompt tokens from saved states\n",
           strrchr(f->path, '/') + 1, ssm_dtype_name(f->weights), device_name(), seen.answers,
           seen.tokens, seen.turns, seen.cancelled, seen.near_ties, (double)seen.worst,
           (unsigned long long)stats.cached_tokens,
           (unsigned long long)(stats.cached_tokens + stats.prompt_tokens));
    fflush(stdout);
    ck_assert_int_gt(seen.turns, n_requests() / 20);
    ck_assert_int_lt(seen.near_ties, 1 + seen.answers / 20);
    ck_assert_uint_gt(stats.cached_tokens, 0);
    ck_assert_uint_gt(stats.cache[SSM_TIER_HOST].moves, 0); // states went to the host and came back
    consumer_dispose(&con);
    consumer_dispose(&plain);
    ssm_engine_free(con.engine);
    ssm_engine_free(plain.engine);
    ssm_model_free(model);
}

#define MODELS SSM_TEST_DATA "/models/"

static const form forms[] = {
    {SSM_DEMO_MODEL, SSM_DTYPE_F32, 2e-4F, false, NOT_TSAN},
    {MODELS "shakespeare-mamba2", SSM_DTYPE_F32, 2e-4F, false, NOT_TSAN},
    {MODELS "copying-mamba", SSM_DTYPE_AUTO, 2e-3F, false, EVERYWHERE}, // f32; logits reach 46
    {SSM_DEMO_MODEL, SSM_DTYPE_BF16, 0.1F, false, PLAIN},
    {MODELS "shakespeare-mamba2", SSM_DTYPE_BF16, 0.1F, false, PLAIN},
    {MODELS "shakespeare-s4d", SSM_DTYPE_F32, 2e-4F, true, NOT_TSAN},
    {MODELS "copying-s4d", SSM_DTYPE_AUTO, 4e-3F, true, EVERYWHERE}, // twice fp32's own error
    {MODELS "copying-lssl", SSM_DTYPE_AUTO, 4e-3F, true, PLAIN},
    {MODELS "induction-h3", SSM_DTYPE_AUTO, 4e-3F, true, EVERYWHERE},
};

#if defined(__SANITIZE_THREAD__)
static const place here = EVERYWHERE;
#elif defined(__SANITIZE_ADDRESS__)
static const place here = NOT_TSAN;
#else
static const place here = PLAIN;
#endif

START_TEST(every_answer_is_the_one_of_the_request_alone) {
    if (forms[_i].where > here)
        return;
    seed = 1 + (uint32_t)_i;
    run_traffic(&forms[_i]);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("device_traffic");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, every_answer_is_the_one_of_the_request_alone, 0,
                        sizeof forms / sizeof forms[0]);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
