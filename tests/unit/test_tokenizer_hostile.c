// SPDX-License-Identifier: Apache-2.0
// Text and ids meant to hurt: what would be quadratic, and characters in halves.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/text/unicode.h"
#include "fixtures/tokenizer.h"

// One piece over and over: what is quadratic anywhere takes minutes for a megabyte of it. The limit
// is a second of processor time a megabyte; sanitizers get less text and more time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG_TEXT = 100000, SHORT_TEXT = 50000 };
static const double seconds_a_byte = 20e-6;
#else
enum { LONG_TEXT = 1000000, SHORT_TEXT = 200000 };
static const double seconds_a_byte = 1e-6;
#endif

static const char *const pieces[] = {"a",
                                     " ",
                                     "\xf0\x9f\x98\x80", // a megabyte of each of these
                                     "\n",
                                     "a ",
                                     " \n",
                                     "\u0301\u0316",
                                     "\u00e9",
                                     "\u4f60",
                                     "<s>",
                                     "<|",
                                     "1",
                                     ".",
                                     "\u2581",
                                     "'s",
                                     "\r\n",
                                     "\u3000",
                                     "e\u0301\u0327",
                                     "\xf0\x9f\x91\xa8\u200d",
                                     "ab\u0301 "};

START_TEST(a_megabyte_of_anything_is_fast) {
    ssm_tokenizer *t = open_family(families[_i]);
    char *text = malloc(LONG_TEXT);
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        const size_t len = strlen(pieces[p]);
        const size_t n = (p < 3 ? LONG_TEXT : SHORT_TEXT) / len * len;
        for (size_t i = 0; i < n; i += len)
            memcpy(text + i, pieces[p], len);
        ssm_ids ids = {0};
        ssm_text back = {0};
        const clock_t start = clock();
        ck_assert_int_eq(ssm_tokenizer_encode(t, text, n, 0, &ids, NULL), 0);
        const double took = (double)(clock() - start) / CLOCKS_PER_SEC;
        ck_assert_msg(took < seconds_a_byte * (double)n, "%s: %zu bytes of \"%s\" take %.2f s",
                      families[_i], n, pieces[p], took);
        ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, ids.len, 0, &back, NULL), 0);
        ssm_ids_dispose(&ids);
        ssm_text_dispose(&back);
    }
    free(text);
    ssm_tokenizer_free(t);
}
END_TEST

// Random ids, byte tokens above all: no piece is half a character, none is taken back, and
// together they are what decode gives.
START_TEST(streams_give_whole_characters) {
    ssm_tokenizer *t = open_family(families[_i]);
    const int32_t n = ssm_tokenizer_vocab_size(t);
    uint64_t random = 0x2545f4914f6cdd1d + (uint64_t)_i;
    for (int round = 0; round < 400; round++) {
        ssm_ids ids = {0};
        ssm_text whole = {0}, streamed = {0};
        ssm_detokenizer *d;
        const unsigned flags = round % 2 ? SSM_SKIP_SPECIAL : 0;
        ck_assert_int_eq(ssm_detokenizer_create(t, flags, &d), 0);
        int i = 0;
        for (; i < 60; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            const int32_t id = (int32_t)(random >> 20) & 3
                                   ? (int32_t)((random >> 33) % 262)
                                   : (int32_t)((random >> 33) % (uint64_t)n);
            const size_t before = streamed.len;
            if (ssm_ids_append(&ids, &id, 1) != 0 ||
                ssm_detokenizer_push(d, id, &streamed, NULL) != 0)
                break;
            const size_t fresh = streamed.len - before;
            if (fresh > 0 && utf8_valid_prefix(streamed.data + before, fresh) != fresh)
                break;
        }
        ck_assert_int_eq(i, 60); // in one assertion: Check writes a record of each
        ck_assert_int_eq(ssm_detokenizer_finish(d, &streamed, NULL), 0);
        ck_assert_int_eq(ssm_tokenizer_decode(t, ids.data, ids.len, flags, &whole, NULL), 0);
        ck_assert_uint_eq(whole.len, streamed.len);
        ck_assert(whole.len == 0 || memcmp(whole.data, streamed.data, whole.len) == 0);
        ssm_detokenizer_free(d);
        ssm_ids_dispose(&ids);
        ssm_text_dispose(&whole);
        ssm_text_dispose(&streamed);
    }
    ssm_tokenizer_free(t);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer hostile");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_megabyte_of_anything_is_fast, 0, N_FAMILIES);
    tcase_add_loop_test(tc, streams_give_whole_characters, 0, N_FAMILIES);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
