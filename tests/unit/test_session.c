// SPDX-License-Identifier: Apache-2.0
// Sessions against an engine that has none: every turn's tokens and every bit of their logprobs are
// those of one request with the whole conversation as its prompt, whatever happened to the session
// before: forks, files, answers cut short, turns aborted, states pushed off the device.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixtures/session.h"

static void check_info(const talk *t) {
    ssm_session_info info;
    const int rc = ssm_session_get(con.engine, owner, t->name, &info, NULL);
    ck_assert_int_eq(rc, t->exists ? 0 : SSM_ENOTFOUND);
    if (!t->exists)
        return;
    ck_assert_str_eq(info.name, t->name);
    ck_assert_uint_eq(info.tokens, t->n);
    ck_assert_uint_eq(info.at.tokens, t->n);
    ck_assert_uint_eq(info.bytes, ssm_model_get_info(model)->state_bytes);
    ck_assert_uint_eq(info.n_memo, t->n_memo);
    ck_assert_int_eq(memcmp(info.memo, t->memo, t->n_memo), 0);
}

// The consumer's last word on a turn: so many tokens, and a note.
static void keep(talk *t, uint64_t id, int64_t n_tokens) {
    t->n_memo = draw(3) ? draw(SSM_SESSION_MEMO + 1) : 0;
    for (size_t i = 0; i < t->n_memo; i++)
        t->memo[i] = (uint8_t)draw(256);
    ck_assert_int_eq(ssm_engine_keep(con.engine, id, n_tokens, t->memo, t->n_memo), 0);
}

// A turn that ends by itself and waits for the word; returns how many tokens it keeps, -1: it is
// dropped.
static int64_t end_held(talk *t, const waiter *w) {
    while (!w->choices[0].finishes)
        consumer_take(&con);
    for (int i = 0; i < 3; i++) // whatever else happens meanwhile
        ck_assert_int_eq(ssm_session_get(con.engine, owner, t->name, NULL, NULL),
                         t->exists ? 0 : SSM_ENOTFOUND);
    ck_assert_int_eq(w->dones, 0);
    const int64_t n = w->choices[0].n;
    const int64_t wanted = draw(2) ? n : (int64_t)draw((uint32_t)n + 1);
    if (draw(8) == 0) {
        ssm_engine_cancel(con.engine, w->id, -1);
        return -1;
    }
    keep(t, w->id, wanted);
    return wanted;
}

static void start_over(talk *t) {
    if (t->exists)
        ck_assert_int_eq(ssm_session_delete(con.engine, owner, t->name, NULL), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, t->name, NULL), SSM_ENOTFOUND);
    t->exists = false;
    t->n = t->n_memo = 0;
}

static void run_turn(talk *t) {
    static ssm_sampling warm;
    waiter w, p;
    ssm_sampling_init(&warm);
    if (t->n > LONGEST)
        start_over(t);
    const size_t n_new = t->exists ? draw(TURN) : 1 + draw(TURN);
    for (size_t i = 0; i < n_new; i++)
        t->tokens[t->n + i] = 1 + (int32_t)draw(15);
    ssm_request r = turn_of(t, n_new, draw(2));
    r.sampling = draw(2) ? &warm : NULL;
    const uint32_t kind = draw(10);
    if (kind == 0)
        r.max_tokens = 0;
    if (kind == 1 || kind == 2)
        r.max_tokens = 50000000; // until it is cut short or cancelled
    const ssm_request q = as_plain(r, t, n_new);
    const uint64_t covered = t->n;
    ssm_session_info info = {.at = {0}};
    if (t->exists)
        ck_assert_int_eq(ssm_session_get(con.engine, owner, t->name, &info, NULL), 0);
    r.session_at = draw(2) ? &info.at : NULL;
    int64_t kept = -2; // all
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    if (kind == 1 || kind == 2) {
        const int32_t wanted = 1 + (int32_t)draw(20);
        while (w.choices[0].n < wanted && !w.dones)
            consumer_take(&con);
        t->n_memo = kind == 2 ? t->n_memo : 0;
        if (kind == 1 && r.session_hold)
            keep(t, w.id, wanted);
        else if (kind == 1)
            ssm_engine_finish(con.engine, w.id, 0, wanted);
        else
            ssm_engine_cancel(con.engine, w.id, -1);
        consumer_take_all(&con);
        ck_assert_msg(w.error == 0, "%s", w.message);
        ck_assert_int_eq(w.choices[0].finish, kind == 1 ? SSM_FINISH_STOP : SSM_FINISH_CANCELLED);
        ssm_request some = q;
        some.max_tokens = wanted;
        consumer_run(&plain, &p, &some);
        assert_same_tokens(&p.choices[0], &w.choices[0], wanted);
    } else {
        if (r.session_hold)
            kept = end_held(t, &w);
        else
            t->n_memo = 0;
        consumer_take_all(&con);
        ck_assert_msg(w.error == 0, "%s", w.message);
        consumer_run(&plain, &p, &q);
        assert_same_answer(&p.choices[0], &w.choices[0]);
        ck_assert_uint_eq(w.usage.prompt_tokens, t->n + n_new);
        if (t->exists && covered > 30)
            ck_assert_uint_ge(w.usage.cached_tokens, covered - 30);
    }
    if (kind != 2 && kept != -1) {
        t->n += n_new;
        say(t, p.choices[0].tokens, kept >= 0 ? (size_t)kept : (size_t)p.choices[0].n);
        t->exists = true;
    }
    check_info(t);
    waiter_dispose(&w);
    waiter_dispose(&p);
}

static void take_over(const talk *from, talk *to) {
    char name[16];
    memcpy(name, to->name, sizeof name);
    if (from != to)
        *to = *from;
    memcpy(to->name, name, sizeof name);
}

static void fork_talk(talk *from, talk *to) {
    if (!from->exists || from == to)
        return;
    const int rc = ssm_session_fork(con.engine, owner, from->name, to->name, NULL, NULL);
    ck_assert_int_eq(rc, to->exists ? SSM_EINVAL : 0);
    if (rc == 0)
        take_over(from, to);
    check_info(to);
}

static void carry_by_file(talk *from, talk *to) {
    ssm_error err;
    if (!from->exists)
        return;
    ck_assert_int_eq(ssm_session_export(con.engine, owner, from->name, file, &err), 0);
    const int rc = ssm_session_import(con.engine, owner, to->name, file, NULL, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    take_over(from, to);
    check_info(to);
}

START_TEST(turns_are_those_of_one_long_prompt) {
    static const int32_t rows[] = {0, 2, 6, 60};
    static talk talks[NAMES];
    seed = 77 + (uint32_t)_i;
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        begin(_i, rows[k]);
        memset(talks, 0, sizeof talks);
        for (int i = 0; i < NAMES; i++)
            snprintf(talks[i].name, sizeof talks[i].name, "talk-%d", i);
        for (int i = 0; i < (_i == 2 ? 12 : 120); i++) {
            talk *t = &talks[draw(NAMES)];
            const uint32_t what = draw(20);
            if (what == 0)
                fork_talk(t, &talks[draw(NAMES)]);
            else if (what == 1)
                carry_by_file(t, &talks[draw(NAMES)]);
            else if (what == 2)
                start_over(t);
            else
                run_turn(t);
        }
        end();
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("session");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, turns_are_those_of_one_long_prompt, 0, N_BACKENDS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
