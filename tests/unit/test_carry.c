// SPDX-License-Identifier: Apache-2.0
// A session that one backend made goes on at another: the file is the same form, the next turn's
// logprobs are the ones of a session that never moved, within the backends' tolerance.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "support/consumer.h"
#include "tests/suite.h"

enum { ANSWER = 24 };

static const uint64_t owner[2] = {3, 4};

static void open_engine(const ssm_model *model, const char *device, consumer *con) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.device = device;
    o.max_sessions = 2;
    const int rc = ssm_engine_create(model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    consumer_init(con, engine);
}

static void turn(consumer *con, const char *name, const int32_t *tokens, size_t n, waiter *w) {
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = tokens;
    r.n_prompt = n;
    r.max_tokens = ANSWER;
    r.logprobs = 0;
    r.ignore_eos = true;
    r.session = name;
    memcpy(r.session_owner, owner, sizeof owner);
    consumer_run(con, w, &r);
}

// Greedy answers part at near ties: logprobs are compared up to there.
static int compare(const answer *a, const answer *b, double tolerance) {
    int same = 0;
    while (same < ANSWER && a->tokens[same] == b->tokens[same]) {
        const double off = fabs((double)a->logprobs[same] - (double)b->logprobs[same]);
        ck_assert_msg(off <= tolerance, "token %d: %g", same, off);
        same++;
    }
    return same;
}

static const struct {
    const char *model;
    double tolerance;
} models[] = {{"copying-mamba", 5e-3}, {"shakespeare-mamba2", 1e-3}};
#if defined(__SANITIZE_THREAD__)
enum { N_MODELS = 1 }; // the second is a minute of the reference's arithmetic
#else
enum { N_MODELS = 2 };
#endif

// The table's models, from the reference to the CPU's backend and the other way.
START_TEST(a_session_goes_on_at_another_backend) {
    static const char *const devices[] = {"reference", "cpu"};
    const int from = _i % 2;
    consumer here, there;
    waiter w, moved, stayed;
    ssm_model *model;
    int32_t tokens[150];
    uint8_t *bytes;
    size_t size;
    char path[512];
    snprintf(path, sizeof path, SSM_TEST_DATA "/models/%s", models[_i / 2].model);
    ck_assert_int_eq(ssm_model_open(path, &model, NULL), 0);
    for (size_t i = 0; i < 150; i++)
        tokens[i] = 1 + (int32_t)(i * i * 7 % 13);
    open_engine(model, devices[from], &here);
    open_engine(model, devices[!from], &there);
    turn(&here, "s", tokens, 120, &w);
    waiter_dispose(&w);
    ck_assert_int_eq(ssm_session_export_bytes(here.engine, owner, "s", &bytes, &size, NULL), 0);
    ck_assert_int_eq(ssm_session_import_bytes(there.engine, owner, "s", bytes, size, NULL, NULL),
                     0);
    turn(&here, "s", tokens + 120, 30, &stayed);
    turn(&there, "s", tokens + 120, 30, &moved);
    ck_assert_uint_ge(moved.usage.cached_tokens, 120);
    ck_assert_int_ge(compare(&stayed.choices[0], &moved.choices[0], models[_i / 2].tolerance), 4);
    free(bytes);
    waiter_dispose(&stayed);
    waiter_dispose(&moved);
    consumer_dispose(&here);
    consumer_dispose(&there);
    ssm_engine_free(here.engine);
    ssm_engine_free(there.engine);
    ssm_model_free(model);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("carry");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_session_goes_on_at_another_backend, 0, 2 * N_MODELS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
