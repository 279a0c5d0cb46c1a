// SPDX-License-Identifier: Apache-2.0
// Limits of sessions: one too many is refused before it runs, whichever way it comes; what is
// deleted or too old makes room; other owners' sessions do not count.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "support/consumer.h"
#include "tests/suite.h"

static ssm_model *model;
static consumer con;
static ssm_engine_options options;

static void begin(void) {
    ck_assert_int_eq(ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, NULL), 0);
    ssm_engine_options_init(&options);
    options.device = "cpu";
    options.max_sessions = 4;
    options.threads = 1;
}

static void open_engine(void) {
    ssm_engine *engine;
    ssm_error err;
    const int rc = ssm_engine_create(model, &options, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    consumer_init(&con, engine);
}

static void end(void) {
    consumer_dispose(&con);
    ssm_engine_free(con.engine);
    ssm_model_free(model);
}

static int turn(uint64_t key, const char *name) {
    static const int32_t prompt[] = {1, 2, 3};
    waiter w;
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = 3;
    r.max_tokens = 2;
    r.session = name;
    r.session_owner[0] = key;
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    consumer_take_all(&con);
    const int rc = w.error;
    ck_assert_int_eq(w.dones, 1);
    ck_assert(rc == 0 || (w.message[0] && w.choices[0].n == 0));
    waiter_dispose(&w);
    return rc;
}

static ssm_stats stats_now(void) {
    ssm_stats s;
    ssm_engine_get_stats(con.engine, &s);
    return s;
}

// By count, and by as many bytes.
START_TEST(one_too_many_is_refused) {
    const uint64_t own[2] = {1, 0}, other[2] = {2, 0};
    uint8_t *bytes;
    size_t size;
    begin();
    const uint64_t each = ssm_model_get_info(model)->state_bytes;
    options.session_max = _i == 0 ? 5 : 0;
    options.session_key_max = _i == 0 ? 3 : 0;
    options.session_max_bytes = _i == 0 ? 0 : 5 * each + 1;
    options.session_key_max_bytes = _i == 0 ? 0 : 4 * each - 1;
    open_engine();
    ck_assert_int_eq(turn(1, "a"), 0);
    ck_assert_int_eq(turn(1, "b"), 0);
    ck_assert_int_eq(turn(1, "c"), 0);
    ck_assert_int_eq(turn(1, "d"), SSM_EQUOTA);
    ck_assert_int_eq(turn(1, "a"), 0); // those that are there go on
    ck_assert_int_eq(ssm_session_fork(con.engine, own, "a", "d", NULL, NULL), SSM_EQUOTA);
    ck_assert_int_eq(ssm_session_export_bytes(con.engine, own, "a", &bytes, &size, NULL), 0);
    ck_assert_int_eq(ssm_session_import_bytes(con.engine, own, "d", bytes, size, NULL, NULL),
                     SSM_EQUOTA);
    ck_assert_int_eq(ssm_session_import_bytes(con.engine, own, "b", bytes, size, NULL, NULL), 0);
    free(bytes);
    ck_assert_int_eq(turn(2, "a"), 0);
    ck_assert_int_eq(turn(2, "b"), 0);
    ck_assert_int_eq(turn(2, "c"), SSM_EQUOTA); // the fifth and sixth in all
    ck_assert_uint_eq(stats_now().sessions, 5);
    ck_assert_uint_eq(stats_now().session_refusals, 4);
    ck_assert_int_eq(ssm_session_delete(con.engine, own, "c", NULL), 0);
    ck_assert_int_eq(turn(2, "c"), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, other, "c", NULL), 0);
    ck_assert_int_eq(turn(1, "d"), 0);
    end();
}
END_TEST

START_TEST(what_is_too_old_goes) {
    const uint64_t own[2] = {1, 0};
    begin();
    options.session_ttl = 1;
    open_engine();
    ck_assert_int_eq(turn(1, "old"), 0);
    ck_assert_int_eq(turn(1, "used"), 0);
    for (int i = 0; ssm_session_get(con.engine, own, "old", NULL, NULL) == 0; i++) {
        ck_assert_int_lt(i, 300);
        ck_assert_int_eq(turn(1, "used"), 0);
        usleep(100000);
    }
    ck_assert_int_eq(ssm_session_get(con.engine, own, "old", NULL, NULL), SSM_ENOTFOUND);
    ck_assert_int_eq(ssm_session_get(con.engine, own, "used", NULL, NULL), 0);
    ck_assert_uint_eq(stats_now().sessions_expired, 1);
    for (int i = 0; stats_now().sessions > 0; i++) { // an engine that sleeps looks too
        ck_assert_int_lt(i, 300);
        usleep(100000);
    }
    ck_assert_uint_eq(stats_now().sessions_expired, 2);
    end();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("quota");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, one_too_many_is_refused, 0, 2);
    tcase_add_test(tc, what_is_too_old_goes);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
