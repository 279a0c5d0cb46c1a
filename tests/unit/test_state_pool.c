// SPDX-License-Identifier: Apache-2.0
// Buffers for states come back to whoever asks next, from any thread, and not without bound.
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "engine/state/state_pool.h"
#include "tests/suite.h"

enum { SMALL = 4096, LARGE = 40 << 20 };

START_TEST(what_comes_back_goes_out_again) {
    state_pool pool;
    ck_assert_int_eq(state_pool_init(&pool, SMALL, NULL, NULL), 0);
    float *a = state_pool_take(&pool, SMALL), *b = state_pool_take(&pool, SMALL);
    ck_assert(a && b && a != b);
    memset(a, 1, SMALL);
    memset(b, 2, SMALL);
    state_pool_give(&pool, a, 0);
    state_pool_give(&pool, b, 0);
    state_pool_give(&pool, NULL, 0);
    ck_assert_ptr_eq(state_pool_take(&pool, SMALL), b); // the last first
    ck_assert_ptr_eq(state_pool_take(&pool, SMALL), a);
    state_pool_give(&pool, a, 0);
    state_pool_give(&pool, b, 0);
    ck_assert_int_eq(pool.n, 2);
    state_pool_dispose(&pool);
    state_pool_dispose(&pool); // of one that was never made, too
}
END_TEST

START_TEST(few_are_kept) {
    static const size_t bytes[] = {SMALL, LARGE};
    enum { N = 32 };
    for (int k = 0; k < 2; k++) {
        state_pool pool;
        float *all[N];
        ck_assert_int_eq(state_pool_init(&pool, bytes[k], NULL, NULL), 0);
        for (int i = 0; i < N; i++)
            ck_assert_ptr_nonnull(all[i] = state_pool_take(&pool, bytes[k]));
        for (int i = 0; i < N; i++)
            state_pool_give(&pool, all[i], 0);
        ck_assert_int_eq(pool.n, k == 0 ? 16 : 2);
        state_pool_dispose(&pool);
    }
}
END_TEST

START_TEST(without_a_pool_it_is_memory) {
    float *state = state_pool_take(NULL, LARGE);
    ck_assert_ptr_nonnull(state);
    memset(state, 3, LARGE);
    state_pool_give(NULL, state, 0);
}
END_TEST

#if defined(__SANITIZE_THREAD__)
enum { ROUNDS = 500 };
#else
enum { ROUNDS = 5000 };
#endif

static void *use(void *arg) {
    state_pool *pool = arg;
    for (int i = 0; i < ROUNDS; i++) {
        float *a = state_pool_take(pool, SMALL), *b = state_pool_take(pool, SMALL);
        memset(a, i, SMALL);
        memset(b, i + 1, SMALL);
        for (int k = 0; k < SMALL; k += 64)
            ck_assert_int_eq(((uint8_t *)a)[k], (uint8_t)i); // nobody else has it
        state_pool_give(pool, a, 0);
        state_pool_give(pool, b, 0);
    }
    return NULL;
}

START_TEST(any_thread_may_use_it) {
    enum { N = 4 };
    pthread_t threads[N];
    state_pool pool;
    ck_assert_int_eq(state_pool_init(&pool, SMALL, NULL, NULL), 0);
    for (int i = 0; i < N; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use, &pool), 0);
    for (int i = 0; i < N; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_le(pool.n, 2 * N);
    state_pool_dispose(&pool);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("state_pool");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_comes_back_goes_out_again);
    tcase_add_test(tc, few_are_kept);
    tcase_add_test(tc, without_a_pool_it_is_memory);
    tcase_add_test(tc, any_thread_may_use_it);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
