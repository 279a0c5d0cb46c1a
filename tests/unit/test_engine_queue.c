// SPDX-License-Identifier: Apache-2.0
// Requests that wait, are cancelled, paused or cut off: slots come back, everyone gets a DONE,
// nobody waits for ever.
#include <stdlib.h>

#include "fixtures/engine.h"

START_TEST(cancelling_gives_slots_back) {
    enum { N = 40 };
    open_small(_i);
    open_engine(4, 0);
    int32_t *prompt = malloc(5000 * sizeof *prompt);
    fill_prompt(prompt, 5000, 9);
    static waiter w[N];
    for (int i = 0; i < N; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = i % 3 == 0 ? 5000 : 3,
                         .n = 1 + i % 5,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    }
    consumer_take(&con);
    for (int i = 0; i < N; i++) {
        if (i % 2) { // the first choice, which runs the prompt, leaves before the others
            for (int k = 0; k < 5; k++)
                ssm_engine_cancel(engine, w[i].id, k);
        } else {
            ssm_engine_cancel(engine, w[i].id, -1);
        }
        ssm_engine_cancel(engine, w[i].id, -1); // twice, and
        ssm_engine_cancel(engine, 1u << 30, 0); // nobody: both ignored
    }
    consumer_take_all(&con);
    ck_assert_int_eq(slots_used(), 0);
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(w[i].dones, 1);
        for (int k = 0; k < 1 + i % 5; k++)
            ck_assert_int_eq(w[i].choices[k].finish, SSM_FINISH_CANCELLED);
        waiter_dispose(&w[i]);
    }
    free(prompt);
    close_engine();
    close_model();
}
END_TEST

// The first choice is cancelled while its prompt runs: another takes the prompt over.
START_TEST(a_prompt_outlives_its_runner) {
    enum { LENGTH = 1600 };
    open_small(_i);
    open_engine(4, 1); // a token a step: time enough
    static int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 2);
    waiter w, one;
    ssm_request r = {.prompt = prompt, .n_prompt = LENGTH, .n = 3, .max_tokens = 5, .logprobs = 0};
    ck_assert_int_eq(consumer_submit(&con, &w, &r), 0);
    while (!w.started)
        consumer_take(&con);
    ssm_engine_cancel(engine, w.id, 0);
    consumer_take_all(&con);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_CANCELLED);
    r.n = 1;
    run_alone(&one, r);
    assert_same_answer(&one.choices[0], &w.choices[1]);
    assert_same_answer(&one.choices[0], &w.choices[2]);
    waiter_dispose(&w);
    waiter_dispose(&one);
    close_engine();
    close_model();
}
END_TEST

START_TEST(the_queue_is_bounded) {
    open_small(0);
    open_engine_with(NULL, 2, 0, 3);
    int32_t prompt[1] = {5};
    static waiter w[64];
    int accepted = 0, busy = 0;
    for (int i = 0; i < 64; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = 1,
                         .n = 1,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        const int rc = consumer_submit(&con, &w[i], &r);
        ck_assert(rc == 0 || rc == SSM_EBUSY);
        accepted += rc == 0;
        busy += rc == SSM_EBUSY;
    }
    ck_assert_int_ge(accepted, 3);
    ck_assert_int_le(accepted, 7);
    ck_assert_int_ge(busy, 57);
    ssm_engine_drain(engine);
    ssm_request late = {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = -1};
    ck_assert_int_eq(consumer_submit(&con, &w[63], &late), SSM_EDRAINING);
    consumer_dispose(&con); // takes its requests along
    while (slots_used() > 0) {
    }
    ssm_engine_free(engine);
    for (int i = 0; i < 64; i++)
        waiter_dispose(&w[i]);
    close_model();
}
END_TEST

// Freed with requests under way: every one of them gets its DONE, and the port outlives the engine.
START_TEST(freeing_ends_everything) {
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    static waiter w[10];
    for (int i = 0; i < 10; i++) {
        ssm_request r = {.prompt = prompt,
                         .n_prompt = 1,
                         .n = 2,
                         .max_tokens = 1000000,
                         .ignore_eos = true,
                         .logprobs = -1};
        ck_assert_int_eq(consumer_submit(&con, &w[i], &r), 0);
    }
    consumer_take(&con);
    ssm_engine_free(engine);
    consumer_take_all(&con);
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(w[i].dones, 1);
        ck_assert_int_eq(w[i].error, SSM_ECANCELED);
        waiter_dispose(&w[i]);
    }
    consumer_dispose(&con);
    close_model();
}
END_TEST

START_TEST(paused_requests_keep_their_slots) {
    enum { MANY = 4000 }; // more than can come before the pause does
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    waiter slow, quick;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 1,
                     .n = 1,
                     .max_tokens = MANY,
                     .ignore_eos = true,
                     .logprobs = -1};
    ck_assert_int_eq(consumer_submit(&con, &slow, &r), 0);
    while (slow.choices[0].n == 0)
        consumer_take(&con);
    ssm_engine_pause(engine, slow.id, true);
    r.max_tokens = 20;
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(consumer_submit(&con, &quick, &r), 0);
        while (!quick.dones)
            consumer_take(&con);
        waiter_dispose(&quick);
        if (i == 0)
            slow.started = slow.choices[0].n; // whatever came before the pause took hold
    }
    ck_assert_int_eq(slow.started, slow.choices[0].n);
    ck_assert_int_lt(slow.choices[0].n, MANY);
    ck_assert_int_eq(slots_used(), 1);
    ssm_engine_pause(engine, slow.id, false);
    consumer_take_all(&con);
    ck_assert_int_eq(slow.choices[0].n, MANY);
    waiter_dispose(&slow);
    close_engine();
    close_model();
}
END_TEST

// One client with many requests does not keep another waiting behind all of them.
START_TEST(clients_take_turns) {
    open_small(0);
    open_engine(2, 0);
    int32_t prompt[1] = {5};
    static waiter many[40], few;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 1,
                     .n = 1,
                     .max_tokens = 200, // none is done before all have come
                     .ignore_eos = true,
                     .logprobs = -1,
                     .client = 1};
    for (int i = 0; i < 40; i++)
        ck_assert_int_eq(consumer_submit(&con, &many[i], &r), 0);
    r.client = 2;
    r.max_tokens = 20;
    ck_assert_int_eq(consumer_submit(&con, &few, &r), 0);
    while (!few.dones)
        consumer_take(&con);
    int done = 0;
    for (int i = 0; i < 40; i++)
        done += many[i].dones;
    ck_assert_int_le(done, 6);
    consumer_take_all(&con);
    for (int i = 0; i < 40; i++)
        waiter_dispose(&many[i]);
    waiter_dispose(&few);
    close_engine();
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("engine_queue");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, cancelling_gives_slots_back, 0, N_SMALL);
    tcase_add_loop_test(tc, a_prompt_outlives_its_runner, 0, N_SMALL);
    tcase_add_loop_test(tc, freeing_ends_everything, 0, N_SMALL);
    tcase_add_loop_test(tc, paused_requests_keep_their_slots, 0, N_SMALL);
    tcase_add_test(tc, the_queue_is_bounded);
    tcase_add_test(tc, clients_take_turns);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
