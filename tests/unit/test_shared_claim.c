// SPDX-License-Identifier: Apache-2.0
// Two engines at one session at the same time: they take turns, nobody waits for ever, and a turn
// that was overtaken says so.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fixtures/shared.h"

// Both at one session at once, again and again: as if one after the other.
START_TEST(two_that_race_take_turns) {
    enum { ROUNDS = 20 };
    int past[2 * ROUNDS];
    if (!begin(NULL))
        return;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    for (int i = 0; i < ROUNDS; i++) {
        waiter w[2];
        int32_t prompt[TURN];
        const ssm_request r = turn_request("s", 1, prompt);
        for (int which = A; which <= B; which++)
            ck_assert_int_eq(consumer_submit(&con[which], &w[which], &r), 0);
        for (int which = A; which <= B; which++) {
            consumer_take_all(&con[which]);
            ck_assert_msg(w[which].error == 0, "%s", w[which].message);
            waiter_dispose(&w[which]);
            past[2 * i + which] = 1;
        }
    }
    for (int i = 0; tokens_of(A, "s") != 2 * ROUNDS * PER_TURN; i++, usleep(1000)) // B's last write
        ck_assert_int_lt(i, _i ? 1 : 1000);
    assert_follows(B, "s", past, 2 * ROUNDS, 2);
    ck_assert_uint_eq(stats_of(A).session_conflicts + stats_of(B).session_conflicts, 0);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

// One engine always has another request for the session; the other one gets its turn all the same.
START_TEST(nobody_keeps_a_session_for_ever) {
    enum { LINE = 16 };
    waiter w[LINE], other;
    int32_t prompt[TURN];
    int turns = 0;
    if (!begin(NULL))
        return;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    const ssm_request r = turn_request("s", 1, prompt);
    for (int i = 0; i < LINE; i++)
        ck_assert_int_eq(consumer_submit(&con[A], &w[i], &r), 0);
    double from = 0;
    while (stats_of(B).session_writes == 0) {
        if (from == 0 && turns >= 5) {
            from = seconds();
            ck_assert_int_eq(consumer_submit(&con[B], &other, &r), 0);
        }
        ck_assert_msg(from == 0 || seconds() - from < 15, "after %d turns", turns);
        consumer_take(&con[A]);
        for (int i = 0; i < LINE; i++) {
            if (w[i].dones == 0)
                continue;
            ck_assert_msg(w[i].error == 0, "%s", w[i].message);
            turns++;
            waiter_dispose(&w[i]);
            ck_assert_int_eq(consumer_submit(&con[A], &w[i], &r), 0);
        }
    }
    printf("its turn came after %.1f s and %d turns of the other\n", seconds() - from, turns);
    consumer_take_all(&con[B]);
    ck_assert_int_eq(other.error, 0);
    waiter_dispose(&other);
    consumer_take_all(&con[A]);
    for (int i = 0; i < LINE; i++, turns++) {
        ck_assert_int_eq(w[i].error, 0);
        waiter_dispose(&w[i]);
    }
    ck_assert_int_eq(turn_only(A, "s", 1), 0); // whose answer is behind all writes
    ck_assert_uint_eq(tokens_of(A, "s"), (uint64_t)(turns + 2) * PER_TURN);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

START_TEST(a_session_at_work_elsewhere_is_busy) {
    static const int past[] = {0, 1, 2};
    waiter held, w;
    int32_t prompt[TURN];
    uint8_t *bytes;
    size_t size;
    ssm_error err;
    if (!begin(NULL))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    hold(A, "s", 1, &held);
    ssm_request r = turn_request("s", 2, prompt);
    r.session_no_wait = true;
    ck_assert_int_eq(consumer_submit(&con[B], &w, &r), 0);
    consumer_take_all(&con[B]);
    ck_assert_int_eq(w.error, SSM_ESESSIONBUSY);
    waiter_dispose(&w);
    ck_assert_uint_eq(tokens_of(B, "s"), PER_TURN); // as of its last finished turn
    ck_assert_int_eq(ssm_session_export_bytes(con[B].engine, owner, "s", &bytes, &size, &err), 0);
    for (int which = A; which <= B; which++)
        ck_assert_int_eq(
            ssm_session_import_bytes(con[which].engine, owner, "s", bytes, size, NULL, &err),
            SSM_ESESSIONBUSY);
    free(bytes);
    r.session_no_wait = false;
    ck_assert_int_eq(consumer_submit(&con[B], &w, &r), 0);
    sleep(_i); // longer than a claim waits for, and than a lease lasts
    ck_assert_int_eq(w.started, 0);
    ck_assert_int_eq(let_go(A, &held), 0);
    consumer_take_all(&con[B]);
    ck_assert_int_eq(w.error, 0);
    waiter_dispose(&w);
    assert_follows(A, "s", past, 3, 3);
    // Given up, not kept: nobody waits for nobody.
    hold(A, "s", 4, &held);
    ssm_engine_cancel(con[A].engine, held.id, -1);
    consumer_take_all(&con[A]);
    waiter_dispose(&held);
    ck_assert_int_eq(turn_only(B, "s", 5), 0);
    // Deleted under a turn: it ends as it would.
    hold(A, "s", 6, &held);
    ck_assert_int_eq(ssm_session_delete(con[B].engine, owner, "s", &err), 0);
    ck_assert_int_eq(let_go(A, &held), 0);
    ck_assert_uint_eq(tokens_of(A, "s") + tokens_of(B, "s"), 0);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

// One that has lost its claim finds out, tells, and goes on from what there is.
START_TEST(a_turn_that_was_overtaken_is_a_conflict) {
    static const int past[] = {0, 2};
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
    copy_key("*:l:*", key);
    ask("DEL %s", key);
    ck_assert_int_eq(turn_only(B, "s", 2), 0);
    ck_assert_int_eq(let_go(A, &held), _i ? SSM_ECONFLICT : 0);
    assert_follows(A, "s", past, 2, 3);
    ck_assert_uint_eq(stats_of(A).session_conflicts, 1);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared_claim");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, two_that_race_take_turns, 0, 2);
    tcase_add_loop_test(tc, nobody_keeps_a_session_for_ever, 0, 2);
    tcase_add_loop_test(tc, a_session_at_work_elsewhere_is_busy, 2, 3);
    tcase_add_loop_test(tc, a_turn_that_was_overtaken_is_a_conflict, 0, 2);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
