// SPDX-License-Identifier: Apache-2.0
// Saved states change no answer. Random requests over an alphabet of 16 tokens and a few base
// texts, so that beginnings collide all the time; a cache of a handful of rows, so that eviction
// never stops; tenants, cancellations, many choices. Each request runs on an engine without a cache
// too, and every token and every bit of its logprob must be the same. Rows given up are full of
// NaN, but for two engines: poison has saves made at once that are gathered otherwise.
#include <string.h>

#include "fixtures/cache.h"

enum { BASES = 4, LONGEST = 400, WINDOW = 12 };

typedef struct pair {
    waiter plain, cached;
    bool is_open, is_cancelled;
    int32_t n;
} pair;

static int32_t bases[BASES][LONGEST];

static uint64_t evictions_of(const ssm_stats *s) {
    return s->cache[0].evictions + s->cache[1].evictions + s->cache[2].evictions;
}

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
        {.sessions = 6, .rows = 12, .checkpoint = 64, .chunk = 7, .is_clean = true},
        {.sessions = 1, .rows = 5, .checkpoint = 0},
        {.sessions = 4, .rows = 3, .host_rows = 8, .checkpoint = 64, .is_clean = true},
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

int main(void) {
    Suite *suite = suite_create("cache_traffic");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, answers_are_those_without_a_cache, 0, N_BACKENDS);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
