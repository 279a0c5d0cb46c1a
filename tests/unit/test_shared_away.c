// SPDX-License-Identifier: Apache-2.0
// Sessions in a Redis that is away, late, or refuses: that is an error of the requests at sessions
// and of no others, and over when it is.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hiredis/hiredis.h>

#include "engine/state/redis_store.h"
#include "fixtures/shared.h"

static const char *const keeping[] = {"--appendonly", "yes", "--appendfsync", "always", NULL};

static void assert_all_but_sessions(int which) {
    waiter w;
    ssm_session_info *infos;
    size_t n;
    ssm_error err;
    int32_t prompt[TURN];
    ssm_request r = turn_request(NULL, 1, prompt);
    const double from = seconds();
    ck_assert_int_eq(turn(which, "s", 1, &w), SSM_EUNAVAILABLE);
    ck_assert_msg(w.choices[0].n == 0 && strstr(w.message, "cannot be reached"), "%s", w.message);
    waiter_dispose(&w);
    ck_assert_int_eq(ssm_session_list(con[which].engine, owner, &infos, &n, &err),
                     SSM_EUNAVAILABLE);
    free(infos);
    ck_assert_int_eq(ssm_session_delete(con[which].engine, owner, "s", &err), SSM_EUNAVAILABLE);
    ck_assert_int_eq(ssm_session_fork(con[which].engine, owner, "s", "t", NULL, &err),
                     SSM_EUNAVAILABLE);
    ck_assert_msg(seconds() - from < 20, "%g s", seconds() - from);
    consumer_run(&con[which], &w, &r);
    waiter_dispose(&w);
    ck_assert_uint_ge(stats_of(which).store_failures, 4);
}

static void wait_up(int which, bool up) {
    for (int i = 0; stats_of(which).store_up != up; i++) {
        ck_assert_int_lt(i, 2000);
        usleep(10000);
    }
}

START_TEST(one_that_goes_away_and_comes_back) {
    static const int past[] = {0, 1, 2};
    if (!begin(keeping))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    redis_kill(&server);
    assert_all_but_sessions(A);
    ck_assert(!stats_of(A).store_up);
    ck_assert_msg(*stats_of(A).store_reason, "no reason");
    redis_restart(&server, keeping);
    wait_up(A, true);
    ck_assert_uint_eq(stats_of(A).store_connects, 2);
    ck_assert_int_eq(turn_only(A, "s", 1), 0);
    wait_up(B, true);
    ck_assert_int_eq(turn_only(B, "s", 2), 0);
    assert_follows(A, "s", past, 3, 3);
    close_engine(A);
    redis_kill(&server);
    const double from = seconds();
    close_engine(B); // which nothing keeps from ending
    ck_assert_msg(seconds() - from < 10, "%g s", seconds() - from);
    finish();
}
END_TEST

// A blip that is shorter than patience is no error at all.
START_TEST(one_that_starts_again_is_waited_for) {
    waiter w;
    int32_t prompt[TURN];
    const ssm_request r = turn_request("s", 1, prompt);
    if (!begin(keeping))
        return;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    redis_kill(&server);
    ck_assert_int_eq(consumer_submit(&con[A], &w, &r), 0);
    redis_restart(&server, keeping);
    consumer_take_all(&con[A]);
    ck_assert_msg(w.error == 0, "%s", w.message);
    waiter_dispose(&w);
    ck_assert_uint_eq(tokens_of(A, "s"), 2 * PER_TURN);
    close_engine(A);
    finish();
}
END_TEST

// It goes between a turn's beginning and its end. SYNC tells and keeps nothing; ASYNC has told
// already, and writes when it can.
START_TEST(one_that_goes_in_the_middle_of_a_turn) {
    static const int past[] = {0, 1};
    waiter held;
    if (!begin(keeping))
        return;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    hold(A, "s", 1, &held);
    redis_kill(&server);
    ck_assert_int_eq(let_go(A, &held), _i ? SSM_EUNAVAILABLE : 0);
    if (!_i)
        ck_assert_int_eq(turn_only(A, "s", 2), SSM_EUNAVAILABLE);
    sleep(3);
    redis_restart(&server, keeping);
    wait_up(A, true);
    wait_up(B, true);
    assert_follows(B, "s", past, _i ? 1 : 2, 3);
    ck_assert_uint_eq(tokens_of(B, "s"), (uint64_t)(_i ? 2 : 3) * PER_TURN);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

// It may have taken a turn, and nobody heard it say so. ASYNC: it is there, once. SYNC has told
// that it may not be: it is there or it is not.
START_TEST(one_whose_answer_is_lost) {
    static const int past[] = {0, 1};
    waiter held;
    if (!begin(NULL))
        return;
    redis_part_bytes = 1 << 20; // all is sent before anything is answered
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    hold(A, "s", 1, &held);
    kill(server.pid, SIGSTOP);
    ck_assert_int_eq(let_go(A, &held), _i ? SSM_EUNAVAILABLE : 0);
    wait_up(A, false);
    kill(server.pid, SIGCONT);
    wait_up(A, true);
    open_engine(B);
    ck_assert(_i || tokens_of(A, "s") == 2 * PER_TURN); // it waits for its write
    const int turns = (int)tokens_of(B, "s") / PER_TURN;
    ck_assert(turns == 2 || (_i && turns == 1));
    assert_follows(B, "s", past, turns, 3);
    ck_assert_uint_eq(stats_of(A).session_conflicts, 0);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

START_TEST(one_that_does_not_answer) {
    if (!begin(NULL))
        return;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    kill(server.pid, SIGSTOP);
    assert_all_but_sessions(A);
    kill(server.pid, SIGCONT);
    wait_up(A, true);
    ck_assert_int_eq(turn_only(A, "s", 1), 0);
    ck_assert_uint_eq(tokens_of(A, "s"), 2 * PER_TURN);
    close_engine(A);
    finish();
}
END_TEST

// Up, but refusing: no memory, a replica, no rights. The claim fails; without scripts giving it up
// does, too, behind the turn's end.
START_TEST(one_that_refuses) {
    static const struct {
        const char *spoil, *undo;
        uint64_t failures;
    } rows[] = {
        {"CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", 1},
        {"REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", 1},
        {"CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", 1},
        {"ACL SETUSER default -eval", "ACL SETUSER default +eval", 2},
    };
    uint64_t failures = 0;
    waiter w;
    if (!begin(NULL))
        return;
    open_engine(A);
    reach();
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ask(rows[i].spoil);
        ck_assert_int_eq(turn(A, "s", (int)i + 1, &w), SSM_EUNAVAILABLE);
        waiter_dispose(&w);
        failures += rows[i].failures;
        for (int k = 0; stats_of(A).store_failures < failures; k++, usleep(1000))
            ck_assert_int_lt(k, 5000);
        const ssm_stats stats = stats_of(A);
        ck_assert_uint_eq(stats.store_failures, failures);
        ck_assert_msg(*stats.store_reason, "%s", rows[i].spoil);
        printf("%s: %s\n", rows[i].spoil, stats.store_reason);
        ask(rows[i].undo);
        ck_assert_int_eq(turn_only(A, "s", (int)i + 1), 0);
    }
    ck_assert_uint_eq(tokens_of(A, "s"), 5 * PER_TURN);
    close_engine(A);
    finish();
}
END_TEST

// Emptied, and filled by a stranger with another secret: what is held there is not ours.
START_TEST(another_database_is_noticed) {
    if (!begin(NULL))
        return;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    reach();
    ask("FLUSHALL"); // as if deleted
    ck_assert_uint_eq(tokens_of(A, "s"), 0);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    redis_kill(&server); // it keeps nothing
    redis_restart(&server, NULL);
    reach();
    wait_up(A, true); // its secret is set again
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ask("SET ssmd:secret 0123456789abcdef");
    freeReplyObject(redisCommand(redis, "CLIENT KILL TYPE normal")); // this one, too
    for (int i = 0; !strstr(stats_of(A).store_reason, "another database"); i++, usleep(10000))
        ck_assert_int_lt(i, 1000);
    ck_assert_int_eq(turn_only(A, "s", 0), SSM_EUNAVAILABLE);
    close_engine(A);
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared_away");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, one_that_goes_away_and_comes_back);
    tcase_add_test(tc, one_that_starts_again_is_waited_for);
    tcase_add_loop_test(tc, one_that_goes_in_the_middle_of_a_turn, 0, 2);
    tcase_add_loop_test(tc, one_whose_answer_is_lost, 0, 2);
    tcase_add_test(tc, one_that_does_not_answer);
    tcase_add_test(tc, one_that_refuses);
    tcase_add_test(tc, another_database_is_noticed);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
