// SPDX-License-Identifier: Apache-2.0
// A device that fails, and one that computes NaN: requests end, and nothing else.
#include <math.h>

#include "fixtures/engine.h"

static int calls_left;

static int failing_step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    if (calls_left-- <= 0)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has caught fire");
    return ssm_backend_reference.step(device, plan, err);
}

static int failing_collect(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err) {
    if (calls_left <= 1)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has caught fire");
    return ssm_backend_reference.collect(device, out, n, err);
}

START_TEST(a_failed_device_ends_requests_and_nothing_else) {
    ssm_backend failing = ssm_backend_reference;
    failing.step = failing_step;
    if (_i % 2)
        failing.collect = failing_collect;
    open_demo(0);
    calls_left = _i;
    open_engine_with(&failing, 2, 0, 1024);
    int32_t prompt[100];
    fill_prompt(prompt, 100, 4);
    static waiter w[6];
    for (int i = 0; i < 6; i++) {
        ssm_request r = {
            .prompt = prompt, .n_prompt = 100, .n = 2, .max_tokens = 50, .logprobs = 1};
        const int rc = consumer_submit(&con, &w[i], &r);
        ck_assert(rc == 0 || rc == SSM_EDEVICE);
    }
    consumer_take_all(&con);
    ssm_stats stats;
    ssm_engine_get_stats(engine, &stats);
    ck_assert(stats.failed);
    for (int i = 0; i < 6; i++) {
        if (w[i].dones)
            ck_assert_int_eq(w[i].error, SSM_EDEVICE);
        waiter_dispose(&w[i]);
    }
    ssm_request late = {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = -1};
    ck_assert_int_eq(consumer_submit(&con, &w[0], &late), SSM_EDEVICE);
    close_engine();
    close_model();
}
END_TEST

static int nan_step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    const int rc = ssm_backend_reference.step(device, plan, err);
    float logits[1024];
    for (int i = 0; i < 1024; i++)
        logits[i] = NAN;
    int32_t row = 0;
    for (int32_t i = 0; i < plan->n_segments; i++)
        row += plan->segments[i].want == SSM_WANT_LAST;
    if (row > 0)
        ssm_backend_reference.logits_write(device, row - 1, logits, err);
    return rc;
}

START_TEST(nan_logits_end_one_request) {
    ssm_backend broken = ssm_backend_reference;
    broken.step = nan_step;
    open_demo(0);
    open_engine_with(&broken, 2, 0, 1024);
    int32_t prompt[1] = {5};
    waiter w;
    ssm_request r = {.prompt = prompt, .n_prompt = 1, .n = 1, .max_tokens = 5, .logprobs = 0};
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    consumer_take_all(&con);
    ck_assert_int_eq(w.error, SSM_EINTERNAL);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_ERROR);
    ssm_stats stats;
    ssm_engine_get_stats(engine, &stats);
    ck_assert(!stats.failed);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("engine_failure");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_failed_device_ends_requests_and_nothing_else, 0, 6);
    tcase_add_test(tc, nan_logits_end_one_request);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
