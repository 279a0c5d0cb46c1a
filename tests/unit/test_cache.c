// SPDX-License-Identifier: Apache-2.0
// What the cache of states knows again: repeats, answers, beginnings, of one tenant alone; and what
// runs once for many.
#include <stdlib.h>
#include <string.h>

#include "fixtures/cache.h"

START_TEST(a_repeat_runs_no_token) {
    const setup s = {.sessions = 2, .rows = 8, .checkpoint = 256};
    int32_t prompt[300];
    waiter first, second;
    begin(_i, &s);
    fill(prompt, 300, 1);
    ssm_request r = request_of(prompt, 300);
    consumer_run(&con, &first, &r);
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    ck_assert_uint_eq(ran, 300);
    consumer_run(&con, &second, &r);
    ck_assert_uint_eq(second.usage.cached_tokens, 300);
    ck_assert_uint_eq(stats_of(con.engine).prompt_tokens, ran);
    assert_same_answer(&first.choices[0], &second.choices[0]);
    r.n = 5; // more choices than slots, all from the one state
    waiter_dispose(&second);
    consumer_run(&con, &second, &r);
    ck_assert_uint_eq(stats_of(con.engine).prompt_tokens, ran);
    for (int i = 0; i < 5; i++)
        assert_same_answer(&first.choices[0], &second.choices[i]);
    r.max_tokens = 0; // and a repeat that draws nothing
    ck_assert_uint_eq(cached_of(&r), 300);
    waiter_dispose(&first);
    waiter_dispose(&second);
    finish();
}
END_TEST

// The next turn of a conversation: prompt, answer, something new.
START_TEST(an_answer_is_known_too) {
    const setup s = {.sessions = 2, .rows = 8, .checkpoint = 256};
    int32_t text[200];
    waiter w;
    begin(_i, &s);
    fill(text, 100, 2);
    ssm_request r = request_of(text, 100);
    r.max_tokens = 40;
    consumer_run(&con, &w, &r);
    memcpy(text + 100, w.choices[0].tokens, 40 * sizeof *text);
    fill(text + 140, 10, 3);
    waiter_dispose(&w);
    r.n_prompt = 150;
    const uint64_t known = cached_of(&r);
    ck_assert_uint_ge(known, 139); // the last one drawn was not run, unless ahead of the host
    ck_assert_uint_le(known, 140);
    finish();
}
END_TEST

START_TEST(prompts_are_known_at_the_grid_and_where_they_part) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 128};
    int32_t text[1000], other[1000];
    begin(_i, &s);
    fill(text, 1000, 4);
    ssm_request r = request_of(text, 1000);
    ck_assert_uint_eq(cached_of(&r), 0);
    memcpy(other, text, sizeof text);
    fill(other + 600, 400, 5);
    r.prompt = other;
    ck_assert_uint_eq(cached_of(&r), 512); // 4 x 128
    fill(other + 600, 400, 6);
    ck_assert_uint_eq(cached_of(&r), 576); // where the two before parted, at a granule
    r.prompt = text;
    r.n_prompt = 999; // a state without logits serves a longer text only
    ck_assert_uint_eq(cached_of(&r), 896);
    finish();
}
END_TEST

// A prompt of any length takes a bounded part of the cache.
START_TEST(long_prompts_leave_room) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 1};
    int32_t *text = malloc(6400 * sizeof *text);
    begin(_i, &s);
    fill(text, 6400, 4);
    const ssm_request r = request_of(text, 6400);
    ck_assert_uint_eq(cached_of(&r), 0);
    ck_assert_int_le(stats_of(con.engine).cache_slots_used, 10);
    free(text);
    finish();
}
END_TEST

START_TEST(tenants_share_nothing) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 64};
    int32_t text[200];
    begin(_i, &s);
    fill(text, 200, 4);
    ssm_request r = request_of(text, 200);
    for (uint64_t i = 0; i < 4; i++) { // every half of the salt counts
        r.cache_salt[0] = (i & 1) << 63;
        r.cache_salt[1] = i >> 1;
        ck_assert_uint_eq(cached_of(&r), 0);
        ck_assert_uint_eq(cached_of(&r), 200);
    }
    r.cache_prompt = false;
    ck_assert_uint_eq(cached_of(&r), 0);
    r.cache_prompt = true;
    r.prompt_logprobs = true;
    ck_assert_uint_eq(cached_of(&r), 0);
    finish();
}
END_TEST

// Many at once with one beginning: it runs once.
START_TEST(a_common_beginning_runs_once) {
    enum { N = 8, COMMON = 640, OWN = 20 };
    const setup s = {.sessions = 4, .rows = 40, .checkpoint = 256};
    int32_t texts[N][COMMON + OWN];
    waiter w[N];
    begin(_i, &s);
    for (int i = 0; i < N; i++) {
        fill(texts[i], COMMON, 9);
        fill(texts[i] + COMMON, OWN, 100 + (uint32_t)i);
        const ssm_request r = request_of(texts[i], COMMON + OWN);
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    }
    consumer_take_all(&con);
    // If the first is through before the second comes, that one has its last grid step to run
    // again.
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    ck_assert_uint_ge(ran, COMMON + N * OWN);
    ck_assert_uint_le(ran, COMMON + 128 + N * OWN);
    for (int i = 0; i < N; i++)
        waiter_dispose(&w[i]);
    finish();
}
END_TEST

// The one that others wait for is cancelled or paused: they go on.
START_TEST(followers_are_let_go) {
    enum { N = 6, LENGTH = 900 };
    const setup s = {.sessions = 3, .rows = 10, .checkpoint = 256, .chunk = 1};
    int32_t text[LENGTH];
    waiter w[N];
    begin(_i, &s);
    fill(text, LENGTH, 11);
    const ssm_request r = request_of(text, LENGTH);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    while (!w[0].started)
        consumer_take(&con);
    ssm_engine_cancel(con.engine, w[0].id, -1);
    while (!w[1].started)
        consumer_take(&con);
    ssm_engine_pause(con.engine, w[1].id, true);
    while (con.open > 1)
        consumer_take(&con);
    ssm_engine_pause(con.engine, w[1].id, false);
    consumer_take_all(&con);
    for (int i = 1; i < N; i++)
        assert_same_answer(&w[1].choices[0], &w[i].choices[0]);
    for (int i = 0; i < N; i++)
        waiter_dispose(&w[i]);
    finish();
}
END_TEST

// A state that was saved inside a longer prompt has no logits until a prompt ends there: on the
// device it gets them, on the host it is saved anew.
START_TEST(a_state_gets_the_logits_that_it_lacks) {
    const bool is_away = _i >= N_BACKENDS;
    const setup s = {.sessions = 2, .rows = is_away ? 1 : 8, .host_rows = 8, .checkpoint = 64};
    int32_t text[200];
    waiter first, second;
    begin(_i % N_BACKENDS, &s);
    fill(text, 200, 8);
    ssm_request r = request_of(text, 200);
    ck_assert_uint_eq(cached_of(&r), 0);
    r.n_prompt = 128;
    consumer_run(&con, &first, &r);
    ck_assert_uint_eq(first.usage.cached_tokens, 64);
    consumer_run(&con, &second, &r);
    ck_assert_uint_eq(second.usage.cached_tokens, 128);
    assert_same_answer(&first.choices[0], &second.choices[0]);
    waiter_dispose(&first);
    waiter_dispose(&second);
    finish();
}
END_TEST

// The same request with and without the cache; the first answer is the one that all must be.
static void check_requests(ssm_request r, waiter *first) {
    waiter w;
    for (int i = 0; i < 4; i++) {
        r.cache_prompt = i % 2;
        consumer_run(&con, &w, &r);
        ck_assert_int_eq(w.error, 0);
        for (int32_t k = 0; k < r.n; k++)
            assert_same_answer(&first->choices[0], &w.choices[k]);
        waiter_dispose(&w);
    }
}

// Ends of prompts are saved, restored and held for choices without slots, by nothing that waits:
// where there is another way the backend has none of its functions that do.
START_TEST(no_prompt_end_waits_for_the_device) {
    static const setup setups[] = {
        {.sessions = 2, .rows = 8, .checkpoint = 64, .is_clean = true},
        {.sessions = 2, .rows = 1, .host_rows = 3, .checkpoint = 64, .is_clean = true},
        {.sessions = 2, .checkpoint = 64, .is_clean = true},
    };
    ssm_backend backend = *backend_at(1);
    int32_t text[200];
    waiter first;
    backend.slot_read = NULL;
    backend.slot_write = NULL;
    backend.logits_read = NULL;
    backend.logits_write = NULL;
    open_model();
    for (size_t i = 0; i < sizeof setups / sizeof setups[0]; i++) {
        consumer_init(&con, open_engine(&backend, &setups[i]));
        for (size_t length = 0; length <= 200; length += 100) {
            fill(text, length, 9);
            ssm_request r = request_of(text, length);
            r.cache_prompt = false;
            consumer_run(&con, &first, &r);
            r.n = 5; // more than slots
            check_requests(r, &first);
            waiter_dispose(&first);
        }
        const ssm_stats before = stats_of(con.engine);
        fill(text, 150, 10);
        ssm_request r = request_of(text, 150);
        r.n = 5;
        r.cache_prompt = false;
        consumer_run(&con, &first, &r);
        const ssm_stats after = stats_of(con.engine); // what was held has gone
        ck_assert_int_eq(after.cache_slots_used, before.cache_slots_used);
        ck_assert_uint_eq(after.cache[SSM_TIER_HOST].bytes, before.cache[SSM_TIER_HOST].bytes);
        ck_assert_uint_eq(after.cache_saves, before.cache_saves);
        waiter_dispose(&first);
        consumer_dispose(&con);
        ssm_engine_free(con.engine);
    }
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cache");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, a_repeat_runs_no_token, 0, N_BACKENDS);
    tcase_add_loop_test(tc, an_answer_is_known_too, 0, N_BACKENDS);
    tcase_add_loop_test(tc, prompts_are_known_at_the_grid_and_where_they_part, 0, N_BACKENDS);
    tcase_add_loop_test(tc, long_prompts_leave_room, 0, N_BACKENDS);
    tcase_add_loop_test(tc, tenants_share_nothing, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_common_beginning_runs_once, 0, N_BACKENDS);
    tcase_add_loop_test(tc, followers_are_let_go, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_state_gets_the_logits_that_it_lacks, 0, 2 * N_BACKENDS);
    tcase_add_test(tc, no_prompt_end_waits_for_the_device);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
