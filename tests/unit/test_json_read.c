// SPDX-License-Identifier: Apache-2.0
// The fast reader of JSON against jansson: whatever it reads, jansson reads to the same tree; and
// it reads what requests are made of itself.
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include <ssm/json.h>

#include "tests/suite.h"

// Whether the fast reader has read it, having compared.
static bool agrees(const char *text, size_t len) {
    char *exact = malloc(len + 1); // so that a sanitizer sees a read past its end
    memcpy(exact, text, len);
    json_t *fast = ssm_json_read(exact, len), *slow = json_loadb(exact, len, JSON_ALLOW_NUL, NULL);
    const bool is_read = fast != NULL;
    if (is_read) {
        ck_assert_msg(slow != NULL, "only the fast reader reads %.*s", (int)len, text);
        char *a = json_dumps(fast, JSON_COMPACT), *b = json_dumps(slow, JSON_COMPACT);
        ck_assert_msg(json_equal(fast, slow) && strcmp(a, b) == 0, "%.*s: %s", (int)len, text, a);
        free(a);
        free(b);
    }
    json_decref(fast);
    json_decref(slow);
    free(exact);
    return is_read;
}

static const char *const plain[] = {
    "{}",
    "[]",
    " [ 1 , -2,3.5,\t-0, 0.25e-3, 1E+2,123456789012345678 ] \n",
    "{\"a\":true,\"b\":[false,null],\"\":{\"c\":\"\"}}",
    "{\"a\":1,\"b\":2,\"a\":3}",
    "[\"a text of more than sixteen bytes without anything in it\"]",
    "[\"one of more than sixteen bytes with \\\"quotes\\\", \\\\, \\/, \\b\\f\\n\\r\\t and more\"]",
    "[\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\\u0000 end\"]",
    "[\"caf\xc3\xa9, \xe2\x82\xac, \xf0\x9f\x98\x80 and on it goes, for quite a while\"]",
    "[\"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\x7f\"]",
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\\nthere\"}],\"temperature\":0.7}",
};

static const char *const broken[] = {
    "",
    " ",
    "1",
    "\"a\"",
    "null",
    "[",
    "]",
    "[1",
    "[1,",
    "[1,]",
    "[,]",
    "{",
    "{\"a\"",
    "{\"a\":",
    "{\"a\":1",
    "{\"a\":1,",
    "{\"a\":1,}",
    "{a:1}",
    "{1:2}",
    "[1]]",
    "[1] x",
    "[tru]",
    "[truex]",
    "[nulll]",
    "[01]",
    "[-]",
    "[-a]",
    "[1.]",
    "[.5]",
    "[1e]",
    "[1e+]",
    "[+1]",
    "[1 2]",
    "[1e999]",
    "[\"a]",
    "[\"\\\"]",
    "[\"\\x\"]",
    "[\"\\u12\"]",
    "[\"\\u12g4\"]",
    "[\"\\ud800\"]",
    "[\"\\ud800\\u0041\"]",
    "[\"\\udc00\"]",
    "[\"a\nb\"]",
    "[\"\x01\"]",
    "[\"\x80\"]",
    "[\"\xc0\xaf\"]",
    "[\"\xc3\"]",
    "[\"\xe0\x80\x80\"]",
    "[\"\xed\xa0\x80\"]",
    "[\"\xf4\x90\x80\x80\"]",
    "[\"\xf5\x80\x80\x80\"]",
    "[\"\xff\"]",
    "{\"a\\u0000b\":1}",
    "[12345678901234567890123]",
    "\xef\xbb\xbf[]",
};

START_TEST(it_reads_what_is_plain) {
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        ck_assert_msg(agrees(plain[i], strlen(plain[i])), "not read: %s", plain[i]);
}
END_TEST

START_TEST(it_leaves_what_is_broken) {
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        ck_assert_msg(!agrees(broken[i], strlen(broken[i])), "read: %s", broken[i]);
    ck_assert(!agrees("[\0]", 3) && !agrees("[]\0", 3));
    ck_assert_ptr_null(ssm_json_read(NULL, 0));
}
END_TEST

// Escapes, odd bytes and the end at every place of the blocks of sixteen.
START_TEST(every_place_is_the_same) {
    static const char *const odd[] = {"\\n", "\\u20ac", "\xe2\x82\xac", "\"", "\\", "\x1f", "\x80"};
    char text[128];
    for (size_t before = 0; before < 40; before++) {
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
            memset(text, 'x', sizeof text);
            memcpy(text, "[\"", 2);
            memcpy(text + 2 + before, odd[i], strlen(odd[i]));
            const size_t end = 2 + before + strlen(odd[i]) + before % 19;
            memcpy(text + end, "\"]", 2);
            ck_assert_int_eq(agrees(text, end + 2), i < 3);
        }
    }
}
END_TEST

START_TEST(depth_is_bounded) {
    enum { N = 5000 };
    char *text = malloc(2 * N);
    memset(text, '[', N);
    memset(text + N, ']', N);
    ck_assert(agrees(text + N - 200, 400));
    ck_assert(!agrees(text + N - 300, 600) && !agrees(text, 2 * N));
    free(text);
}
END_TEST

START_TEST(random_changes_make_no_difference) {
    static const char bytes[] =
        "{}[]:,\"\\/ubnt0123456789.eE+-ax \n\x01\xc3\xa9\xe2\x82\xac\xed\xf0\xff";
    uint32_t seed = 7;
    int n_read = 0;
    for (int round = 0; round < 200000; round++) {
        char text[256];
        seed = seed * 1664525u + 1013904223u;
        const char *from = plain[(seed >> 8) % (sizeof plain / sizeof *plain)];
        size_t len = strlen(from);
        memcpy(text, from, len);
        for (uint32_t k = seed % 4; k > 0; k--) {
            seed = seed * 1664525u + 1013904223u;
            const size_t at = (seed >> 16) % len;
            if (seed % 5 == 0) // one less
                memmove(text + at, text + at + 1, --len - at);
            else
                text[at] = bytes[(seed >> 4) % (sizeof bytes - 1)];
            if (len == 0)
                break;
        }
        n_read += len > 0 && agrees(text, len);
    }
    ck_assert_int_gt(n_read, 10000); // both ways often
    ck_assert_int_lt(n_read, 100000);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("json_read");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, it_reads_what_is_plain);
    tcase_add_test(tc, it_leaves_what_is_broken);
    tcase_add_test(tc, every_place_is_the_same);
    tcase_add_test(tc, depth_is_bounded);
    tcase_add_test(tc, random_changes_make_no_difference);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
