// SPDX-License-Identifier: Apache-2.0
// How much host memory an engine plans with: the saved states of a CPU by --cache-bytes, and by the
// memory that there is at all where nothing was asked for.
#include <stdlib.h>
#include <string.h>

#include <ssm/engine.h>

#include "tests/suite.h"

static int saved_states(int64_t cache_bytes, uint64_t host_bytes, size_t *saved_bytes) {
    ssm_model *model = NULL;
    ssm_engine *engine = NULL;
    ssm_engine_options options;
    ssm_error err = {0};
    ck_assert_msg(ssm_model_open(SSM_TEST_DATA "/models/induction-heads", &model, &err) == 0, "%s",
                  err.message);
    *saved_bytes = ssm_model_get_info(model)->saved_bytes;
    ssm_engine_options_init(&options);
    options.device = "cpu";
    options.max_sessions = 2;
    options.threads = 1;
    options.cache_bytes = cache_bytes;
    options.host_bytes = host_bytes;
    ck_assert_msg(ssm_engine_create(model, &options, &engine, &err) == 0, "%s", err.message);
    const char *text = strstr(ssm_engine_describe(engine), " MiB, ");
    ck_assert_ptr_nonnull(text);
    const int n = atoi(text + strlen(" MiB, "));
    ssm_engine_free(engine);
    ssm_model_free(model);
    return n;
}

START_TEST(a_quarter_of_what_there_is) {
    size_t row;
    const int unknown = saved_states(-1, 0, &row);
    ck_assert_int_eq(unknown, (int)((256 << 20) / row));
    ck_assert_int_eq(saved_states(-1, UINT64_C(1) << 40, &row), unknown);
    ck_assert_int_eq(saved_states(-1, UINT64_C(1) << 30, &row), unknown);
    ck_assert_int_eq(saved_states(-1, 256 << 20, &row), (int)((64 << 20) / row));
    ck_assert_int_eq(saved_states(-1, 1, &row), 4); // a few in every case
}
END_TEST

START_TEST(what_was_asked_for) {
    size_t row;
    ck_assert_int_eq(saved_states(128 << 20, 256 << 20, &row), (int)((128 << 20) / row));
    ck_assert_int_eq(saved_states(0, 256 << 20, &row), 0);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("memory");
    TCase *tests = tcase_create("cache");
    tcase_add_test(tests, a_quarter_of_what_there_is);
    tcase_add_test(tests, what_was_asked_for);
    tcase_set_timeout(tests, 60);
    suite_add_tcase(suite, tests);
    return suite_run(suite);
}
