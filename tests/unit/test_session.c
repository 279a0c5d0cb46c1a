// SPDX-License-Identifier: Apache-2.0
// Sessions against an engine that has none: every turn's tokens and every bit of their logprobs are
// those of one request with the whole conversation as its prompt, whatever happened to the session
// before: forks, files, answers cut short, turns aborted, states pushed off the device.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "engine/engine.h"
#include "support/consumer.h"
#include "support/late_backend.h"
#include "tests/suite.h"

enum { N_BACKENDS = 3, NAMES = 8, LONGEST = 600, TURN = 40 };
static const ssm_backend *backend_at(int i) {
    return i == 0 ? &ssm_backend_cpu : i == 1 ? late_backend() : &ssm_backend_reference;
}

static ssm_model *model;
static consumer plain, con;
static uint32_t seed;
static const uint64_t owner[2] = {7, 9};
static char folder[64], file[96];

static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 4) * below >> 28);
}

static ssm_engine *open_engine(const ssm_backend *backend, int32_t sessions, int32_t rows) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.max_sessions = sessions;
    o.threads = 1;
    o.cache_bytes = rows * (int64_t)ssm_model_get_info(model)->saved_bytes;
    o.checkpoint_tokens = 64;
    o.poison_slots = true;
    const int rc = engine_create_on(backend, model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    return engine;
}

static void begin(int backend, int32_t rows) {
    ssm_error err;
    const int rc = ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    consumer_init(&plain, open_engine(backend_at(backend), 4, 0));
    consumer_init(&con, open_engine(backend_at(backend), 3, rows));
    strcpy(folder, "/tmp/ssm-session-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/state", folder);
}

static void end(void) {
    consumer_dispose(&plain);
    consumer_dispose(&con);
    ssm_engine_free(plain.engine);
    ssm_engine_free(con.engine); // asserts that nothing is lost
    ssm_model_free(model);
    unlink(file);
    ck_assert_int_eq(rmdir(folder), 0); // and nothing left behind
}

// ---- a conversation as the test knows it

typedef struct talk {
    int32_t tokens[LONGEST + 2 * TURN];
    size_t n;
    bool exists;
    char name[16];
    uint8_t memo[SSM_SESSION_MEMO];
    size_t n_memo;
} talk;

static void say(talk *t, const int32_t *tokens, size_t n) {
    if (n > 0)
        memcpy(t->tokens + t->n, tokens, n * sizeof *tokens);
    t->n += n;
}

// A turn's request; its prompt is the part of t->tokens from the session's end on, or all of it.
static ssm_request turn_of(const talk *t, size_t n_new, bool whole) {
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = whole ? t->tokens : t->tokens + t->n;
    r.n_prompt = whole ? t->n + n_new : n_new;
    r.max_tokens = 1 + draw(12);
    r.ignore_eos = true;
    r.logprobs = 0;
    r.seed = draw(5);
    r.session = t->name;
    memcpy(r.session_owner, owner, sizeof owner);
    r.session_whole = whole;
    r.session_hold = draw(2);
    return r;
}

static ssm_request as_plain(ssm_request r, const talk *t, size_t n_new) {
    r.prompt = t->tokens;
    r.n_prompt = t->n + n_new;
    r.session = NULL;
    r.cache_prompt = false;
    return r;
}

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

// ---- rules

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
    Suite *suite = suite_create("session");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, turns_are_those_of_one_long_prompt, 0, N_BACKENDS);
    tcase_add_loop_test(tc, turns_of_one_session_wait_for_each_other, 0, N_BACKENDS);
    tcase_add_loop_test(tc, another_conversation_is_refused, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_turn_begins_where_it_was_told_or_not_at_all, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_held_turn_ends_with_its_engine, 0, N_BACKENDS);
    tcase_add_loop_test(tc, owners_do_not_meet, 0, N_BACKENDS);
    tcase_add_loop_test(tc, the_same_state_is_the_same_bytes, 0, N_BACKENDS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
