// SPDX-License-Identifier: Apache-2.0
// Sessions whose time is up while somebody is at them, waits for them, or cannot reach the store:
// they stay, for everybody to see; and who finds one gone that was there is told so.
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

static void wait_up(int which) {
    for (int i = 0; !stats_of(which).store_up; i++, usleep(10000))
        ck_assert_int_lt(i, 2000);
}

// A request that keeps an engine's only slot.
static void block(int which, waiter *w) {
    int32_t prompt[TURN];
    ssm_request r = turn_request(NULL, 0, prompt);
    r.max_tokens = 1 << 30;
    ck_assert_int_eq(consumer_submit(&con[which], w, &r), 0);
    while (w->choices[0].n == 0)
        consumer_take(&con[which]);
    ssm_engine_pause(con[which].engine, w->id, true);
}

static void submit(int which, const char *name, int k, waiter *w) {
    int32_t prompt[TURN];
    const ssm_request r = turn_request(name, k, prompt);
    ck_assert_int_eq(consumer_submit(&con[which], w, &r), 0);
}

// A turn at A, and a second one that has its claim, or its place in line, before that is too old.
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

// It waits for a slot; meanwhile its session's time goes by. 1: and another server has a turn of
// it that comes to nothing.
START_TEST(one_in_line_finds_it) {
    static const int past[] = {0, 1};
    waiter slot, w, other;
    if (!begin_aging(NULL))
        return;
    block(A, &slot);
    follow_in_time(submit, A, &w);
    if (_i)
        hold(B, "s", 2, &other);
    sleep(TTL + 3);
    ck_assert_int_eq(w.started, 0);
    if (_i)
        cancel(B, &other);
    ck_assert_uint_eq(n_listed(B), 1);
    ssm_engine_cancel(con[A].engine, slot.id, -1);
    consumer_take_all(&con[A]);
    ck_assert_msg(w.error == 0, "%s", w.message);
    waiter_dispose(&w);
    waiter_dispose(&slot);
    ck_assert_uint_eq(tokens_of(B, "s"), 2 * PER_TURN);
    assert_follows(B, "s", past, 2, 3);
    end_aging();
}
END_TEST

// It goes when nobody waits any more, soon after its time.
START_TEST(one_that_leaves_the_line_lets_it_go) {
    waiter slot, w;
    if (!begin_aging(NULL))
        return;
    block(A, &slot);
    follow_in_time(submit, A, &w);
    sleep(TTL + 1);
    ck_assert_uint_eq(n_listed(B), 1);
    ssm_engine_cancel(con[A].engine, w.id, -1);
    for (int i = 0; n_listed(B) > 0; i++, usleep(100000))
        ck_assert_int_lt(i, 150);
    ck_assert_uint_eq(tokens_of(B, "s"), 0);
    cancel(A, &slot);
    waiter_dispose(&w);
    end_aging();
}
END_TEST

// It waits for another server's turn, which comes to nothing when the session's time is over.
START_TEST(one_that_waits_for_another_finds_it) {
    waiter held, w;
    if (!begin_aging(NULL))
        return;
    follow_in_time(hold, A, &held);
    submit(B, "s", 2, &w);
    sleep(TTL + 3);
    cancel(A, &held);
    consumer_take_all(&con[B]);
    ck_assert_msg(w.error == 0, "%s", w.message);
    waiter_dispose(&w);
    ck_assert_uint_eq(tokens_of(A, "s"), 2 * PER_TURN);
    end_aging();
}
END_TEST

// Deleted while a request for it waits: what would begin another session is told; what brings all
// of it with it begins, and what has looked looks again.
START_TEST(one_in_line_is_told_that_it_is_gone) {
    waiter slot, w;
    int32_t prompt[TURN];
    ssm_session_info info;
    ssm_error err;
    if (!begin_aging(NULL))
        return;
    options.session_ttl = 0;
    close_engine(A);
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(ssm_session_get(con[A].engine, owner, "s", &info, &err), 0);
    ssm_request r = turn_request("s", 1, prompt);
    r.session_whole = _i == 1;
    r.session_at = _i == 2 ? &info.at : NULL;
    block(A, &slot);
    ck_assert_int_eq(consumer_submit(&con[A], &w, &r), 0);
    usleep(500000);
    ck_assert_int_eq(ssm_session_delete(con[B].engine, owner, "s", &err), 0);
    ssm_engine_cancel(con[A].engine, slot.id, -1);
    consumer_take_all(&con[A]);
    ck_assert_int_eq(w.error, _i == 0 ? SSM_ENOTFOUND : _i == 1 ? 0 : SSM_EMOVED);
    ck_assert_msg(_i != 0 || strstr(w.message, "while the request waited"), "%s", w.message);
    waiter_dispose(&w);
    waiter_dispose(&slot);
    ck_assert_uint_eq(tokens_of(B, "s"), _i == 1 ? PER_TURN : 0);
    ck_assert_int_eq(turn_only(A, "s", 1), 0); // the name is free, and nobody has it claimed
    ck_assert_int_eq(turn_only(B, "s", 1), 0);
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

// Gone from under a turn, and nobody has deleted it: SYNC tells who waits, ASYNC whoever looks.
START_TEST(one_that_is_lost_is_told) {
    waiter held;
    char key[200];
    if (!begin(NULL))
        return;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    hold(A, "s", 1, &held);
    reach();
    key_named("s", key);
    ask("DEL %s", key);
    ck_assert_int_eq(let_go(A, &held), _i ? SSM_ENOTFOUND : 0);
    for (int i = 0; stats_of(A).session_write_failures != 1; i++, usleep(1000))
        ck_assert_int_lt(i, 3000);
    ck_assert_uint_eq(stats_of(A).session_turns_lost, _i ? 0 : 1);
    ck_assert_uint_eq(tokens_of(A, "s"), 0);
    ck_assert_int_eq(turn_only(B, "s", 0), 0);
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
    tcase_add_loop_test(tc, one_in_line_finds_it, 0, 2);
    tcase_add_test(tc, one_that_leaves_the_line_lets_it_go);
    tcase_add_test(tc, one_that_waits_for_another_finds_it);
    tcase_add_loop_test(tc, one_in_line_is_told_that_it_is_gone, 0, 3);
    tcase_add_loop_test(tc, one_that_is_lost_is_told, 0, 2);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
