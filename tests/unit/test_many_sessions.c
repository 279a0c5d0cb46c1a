// SPDX-License-Identifier: Apache-2.0
// Ten times as many conversations as the cache holds, many of them at once, each turn compared,
// token and logprob, bit for bit, with the same text run whole on an engine without a cache. By
// name, the states on the disk; as clients without sessions send them, whole each time; and by name
// at either of two engines that share a Redis, each turn at any.
//
// SSM_TEST_SESSIONS=1000 SSM_TEST_CLIENTS=64 is the size that the project is measured by; a run of
// the suite takes smaller ones.
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "support/consumer.h"
#include "support/redis.h"
#include "tests/suite.h"

enum { TURNS = 4, MOST_NEW = 40, ANSWER = 6, MOST = TURNS * (MOST_NEW + ANSWER) };

typedef struct talk {
    int32_t text[MOST];
    size_t n; // so far
    int turn; // next
    waiter w, whole;
    consumer *at; // where the turn runs
    bool is_open;
} talk;

typedef enum way { BY_NAME, WHOLE, SHARED, N_WAYS } way;

static ssm_model *model;
static consumer con[2], plain;
static char folder[64];
static redis_server server;
static way kind;
static uint32_t seed = 1;

static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 4) * below >> 28);
}

static int count_of(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static ssm_engine *open_engine(int rows, bool stores) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 32;
    o.threads = 1;
    o.cache_bytes = rows * (int64_t)ssm_model_get_info(model)->saved_bytes;
    o.state_dir = stores && kind == BY_NAME ? folder : NULL;
    o.state_url = stores && kind == SHARED ? server.url : NULL;
    o.durability = SSM_DURABILITY_SYNC; // else what has not been written stays in memory
    o.poison_slots = true;
    const int rc = ssm_engine_create(model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    return engine;
}

static void submit(talk *t, int number) {
    char name[16];
    int32_t fresh[MOST_NEW];
    const size_t n_new = 1 + draw(MOST_NEW);
    for (size_t i = 0; i < n_new; i++) // many begin alike
        fresh[i] = t->turn == 0 ? 1 + (int32_t)(i * 7 % 15) : 1 + (int32_t)draw(15);
    memcpy(t->text + t->n, fresh, n_new * sizeof *fresh);
    t->n += n_new;
    ssm_request r;
    ssm_request_init(&r);
    snprintf(name, sizeof name, "s%d", number);
    r.max_tokens = ANSWER;
    r.logprobs = 0;
    r.ignore_eos = true;
    r.prompt = t->text;
    r.n_prompt = t->n;
    r.cache_prompt = false;
    ck_assert_int_eq(consumer_submit(&plain, &t->whole, &r), 0);
    r.cache_prompt = true;
    if (kind != WHOLE) {
        r.prompt = fresh;
        r.n_prompt = n_new;
        r.session = name;
    }
    t->at = &con[kind == SHARED ? draw(2) : 0];
    ck_assert_int_eq(consumer_submit(t->at, &t->w, &r), 0);
    t->is_open = true;
}

static void finish(talk *t) {
    while (!t->w.dones)
        consumer_take(t->at);
    while (!t->whole.dones)
        consumer_take(&plain);
    ck_assert_msg(t->w.error == 0, "%s", t->w.message);
    assert_same_answer(&t->w.choices[0], &t->whole.choices[0]);
    ck_assert(kind == WHOLE || t->turn == 0 || t->w.usage.cached_tokens > 0);
    for (int i = 0; i < ANSWER; i++)
        t->text[t->n++] = t->w.choices[0].tokens[i];
    waiter_dispose(&t->w);
    waiter_dispose(&t->whole);
    t->turn++;
    t->is_open = false;
}

static void remove_files(void) {
    char pattern[200];
    static const char *const inside[] = {"/*/*", "/*/.lock", "/*", "/.secret"};
    glob_t found;
    for (int i = 0; i < 4; i++) {
        snprintf(pattern, sizeof pattern, "%s%s", folder, inside[i]);
        if (glob(pattern, 0, NULL, &found) == 0) {
            for (size_t k = 0; k < found.gl_pathc; k++)
                remove(found.gl_pathv[k]);
            globfree(&found);
        }
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

START_TEST(every_answer_is_the_one_without_a_cache) {
    const int n = count_of("SSM_TEST_SESSIONS", 120), n_clients = count_of("SSM_TEST_CLIENTS", 24);
    talk *talks = calloc((size_t)n, sizeof *talks);
    int *open = malloc((size_t)n_clients * sizeof *open), left = n * TURNS;
    ssm_stats stats, other = {0};
    kind = (way)_i;
    const int n_engines = kind == SHARED ? 2 : 1;
    if (kind == SHARED && !redis_is_here())
        return;
    if (kind == SHARED)
        redis_start(&server, NULL);
    ck_assert_int_eq(ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, NULL), 0);
    strcpy(folder, "/tmp/ssm-many-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    for (int i = 0; i < n_engines; i++)
        consumer_init(&con[i], open_engine(n / 10, kind != WHOLE));
    consumer_init(&plain, open_engine(0, false));
    for (int c = 0; c < n_clients; c++)
        open[c] = -1;
    while (left > 0) {
        const uint32_t c = draw((uint32_t)n_clients);
        if (open[c] >= 0) {
            finish(&talks[open[c]]);
            open[c] = -1;
            left--;
        }
        const int k = (int)draw((uint32_t)n);
        if (!talks[k].is_open && talks[k].turn < TURNS) {
            submit(&talks[k], k);
            open[c] = k;
        }
    }
    ssm_engine_get_stats(con[0].engine, &stats);
    if (kind == SHARED)
        ssm_engine_get_stats(con[1].engine, &other);
    stats.cached_tokens += other.cached_tokens;
    stats.prompt_tokens += other.prompt_tokens;
    stats.session_loads += other.session_loads;
    printf("%d %s, %d at once, %d rows: %llu answers equal; %llu of %llu prompt tokens cached, "
           "%llu read from the store\n",
           n, kind == WHOLE ? "conversations" : "sessions", n_clients, n / 10,
           (unsigned long long)n * TURNS, (unsigned long long)stats.cached_tokens,
           (unsigned long long)(stats.cached_tokens + stats.prompt_tokens),
           (unsigned long long)stats.session_loads);
    fflush(stdout);
    ck_assert(kind == SHARED || stats.sessions == (kind == WHOLE ? 0 : (uint64_t)n));
    ck_assert(kind == WHOLE || stats.session_loads > (uint64_t)n / 10);
    ck_assert_uint_eq(stats.session_conflicts + other.session_conflicts, 0);
    consumer_dispose(&plain);
    ssm_engine_free(plain.engine);
    for (int i = 0; i < n_engines; i++) {
        consumer_dispose(&con[i]);
        ssm_engine_free(con[i].engine);
    }
    if (kind == SHARED)
        redis_dispose(&server);
    remove_files();
    ssm_model_free(model);
    free(talks);
    free(open);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("many_sessions");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, every_answer_is_the_one_without_a_cache, 0, N_WAYS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
