// SPDX-License-Identifier: Apache-2.0
// What turns of a session may do: wait for each other, begin where they are told, be left open,
// belong to somebody; and that a state is the same bytes each time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixtures/session.h"

static void make(const char *name, const int32_t *tokens, size_t n) {
    waiter w;
    talk t = {.n = 0};
    snprintf(t.name, sizeof t.name, "%s", name);
    ssm_request r = turn_of(&t, n, false);
    r.prompt = tokens;
    r.max_tokens = 4;
    r.session_hold = false;
    consumer_run(&con, &w, &r);
    waiter_dispose(&w);
}

static const int32_t abc[] = {1, 2, 3, 4, 5};

START_TEST(turns_of_one_session_wait_for_each_other) {
    enum { N = 6 };
    waiter w[N], p;
    begin(_i, 8);
    talk t = {.name = "one"};
    for (int i = 0; i < N; i++) {
        ssm_request r = turn_of(&t, 5, false);
        r.prompt = abc;
        r.max_tokens = 3 + i;
        r.session_hold = false;
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    }
    ssm_request hasty = turn_of(&t, 5, false);
    waiter no;
    hasty.session_no_wait = true;
    hasty.session_hold = false; // it may come when all are through
    hasty.prompt = abc;
    ck_assert_int_eq(consumer_submit(&con, &no, &hasty), 0);
    consumer_take_all(&con);
    if (no.error != 0) // unless all were through before it came
        ck_assert_int_eq(no.error, SSM_ESESSIONBUSY);
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(w[i].error, 0);
        say(&t, abc, 5);
        ssm_request q;
        ssm_request_init(&q);
        q.prompt = t.tokens;
        q.n_prompt = t.n;
        q.max_tokens = 3 + i;
        q.ignore_eos = true;
        q.logprobs = 0;
        consumer_run(&plain, &p, &q);
        ck_assert_int_eq(w[i].choices[0].n, p.choices[0].n);
        say(&t, w[i].choices[0].tokens, (size_t)w[i].choices[0].n);
        waiter_dispose(&p);
        waiter_dispose(&w[i]);
    }
    waiter_dispose(&no);
    end();
}
END_TEST

START_TEST(another_conversation_is_refused) {
    waiter w;
    ssm_session_info before, after;
    begin(_i, 8);
    make("one", abc, 5);
    ck_assert_int_eq(ssm_session_get(con.engine, owner, "one", &before, NULL), 0);
    const int32_t other[] = {1, 2, 9, 4, 5, 1, 1, 1, 1, 1, 1, 1};
    for (size_t n = 1; n <= 12; n += 11) { // too short, and one token off
        talk t = {.name = "one"};
        ssm_request r = turn_of(&t, n, true);
        r.prompt = other;
        ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
        consumer_take_all(&con);
        ck_assert_int_eq(w.error, SSM_EMISMATCH);
        ck_assert_int_eq(w.choices[0].n, 0);
        waiter_dispose(&w);
    }
    ck_assert_int_eq(ssm_session_get(con.engine, owner, "one", &after, NULL), 0);
    ck_assert_uint_eq(before.tokens, after.tokens);
    end();
}
END_TEST

static int run_at(const ssm_session_point *at, int64_t max_tokens) {
    waiter w;
    talk t = {.name = "one"};
    ssm_request r = turn_of(&t, 5, false);
    r.prompt = abc;
    r.max_tokens = max_tokens;
    r.session_hold = false;
    r.session_at = at;
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    consumer_take_all(&con);
    const int rc = w.error;
    waiter_dispose(&w);
    return rc;
}

START_TEST(a_turn_begins_where_it_was_told_or_not_at_all) {
    ssm_session_info first, second;
    const ssm_session_point nowhere = {0};
    begin(_i, 8);
    ck_assert_int_eq(run_at(&nowhere, 3), 0);
    ck_assert_int_eq(run_at(&nowhere, 3), SSM_EMOVED); // it is there by now
    ck_assert_int_eq(ssm_session_get(con.engine, owner, "one", &first, NULL), 0);
    ck_assert_int_eq(run_at(&first.at, 3), 0);
    ck_assert_int_eq(run_at(&first.at, 3), SSM_EMOVED);
    ck_assert_int_eq(ssm_session_get(con.engine, owner, "one", &second, NULL), 0);
    ssm_session_point other = second.at;
    other.chain[1] ^= 1;
    ck_assert_int_eq(run_at(&other, 3), SSM_EMOVED);
    ck_assert_int_eq(run_at(&second.at, 3), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, "one", NULL), 0);
    ck_assert_int_eq(run_at(&second.at, 3), SSM_EMOVED);
    end();
}
END_TEST

// The engine goes while a choice waits for its consumer's word: it gets its DONE.
START_TEST(a_held_turn_ends_with_its_engine) {
    waiter w;
    begin(_i, 8);
    talk t = {.name = "one"};
    ssm_request r = turn_of(&t, 5, false);
    r.prompt = abc;
    r.session_hold = true;
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    while (!w.choices[0].finishes)
        consumer_take(&con);
    ck_assert_int_eq(w.dones, 0);
    ck_assert_int_eq(ssm_engine_keep(con.engine, w.id, 1, file, SSM_SESSION_MEMO + 1), SSM_EINVAL);
    if (_i % 2) { // its consumer goes first
        consumer_dispose(&con);
        consumer_init(&con, con.engine);
    } else {
        ssm_engine_free(con.engine);
        consumer_take_all(&con);
        ck_assert_int_eq(w.error, SSM_ECANCELED);
        ssm_port_close(con.port);
        consumer_init(&con, open_engine(backend_at(_i), 3, 8));
    }
    waiter_dispose(&w);
    end();
}
END_TEST

START_TEST(owners_do_not_meet) {
    static const uint64_t others[3][2] = {{7, 8}, {6, 9}, {0, 0}};
    ssm_session_info *list;
    ssm_error err;
    size_t n;
    begin(_i, 8);
    make("one", abc, 5);
    make("two", abc, 4);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(ssm_session_get(con.engine, others[i], "one", NULL, &err), SSM_ENOTFOUND);
        ck_assert_int_eq(ssm_session_delete(con.engine, others[i], "one", NULL), SSM_ENOTFOUND);
        ck_assert_int_eq(ssm_session_fork(con.engine, others[i], "one", "x", NULL, NULL),
                         SSM_ENOTFOUND);
        ck_assert_int_eq(ssm_session_export(con.engine, others[i], "one", file, NULL),
                         SSM_ENOTFOUND);
        ck_assert_int_eq(ssm_session_list(con.engine, others[i], &list, &n, NULL), 0);
        ck_assert_uint_eq(n, 0);
        free(list);
    }
    ck_assert_int_eq(ssm_session_list(con.engine, owner, &list, &n, NULL), 0);
    ck_assert_uint_eq(n, 2);
    ck_assert_str_eq(list[0].name, "one");
    ck_assert_str_eq(list[1].name, "two");
    free(list);
    ck_assert_int_eq(ssm_session_get(con.engine, owner, "../x", NULL, &err), SSM_EINVAL);
    ck_assert_int_eq(ssm_session_fork(con.engine, owner, "one", "a/b", NULL, &err), SSM_EINVAL);
    end();
}
END_TEST

static uint8_t *slurp(size_t *size) {
    FILE *f = fopen(file, "rb");
    uint8_t *bytes = malloc(1 << 20);
    ck_assert_ptr_nonnull(f);
    *size = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

START_TEST(the_same_state_is_the_same_bytes) {
    size_t n[2];
    uint8_t *bytes[2];
    begin(_i, 8);
    make("one", abc, 5);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(ssm_session_export(con.engine, owner, i ? "two" : "one", file, NULL), 0);
        bytes[i] = slurp(&n[i]);
        ck_assert_uint_le(n[i], ssm_session_max_file(con.engine));
        ck_assert_int_eq(ssm_session_import(con.engine, owner, "two", file, NULL, NULL), 0);
    }
    ck_assert_uint_eq(n[0], n[1]);
    ck_assert_int_eq(memcmp(bytes[0], bytes[1], n[0]), 0);
    free(bytes[0]);
    free(bytes[1]);
    end();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("session rules");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, turns_of_one_session_wait_for_each_other, 0, N_BACKENDS);
    tcase_add_loop_test(tc, another_conversation_is_refused, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_turn_begins_where_it_was_told_or_not_at_all, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_held_turn_ends_with_its_engine, 0, N_BACKENDS);
    tcase_add_loop_test(tc, owners_do_not_meet, 0, N_BACKENDS);
    tcase_add_loop_test(tc, the_same_state_is_the_same_bytes, 0, N_BACKENDS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
