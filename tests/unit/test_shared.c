// SPDX-License-Identifier: Apache-2.0
// Sessions in a Redis that two engines share: what one leaves the other goes on from, to the bit;
// nobody's turn is lost in silence.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fixtures/shared.h"

START_TEST(what_one_leaves_the_other_goes_on_from) {
    static const int past[] = {0, 1, 2, 3, 4, 5, 6, 7};
    ssm_session_info *infos;
    size_t n;
    if (!begin(NULL))
        return;
    options.durability = _i ? SSM_DURABILITY_SYNC : SSM_DURABILITY_ASYNC;
    open_engine(A);
    open_engine(B);
    for (int k = 0; k < 8; k++)
        ck_assert_int_eq(turn_only(k % 2, "s", k), 0);
    assert_follows(A, "s", past, 8, 8);
    for (int which = A; which <= B; which++) {
        ck_assert_uint_eq(tokens_of(which, "s"), 9 * PER_TURN);
        ck_assert_int_eq(ssm_session_list(con[which].engine, owner, &infos, &n, NULL), 0);
        ck_assert_uint_eq(n, 1);
        ck_assert_str_eq(infos[0].name, "s");
        ck_assert_uint_eq(infos[0].bytes, ssm_model_get_info(model)->state_bytes);
        free(infos);
    }
    ck_assert_int_eq(ssm_session_list(con[A].engine, (uint64_t[]){1, 3}, &infos, &n, NULL), 0);
    ck_assert_uint_eq(n, 0); // another owner's
    free(infos);
    close_engine(A);
    close_engine(B);
    reach();
    ck_assert_str_eq(ask("KEYS *:l:*"), "");
    ck_assert_str_eq(ask("KEYS *:t:*"), "");
    ck_assert_str_eq(ask("DBSIZE"), "4"); // the session, two indices, the secret
    finish();
}
END_TEST

// Copies of what has been deleted, and made again with other tokens, are no more used.
START_TEST(what_is_deleted_is_deleted_everywhere) {
    ssm_error err;
    static const int past[] = {5};
    if (!begin(NULL))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(turn_only(B, "s", 1), 0);
    ck_assert_int_eq(ssm_session_delete(con[B].engine, owner, "s", &err), 0);
    ck_assert_int_eq(ssm_session_delete(con[A].engine, owner, "s", &err), SSM_ENOTFOUND);
    ck_assert_uint_eq(tokens_of(A, "s"), 0);
    ck_assert_int_eq(turn_only(B, "s", 5), 0);
    assert_follows(A, "s", past, 1, 6);
    ck_assert_int_eq(ssm_session_delete(con[B].engine, owner, "s", &err), 0);
    assert_follows(A, "s", NULL, 0, 7);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

START_TEST(forks_and_files) {
    static const int past[] = {0, 1};
    ssm_session_info info;
    ssm_error err;
    uint8_t *bytes, *fork;
    size_t size, fork_size;
    if (!begin(NULL))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(turn_only(A, "s", 1), 0);
    ck_assert_int_eq(ssm_session_fork(con[B].engine, owner, "s", "t", &info, &err), 0);
    ck_assert_str_eq(info.name, "t");
    ck_assert_uint_eq(info.tokens, 2 * PER_TURN);
    ck_assert_int_eq(ssm_session_fork(con[A].engine, owner, "s", "t", NULL, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "id");
    ck_assert_int_eq(ssm_session_fork(con[A].engine, owner, "no", "u", NULL, &err), SSM_ENOTFOUND);
    ck_assert_int_eq(ssm_session_export_bytes(con[B].engine, owner, "s", &bytes, &size, &err), 0);
    ck_assert_int_eq(ssm_session_export_bytes(con[A].engine, owner, "t", &fork, &fork_size, &err),
                     0);
    ck_assert_uint_eq(size, fork_size);
    ck_assert_int_eq(memcmp(bytes, fork, size), 0);
    ck_assert_int_eq(turn_only(B, "u", 9), 0); // and is replaced
    ck_assert_int_eq(ssm_session_import_bytes(con[A].engine, owner, "u", bytes, size, &info, &err),
                     0);
    ck_assert_uint_eq(info.tokens, 2 * PER_TURN);
    assert_follows(B, "u", past, 2, 2);
    assert_follows(A, "t", past, 2, 3);
    assert_follows(B, "s", past, 2, 4);
    bytes[size - 1] ^= 1;
    ck_assert_int_eq(ssm_session_import_bytes(con[A].engine, owner, "u", bytes, size, &info, &err),
                     SSM_EINVAL);
    free(bytes);
    free(fork);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

START_TEST(limits_hold_for_all) {
    ssm_error err;
    if (!begin(NULL))
        return;
    options.session_max = 3;
    options.session_key_max = 2;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "a", 0), 0);
    ck_assert_int_eq(turn_only(B, "b", 0), 0);
    ck_assert_int_eq(turn_only(A, "c", 0), SSM_EQUOTA);
    ck_assert_int_eq(ssm_session_fork(con[A].engine, owner, "a", "c", NULL, &err), SSM_EQUOTA);
    ck_assert_msg(strstr(err.message, "2 sessions"), "%s", err.message);
    ck_assert_int_eq(turn_only(A, "b", 1), 0); // what is there goes on
    ck_assert_uint_eq(stats_of(A).session_refusals, 2);
    ck_assert_int_eq(ssm_session_delete(con[A].engine, owner, "b", NULL), 0);
    ck_assert_int_eq(turn_only(B, "c", 0), 0);
    ck_assert_uint_eq(stats_of(B).sessions, 2);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

// New sessions at once are as many as there are: the second one is refused before it is generated.
START_TEST(a_first_turn_has_its_place) {
    waiter held;
    char key[200], id[40];
    if (!begin(NULL))
        return;
    options.session_max = _i == 0;
    options.session_key_max = _i == 1;
    open_engine(A);
    open_engine(B);
    hold(A, "a", 0, &held);
    const uint64_t generated = stats_of(B).generated_tokens;
    ck_assert_int_eq(turn_only(B, "c", 0), SSM_EQUOTA);
    ck_assert_uint_eq(stats_of(B).generated_tokens, generated);
    ck_assert_uint_eq(n_listed(B), 0);
    reach();
    copy_key(_i == 0 ? "*:all:new" : "*:o:*:new", key);
    snprintf(id, sizeof id, "%s", ask("ZRANGE %s 0 0", key));
    const double till = atof(ask("ZSCORE %s %s", key, id));
    ck_assert_double_gt(till, 0);
    for (int i = 0; atof(ask("ZSCORE %s %s", key, id)) == till; i++, usleep(10000))
        ck_assert_int_lt(i, 1000); // a heartbeat renews it
    ck_assert_int_eq(turn_only(B, "c", 0), SSM_EQUOTA);
    ck_assert_int_eq(let_go(A, &held), 0);
    ck_assert_int_eq(turn_only(B, "a", 1), 0);
    ck_assert_int_eq(turn_only(B, "c", 0), SSM_EQUOTA);
    ck_assert_int_eq(ssm_session_delete(con[B].engine, owner, "a", NULL), 0);
    hold(A, "b", 0, &held);
    ck_assert_int_eq(turn_only(B, "c", 0), SSM_EQUOTA);
    cancel(A, &held); // what it had a place for does not come
    for (int i = 0; turn_only(B, "c", 0) == SSM_EQUOTA; i++, usleep(10000))
        ck_assert_int_lt(i, 500);
    ck_assert_uint_eq(n_listed(A), 1);
    ck_assert_uint_eq(stats_of(B).sessions, 1);
    ck_assert_int_eq(turn_only(A, "b", 0), SSM_EQUOTA);
    ck_assert_str_eq(ask("KEYS *:new"), "");
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

// Redis keeps whole seconds: a turn late in one of them has all of its TTL, too.
START_TEST(none_goes_early) {
    struct timespec now;
    uint64_t tokens;
    double began;
    if (!begin(NULL))
        return;
    options.session_ttl = 1;
    open_engine(A);
    do {
        ssm_session_delete(con[A].engine, owner, "s", NULL);
        do {
            usleep(1000);
            clock_gettime(CLOCK_REALTIME, &now);
        } while (now.tv_nsec / 100000000 != 8);
        began = seconds();
        ck_assert_int_eq(turn_only(A, "s", 0), 0);
        usleep(300000);
        tokens = tokens_of(A, "s");
    } while (seconds() - began >= 1); // it may have gone
    ck_assert_uint_eq(tokens, PER_TURN);
    close_engine(A);
    finish();
}
END_TEST

// A turn of t, and at B the next one, which is at work before t's second is over.
static void hold_in_time(waiter *held) {
    for (;;) {
        const double began = seconds();
        ck_assert_int_eq(turn_only(A, "t", 0), 0);
        hold(B, "t", 1, held);
        if (seconds() - began < 1)
            return;
        let_go(B, held); // of what t had become, on a machine that is busy elsewhere
        ssm_session_delete(con[A].engine, owner, "t", NULL);
    }
}

START_TEST(old_ones_go_and_those_at_work_do_not) {
    waiter held;
    if (!begin(NULL))
        return;
    options.session_ttl = 1;
    options.session_max = 2;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    hold_in_time(&held);
    sleep(3);
    ck_assert_uint_eq(tokens_of(A, "s"), 0);
    ck_assert_uint_eq(tokens_of(A, "t"), PER_TURN);
    ck_assert_int_eq(turn_only(A, "u", 0), 0); // there is room
    const double began = seconds();
    ck_assert_int_eq(let_go(B, &held), 0);
    const uint64_t tokens = tokens_of(A, "t");
    if (seconds() - began < 1)
        ck_assert_uint_eq(tokens, 2 * PER_TURN);
    sleep(3);
    ck_assert_uint_eq(tokens_of(A, "t"), 0);
    for (int i = 0; stats_of(A).sessions != 0; i++, usleep(10000)) // as of its last heartbeat
        ck_assert_int_lt(i, 1000);
    assert_follows(A, "s", NULL, 0, 3); // its copy here is old, too
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_one_leaves_the_other_goes_on_from, 0, 2);
    tcase_add_test(tc, what_is_deleted_is_deleted_everywhere);
    tcase_add_test(tc, forks_and_files);
    tcase_add_test(tc, limits_hold_for_all);
    tcase_add_loop_test(tc, a_first_turn_has_its_place, 0, 2);
    tcase_add_test(tc, none_goes_early);
    tcase_add_test(tc, old_ones_go_and_those_at_work_do_not);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
