// SPDX-License-Identifier: Apache-2.0
// Tokens of a choice to the text that may be shown: stop strings across tokens, half characters,
// ids that end, what is listed beside which text.
#include "choice_text.h"

#include <math.h>
#include <string.h>

#include "suite.h"

static ssm_tokenizer *tokenizer;
static ssm_model_info info = {.vocab_size = 1024, .eos_ids = {0}, .n_eos = 1, .bos_id = 0};
static served_model model;

static void open_model(void) {
    ssm_error err;
    ck_assert_msg(ssm_tokenizer_open(SSM_DEMO_MODEL, &tokenizer, &err) == 0, "%s", err.message);
    model = (served_model){.tokenizer = tokenizer, .info = &info};
}

static int push(choice_text *c, int32_t id) {
    ssm_error err = {0};
    const ssm_event event = {.kind = SSM_EVENT_TOKEN, .token = id, .logprob = -1.5f};
    return choice_text_push(c, &event, &err);
}

static ssm_ids encode(const char *text) {
    ssm_ids ids = {0};
    ssm_error err;
    ck_assert_int_eq(ssm_tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &err), 0);
    return ids;
}

static void shows(const choice_text *c, const char *want) {
    ck_assert_msg(c->shown.len == strlen(want) &&
                      (c->shown.len == 0 || memcmp(c->shown.data, want, c->shown.len) == 0),
                  "shows '%.*s', not '%s'", (int)c->shown.len, c->shown.data, want);
}

START_TEST(a_stop_string_is_cut_wherever_it_lies) {
    const char *text = "To be, or not to be, that is the question:";
    completion r;
    ssm_error err;
    open_model();
    ssm_ids ids = encode(text);
    for (size_t begin = 0; begin < strlen(text); begin += 3) {
        for (size_t len = 1; len <= 9 && begin + len <= strlen(text); len += 2) {
            char stop[16], want[64];
            snprintf(stop, sizeof stop, "%.*s", (int)len, text + begin);
            snprintf(want, sizeof want, "%.*s", (int)(strstr(text, stop) - text), text);
            ssm_string string = {stop, len};
            choice_text c;
            completion_init(&r);
            r.stops = &string;
            r.n_stops = 1;
            r.logprobs = 0;
            ck_assert_int_eq(choice_text_init(&c, &r, &model, &err), 0);
            int rc = 0;
            for (size_t i = 0; i < ids.len && rc == 0; i++) {
                rc = push(&c, ids.data[i]);
            }
            ck_assert_int_eq(rc, 1);
            ck_assert_int_eq(push(&c, ids.data[0]), 0); // drawn before the cancellation came
            ck_assert_int_eq(choice_text_finish(&c, SSM_FINISH_CANCELLED, -1, &err), 0);
            shows(&c, want);
            ck_assert_int_eq(c.end, CHOICE_STOP_STRING);
            ck_assert_str_eq(choice_text_reason(&c), "stop");
            const size_t listed = choice_text_listed(&c);
            ck_assert(listed == 0 || c.logprobs.tokens[listed - 1].text_offset < strlen(want));
            choice_text_dispose(&c);
        }
    }
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(half_a_character_waits) {
    completion r;
    ssm_error err;
    choice_text c;
    open_model();
    ssm_ids ids = encode("\xf0\x9f\x98\x80!");
    ck_assert_uint_ge(ids.len, 3);
    completion_init(&r);
    r.logprobs = 0;
    ck_assert_int_eq(choice_text_init(&c, &r, &model, &err), 0);
    for (size_t i = 0; i + 2 < ids.len; i++) {
        ck_assert_int_eq(push(&c, ids.data[i]), 0);
        shows(&c, "");
        ck_assert_uint_eq(choice_text_listed(&c), 0);
    }
    ck_assert_int_eq(push(&c, ids.data[ids.len - 2]), 0);
    ck_assert_int_eq(push(&c, ids.data[ids.len - 1]), 0);
    ck_assert_int_eq(choice_text_finish(&c, SSM_FINISH_LENGTH, -1, &err), 0);
    shows(&c, "\xf0\x9f\x98\x80!");
    ck_assert_uint_eq(choice_text_listed(&c), ids.len);
    ck_assert_uint_eq(c.logprobs.tokens[ids.len - 1].text_offset, 1); // characters, not bytes
    ck_assert_str_eq(choice_text_reason(&c), "length");
    choice_text_dispose(&c);
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(ids_that_end_are_no_text) {
    open_model();
    ssm_ids ids = encode("and");
    for (int include = 0; include < 2; include++) {
        completion r;
        ssm_error err;
        choice_text c;
        completion_init(&r);
        r.stop_ids = ids.data;
        r.n_stop_ids = 1;
        r.include_stop = include;
        r.return_token_ids = true;
        ck_assert_int_eq(choice_text_init(&c, &r, &model, &err), 0);
        ck_assert_int_eq(push(&c, ids.data[0]), 0);
        ck_assert_int_eq(choice_text_finish(&c, SSM_FINISH_STOP, ids.data[0], &err), 0);
        ck_assert_int_eq(c.end, CHOICE_STOP_ID);
        ck_assert_int_eq(c.stop_id, ids.data[0]);
        ck_assert_uint_eq(c.ids.len, 1);
        ck_assert_int_eq(c.shown.len > 0, include);
        choice_text_dispose(&c);
    }
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(tokenizer);
}
END_TEST

START_TEST(stop_strings_wait_for_min_tokens) {
    completion r;
    ssm_error err;
    choice_text c;
    ssm_string stop = {"b", 1};
    open_model();
    ssm_ids ids = encode("b");
    completion_init(&r);
    r.stops = &stop;
    r.n_stops = 1;
    r.min_tokens = 3;
    ck_assert_int_eq(choice_text_init(&c, &r, &model, &err), 0);
    ck_assert_int_eq(push(&c, ids.data[0]), 0);
    ck_assert_int_eq(push(&c, ids.data[0]), 0);
    ck_assert_int_eq(push(&c, ids.data[0]), 1);
    shows(&c, "bb");
    choice_text_dispose(&c);
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(tokenizer);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {a_stop_string_is_cut_wherever_it_lies, half_a_character_waits,
                                  ids_that_end_are_no_text, stop_strings_wait_for_min_tokens};
    return RUN_SUITE("choice_text", tests);
}
