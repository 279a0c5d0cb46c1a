// SPDX-License-Identifier: Apache-2.0
// What the tokenizers library answered (tests/golden/make_tokenizers.py), replayed for every
// family.
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include <ssm/tokenizer.h>

#include "tests/suite.h"

static const char *const families[] = {"gpt-neox",      "gpt2-prefix",      "llama-legacy",
                                       "mistral-first", "metaspace-always", "metaspace-never",
                                       "falcon",        "llama3",           "o200k",
                                       "clip",          "prefixed",         "cuts"};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

static ssm_tokenizer *tokenizer;
static json_t *cases;

static void open_family(int i) {
    char path[512];
    ssm_error err = {0};
    snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json", SSM_TEST_DATA, families[i]);
    ck_assert_msg(ssm_tokenizer_open(path, &tokenizer, &err) == 0, "%s", err.message);
    snprintf(path, sizeof path, "%s/tokenizers/%s/cases.json", SSM_TEST_DATA, families[i]);
    json_error_t e;
    cases = json_load_file(path, JSON_ALLOW_NUL, &e);
    ck_assert_msg(cases != NULL, "%s: %s", path, e.text);
}

static void close_family(void) {
    json_decref(cases);
    ssm_tokenizer_free(tokenizer);
}

static void check_ids(const json_t *want, const ssm_ids *got, const char *text) {
    ck_assert_msg(json_array_size(want) == got->len, "%zu ids for %zu: %s", got->len,
                  json_array_size(want), text);
    for (size_t i = 0; i < got->len; i++)
        ck_assert_msg(json_integer_value(json_array_get(want, i)) == got->data[i], "id %zu: %s", i,
                      text);
}

// "special": the first two ids and the last one with the post-processor's.
static void check_special(const json_t *want, const ssm_ids *got, const char *text) {
    const size_t n = json_array_size(want);
    for (size_t i = 0; i + 1 < n; i++)
        ck_assert_msg(json_integer_value(json_array_get(want, i)) == got->data[i], "%s", text);
    if (n > 0)
        ck_assert_msg(json_integer_value(json_array_get(want, n - 1)) == got->data[got->len - 1],
                      "%s", text);
    ck_assert_uint_eq(n > 0, got->len > 0);
}

START_TEST(texts_give_the_librarys_ids) {
    open_family(_i);
    const json_t *list = json_object_get(cases, "encode");
    size_t i;
    json_t *item;
    ck_assert_uint_gt(json_array_size(list), 300);
    json_array_foreach((json_t *)list, i, item) {
        const json_t *text = json_object_get(item, "text");
        const char *s = json_string_value(text);
        const size_t len = json_string_length(text);
        ssm_ids ids = {0};
        ssm_error err = {0};
        ck_assert_msg(ssm_tokenizer_encode(tokenizer, s, len, 0, &ids, &err) == 0, "%s: %s", s,
                      err.message);
        check_ids(json_object_get(item, "ids"), &ids, s);
        ids.len = 0;
        ck_assert_int_eq(ssm_tokenizer_encode(tokenizer, s, len, SSM_ADD_SPECIAL, &ids, &err), 0);
        check_special(json_object_get(item, "special"), &ids, s);
        ssm_ids_dispose(&ids);
    }
    close_family();
}
END_TEST

static void check_text(const ssm_ids *ids, unsigned flags, const json_t *want) {
    ssm_text text = {0};
    ssm_error err = {0};
    const size_t len = json_string_length(want);
    ck_assert_int_eq(ssm_tokenizer_decode(tokenizer, ids->data, ids->len, flags, &text, &err), 0);
    ck_assert_msg(text.len == len && memcmp(text.data, json_string_value(want), len) == 0,
                  "decoded \"%s\", not \"%s\"", text.data, json_string_value(want));
    text.len = 0;
    ssm_detokenizer *d;
    ck_assert_int_eq(ssm_detokenizer_create(tokenizer, flags, &d), 0);
    for (size_t i = 0; i < ids->len; i++)
        ck_assert_int_eq(ssm_detokenizer_push(d, ids->data[i], &text, &err), 0);
    ck_assert_msg(text.len <= len &&
                      memcmp(text.data ? text.data : "", json_string_value(want), text.len) == 0,
                  "streamed what is not a beginning of \"%s\"", json_string_value(want));
    ck_assert_int_eq(ssm_detokenizer_finish(d, &text, &err), 0);
    ck_assert_msg(text.len == len &&
                      memcmp(text.data ? text.data : "", json_string_value(want), len) == 0,
                  "streamed \"%s\", not \"%s\"", text.data, json_string_value(want));
    ssm_detokenizer_free(d);
    ssm_text_dispose(&text);
}

START_TEST(ids_give_the_librarys_text) {
    open_family(_i);
    const json_t *list = json_object_get(cases, "decode");
    size_t i, k;
    json_t *item, *id;
    ck_assert_uint_ge(json_array_size(list), 200);
    json_array_foreach((json_t *)list, i, item) {
        ssm_ids ids = {0};
        json_array_foreach(json_object_get(item, "ids"), k, id) {
            const int32_t value = (int32_t)json_integer_value(id);
            ck_assert_int_eq(ssm_ids_append(&ids, &value, 1), 0);
        }
        check_text(&ids, 0, json_object_get(item, "text"));
        check_text(&ids, SSM_SKIP_SPECIAL, json_object_get(item, "skipped"));
        ssm_ids_dispose(&ids);
    }
    close_family();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer cases");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, texts_give_the_librarys_ids, 0, N_FAMILIES);
    tcase_add_loop_test(tc, ids_give_the_librarys_text, 0, N_FAMILIES);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
