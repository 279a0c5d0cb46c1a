// SPDX-License-Identifier: Apache-2.0
// States on the device, the host, the disk: they come back from each, each is counted, and a disk
// that fails costs states alone.
#include <signal.h>
#include <sys/resource.h>

#include "fixtures/cache.h"

// Ten prompts, a cache of one row and a host of one: the others are on the disk, and a hit.
START_TEST(what_falls_off_the_host_comes_back) {
    enum { N = 10, LENGTH = 200 };
    const setup s = {.sessions = 2, .rows = 1, .host_rows = 1, .disk_rows = 40};
    int32_t prompts[N][LENGTH];
    ssm_stats stats;
    begin(_i, &s);
    for (int i = 0; i < N; i++) {
        fill(prompts[i], LENGTH, 50 + (uint32_t)i);
        const ssm_request r = request_of(prompts[i], LENGTH);
        ck_assert_uint_eq(cached_of(&r), 0);
        do // a disk that cannot keep up would lose some
            stats = stats_of(con.engine);
        while (stats.cache[SSM_TIER_HOST].bytes > ssm_model_get_info(model)->saved_bytes);
    }
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    for (int i = 0; i < N; i++) {
        const ssm_request r = request_of(prompts[i], LENGTH);
        ck_assert_uint_eq(cached_of(&r), LENGTH);
    }
    stats = stats_of(con.engine);
    ck_assert_uint_eq(stats.prompt_tokens, ran);
    const ssm_tier_stats *disk = &stats.cache[SSM_TIER_DISK];
    ck_assert_uint_eq(hits_of(&stats), N);
    ck_assert_uint_ge(disk->hits, N - 2);
    ck_assert_uint_gt(disk->bytes, 0);
    ck_assert_uint_ge(times_of(&disk->restore_seconds), disk->hits);
    ck_assert_double_gt(disk->restore_seconds.sum, 0);
    const ssm_histogram *host = &stats.cache[SSM_TIER_HOST].restore_seconds;
    ck_assert_uint_ge(times_of(host), disk->hits); // that is the way back
    ck_assert_double_gt(host->sum, 0);
    finish();
}
END_TEST

// Prompts without answers, a state each: how many there are in each place, how many came there and
// how many were forgotten, follows from the places' sizes.
START_TEST(each_tier_is_counted) {
    enum { N = 7, LENGTH = 100 };
    static const setup setups[] = {{.sessions = 2, .rows = 2},
                                   {.sessions = 2, .rows = 1, .host_rows = 1},
                                   {.sessions = 2, .rows = 1, .host_rows = 1, .disk_rows = 2}};
    static const uint64_t moves[][SSM_TIERS] = {{0}, {0, N - 1}, {0, N - 1, N - 2}};
    static const uint64_t evictions[][SSM_TIERS] = {{N - 2}, {0, N - 2}, {0, 0, N - 4}};
    const setup *s = &setups[_i];
    int32_t prompt[LENGTH];
    ssm_stats stats;
    begin(0, s);
    const uint64_t row = ssm_model_get_info(model)->saved_bytes;
    for (uint32_t i = 0; i < N; i++) {
        fill(prompt, LENGTH, 500 + i);
        ssm_request r = request_of(prompt, LENGTH);
        r.max_tokens = 0;
        ck_assert_uint_eq(cached_of(&r), 0);
        do // the disk's pace
            stats = stats_of(con.engine);
        while (stats.cache[SSM_TIER_HOST].bytes > (uint64_t)s->host_rows * row);
    }
    ssm_request r = request_of(prompt, LENGTH);
    r.max_tokens = 0;
    ck_assert_uint_eq(cached_of(&r), LENGTH); // the last is where it was made
    stats = stats_of(con.engine);
    ck_assert_uint_eq(stats.cache_misses, N);
    ck_assert_uint_eq(stats.cache[SSM_TIER_DEVICE].hits, 1);
    ck_assert_uint_eq(hits_of(&stats), 1);
    ck_assert_uint_ge(stats.cache[SSM_TIER_DEVICE].bytes, (uint64_t)s->rows * row);
    ck_assert_uint_eq(stats.cache[SSM_TIER_HOST].bytes, (uint64_t)s->host_rows * row);
    ck_assert_uint_eq(stats.cache[SSM_TIER_DISK].bytes, (uint64_t)s->disk_rows * row);
    for (int t = 0; t < SSM_TIERS; t++) {
        ck_assert_uint_eq(stats.cache[t].moves, moves[_i][t]);
        ck_assert_uint_eq(stats.cache[t].evictions, evictions[_i][t]);
    }
    finish();
}
END_TEST

START_TEST(a_disk_that_fails_costs_states_alone) {
    const setup s = {.sessions = 4, .rows = 2, .checkpoint = 64, .disk_rows = 200};
    const struct rlimit limit = {1000000, 1000000}; // of some sixty rows; Check writes a file too
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    int32_t prompt[130];
    open_model();
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 1;
    o.cache_dir = "/nowhere/at/all";
    o.cache_disk_bytes = 1 << 20;
    ck_assert_int_eq(ssm_engine_create(model, &o, &engine, &err), SSM_EIO);
    ck_assert_str_eq(err.param, "cache_dir");
    signal(SIGXFSZ, SIG_IGN); // this test has a process of its own
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    consumer_init(&con, open_engine(&ssm_backend_cpu, &s));
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 30; i++) {
            waiter with, without;
            fill(prompt, 130, 90 + i);
            ssm_request r = request_of(prompt, 130);
            consumer_run(&con, &with, &r);
            r.cache_prompt = false;
            consumer_run(&con, &without, &r);
            assert_same_answer(&with.choices[0], &without.choices[0]);
            waiter_dispose(&with);
            waiter_dispose(&without);
        }
    }
    ck_assert_uint_gt(stats_of(con.engine).cache_disk_failures, 0);
    consumer_dispose(&con);
    ssm_engine_free(con.engine);
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cache_tiers");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, what_falls_off_the_host_comes_back, 0, N_BACKENDS);
    tcase_add_loop_test(tc, each_tier_is_counted, 0, 3);
    tcase_add_test(tc, a_disk_that_fails_costs_states_alone);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
