// SPDX-License-Identifier: Apache-2.0
// Sessions in a store: an engine that is opened again finds what the last one left, to the token.
// What both stores must do, a Redis does here too; what is its own is in test_shared*.c, what is
// the folder's own in test_store_folder.c.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fixtures/store.h"

// Where sessions are and when: rows of the loops.
static const struct {
    bool is_redis;
    ssm_durability durability;
} places[] = {{false, SSM_DURABILITY_ASYNC},
              {false, SSM_DURABILITY_SYNC},
              {false, SSM_DURABILITY_NONE},
              {true, SSM_DURABILITY_ASYNC},
              {true, SSM_DURABILITY_SYNC}};

enum { N_PLACES = sizeof places / sizeof *places };

START_TEST(an_engine_opened_again_goes_on) {
    const ssm_durability durability = places[_i].durability;
    waiter there, here;
    if (!begin_in(places[_i].is_redis))
        return;
    open_engine(durability, true);
    for (int k = 0; k < 8; k++) {
        run_turn("one", k, &there);
        waiter_dispose(&there);
        run_turn("two", k, &there);
        waiter_dispose(&there);
    }
    ck_assert_int_eq(ssm_session_fork(con.engine, owner, "one", "three", NULL, NULL), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, "two", NULL), 0);
    if (durability == SSM_DURABILITY_SYNC && !is_redis)
        ck_assert_int_eq(count_files(".session", NULL), 2);
    if (durability == SSM_DURABILITY_NONE)
        ck_assert_int_eq(count_files(".session", NULL), 0);
    close_engine();
    ck_assert_int_eq(count_files(".session", NULL), is_redis ? 0 : 2);
    ck_assert_int_eq(count_files("", NULL), is_redis ? 0 : 2); // and nothing else
    open_engine(durability, true);
    ck_assert_uint_eq(tokens_of("one"), 8 * PER_TURN);
    ck_assert_uint_eq(tokens_of("two"), 0);
    ck_assert_uint_eq(tokens_of("three"), 8 * PER_TURN);
    run_turn("three", 8, &there);
    ck_assert_uint_ge(there.usage.cached_tokens, 8 * PER_TURN - 1);
    close_engine();
    open_engine(durability, false); // one that remembers nothing, from the beginning
    for (int k = 0; k <= 8; k++) {
        run_turn("x", k, &here);
        if (k == 8)
            assert_same_answer(&here.choices[0], &there.choices[0]);
        waiter_dispose(&here);
    }
    waiter_dispose(&there);
    close_engine();
    finish();
}
END_TEST

// Forty sessions where the cache holds three: their states live on the disk, a start reads none of
// them, and every turn is that of one long prompt.
START_TEST(sessions_beyond_memory_are_read_when_used) {
    enum { NAMES = 40, TURNS = 3 };
    char name[16];
    waiter there[NAMES], here;
    ssm_stats stats;
    ssm_session_info *infos, one;
    size_t n;
    if (!begin_in(places[_i].is_redis))
        return;
    for (int k = 0; k < TURNS; k++) {
        open_engine(places[_i].durability, true);
        ssm_engine_get_stats(con.engine, &stats);
        ck_assert_uint_eq(stats.sessions, k > 0 ? NAMES : 0);
        ck_assert_uint_eq(stats.session_loads, 0);
        ck_assert_int_eq(ssm_session_list(con.engine, owner, &infos, &n, NULL), 0);
        ck_assert_uint_eq(n, k > 0 ? NAMES : 0);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq(infos[i].tokens, (uint64_t)k * PER_TURN);
        free(infos);
        for (int i = 0; i < NAMES; i++) {
            snprintf(name, sizeof name, "s%d", i);
            run_turn(name, k + i % 2, &there[i]);
            ck_assert_uint_eq(there[i].usage.cached_tokens > 0, k > 0);
            if (k < TURNS - 1)
                waiter_dispose(&there[i]);
        }
        ck_assert_int_eq(ssm_session_fork(con.engine, owner, "s0", "fork", &one, NULL), 0);
        ck_assert_uint_eq(one.tokens, (uint64_t)(k + 1) * PER_TURN);
        ck_assert_int_eq(ssm_session_delete(con.engine, owner, "fork", NULL), 0);
        do { // until the disk has it all
            usleep(1000);
            ssm_engine_get_stats(con.engine, &stats);
        } while (stats.cache[SSM_TIER_HOST].bytes > 0 &&
                 places[_i].durability != SSM_DURABILITY_NONE);
        ck_assert_uint_ge(stats.session_loads, k > 0 ? NAMES : 0);
        close_engine();
    }
    open_engine(SSM_DURABILITY_ASYNC, false);
    for (int i = 0; i < NAMES; i++) {
        snprintf(name, sizeof name, "s%d", i % 2);
        for (int k = 0; k < TURNS && i < 2; k++) {
            run_turn(name, k + i % 2, &here);
            if (k == TURNS - 1) {
                for (int other = i; other < NAMES; other += 2) {
                    assert_same_answer(&here.choices[0], &there[other].choices[0]);
                    waiter_dispose(&there[other]);
                }
            }
            waiter_dispose(&here);
        }
    }
    close_engine();
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, an_engine_opened_again_goes_on, 0, N_PLACES);
    tcase_add_loop_test(tc, sessions_beyond_memory_are_read_when_used, 0, N_PLACES);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
