// SPDX-License-Identifier: Apache-2.0
// Many threads encode and decode with one tokenizer.
#include <pthread.h>
#include <string.h>

#include "fixtures/tokenizer.h"

enum { THREADS = 6 };
static const char *const lines[] = {"Shall I compare thee to a summer's day?",
                                    "  spaces   and\n\nlines\t",
                                    "na\u00efve caf\u00e9 12345",
                                    "\u4f60\u597d\u4e16\u754c \xf0\x9f\x98\x80",
                                    "<s>[INST] x </s><|endoftext|>",
                                    "the the the thine"};
enum { N_LINES = sizeof lines / sizeof lines[0] };
static ssm_tokenizer *shared;

static void *encode_lines(void *arg) {
    ssm_ids *out = arg;
    for (int round = 0; round < 50; round++) {
        out->len = 0;
        for (int i = 0; i < N_LINES; i++) {
            if (ssm_tokenizer_encode(shared, lines[i], strlen(lines[i]), SSM_ADD_SPECIAL, out,
                                     NULL) != 0)
                return NULL;
        }
        ssm_text text = {0};
        const int rc = ssm_tokenizer_decode(shared, out->data, out->len, 0, &text, NULL);
        ssm_text_dispose(&text);
        if (rc != 0)
            return NULL;
    }
    return out;
}

START_TEST(threads_share_a_tokenizer) {
    pthread_t threads[THREADS];
    ssm_ids results[THREADS] = {{0}}, alone = {0};
    void *ok;
    shared = open_family(families[_i]);
    for (int i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_lines, &results[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        ck_assert_int_eq(pthread_join(threads[i], &ok), 0);
        ck_assert_ptr_nonnull(ok);
    }
    ssm_tokenizer_free(shared);
    shared = open_family(families[_i]);
    ck_assert_ptr_nonnull(encode_lines(&alone));
    for (int i = 0; i < THREADS; i++) {
        ck_assert_uint_eq(results[i].len, alone.len);
        ck_assert_int_eq(memcmp(results[i].data, alone.data, alone.len * sizeof *alone.data), 0);
        ssm_ids_dispose(&results[i]);
    }
    ssm_ids_dispose(&alone);
    ssm_tokenizer_free(shared);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer threads");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, threads_share_a_tokenizer, 0, N_FAMILIES);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
