// SPDX-License-Identifier: Apache-2.0
// The engine from outside: what comes through a port for what was submitted.
#include <math.h>
#include <stdlib.h>

#include "fixtures/engine.h"

START_TEST(events_come_in_order) {
    open_demo(_i);
    open_engine(4, 0);
    int32_t prompt[5];
    fill_prompt(prompt, 5, 1);
    waiter w;
    run_alone(&w, (ssm_request){.prompt = prompt,
                                .n_prompt = 5,
                                .n = 1,
                                .max_tokens = 7,
                                .logprobs = 3,
                                .prompt_logprobs = true});
    ck_assert_int_eq(w.started, 1);
    ck_assert_int_eq(w.prompts, 5);
    ck_assert(isnan(w.prompt_logprobs[0]));
    for (int i = 1; i < 5; i++)
        ck_assert(w.prompt_logprobs[i] < 0);
    ck_assert_int_eq(w.choices[0].finishes, 1);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_LENGTH);
    ck_assert_int_eq(w.choices[0].n, 7);
    ck_assert_uint_eq(w.usage.prompt_tokens, 5);
    ck_assert_uint_eq(w.usage.completion_tokens, 7);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

// Many requests of all lengths at once over few slots, in chunks of several sizes: each answer's
// every bit as alone.
START_TEST(company_and_chunks_change_nothing) {
    static const size_t lengths[] = {1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 200};
    static const int32_t chunks[] = {0, 1, 3, 63, 64, 65};
    enum { N = sizeof lengths / sizeof lengths[0] };
    open_small(_i);
    int32_t *prompts = malloc(N * 256 * sizeof *prompts);
    static waiter alone[N], crowd[N];
    ssm_sampling warm;
    ssm_sampling_init(&warm);
    open_engine(2, 0);
    for (int i = 0; i < N; i++) {
        fill_prompt(prompts + 256 * i, lengths[i], (uint32_t)i + 7);
        run_alone(&alone[i], (ssm_request){.prompt = prompts + 256 * i,
                                           .n_prompt = lengths[i],
                                           .n = 1,
                                           .max_tokens = 9,
                                           .seed = 40,
                                           .sampling = i % 2 ? &warm : NULL,
                                           .logprobs = 0,
                                           .ignore_eos = true});
    }
    close_engine();
    for (size_t k = 0; k < sizeof chunks / sizeof chunks[0]; k++) {
        open_engine(5, chunks[k]);
        for (int i = 0; i < N; i++) {
            ssm_request r = {.prompt = prompts + 256 * i,
                             .n_prompt = lengths[i],
                             .n = 1,
                             .max_tokens = 9,
                             .seed = 40,
                             .sampling = i % 2 ? &warm : NULL,
                             .logprobs = 0,
                             .ignore_eos = true};
            ck_assert_int_eq(consumer_submit(&con, &crowd[i], &r), 0);
        }
        consumer_take_all(&con);
        for (int i = 0; i < N; i++) {
            assert_same_answer(&alone[i].choices[0], &crowd[i].choices[0]);
            waiter_dispose(&crowd[i]);
        }
        close_engine();
    }
    for (int i = 0; i < N; i++)
        waiter_dispose(&alone[i]);
    free(prompts);
    close_model();
}
END_TEST

// n choices over fewer slots than choices: forks on the device and from the snapshot equal single
// runs.
START_TEST(choices_fork_from_one_prompt) {
    open_small(_i);
    int32_t prompt[70];
    fill_prompt(prompt, 70, 3);
    ssm_sampling warm;
    ssm_sampling_init(&warm);
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 70,
                     .n = 6,
                     .max_tokens = 8,
                     .seed = 11,
                     .sampling = &warm,
                     .logprobs = 0};
    for (int32_t n_slots = 1; n_slots <= 8; n_slots += 7) {
        open_engine(n_slots, 0);
        waiter all, one;
        run_alone(&all, r);
        ssm_stats stats;
        ssm_engine_get_stats(engine, &stats);
        ck_assert_uint_eq(stats.prompt_tokens, 70); // once, whatever n
        for (int i = 0; i < 6; i++) {
            ssm_request single = r;
            single.n = 1;
            single.seed = r.seed + (uint64_t)i;
            run_alone(&one, single);
            assert_same_answer(&one.choices[0], &all.choices[i]);
            waiter_dispose(&one);
        }
        waiter_dispose(&all);
        close_engine();
    }
    close_model();
}
END_TEST

START_TEST(an_empty_prompt_is_an_empty_state) {
    open_demo(_i);
    open_engine(2, 0);
    waiter w;
    run_alone(&w, (ssm_request){.n = 3, .max_tokens = 4, .logprobs = 0});
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(w.choices[i].tokens[0], 0); // uniform: the lowest id, which is end-of-text
        ck_assert(fabsf(w.choices[i].logprobs[0] + logf(1024)) < 1e-4f);
        ck_assert_int_eq(w.choices[i].finish, SSM_FINISH_STOP);
    }
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(scoring_draws_nothing) {
    open_small(_i);
    open_engine(2, 0);
    int32_t prompt[300];
    fill_prompt(prompt, 300, 5);
    for (size_t n = 1; n <= 300; n += 299) {
        waiter w;
        run_alone(&w, (ssm_request){.prompt = prompt,
                                    .n_prompt = n,
                                    .n = 2,
                                    .max_tokens = 0,
                                    .logprobs = 0,
                                    .prompt_logprobs = true});
        ck_assert_int_eq(w.prompts, (int)n);
        ck_assert_int_eq(w.choices[0].n, 0);
        ck_assert_int_eq(w.choices[1].finish, SSM_FINISH_LENGTH);
        waiter_dispose(&w);
    }
    close_engine();
    close_model();
}
END_TEST

START_TEST(stops_and_minimums) {
    open_demo(_i);
    open_engine(2, 0);
    int32_t prompt[2] = {859, 26}; // ROMEO: -> 199 41 467 ...
    const int32_t stop[] = {467};
    waiter w;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 2,
                     .n = 1,
                     .max_tokens = 30,
                     .logprobs = -1,
                     .stop_ids = stop,
                     .n_stop_ids = 1};
    run_alone(&w, r);
    ck_assert_int_eq(w.choices[0].n, 3);
    ck_assert_int_eq(w.choices[0].tokens[2], 467);
    ck_assert_int_eq(w.choices[0].finish, SSM_FINISH_STOP);
    ck_assert(isnan(w.choices[0].logprobs[0])); // not asked for
    waiter_dispose(&w);
    r.min_tokens = 5;
    run_alone(&w, r);
    ck_assert_int_ge(w.choices[0].n, 6);
    for (int i = 0; i < 5; i++)
        ck_assert_int_ne(w.choices[0].tokens[i], 467);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(bad_words_and_penalties) {
    open_demo(_i);
    open_engine(2, 0);
    int32_t prompt[2] = {859, 26};
    const int32_t words[] = {41, 467, 199}, ends[] = {2, 3}; // "199 41 467" loses both
    ssm_sampling s = {.temperature = 0,
                      .top_p = 1,
                      .typical_p = 1,
                      .repetition_penalty = 1,
                      .bad_words = words,
                      .bad_ends = ends,
                      .n_bad = 2};
    waiter w;
    ssm_request r = {.prompt = prompt,
                     .n_prompt = 2,
                     .n = 1,
                     .max_tokens = 24,
                     .sampling = &s,
                     .ignore_eos = true,
                     .logprobs = -1};
    run_alone(&w, r);
    for (int i = 0; i < 24; i++) {
        ck_assert_int_ne(w.choices[0].tokens[i], 199);
        if (i > 0 && w.choices[0].tokens[i - 1] == 41)
            ck_assert_int_ne(w.choices[0].tokens[i], 467);
    }
    waiter_dispose(&w);
    s.n_bad = 0;
    s.frequency_penalty = 100; // nothing is said twice
    run_alone(&w, r);
    for (int i = 0; i < 24; i++) {
        for (int k = 0; k < i; k++)
            ck_assert_int_ne(w.choices[0].tokens[i], w.choices[0].tokens[k]);
    }
    waiter_dispose(&w);
    s.frequency_penalty = 0;
    s.repetition_penalty = 1e6f; // nor what the prompt said
    run_alone(&w, r);
    for (int i = 0; i < 24; i++)
        ck_assert(w.choices[0].tokens[i] != 859 && w.choices[0].tokens[i] != 26);
    waiter_dispose(&w);
    close_engine();
    close_model();
}
END_TEST

START_TEST(requests_are_checked) {
    open_demo(0);
    open_engine(2, 0);
    int32_t prompt[1] = {5}, high[1] = {1024}, low[1] = {-1};
    ssm_sampling s;
    ssm_sampling_init(&s);
    ssm_sampling cold = s, nan_p = s, no_rep = s, far_bias = s;
    cold.temperature = -1;
    nan_p.top_p = NAN;
    no_rep.repetition_penalty = 0;
    const ssm_logit_bias bias = {.id = 4096, .bias = 1};
    far_bias.bias = &bias;
    far_bias.n_bias = 1;
    const struct {
        const char *param;
        ssm_request r;
    } cases[] = {
        {"prompt", {.prompt = high, .n_prompt = 1, .n = 1, .sampling = &s}},
        {"prompt", {.prompt = low, .n_prompt = 1, .n = 1, .sampling = &s}},
        {"n", {.prompt = prompt, .n_prompt = 1, .n = 0, .sampling = &s}},
        {"max_tokens", {.prompt = prompt, .n_prompt = 1, .n = 1, .max_tokens = -1, .sampling = &s}},
        {"logprobs", {.prompt = prompt, .n_prompt = 1, .n = 1, .logprobs = 21, .sampling = &s}},
        {"temperature", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &cold}},
        {"top_p", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &nan_p}},
        {"repetition_penalty", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &no_rep}},
        {"logit_bias", {.prompt = prompt, .n_prompt = 1, .n = 1, .sampling = &far_bias}},
        {"sampling", {.prompt = prompt, .n_prompt = 1, .n = 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ssm_request r = cases[i].r;
        ssm_error err;
        r.port = con.port;
        ck_assert_int_eq(ssm_engine_submit(engine, &r, NULL, &err), SSM_EINVAL);
        ck_assert_str_eq(err.param, cases[i].param);
    }
    ssm_error err;
    ssm_engine *none;
    ssm_engine_options o;
    ssm_engine_options_init(&o);
    o.device = "gpu";
    ck_assert_int_eq(ssm_engine_create(model, &o, &none, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "device");
    close_engine();
    close_model();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("engine");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, events_come_in_order, 0, N_BACKENDS);
    tcase_add_loop_test(tc, company_and_chunks_change_nothing, 0, N_SMALL);
    tcase_add_loop_test(tc, choices_fork_from_one_prompt, 0, N_SMALL);
    tcase_add_loop_test(tc, an_empty_prompt_is_an_empty_state, 0, N_BACKENDS);
    tcase_add_loop_test(tc, scoring_draws_nothing, 0, N_SMALL);
    tcase_add_loop_test(tc, stops_and_minimums, 0, N_BACKENDS);
    tcase_add_loop_test(tc, bad_words_and_penalties, 0, N_BACKENDS);
    tcase_add_test(tc, requests_are_checked);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
