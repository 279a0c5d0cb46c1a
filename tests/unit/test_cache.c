// SPDX-License-Identifier: Apache-2.0
// Saved states change no answer. Random requests over an alphabet of 16 tokens and a few base
// texts, so that beginnings collide all the time; a cache of a handful of rows, so that eviction
// never stops; tenants, cancellations, many choices. Each request runs on an engine without a cache
// too, and every token and every bit of its logprob must be the same. Rows given up are full of
// NaN.
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <ssm/engine.h>

#include "engine/engine.h"
#include "support/consumer.h"
#include "support/late_backend.h"

// ---- backends: the two of a CPU, and one that is as late as a GPU

enum { N_BACKENDS = 3 };
static const ssm_backend *backend_at(int i) {
    return i == 0 ? &ssm_backend_cpu : i == 1 ? late_backend() : &ssm_backend_reference;
}

static ssm_model *model;
static char folder[64];
static uint32_t seed;

static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 4) * below >> 28);
}

typedef struct setup {
    int32_t sessions, rows, host_rows, checkpoint, chunk, disk_rows;
} setup;

static ssm_engine *open_engine(const ssm_backend *backend, const setup *s) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    const int64_t row = (int64_t)ssm_model_get_info(model)->state_bytes;
    o.max_sessions = s->sessions;
    o.threads = 1;
    o.cache_bytes = s->rows * row;
    o.cache_host_bytes = (uint64_t)(s->host_rows * row);
    o.cache_dir = s->disk_rows > 0 ? folder : NULL;
    o.cache_disk_bytes = (uint64_t)s->disk_rows * ((uint64_t)row + 4 * 16);
    o.checkpoint_tokens = s->checkpoint;
    o.chunk_tokens = s->chunk;
    o.poison_slots = true;
    const int rc = engine_create_on(backend, model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    return engine;
}

static void open_model(void) {
    ssm_error err;
    const int rc = ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    ck_assert_int_eq(ssm_model_get_info(model)->vocab_size, 16);
    strcpy(folder, "/tmp/ssm-cache-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void close_model(void) {
    ck_assert_int_eq(rmdir(folder), 0); // nothing is left in it
    ssm_model_free(model);
}

static ssm_stats stats_of(ssm_engine *engine) {
    ssm_stats s;
    ssm_engine_get_stats(engine, &s);
    return s;
}

static uint64_t hits_of(const ssm_stats *s) {
    return s->cache[0].hits + s->cache[1].hits + s->cache[2].hits;
}

static uint64_t evictions_of(const ssm_stats *s) {
    return s->cache[0].evictions + s->cache[1].evictions + s->cache[2].evictions;
}

static uint64_t times_of(const ssm_histogram *h) {
    uint64_t n = 0;
    for (int i = 0; i <= SSM_STATS_BUCKETS; i++)
        n += h->count[i];
    return n;
}

// ---- random traffic

enum { BASES = 4, LONGEST = 400, WINDOW = 12 };

typedef struct pair {
    waiter plain, cached;
    bool is_open, is_cancelled;
    int32_t n;
} pair;

static int32_t bases[BASES][LONGEST];

static size_t random_prompt(int32_t *out) {
    static const uint32_t most[] = {4, 70, 200, LONGEST};
    const size_t n = 1 + draw(most[draw(4)]), same = draw(3) ? n : draw((uint32_t)n + 1);
    const int32_t *base = bases[draw(BASES)];
    for (size_t i = 0; i < n; i++)
        out[i] = i < same ? base[i] : 1 + (int32_t)draw(3);
    return n;
}

static void check_pair(pair *p) {
    ck_assert_int_eq(p->plain.error, 0);
    ck_assert_int_eq(p->cached.error, 0);
    for (int32_t i = 0; i < p->n; i++) {
        const answer *a = &p->plain.choices[i], *b = &p->cached.choices[i];
        if (p->is_cancelled)
            assert_same_tokens(a, b, a->n < b->n ? a->n : b->n);
        else
            assert_same_answer(a, b);
    }
    ck_assert_uint_eq(p->plain.usage.cached_tokens, 0);
    ck_assert_uint_le(p->cached.usage.cached_tokens, p->cached.usage.prompt_tokens);
    waiter_dispose(&p->plain);
    waiter_dispose(&p->cached);
    p->is_open = false;
}

static void submit_pair(consumer *plain, consumer *cached, pair *p) {
    static ssm_sampling warm;
    ssm_sampling_init(&warm);
    int32_t prompt[LONGEST];
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = random_prompt(prompt);
    r.n = draw(8) ? 1 : 1 + (int32_t)draw(5);
    r.max_tokens = draw(20) ? 1 + draw(12) : 0;
    r.sampling = draw(2) ? &warm : NULL;
    r.seed = draw(3);
    r.logprobs = 0;
    r.ignore_eos = draw(2);
    r.cache_salt[1] = draw(2);
    r.priority = (int32_t)draw(2);
    p->n = r.n;
    p->is_open = true;
    p->is_cancelled = draw(10) == 0;
    ck_assert_int_eq(consumer_submit(cached, &p->cached, &r), 0);
    r.cache_prompt = false;
    ck_assert_int_eq(consumer_submit(plain, &p->plain, &r), 0);
    if (p->is_cancelled)
        ssm_engine_cancel(cached->engine, p->cached.id, draw(2) ? -1 : 0);
}

static void random_traffic(const ssm_backend *backend, const setup *s, int n_requests) {
    const setup none = {.sessions = 8};
    ssm_engine *engines[2] = {open_engine(backend, &none), open_engine(backend, s)};
    consumer plain, cached;
    static pair pairs[WINDOW];
    memset(pairs, 0, sizeof pairs);
    consumer_init(&plain, engines[0]);
    consumer_init(&cached, engines[1]);
    for (int k = 0; k < BASES; k++) {
        for (int i = 0; i < LONGEST; i++)
            bases[k][i] = k > 0 && i < 130 * (k % 2) ? bases[0][i] : 1 + (int32_t)draw(15);
    }
    for (int i = 0; i < n_requests; i++) {
        pair *p = &pairs[draw(WINDOW)];
        while (p->is_open && !p->cached.dones)
            consumer_take(&cached);
        while (p->is_open && !p->plain.dones)
            consumer_take(&plain);
        if (p->is_open)
            check_pair(p);
        submit_pair(&plain, &cached, p);
    }
    consumer_take_all(&cached);
    consumer_take_all(&plain);
    for (int i = 0; i < WINDOW; i++) {
        if (pairs[i].is_open)
            check_pair(&pairs[i]);
    }
    const ssm_stats stats = stats_of(engines[1]);
    const ssm_tier_stats *disk = &stats.cache[SSM_TIER_DISK];
    ck_assert_int_eq(stats.slots_used, 0);
    const bool says_much = n_requests >= 100;
    if (says_much && s->rows > 1)
        ck_assert_uint_gt(hits_of(&stats), (uint64_t)n_requests / 20);
    if (says_much && s->rows < 20)
        ck_assert_uint_gt(evictions_of(&stats) + disk->moves, (uint64_t)n_requests / 4);
    if (says_much && s->host_rows > 0)
        ck_assert_uint_gt(stats.cache[SSM_TIER_HOST].moves, (uint64_t)n_requests / 4);
    if (says_much && s->disk_rows > 0)
        ck_assert_uint_gt(disk->moves, 0); // how many is the disk's pace
    if (says_much && s->disk_rows > 20)
        ck_assert_uint_gt(times_of(&disk->restore_seconds), 0);
    ck_assert_uint_eq(stats.cache_disk_failures, 0);
    consumer_dispose(&plain);
    consumer_dispose(&cached);
    ssm_engine_free(engines[0]);
    ssm_engine_free(engines[1]); // asserts that each row is in one place
}

START_TEST(answers_are_those_without_a_cache) {
    static const setup setups[] = {
        {.sessions = 4, .rows = 1, .checkpoint = 64},
        {.sessions = 3, .rows = 7, .checkpoint = 1},
        {.sessions = 6, .rows = 12, .checkpoint = 64, .chunk = 7},
        {.sessions = 1, .rows = 5, .checkpoint = 0},
        {.sessions = 4, .rows = 3, .host_rows = 8, .checkpoint = 64},
        {.sessions = 8, .rows = 400, .checkpoint = 100},
        {.sessions = 4, .rows = 3, .checkpoint = 64, .disk_rows = 100},
        {.sessions = 5, .rows = 2, .host_rows = 3, .checkpoint = 64, .disk_rows = 4},
        {.sessions = 2, .rows = 1, .host_rows = 1, .checkpoint = 1, .disk_rows = 400},
    };
    open_model();
    seed = 20 + (uint32_t)_i;
    for (size_t i = 0; i < sizeof setups / sizeof setups[0]; i++)
        random_traffic(backend_at(_i), &setups[i], _i == 2 ? 10 : 110); // the last one is slow
    close_model();
}
END_TEST

// ---- what a hit is

static consumer con;

static void begin(int backend, const setup *s) {
    open_model();
    consumer_init(&con, open_engine(backend_at(backend), s));
}

static void end(void) {
    consumer_dispose(&con);
    ssm_engine_free(con.engine);
    close_model();
}

static void fill(int32_t *tokens, size_t n, uint32_t s) {
    seed = s;
    for (size_t i = 0; i < n; i++)
        tokens[i] = 1 + (int32_t)draw(15);
}

static ssm_request request_of(const int32_t *prompt, size_t n) {
    ssm_request r;
    ssm_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = n;
    r.max_tokens = 6;
    r.logprobs = 0;
    r.ignore_eos = true;
    return r;
}

// Runs it and says how many of its tokens were known.
static uint64_t cached_of(const ssm_request *r) {
    waiter w;
    consumer_run(&con, &w, r);
    const uint64_t n = w.usage.cached_tokens;
    ck_assert_uint_eq(w.usage.prompt_tokens, r->n_prompt);
    waiter_dispose(&w);
    return n;
}

START_TEST(a_repeat_runs_no_token) {
    const setup s = {.sessions = 2, .rows = 8, .checkpoint = 256};
    int32_t prompt[300];
    waiter first, second;
    begin(_i, &s);
    fill(prompt, 300, 1);
    ssm_request r = request_of(prompt, 300);
    consumer_run(&con, &first, &r);
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    ck_assert_uint_eq(ran, 300);
    consumer_run(&con, &second, &r);
    ck_assert_uint_eq(second.usage.cached_tokens, 300);
    ck_assert_uint_eq(stats_of(con.engine).prompt_tokens, ran);
    assert_same_answer(&first.choices[0], &second.choices[0]);
    r.n = 5; // more choices than slots, all from the one state
    waiter_dispose(&second);
    consumer_run(&con, &second, &r);
    ck_assert_uint_eq(stats_of(con.engine).prompt_tokens, ran);
    for (int i = 0; i < 5; i++)
        assert_same_answer(&first.choices[0], &second.choices[i]);
    r.max_tokens = 0; // and a repeat that draws nothing
    ck_assert_uint_eq(cached_of(&r), 300);
    waiter_dispose(&first);
    waiter_dispose(&second);
    end();
}
END_TEST

// The next turn of a conversation: prompt, answer, something new.
START_TEST(an_answer_is_known_too) {
    const setup s = {.sessions = 2, .rows = 8, .checkpoint = 256};
    int32_t text[200];
    waiter w;
    begin(_i, &s);
    fill(text, 100, 2);
    ssm_request r = request_of(text, 100);
    r.max_tokens = 40;
    consumer_run(&con, &w, &r);
    memcpy(text + 100, w.choices[0].tokens, 40 * sizeof *text);
    fill(text + 140, 10, 3);
    waiter_dispose(&w);
    r.n_prompt = 150;
    const uint64_t known = cached_of(&r);
    ck_assert_uint_ge(known, 139); // the last one drawn was not run, unless ahead of the host
    ck_assert_uint_le(known, 140);
    end();
}
END_TEST

START_TEST(prompts_are_known_at_the_grid_and_where_they_part) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 128};
    int32_t text[1000], other[1000];
    begin(_i, &s);
    fill(text, 1000, 4);
    ssm_request r = request_of(text, 1000);
    ck_assert_uint_eq(cached_of(&r), 0);
    memcpy(other, text, sizeof text);
    fill(other + 600, 400, 5);
    r.prompt = other;
    ck_assert_uint_eq(cached_of(&r), 512); // 4 x 128
    fill(other + 600, 400, 6);
    ck_assert_uint_eq(cached_of(&r), 576); // where the two before parted, at a granule
    r.prompt = text;
    r.n_prompt = 999; // a state without logits serves a longer text only
    ck_assert_uint_eq(cached_of(&r), 896);
    end();
}
END_TEST

// A prompt of any length takes a bounded part of the cache.
START_TEST(long_prompts_leave_room) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 1};
    int32_t *text = malloc(6400 * sizeof *text);
    begin(_i, &s);
    fill(text, 6400, 4);
    const ssm_request r = request_of(text, 6400);
    ck_assert_uint_eq(cached_of(&r), 0);
    ck_assert_int_le(stats_of(con.engine).cache_slots_used, 10);
    free(text);
    end();
}
END_TEST

START_TEST(tenants_share_nothing) {
    const setup s = {.sessions = 2, .rows = 30, .checkpoint = 64};
    int32_t text[200];
    begin(_i, &s);
    fill(text, 200, 4);
    ssm_request r = request_of(text, 200);
    for (uint64_t i = 0; i < 4; i++) { // every half of the salt counts
        r.cache_salt[0] = (i & 1) << 63;
        r.cache_salt[1] = i >> 1;
        ck_assert_uint_eq(cached_of(&r), 0);
        ck_assert_uint_eq(cached_of(&r), 200);
    }
    r.cache_prompt = false;
    ck_assert_uint_eq(cached_of(&r), 0);
    r.cache_prompt = true;
    r.prompt_logprobs = true;
    ck_assert_uint_eq(cached_of(&r), 0);
    end();
}
END_TEST

// Many at once with one beginning: it runs once.
START_TEST(a_common_beginning_runs_once) {
    enum { N = 8, COMMON = 640, OWN = 20 };
    const setup s = {.sessions = 4, .rows = 40, .checkpoint = 256};
    int32_t texts[N][COMMON + OWN];
    waiter w[N];
    begin(_i, &s);
    for (int i = 0; i < N; i++) {
        fill(texts[i], COMMON, 9);
        fill(texts[i] + COMMON, OWN, 100 + (uint32_t)i);
        const ssm_request r = request_of(texts[i], COMMON + OWN);
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    }
    consumer_take_all(&con);
    // If the first is through before the second comes, that one has its last grid step to run
    // again.
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    ck_assert_uint_ge(ran, COMMON + N * OWN);
    ck_assert_uint_le(ran, COMMON + 128 + N * OWN);
    for (int i = 0; i < N; i++)
        waiter_dispose(&w[i]);
    end();
}
END_TEST

// The one that others wait for is cancelled or paused: they go on.
START_TEST(followers_are_let_go) {
    enum { N = 6, LENGTH = 900 };
    const setup s = {.sessions = 3, .rows = 10, .checkpoint = 256, .chunk = 1};
    int32_t text[LENGTH];
    waiter w[N];
    begin(_i, &s);
    fill(text, LENGTH, 11);
    const ssm_request r = request_of(text, LENGTH);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    while (!w[0].started)
        consumer_take(&con);
    ssm_engine_cancel(con.engine, w[0].id, -1);
    while (!w[1].started)
        consumer_take(&con);
    ssm_engine_pause(con.engine, w[1].id, true);
    while (con.open > 1)
        consumer_take(&con);
    ssm_engine_pause(con.engine, w[1].id, false);
    consumer_take_all(&con);
    for (int i = 1; i < N; i++)
        assert_same_answer(&w[1].choices[0], &w[i].choices[0]);
    for (int i = 0; i < N; i++)
        waiter_dispose(&w[i]);
    end();
}
END_TEST

// Ten prompts, a cache of one row and a host of one: the others are on the disk, and a hit.
START_TEST(what_falls_off_the_host_comes_back) {
    enum { N = 10, LENGTH = 200 };
    const setup s = {.sessions = 2, .rows = 1, .host_rows = 1, .disk_rows = 40};
    int32_t prompts[N][LENGTH];
    ssm_stats stats;
    begin(_i, &s);
    for (int i = 0; i < N; i++) {
        fill(prompts[i], LENGTH, 50 + (uint32_t)i);
        const ssm_request r = request_of(prompts[i], LENGTH);
        ck_assert_uint_eq(cached_of(&r), 0);
        do // a disk that cannot keep up would lose some
            stats = stats_of(con.engine);
        while (stats.cache[SSM_TIER_HOST].bytes > ssm_model_get_info(model)->state_bytes);
    }
    const uint64_t ran = stats_of(con.engine).prompt_tokens;
    for (int i = 0; i < N; i++) {
        const ssm_request r = request_of(prompts[i], LENGTH);
        ck_assert_uint_eq(cached_of(&r), LENGTH);
    }
    stats = stats_of(con.engine);
    ck_assert_uint_eq(stats.prompt_tokens, ran);
    const ssm_tier_stats *disk = &stats.cache[SSM_TIER_DISK];
    ck_assert_uint_eq(hits_of(&stats), N);
    ck_assert_uint_ge(disk->hits, N - 2);
    ck_assert_uint_gt(disk->bytes, 0);
    ck_assert_uint_ge(times_of(&disk->restore_seconds), disk->hits);
    ck_assert_double_gt(disk->restore_seconds.sum, 0);
    const ssm_histogram *host = &stats.cache[SSM_TIER_HOST].restore_seconds;
    ck_assert_uint_ge(times_of(host), disk->hits); // that is the way back
    ck_assert_double_gt(host->sum, 0);
    end();
}
END_TEST

// Prompts without answers, a state each: how many there are in each place, how many came there and
// how many were forgotten, follows from the places' sizes.
START_TEST(each_tier_is_counted) {
    enum { N = 7, LENGTH = 100 };
    static const setup setups[] = {{.sessions = 2, .rows = 2},
                                   {.sessions = 2, .rows = 1, .host_rows = 1},
                                   {.sessions = 2, .rows = 1, .host_rows = 1, .disk_rows = 2}};
    static const uint64_t moves[][SSM_TIERS] = {{0}, {0, N - 1}, {0, N - 1, N - 2}};
    static const uint64_t evictions[][SSM_TIERS] = {{N - 2}, {0, N - 2}, {0, 0, N - 4}};
    const setup *s = &setups[_i];
    int32_t prompt[LENGTH];
    ssm_stats stats;
    begin(0, s);
    const uint64_t row = ssm_model_get_info(model)->state_bytes;
    for (uint32_t i = 0; i < N; i++) {
        fill(prompt, LENGTH, 500 + i);
        ssm_request r = request_of(prompt, LENGTH);
        r.max_tokens = 0;
        ck_assert_uint_eq(cached_of(&r), 0);
        do // the disk's pace
            stats = stats_of(con.engine);
        while (stats.cache[SSM_TIER_HOST].bytes > (uint64_t)s->host_rows * row);
    }
    ssm_request r = request_of(prompt, LENGTH);
    r.max_tokens = 0;
    ck_assert_uint_eq(cached_of(&r), LENGTH); // the last is where it was made
    stats = stats_of(con.engine);
    ck_assert_uint_eq(stats.cache_misses, N);
    ck_assert_uint_eq(stats.cache[SSM_TIER_DEVICE].hits, 1);
    ck_assert_uint_eq(hits_of(&stats), 1);
    ck_assert_uint_ge(stats.cache[SSM_TIER_DEVICE].bytes, (uint64_t)s->rows * row);
    ck_assert_uint_eq(stats.cache[SSM_TIER_HOST].bytes, (uint64_t)s->host_rows * row);
    ck_assert_uint_eq(stats.cache[SSM_TIER_DISK].bytes, (uint64_t)s->disk_rows * (row + 4 * 16));
    for (int t = 0; t < SSM_TIERS; t++) {
        ck_assert_uint_eq(stats.cache[t].moves, moves[_i][t]);
        ck_assert_uint_eq(stats.cache[t].evictions, evictions[_i][t]);
    }
    end();
}
END_TEST

START_TEST(a_disk_that_fails_costs_states_alone) {
    const setup s = {.sessions = 4, .rows = 2, .checkpoint = 64, .disk_rows = 200};
    const struct rlimit limit = {1000000, 1000000}; // of some sixty rows; Check writes a file too
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    int32_t prompt[130];
    open_model();
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 1;
    o.cache_dir = "/nowhere/at/all";
    o.cache_disk_bytes = 1 << 20;
    ck_assert_int_eq(ssm_engine_create(model, &o, &engine, &err), SSM_EIO);
    ck_assert_str_eq(err.param, "cache_dir");
    signal(SIGXFSZ, SIG_IGN); // this test has a process of its own
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    consumer_init(&con, open_engine(&ssm_backend_cpu, &s));
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 30; i++) {
            waiter with, without;
            fill(prompt, 130, 90 + i);
            ssm_request r = request_of(prompt, 130);
            consumer_run(&con, &with, &r);
            r.cache_prompt = false;
            consumer_run(&con, &without, &r);
            assert_same_answer(&with.choices[0], &without.choices[0]);
            waiter_dispose(&with);
            waiter_dispose(&without);
        }
    }
    ck_assert_uint_gt(stats_of(con.engine).cache_disk_failures, 0);
    consumer_dispose(&con);
    ssm_engine_free(con.engine);
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cache");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, answers_are_those_without_a_cache, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_repeat_runs_no_token, 0, N_BACKENDS);
    tcase_add_loop_test(tc, an_answer_is_known_too, 0, N_BACKENDS);
    tcase_add_loop_test(tc, prompts_are_known_at_the_grid_and_where_they_part, 0, N_BACKENDS);
    tcase_add_loop_test(tc, long_prompts_leave_room, 0, N_BACKENDS);
    tcase_add_loop_test(tc, tenants_share_nothing, 0, N_BACKENDS);
    tcase_add_loop_test(tc, a_common_beginning_runs_once, 0, N_BACKENDS);
    tcase_add_loop_test(tc, followers_are_let_go, 0, N_BACKENDS);
    tcase_add_loop_test(tc, what_falls_off_the_host_comes_back, 0, N_BACKENDS);
    tcase_add_loop_test(tc, each_tier_is_counted, 0, 3);
    tcase_add_test(tc, a_disk_that_fails_costs_states_alone);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
