// SPDX-License-Identifier: Apache-2.0
// Completion requests: defaults, every field's bounds, prompts in all forms, the memory asked for.
#include "completion.h"

#include <math.h>
#include <string.h>

#include "suite.h"

static size_t taken, most;

static bool take(void *ctx, size_t bytes) {
    if (most && taken + bytes > most) {
        return false;
    }
    taken += bytes;
    return true;
}

static void give(void *ctx, size_t bytes) {
    ck_assert_uint_ge(taken, bytes);
    taken -= bytes;
}

static int parse(completion *c, const char *text, ssm_error *err) {
    const completion_limits limits = {.max_prompts = 4};
    const completion_memory memory = {take, give, NULL, 0};
    buf body = {0};
    *err = (ssm_error){0};
    buf_str(&body, text);
    const int rc = completion_parse(c, &limits, &memory, &body, err);
    buf_dispose(&body);
    ck_assert_uint_eq(taken, 0);
    return rc;
}

START_TEST(defaults_are_the_apis) {
    completion c;
    ssm_error err;
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"x\"}", &err), 0);
    ck_assert_int_eq(c.max_tokens, 16);
    ck_assert_int_eq(c.n, 1);
    ck_assert_int_eq(c.best_of, 1);
    ck_assert_int_eq(c.logprobs, -1);
    ck_assert(c.sampling.temperature == 1 && c.sampling.top_p == 1 && c.sampling.top_k <= 0);
    ck_assert(c.skip_special && c.add_special && !c.stream && !c.echo && !c.has_seed);
    ck_assert_ptr_null(c.model);
    completion_dispose(&c);
    ck_assert_int_eq(
        parse(&c,
              "{\"prompt\":\"x\",\"max_tokens\":null,\"n\":null,\"stop\":null,"
              "\"logit_bias\":null,\"seed\":null,\"stream_options\":null,\"suffix\":null,"
              "\"session\":null,\"response_format\":null}",
              &err),
        0);
    ck_assert_int_eq(c.max_tokens, 16);
    ck_assert(!c.has_seed);
    completion_dispose(&c);
}
END_TEST

START_TEST(prompts_in_all_forms) {
    completion c;
    ssm_error err;
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"a\\u0000b\"}", &err), 0);
    ck_assert_uint_eq(c.n_prompts, 1);
    ck_assert_uint_eq(c.prompts[0].text_len, 3);
    completion_dispose(&c);
    ck_assert_int_eq(parse(&c, "{\"prompt\":[\"a\",\"\"]}", &err), 0);
    ck_assert_uint_eq(c.n_prompts, 2);
    ck_assert_ptr_nonnull(c.prompts[1].text);
    completion_dispose(&c);
    ck_assert_int_eq(parse(&c, "{\"prompt\":[5,6,7]}", &err), 0);
    ck_assert_uint_eq(c.n_prompts, 1);
    ck_assert_uint_eq(c.prompts[0].n_ids, 3);
    ck_assert_int_eq(c.prompts[0].ids[2], 7);
    completion_dispose(&c);
    ck_assert_int_eq(parse(&c, "{\"prompt\":[[5],[],[6,7]]}", &err), 0);
    ck_assert_uint_eq(c.n_prompts, 3);
    ck_assert_uint_eq(c.prompts[1].n_ids, 0);
    ck_assert_int_eq(c.prompts[2].ids[0], 6);
    completion_dispose(&c);
    ck_assert_int_eq(parse(&c, "{\"\\u0070rompt\":\"x\"}", &err), 0);
    completion_dispose(&c);
}
END_TEST

START_TEST(what_is_wrong_is_named) {
    static const struct {
        const char *field, *value;
    } bad[] = {
        {"prompt", "null"},
        {"prompt", "[]"},
        {"prompt", "5"},
        {"prompt", "[\"a\",5]"},
        {"prompt", "[[1],\"a\"]"},
        {"prompt", "[1,2,3],\"prompt\":{}"},
        {"prompt", "[[1],[1],[1],[1],[1]]"},
        {"max_tokens", "-1"},
        {"max_tokens", "1.0"},
        {"max_tokens", "\"5\""},
        {"temperature", "2.01"},
        {"temperature", "true"},
        {"top_p", "-0.1"},
        {"top_p", "1.1"},
        {"top_k", "-2"},
        {"min_p", "2"},
        {"n", "0"},
        {"n", "129"},
        {"best_of", "-1"},
        {"logprobs", "21"},
        {"logprobs", "true"},
        {"stop", "[\"\"]"},
        {"stop", "\"\""},
        {"stop", "{}"},
        {"seed", "1.5"},
        {"presence_penalty", "3"},
        {"frequency_penalty", "-3"},
        {"repetition_penalty", "0"},
        {"logit_bias", "{\"5\":101}"},
        {"logit_bias", "[]"},
        {"suffix", "\"x\""},
        {"user", "5"},
        {"metadata", "[]"},
        {"response_format", "{}"},
        {"response_format", "{\"type\":\"json_object\"}"},
        {"stop_token_ids", "[-1]"},
        {"allowed_token_ids", "[]"},
        {"bad_words", "[\"\"]"},
        {"stream", "1"},
        {"stream_options", "true"},
        {"session", "\"s s\""},
        {"min_tokens", "17"},
        {"priority", "9999999999"},
        {"cache_prompt", "1"},
        {"cache_salt", "1"},
        {"model", "5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        completion c;
        ssm_error err;
        char text[200];
        const char *prompt = strcmp(bad[i].field, "prompt") == 0 ? "" : "\"prompt\":\"x\",";
        snprintf(text, sizeof text, "{%s\"%s\":%s}", prompt, bad[i].field, bad[i].value);
        ck_assert_msg(parse(&c, text, &err) == SSM_EINVAL, "accepted: %s", text);
        ck_assert_msg(strcmp(err.param, bad[i].field) == 0, "%s: blames %s", text, err.param);
        ck_assert_msg(strstr(err.message, bad[i].field) != NULL, "%s: %s", text, err.message);
    }
}
END_TEST

START_TEST(best_of_and_streams) {
    completion c;
    ssm_error err;
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"x\",\"n\":2,\"best_of\":5}", &err), 0);
    ck_assert_int_eq(c.best_of, 5);
    completion_dispose(&c);
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"x\",\"n\":3,\"best_of\":0}", &err), 0);
    ck_assert_int_eq(c.best_of, 3);
    completion_dispose(&c);
    ck_assert_int_lt(parse(&c, "{\"prompt\":\"x\",\"n\":3,\"best_of\":2}", &err), 0);
    ck_assert_str_eq(err.param, "best_of");
    ck_assert_int_lt(parse(&c, "{\"prompt\":\"x\",\"best_of\":2,\"stream\":true}", &err), 0);
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"x\",\"best_of\":1,\"stream\":true}", &err), 0);
    completion_dispose(&c);
    ck_assert_int_lt(parse(&c, "{\"prompt\":\"x\",\"stream_options\":{\"include_usage\":1}}", &err),
                     0);
    ck_assert_str_eq(err.param, "stream_options.include_usage");
}
END_TEST

START_TEST(any_seed_of_64_bits) {
    static const struct {
        const char *text;
        uint64_t want;
    } rows[] = {{"0", 0},
                {"-1", UINT64_MAX},
                {"18446744073709551615", UINT64_MAX},
                {"9223372036854775808", (uint64_t)1 << 63},
                {"-9223372036854775808", (uint64_t)1 << 63}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        completion c;
        ssm_error err;
        char text[100];
        snprintf(text, sizeof text, "{\"prompt\":\"x\",\"seed\":%s}", rows[i].text);
        ck_assert_int_eq(parse(&c, text, &err), 0);
        ck_assert(c.has_seed);
        ck_assert_uint_eq(c.seed, rows[i].want);
        completion_dispose(&c);
    }
}
END_TEST

START_TEST(memory_is_asked_for) {
    completion c;
    ssm_error err;
    most = 100;
    ck_assert_int_eq(parse(&c, "{\"prompt\":\"x\"}", &err), SSM_ENOMEM);
    ck_assert_int_eq(parse(&c, "{\"prompt\":[1,2,3]}", &err), SSM_ENOMEM);
    most = 0;
}
END_TEST

// 16 Mi ids in 32 MiB: int32 and the body, no tree.
START_TEST(a_large_list_of_ids_costs_its_ids) {
    enum { N = 16 << 20 };
    const completion_limits limits = {.max_prompts = 1};
    const completion_memory memory = {take, give, NULL, 0};
    completion c;
    ssm_error err;
    buf body = {0};
    buf_str(&body, "{\"prompt\":[1");
    for (int i = 1; i < N; i++) {
        buf_add(&body, ",1", 2);
    }
    buf_str(&body, "]}");
    most = (size_t)N * 4 + (1 << 20);
    ck_assert_int_eq(completion_parse(&c, &limits, &memory, &body, &err), 0);
    ck_assert_uint_eq(c.prompts[0].n_ids, N);
    ck_assert_uint_le(c.arena.bytes, (size_t)N * 4 + (1 << 20));
    ck_assert_uint_lt(body.len, 100);
    most = 0;
    completion_dispose(&c);
    buf_dispose(&body);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {defaults_are_the_apis,
                                  prompts_in_all_forms,
                                  what_is_wrong_is_named,
                                  best_of_and_streams,
                                  any_seed_of_64_bits,
                                  memory_is_asked_for,
                                  a_large_list_of_ids_costs_its_ids};
    return RUN_SUITE("request", tests);
}
