// SPDX-License-Identifier: Apache-2.0
// Sessions in a Redis that two engines share: what one leaves the other goes on from, to the bit;
// nobody's turn is lost in silence; what is wrong with Redis, or with what lies in it, is an error
// of the requests at sessions and of no others, and over when it is.
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <hiredis/hiredis.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "engine/state/redis_store.h"
#include "support/consumer.h"
#include "support/redis.h"

enum { TURN = 3, ANSWER = 2, PER_TURN = TURN + ANSWER, A = 0, B = 1, PLAIN = 2, N_ENGINES = 3 };

static ssm_model *model;
static redis_server server;
static consumer con[N_ENGINES];
static ssm_engine_options options;
static const uint64_t owner[2] = {1, 2};

// ---- engines

static int try_engine(int which, ssm_error *err) {
    ssm_engine *engine;
    ssm_engine_options o = options;
    if (which == PLAIN)
        o.state_url = NULL;
    const int rc = ssm_engine_create(model, &o, &engine, err);
    if (rc == 0)
        consumer_init(&con[which], engine);
    return rc;
}

static void open_engine(int which) {
    ssm_error err;
    const int rc = try_engine(which, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
}

static void close_engine(int which) {
    consumer_dispose(&con[which]);
    ssm_engine_free(con[which].engine);
}

static bool begin(const char *const *words) {
    redis_part_bytes = 1000; // so that states are of many
    if (!redis_is_here())
        return false;
    ck_assert_int_eq(ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, NULL), 0);
    redis_start(&server, words);
    ssm_engine_options_init(&options);
    options.device = "cpu";
    options.max_sessions = 4;
    options.threads = 1;
    options.cache_bytes = 3 * (int64_t)ssm_model_get_info(model)->state_bytes;
    options.state_url = server.url;
    options.durability = SSM_DURABILITY_SYNC;
    return true;
}

static void end(void) {
    redis_dispose(&server);
    ssm_model_free(model);
}

static ssm_request request(const char *name, int k, int32_t prompt[TURN]) {
    ssm_request r;
    ssm_request_init(&r);
    for (int i = 0; i < TURN; i++)
        prompt[i] = 1 + (k * 7 + i * 3) % 15;
    r.prompt = prompt;
    r.n_prompt = TURN;
    r.max_tokens = ANSWER;
    r.logprobs = 0;
    r.ignore_eos = true;
    r.session = name;
    memcpy(r.session_owner, owner, sizeof owner);
    return r;
}

static int turn(int which, const char *name, int k, waiter *w) {
    int32_t prompt[TURN];
    const ssm_request r = request(name, k, prompt);
    ck_assert_int_eq(consumer_submit(&con[which], w, &r), 0);
    consumer_take_all(&con[which]);
    ck_assert_int_eq(w->dones, 1);
    return w->error;
}

static int turn_only(int which, const char *name, int k) {
    waiter w;
    const int rc = turn(which, name, k, &w);
    waiter_dispose(&w);
    return rc;
}

static uint64_t tokens_of(int which, const char *name) {
    ssm_session_info info;
    const int rc = ssm_session_get(con[which].engine, owner, name, &info, NULL);
    return rc == 0 ? info.tokens : 0;
}

static ssm_stats stats_of(int which) {
    ssm_stats s;
    ssm_engine_get_stats(con[which].engine, &s);
    return s;
}

// A turn of `name` at an engine is the one that follows these turns.
static void assert_follows(int which, const char *name, const int *past, int n, int k) {
    waiter there, here;
    const int rc = turn(which, name, k, &there);
    ck_assert_msg(rc == 0, "%s", there.message);
    open_engine(PLAIN);
    for (int i = 0; i < n; i++)
        ck_assert_int_eq(turn_only(PLAIN, "x", past[i]), 0);
    ck_assert_int_eq(turn(PLAIN, "x", k, &here), 0);
    assert_same_answer(&here.choices[0], &there.choices[0]);
    waiter_dispose(&here);
    waiter_dispose(&there);
    close_engine(PLAIN);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// A turn whose end is the test's: submitted, at its last token, holding its claim.
static void hold(int which, const char *name, int k, waiter *w) {
    int32_t prompt[TURN];
    ssm_request r = request(name, k, prompt);
    r.session_hold = true;
    ck_assert_int_eq(consumer_submit(&con[which], w, &r), 0);
    while (w->choices[0].finishes == 0)
        consumer_take(&con[which]);
}

static int let_go(int which, waiter *w) {
    ssm_engine_finish(con[which].engine, w->id, 0, ANSWER);
    consumer_take_all(&con[which]);
    const int rc = w->error;
    waiter_dispose(w);
    return rc;
}

// ---- Redis, by hand

static redisContext *redis;

static void reach(void) {
    if (redis)
        redisFree(redis);
    redis = redisConnectUnix(server.path);
    ck_assert(redis && !redis->err);
}

// An answer as text; "" for nothing.
static const char *ask(const char *format, ...) {
    static char text[1000];
    va_list args;
    va_start(args, format);
    redisReply *reply = redisvCommand(redis, format, args);
    va_end(args);
    ck_assert_msg(reply && reply->type != REDIS_REPLY_ERROR, "%s: %s", format,
                  reply ? reply->str : redis->errstr);
    const redisReply *r =
        reply->type == REDIS_REPLY_ARRAY ? (reply->elements ? reply->element[0] : NULL) : reply;
    *text = '\0';
    if (r && r->type == REDIS_REPLY_INTEGER)
        snprintf(text, sizeof text, "%lld", r->integer);
    else if (r && r->str)
        snprintf(text, sizeof text, "%s", r->str);
    freeReplyObject(reply);
    return text;
}

static void copy_key(const char *pattern, char out[200]) {
    snprintf(out, 200, "%s", ask("KEYS %s", pattern));
    ck_assert_msg(*out, "%s", pattern);
}

// The key of the session of that name.
static void key_named(const char *name, char out[200]) {
    redisReply *keys = redisCommand(redis, "KEYS *:s:*");
    *out = '\0';
    for (size_t i = 0; i < keys->elements; i++) {
        if (strcmp(ask("HGET %s name", keys->element[i]->str), name) == 0)
            snprintf(out, 200, "%s", keys->element[i]->str);
    }
    freeReplyObject(keys);
    ck_assert_msg(*out, "%s", name);
}

// ---- together

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
    end();
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
    end();
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
    end();
}
END_TEST

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
        const ssm_request r = request("s", 1, prompt);
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
    end();
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
    const ssm_request r = request("s", 1, prompt);
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
    end();
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
    ssm_request r = request("s", 2, prompt);
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
    end();
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
    end();
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
    end();
}
END_TEST

START_TEST(old_ones_go_and_those_at_work_do_not) {
    waiter held;
    if (!begin(NULL))
        return;
    options.session_ttl = 1;
    options.session_max = 2;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(turn_only(A, "t", 0), 0);
    hold(B, "t", 1, &held);
    sleep(3);
    ck_assert_uint_eq(tokens_of(A, "s"), 0);
    ck_assert_uint_eq(tokens_of(A, "t"), PER_TURN);
    ck_assert_int_eq(turn_only(A, "u", 0), 0); // there is room
    ck_assert_int_eq(let_go(B, &held), 0);
    ck_assert_uint_eq(tokens_of(A, "t"), 2 * PER_TURN);
    sleep(3);
    ck_assert_uint_eq(tokens_of(A, "t"), 0);
    for (int i = 0; stats_of(A).sessions != 0; i++, usleep(10000)) // as of its last heartbeat
        ck_assert_int_lt(i, 1000);
    assert_follows(A, "s", NULL, 0, 3); // its copy here is old, too
    close_engine(A);
    close_engine(B);
    end();
}
END_TEST

// ---- a Redis that is away

static const char *const keeping[] = {"--appendonly", "yes", "--appendfsync", "always", NULL};

static void assert_all_but_sessions(int which) {
    waiter w;
    ssm_session_info *infos;
    size_t n;
    ssm_error err;
    int32_t prompt[TURN];
    ssm_request r = request(NULL, 1, prompt);
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
    end();
}
END_TEST

// A blip that is shorter than patience is no error at all.
START_TEST(one_that_starts_again_is_waited_for) {
    waiter w;
    int32_t prompt[TURN];
    const ssm_request r = request("s", 1, prompt);
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
    end();
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
    end();
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
    end();
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
    end();
}
END_TEST

// Up, but refusing: no memory, a replica, no rights.
START_TEST(one_that_refuses) {
    static const char *const spoil[][2] = {
        {"CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"},
        {"REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"},
        {"CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"},
        {"ACL SETUSER default -eval", "ACL SETUSER default +eval"},
    };
    waiter w;
    if (!begin(NULL))
        return;
    open_engine(A);
    reach();
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    for (size_t i = 0; i < sizeof spoil / sizeof *spoil; i++) {
        ask(spoil[i][0]);
        ck_assert_int_eq(turn(A, "s", (int)i + 1, &w), SSM_EUNAVAILABLE);
        waiter_dispose(&w);
        const ssm_stats stats = stats_of(A);
        ck_assert_uint_eq(stats.store_failures, i + 1);
        ck_assert_msg(*stats.store_reason, "%s", spoil[i][0]);
        printf("%s: %s\n", spoil[i][0], stats.store_reason);
        ask(spoil[i][1]);
        ck_assert_int_eq(turn_only(A, "s", (int)i + 1), 0);
    }
    ck_assert_uint_eq(tokens_of(A, "s"), 5 * PER_TURN);
    close_engine(A);
    end();
}
END_TEST

START_TEST(a_start_says_what_is_wrong) {
    ssm_error err;
    char url[300];
    if (!begin(NULL))
        return;
    const struct {
        const char *url, *command, *undo, *says;
    } wrong[] = {
        {"redis://127.0.0.1:1", NULL, NULL, "refused"},
        {"unix:///tmp/there-is-none", NULL, NULL, "No such file"},
        {"unix://:secret@", NULL, NULL, "AUTH"},
        {"unix://someone:secret@", NULL, NULL, "WRONGPASS"},
        {"unix://?db=99", NULL, NULL, "out of range"},
        {"unix://", "ACL SETUSER default >secret resetpass >secret", "ACL SETUSER default nopass",
         "NOAUTH"},
        {"unix://", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"},
        {"unix://", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"},
        {"unix://", "ACL SETUSER default -eval", "ACL SETUSER default +eval", "NOPERM"},
        {"unix://", "SET ssmd:secret short", "DEL ssmd:secret", "16 bytes"},
        {"http://127.0.0.1", NULL, NULL, "begins with none"},
    };
    reach();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *path = strncmp(wrong[i].url, "unix://", 7) == 0 && !strstr(wrong[i].url, "tmp")
                               ? server.path
                               : "";
        const char *query = strchr(wrong[i].url, '?');
        snprintf(url, sizeof url, "%.*s%s%s", (int)strcspn(wrong[i].url, "?"), wrong[i].url, path,
                 query ? query : "");
        options.state_url = url;
        if (wrong[i].command)
            ask(wrong[i].command);
        const int rc = try_engine(A, &err);
        ck_assert_msg(rc == SSM_EUNAVAILABLE || rc == SSM_EINVAL, "%s: %d", url, rc);
        ck_assert_str_eq(err.param, "state_url");
        ck_assert_msg(strstr(err.message, wrong[i].says) && !strstr(err.message, "secret@"),
                      "%s: %s", url, err.message);
        if (wrong[i].undo)
            ask(wrong[i].undo);
    }
    options.state_url = server.url;
    options.state_dir = "/tmp";
    ck_assert_int_eq(try_engine(A, &err), SSM_EINVAL);
    options.state_dir = NULL;
    options.durability = SSM_DURABILITY_NONE;
    ck_assert_int_eq(try_engine(A, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "durability");
    options.durability = SSM_DURABILITY_SYNC;
    ask("CONFIG SET requirepass se/cr%%et"); // hiredis reads %% as %
    snprintf(url, sizeof url, "unix://:se%%2Fcr%%25et@%s?db=3", server.path);
    options.state_url = url;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    close_engine(A);
    ask("SELECT 3");
    ck_assert_str_eq(ask("DBSIZE"), "4");
    end();
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
    end();
}
END_TEST

// ---- what lies there

static const struct {
    const char *name, *how[2]; // commands; %s is the session's key
    bool is_lost;              // else it is as good as ever
} hostile[] = {
    {"a part that is changed", {"HSET %s 1 x"}, true},
    {"a part of the right length",
     {"EVAL redis.call('HSET',KEYS[1],'1',redis.call('HGET',KEYS[1],'1'):sub(1,-2)..'~') 1 %s"},
     true},
    {"a part that is missing", {"HDEL %s 0"}, true},
    {"the last part is missing",
     {"EVAL redis.call('HDEL',KEYS[1],redis.call('HLEN',KEYS[1])-10) 1 %s"},
     true},
    {"no size", {"HDEL %s size"}, true},
    {"a size of nothing", {"HSET %s size 0"}, true},
    {"a negative size", {"HSET %s size -1"}, true},
    {"a size of all", {"HSET %s size 18446744073709551615"}, true},
    {"a size beyond numbers", {"HSET %s size 99999999999999999999999"}, true},
    {"a size that is a word", {"HSET %s size many"}, true},
    {"a size one too small", {"HINCRBY %s size -1"}, true},
    {"no stamp", {"HDEL %s stamp"}, true},
    {"a stamp of zeros", {"HSET %s stamp 0000000000000000"}, true},
    {"a stamp that is a word", {"HSET %s stamp hello"}, true},
    {"another's name", {"HSET %s name t"}, true},
    {"another's", {"HSET %s owner 00000000000000000000000000000000"}, true},
    {"a time that is none", {"HSET %s created never"}, true},
    {"no hash", {"DEL %s", "SET %s hello"}, true},
    {"a list", {"DEL %s", "RPUSH %s hello"}, true},
    {"an empty hash", {"DEL %s", "HSET %s x y"}, true},
    {"a memo that is none", {"HSET %s memo xyz"}, false},
    {"tokens that are none", {"HSET %s tokens many"}, false},
    {"more fields", {"HSET %s hello world"}, false},
};

START_TEST(hostile_values_are_set_aside) {
    static const int past[] = {0, 1};
    char key[200], command[400];
    ssm_session_info *infos;
    size_t n;
    ssm_error err;
    uint8_t *bytes = NULL;
    if (!begin(NULL))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "t", 0), 0);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(turn_only(A, "s", 1), 0);
    reach();
    key_named("s", key);
    for (int i = 0; i < 2; i++) {
        if (!hostile[_i].how[i])
            continue;
        snprintf(command, sizeof command, hostile[_i].how[i], key);
        ask(command);
    }
    // Whoever lists sees the good ones.
    ck_assert_int_eq(ssm_session_list(con[B].engine, owner, &infos, &n, &err), 0);
    ck_assert(n >= 1 && strcmp(infos[n - 1].name, "t") == 0);
    free(infos);
    const uint64_t seen = tokens_of(B, "s");
    ck_assert_msg(seen == 0 || seen == 2 * PER_TURN, "%s", hostile[_i].name);
    // B has no copy: a turn, or a call, that wants it finds out. A has one: it must not use it.
    const bool by_call = _i % 2 == 1;
    size_t size;
    const int rc = by_call
                       ? ssm_session_export_bytes(con[B].engine, owner, "s", &bytes, &size, &err)
                       : turn_only(B, "s", 2);
    free(bytes);
    ck_assert_msg(rc == (hostile[_i].is_lost ? SSM_EIO : 0), "%s: %d", hostile[_i].name, rc);
    if (hostile[_i].is_lost) {
        for (int i = 0; stats_of(B).sessions_set_aside != 1; i++, usleep(1000))
            ck_assert_int_lt(i, 5000);
        copy_key("*:b:*", key);
        ck_assert_int_gt(atoi(ask("TTL %s", key)), 600000);
        assert_follows(A, "s", NULL, 0, 2); // the name is free
    } else if (by_call) {
        assert_follows(A, "s", past, 2, 2);
    }
    ck_assert_int_eq(turn_only(B, "t", 1), 0);
    close_engine(A);
    close_engine(B);
    end();
}
END_TEST

// ---- URLs

START_TEST(urls) {
    redis_url u;
    ssm_error err;
    ck_assert_int_eq(redis_url_parse("redis://h", &u, NULL), 0);
    ck_assert(strcmp(u.host, "h") == 0 && u.port == 6379 && u.db == 0 && !*u.user && !*u.password);
    ck_assert_int_eq(redis_url_parse("valkey://u:p%40@h.example:7000/12", &u, NULL), 0);
    ck_assert(strcmp(u.host, "h.example") == 0 && u.port == 7000 && u.db == 12);
    ck_assert(strcmp(u.user, "u") == 0 && strcmp(u.password, "p@") == 0);
    ck_assert_int_eq(redis_url_parse("redis://:a@b/c@[::1]:7/", &u, NULL), 0);
    ck_assert(strcmp(u.host, "::1") == 0 && u.port == 7 && strcmp(u.password, "a@b/c") == 0);
    ck_assert_int_eq(redis_url_parse("unix:///run/r.sock?db=4", &u, NULL), 0);
    ck_assert(strcmp(u.host, "/run/r.sock") == 0 && u.port == 0 && u.db == 4);
    ck_assert_int_eq(redis_url_parse("unix://u:p@/run/r", &u, NULL), 0);
    ck_assert(strcmp(u.host, "/run/r") == 0 && strcmp(u.user, "u") == 0);
    static const char *const bad[] = {
        "",
        "redis",
        "redis:/h",
        "redis://",
        "redis://:7",
        "redis://h:",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:x",
        "redis://h:7x",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://[::1",
        "redis://[::1]x",
        "redis://hunter2@h",
        "redis://u:@h",
        "redis://:%zz@h",
        "redis://:%00@h",
        "rediss://:hunter2@h",
        "http://h",
        "unix://",
        "unix://run",
        "unix:///run?x=1",
        "unix:///run?db=",
        "unix:///run?db=x",
        "redis://:hunter2@h:x",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(redis_url_parse(bad[i], &u, &err) == SSM_EINVAL, "%s", bad[i]);
        ck_assert_msg(!strstr(err.message, "hunter2"), "%s", err.message);
    }
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    memcpy(big, "redis://", 8);
    ck_assert_int_eq(redis_url_parse(big, &u, &err), SSM_EINVAL);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_one_leaves_the_other_goes_on_from, 0, 2);
    tcase_add_test(tc, what_is_deleted_is_deleted_everywhere);
    tcase_add_test(tc, forks_and_files);
    tcase_add_loop_test(tc, two_that_race_take_turns, 0, 2);
    tcase_add_loop_test(tc, nobody_keeps_a_session_for_ever, 0, 2);
    tcase_add_loop_test(tc, a_session_at_work_elsewhere_is_busy, 2, 3);
    tcase_add_loop_test(tc, a_turn_that_was_overtaken_is_a_conflict, 0, 2);
    tcase_add_test(tc, limits_hold_for_all);
    tcase_add_test(tc, old_ones_go_and_those_at_work_do_not);
    tcase_add_test(tc, one_that_goes_away_and_comes_back);
    tcase_add_test(tc, one_that_starts_again_is_waited_for);
    tcase_add_loop_test(tc, one_that_goes_in_the_middle_of_a_turn, 0, 2);
    tcase_add_loop_test(tc, one_whose_answer_is_lost, 0, 2);
    tcase_add_test(tc, one_that_does_not_answer);
    tcase_add_test(tc, one_that_refuses);
    tcase_add_test(tc, a_start_says_what_is_wrong);
    tcase_add_test(tc, another_database_is_noticed);
    tcase_add_loop_test(tc, hostile_values_are_set_aside, 0, sizeof hostile / sizeof *hostile);
    tcase_add_test(tc, urls);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
