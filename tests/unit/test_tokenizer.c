// SPDX-License-Identifier: Apache-2.0
// Tokenizers: the interface, and small files. That answers equal the library's is in
// test_tokenizer_cases.c.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixtures/tokenizer.h"

static void ids_are(const ssm_tokenizer *t, const char *text, unsigned flags, size_t n,
                    const int32_t *want) {
    ssm_ids ids = {0};
    ck_assert_int_eq(ssm_tokenizer_encode(t, text, strlen(text), flags, &ids, NULL), 0);
    ck_assert_uint_eq(ids.len, n);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(ids.data[i], want[i]);
    ssm_ids_dispose(&ids);
}
#define IDS_ARE(t, text, flags, ...)                                                               \
    ids_are(t, text, flags, sizeof((int32_t[]){__VA_ARGS__}) / 4, (int32_t[]){__VA_ARGS__})

static void text_is(const ssm_tokenizer *t, size_t n, const int32_t *ids, const char *want) {
    ssm_text text = {0};
    ck_assert_int_eq(ssm_tokenizer_decode(t, ids, n, 0, &text, NULL), 0);
    ck_assert_str_eq(text.data, want);
    ssm_text_dispose(&text);
}
#define TEXT_IS(t, want, ...)                                                                      \
    text_is(t, sizeof((int32_t[]){__VA_ARGS__}) / 4, (int32_t[]){__VA_ARGS__}, want)

// ---- the interface ------------------------------------------------------------------------------

START_TEST(questions_about_tokens) {
    size_t len;
    ssm_tokenizer *t = open_family("llama-legacy");
    const int32_t n = ssm_tokenizer_vocab_size(t);
    ck_assert_int_eq(ssm_tokenizer_find(t, "<s>", 3), 1);
    ck_assert(ssm_tokenizer_is_special(t, 1));
    ck_assert(!ssm_tokenizer_is_special(t, 3 + 'a'));
    ck_assert(!ssm_tokenizer_is_special(t, -1) && !ssm_tokenizer_is_special(t, n));
    ck_assert_int_eq(ssm_tokenizer_find(t, "no such token", 13), -1);
    ck_assert_ptr_null(ssm_tokenizer_piece(t, n, &len));
    ck_assert_ptr_null(ssm_tokenizer_bytes(t, -1, &len));
    const char *bytes = ssm_tokenizer_bytes(t, 3 + 0xe2, &len); // <0xE2>: half a character
    ck_assert(len == 1 && (unsigned char)bytes[0] == 0xe2);
    const int32_t the = ssm_tokenizer_find(t, "\u2581the", 6);
    ck_assert_int_ge(the, 0);
    bytes = ssm_tokenizer_bytes(t, the, &len);
    ck_assert(len == 4 && memcmp(bytes, " the", 4) == 0);
    bytes = ssm_tokenizer_piece(t, the, &len);
    ck_assert(len == 6 && memcmp(bytes, "\u2581the", 6) == 0);
    ssm_tokenizer_free(t);

    t = open_family("gpt-neox");
    const int32_t newline = ssm_tokenizer_find(t, "\u010a", 2);
    bytes = ssm_tokenizer_bytes(t, newline, &len);
    ck_assert(len == 1 && bytes[0] == '\n');
    bytes = ssm_tokenizer_bytes(t, 0, &len);
    ck_assert(len == 13 && memcmp(bytes, "<|endoftext|>", 13) == 0);
    ssm_tokenizer_free(t);
}
END_TEST

// All 256 letters of the byte-level families stand for all 256 bytes.
START_TEST(every_byte_has_its_token) {
    ssm_tokenizer *t = open_family("gpt-neox");
    bool seen[256] = {false};
    for (int32_t id = 0; id < ssm_tokenizer_vocab_size(t); id++) {
        size_t len;
        const char *bytes = ssm_tokenizer_bytes(t, id, &len);
        if (bytes && len == 1)
            seen[(unsigned char)bytes[0]] = true;
    }
    for (int b = 0; b < 256; b++)
        ck_assert_msg(seen[b], "byte %d", b);
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(invalid_text_and_ids_are_refused) {
    static const struct {
        const char *text;
        size_t len, offset;
    } bad[] = {{"\xff", 1, 0},         {"ab\xc3", 3, 2},           {"a\xc0\x80", 3, 1},
               {"\xed\xa0\x80", 3, 0}, {"\xf4\x90\x80\x80", 4, 0}, {"0123456789\x80", 11, 10},
               {"\xe2\x82", 2, 0},     {"a\0\xfe", 3, 2}};
    ssm_tokenizer *t = open_family("gpt-neox");
    ssm_ids ids = {0};
    ssm_text text = {0};
    ssm_error err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char want[32];
        snprintf(want, sizeof want, "byte %zu", bad[i].offset);
        ck_assert_int_eq(ssm_tokenizer_encode(t, bad[i].text, bad[i].len, 0, &ids, &err),
                         SSM_EINVAL);
        ck_assert_msg(strstr(err.message, want), "%s", err.message);
        ck_assert_uint_eq(ids.len, 0);
    }
    const int32_t n = ssm_tokenizer_vocab_size(t);
    const int32_t wrong[] = {5, n};
    ck_assert_int_eq(ssm_tokenizer_decode(t, wrong, 2, 0, &text, &err), SSM_EINVAL);
    ck_assert(strstr(err.message, "out of range") != NULL && text.len == 0);
    ssm_detokenizer *d;
    ck_assert_int_eq(ssm_detokenizer_create(t, 0, &d), 0);
    ck_assert_int_eq(ssm_detokenizer_push(d, -1, &text, &err), SSM_EINVAL);
    ssm_detokenizer_free(d);
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&text);
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(results_are_appended) {
    ssm_tokenizer *t = open_family("metaspace-always");
    ssm_ids ids = {0};
    ssm_text text = {0};
    ck_assert_int_eq(ssm_tokenizer_encode(t, "a", 1, SSM_ADD_SPECIAL, &ids, NULL), 0);
    const size_t n = ids.len;
    ck_assert_int_eq(ssm_tokenizer_encode(t, "a", 1, SSM_ADD_SPECIAL, &ids, NULL), 0);
    ck_assert_uint_eq(ids.len, 2 * n);
    ck_assert_int_eq(ids.data[0], ids.data[n]);
    ck_assert_int_eq(ssm_text_append(&text, "x", 1), 0);
    ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, n, SSM_SKIP_SPECIAL, &text, NULL), 0);
    ck_assert_str_eq(text.data, "xa");
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&text);
    ssm_tokenizer_free(t);
}
END_TEST

// ---- small files --------------------------------------------------------------------------------

START_TEST(old_files_and_small_parts) {
    // No type, no version, merges as pairs, added tokens whose ids the file leaves wrong.
    ssm_tokenizer *t = make("{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},"
                            "\"merges\":[[\"a\",\"b\"]]},\"added_tokens\":[{\"id\":9,\"content\":"
                            "\"<x>\",\"special\":true},{\"id\":9,\"content\":\"b\"}]}");
    ck_assert_int_eq(ssm_tokenizer_vocab_size(t), 5);
    IDS_ARE(t, "a<x>aba", 0, 0, 4, 0, 1, 0);
    TEXT_IS(t, "a <x> a b", 0, 4, 0, 1);
    ssm_tokenizer_free(t);

    t = make("{" MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
             "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":2}]}}");
    TEXT_IS(t, " ab ab", 3, 3, 2, 3, 0, 1, 3, 3);
    TEXT_IS(t, " ", 3, 3, 3, 3);
    TEXT_IS(t, "", 3);
    ssm_tokenizer_free(t);

    t = make("{" MODEL ",\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":"
             "true},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"b\","
             "\"prepend_scheme\":\"first\"}}");
    IDS_ARE(t, "a a", 0, 1, 0, 1, 0);
    IDS_ARE(t, " a a ", 0, 0, 1, 0); // as the library: what begins is no longer the first character
    ssm_tokenizer_free(t);
}
END_TEST

START_TEST(config_beside_the_file) {
    static const struct {
        const char *post, *config;
        int rc;
        size_t n;
    } rows[] = {
        {"null", "{\"add_bos_token\":true,\"bos_token\":{\"content\":\"<s>\"}}", 0, 2},
        {"null",
         "{\"add_bos_token\":true,\"add_eos_token\":true,\"bos_token\":\"<s>\","
         "\"eos_token\":\"<s>\"}",
         0, 3},
        {"null", "{\"add_bos_token\":false,\"bos_token\":\"<s>\"}", 0, 1},
        {"null", "{\"add_bos_token\":true}", SSM_EFORMAT, 0},
        {"null", "{\"add_bos_token\":true,\"bos_token\":\"<t>\"}", SSM_EFORMAT, 0},
        {"null", "{", SSM_EFORMAT, 0},
        {"{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]"
         ","
         "\"pair\":[],\"special_tokens\":{}}",
         "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", 0, 1},
    };
    char folder[] = "/tmp/test_tokenizer.XXXXXX", file[64], config[64];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/tokenizer.json", folder);
    snprintf(config, sizeof config, "%s/tokenizer_config.json", folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        FILE *f = fopen(file, "w");
        fprintf(f,
                "{" MODEL ",\"post_processor\":%s,\"added_tokens\":[{\"id\":4,\"content\":\"<s>\","
                "\"special\":true}]}",
                rows[i].post);
        fclose(f);
        f = fopen(config, "w");
        fputs(rows[i].config, f);
        fclose(f);
        ssm_tokenizer *t;
        ssm_error err = {0};
        const int rc = ssm_tokenizer_open(folder, &t, &err);
        ck_assert_msg(rc == rows[i].rc, "row %zu: %d %s", i, rc, err.message);
        if (rc != 0)
            continue;
        ssm_ids ids = {0};
        ck_assert_int_eq(ssm_tokenizer_encode(t, "ab", 2, SSM_ADD_SPECIAL, &ids, NULL), 0);
        ck_assert_uint_eq(ids.len, rows[i].n);
        ssm_ids_dispose(&ids);
        ssm_tokenizer_free(t);
    }
    unlink(config);
    unlink(file);
    ssm_tokenizer *t;
    ck_assert_int_eq(ssm_tokenizer_open(folder, &t, NULL), SSM_EIO);
    rmdir(folder);
    ck_assert_int_eq(ssm_tokenizer_open(folder, &t, NULL), SSM_EIO);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, questions_about_tokens);
    tcase_add_test(tc, every_byte_has_its_token);
    tcase_add_test(tc, invalid_text_and_ids_are_refused);
    tcase_add_test(tc, results_are_appended);
    tcase_add_test(tc, old_files_and_small_parts);
    tcase_add_test(tc, config_beside_the_file);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
