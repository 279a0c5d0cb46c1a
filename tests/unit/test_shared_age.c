// SPDX-License-Identifier: Apache-2.0
// Sessions whose time is up while somebody is at them, or cannot reach the store: they stay, for
// everybody to see.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hiredis/hiredis.h>

#include "fixtures/shared.h"

enum { TTL = 2 };

static const char *const keeping[] = {"--appendonly", "yes", "--appendfsync", "always", NULL};

static bool begin_aging(const char *const *words) {
    if (!begin(words))
        return false;
    options.session_ttl = TTL;
    options.max_sessions = 1;
    open_engine(A);
    open_engine(B);
    return true;
}

static void end_aging(void) {
    close_engine(A);
    close_engine(B);
    finish();
}

static size_t n_listed(int which) {
    ssm_session_info *infos;
    size_t n;
    ck_assert_int_eq(ssm_session_list(con[which].engine, owner, &infos, &n, NULL), 0);
    free(infos);
    return n;
}

static void wait_up(int which) {
    for (int i = 0; !stats_of(which).store_up; i++, usleep(10000))
        ck_assert_int_lt(i, 2000);
}

static void cancel(int which, waiter *w) {
    ssm_engine_cancel(con[which].engine, w->id, -1);
    consumer_take_all(&con[which]);
    waiter_dispose(w);
}

// A turn at A, and a second one that has its claim before that is too old.
static void follow_in_time(void follow(int, const char *, int, waiter *), int which, waiter *w) {
    for (;;) {
        const double began = seconds();
        ck_assert_int_eq(turn_only(B, "s", 0), 0);
        follow(which, "s", 1, w);
        usleep(300000); // it is at the store
        if (seconds() - began < TTL)
            return;
        cancel(which, w); // on a machine that is busy elsewhere
        ssm_session_delete(con[A].engine, owner, "s", NULL);
    }
}

START_TEST(one_at_work_is_listed_and_counted) {
    waiter held;
    if (!begin(NULL))
        return;
    options.session_ttl = TTL;
    options.session_max = 1;
    open_engine(A);
    open_engine(B);
    follow_in_time(hold, B, &held);
    sleep(TTL + 3);
    ck_assert_uint_eq(n_listed(A), 1);
    ck_assert_int_eq(turn_only(A, "t", 0), SSM_EQUOTA);
    for (int i = 0; stats_of(A).sessions != 1; i++, usleep(10000)) // as of a heartbeat
        ck_assert_int_lt(i, 300);
    cancel(B, &held); // it has no other turn: its time is up
    for (int i = 0; n_listed(A) > 0; i++, usleep(10000))
        ck_assert_int_lt(i, 300);
    ck_assert_int_eq(turn_only(A, "t", 0), 0);
    end_aging();
}
END_TEST

// Whoever was overtaken gives up nothing of who overtook it.
START_TEST(one_that_was_overtaken_leaves_it) {
    waiter first, second;
    char key[200];
    if (!begin_aging(NULL))
        return;
    follow_in_time(hold, A, &first);
    sleep(TTL + 1);
    reach();
    copy_key("*:l:*", key);
    ask("DEL %s", key);
    hold(B, "s", 2, &second);
    ck_assert_int_eq(let_go(A, &first), SSM_ECONFLICT);
    ck_assert_uint_eq(tokens_of(A, "s"), PER_TURN);
    ck_assert_int_eq(let_go(B, &second), 0);
    ck_assert_uint_eq(tokens_of(A, "s"), 2 * PER_TURN);
    end_aging();
}
END_TEST

// The store is away for longer than a turn's session has left, and than a claim lasts.
START_TEST(one_is_kept_while_the_store_is_away) {
    static const int past[] = {0, 1};
    waiter held;
    if (!begin(keeping))
        return;
    options.session_ttl = TTL;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    follow_in_time(hold, A, &held);
    redis_kill(&server);
    if (!_i)
        ck_assert_int_eq(let_go(A, &held), 0);
    sleep(14);
    redis_restart(&server, keeping);
    wait_up(A);
    wait_up(B);
    if (_i)
        ck_assert_int_eq(let_go(A, &held), 0);
    for (int i = 0; tokens_of(B, "s") != 2 * PER_TURN; i++, usleep(10000))
        ck_assert_msg(i < 300, "%d tokens", (int)tokens_of(B, "s"));
    assert_follows(B, "s", past, 2, 2);
    end_aging();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared_age");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, one_is_kept_while_the_store_is_away, 0, 2);
    tcase_add_test(tc, one_at_work_is_listed_and_counted);
    tcase_add_test(tc, one_that_was_overtaken_leaves_it);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
