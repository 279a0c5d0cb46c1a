// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ssm/text.h>

#include "tests/suite.h"

static uint64_t random_state;

static unsigned random_below(unsigned n) { // xorshift64
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % n;
}

static ssm_stopper *make(const char *const *stops, size_t n, bool include) {
    ssm_string strings[16];
    ssm_stopper *s = NULL;
    for (size_t i = 0; i < n; i++)
        strings[i] = (ssm_string){stops[i], strlen(stops[i])};
    ck_assert_int_eq(ssm_stopper_create(strings, n, include, &s), 0);
    return s;
}

// Pushes one piece and checks what comes out, what is held and what push returns.
static void push(ssm_stopper *s, const char *piece, const char *released, size_t held, int want) {
    ssm_text out = {0};
    ck_assert_int_eq(ssm_text_append(&out, "", 0), 0);
    ck_assert_int_eq(ssm_stopper_push(s, piece, strlen(piece), &out), want);
    ck_assert_str_eq(out.data, released);
    ck_assert_uint_eq(ssm_stopper_held(s), held);
    ssm_text_dispose(&out);
}

static void finish(ssm_stopper *s, const char *released) {
    ssm_text out = {0};
    ck_assert_int_eq(ssm_text_append(&out, "", 0), 0);
    ck_assert_int_eq(ssm_stopper_finish(s, &out), 0);
    ck_assert_str_eq(out.data, released);
    ssm_text_dispose(&out);
    ssm_stopper_free(s);
}

START_TEST(text_that_may_begin_a_stop_is_held) {
    static const char *const stops[] = {"\n\n", "END"};
    ssm_stopper *s = make(stops, 2, false);
    push(s, "one\n", "one", 1, 0);
    push(s, "two EN", "\ntwo ", 2, 0);
    push(s, "", "", 2, 0);
    push(s, "E", "EN", 1, 0);
    push(s, "ND", "", 0, 2);
    push(s, "more", "", 0, 0); // nothing is released after a match
    finish(s, "");
}
END_TEST

START_TEST(the_end_releases_what_was_held) {
    static const char *const stops[] = {"###"};
    ssm_stopper *s = make(stops, 1, false);
    push(s, "a##", "a", 2, 0);
    finish(s, "##");
}
END_TEST

START_TEST(stop_can_be_included) {
    static const char *const stops[] = {"stop"};
    ssm_stopper *s = make(stops, 1, true);
    push(s, "do not st", "do not ", 2, 0);
    push(s, "op now", "stop", 0, 1);
    finish(s, "");
}
END_TEST

START_TEST(earliest_end_then_earliest_start) {
    static const char *const stops[] = {"bcd", "c", "abc"};
    ssm_stopper *s = make(stops, 3, false);
    push(s, "xabcd", "x", 0, 3); // "c" and "abc" end together: "abc" began first
    finish(s, "");
    static const char *const longer[] = {"abcd", "bc"};
    s = make(longer, 2, false);
    push(s, "xabcd", "xa", 0, 2);
    finish(s, "");
}
END_TEST

START_TEST(no_stops_and_bad_stops) {
    ssm_stopper *s = make(NULL, 0, false);
    push(s, "anything", "anything", 0, 0);
    finish(s, "");
    const ssm_string empty = {"", 0};
    ck_assert_int_eq(ssm_stopper_create(&empty, 1, false, &s), SSM_EINVAL);
    const ssm_string nul = {"\0x", 2};
    ck_assert_int_eq(ssm_stopper_create(&nul, 1, false, &s), 0);
    ssm_text out = {0};
    ck_assert_int_eq(ssm_stopper_push(s, "a\0xb", 4, &out), 1);
    ck_assert_uint_eq(out.len, 1);
    ssm_text_dispose(&out);
    ssm_stopper_free(s);
}
END_TEST

// The definition, by trying every end and every string. Returns 1 + index and the text before it.
static int by_definition(const char *text, size_t len, char stops[][8], size_t n, size_t *before) {
    for (size_t end = 1; end <= len; end++) {
        int found = 0;
        size_t longest = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t k = strlen(stops[i]);
            if (k <= end && k > longest && memcmp(text + end - k, stops[i], k) == 0) {
                found = (int)i + 1;
                longest = k;
            }
        }
        if (found) {
            *before = end - longest;
            return found;
        }
    }
    *before = len;
    return 0;
}

START_TEST(random_streams_agree_with_the_definition) {
    random_state = 0x5eed0000u + (unsigned)_i;
    for (int round = 0; round < 2000; round++) {
        char stops[4][8], text[64];
        const char *list[4];
        const size_t n = 1 + random_below(4), len = random_below(40);
        for (size_t i = 0; i < n; i++) {
            const size_t k = 1 + random_below(5);
            for (size_t j = 0; j < k; j++)
                stops[i][j] = (char)('a' + random_below(2));
            stops[i][k] = '\0';
            list[i] = stops[i];
        }
        for (size_t i = 0; i < len; i++)
            text[i] = (char)('a' + random_below(3) % (1 + random_below(3)));
        ssm_stopper *s = make(list, n, false);
        ssm_text out = {0};
        int got = 0;
        for (size_t at = 0; at < len && got == 0;) {
            const size_t piece = 1 + random_below(6);
            const size_t k = piece < len - at ? piece : len - at;
            got = ssm_stopper_push(s, text + at, k, &out);
            at += k;
            if (got == 0) // all of it is out or held, and held text begins some stop string
                ck_assert_uint_eq(out.len + ssm_stopper_held(s), at);
        }
        if (got == 0)
            ck_assert_int_eq(ssm_stopper_finish(s, &out), 0);
        size_t before;
        const int want = by_definition(text, len, stops, n, &before);
        // Equal strings: the first of them counts.
        ck_assert_int_eq(got > 0, want > 0);
        if (want > 0)
            ck_assert_str_eq(stops[got - 1], stops[want - 1]);
        ck_assert_uint_eq(out.len, before);
        ck_assert_int_eq(out.len > 0 ? memcmp(out.data, text, out.len) : 0, 0);
        ssm_text_dispose(&out);
        ssm_stopper_free(s);
    }
}
END_TEST

START_TEST(matching_is_linear) {
    enum { LONG = 20000, TEXT = 1 << 20 };
    char *stop = malloc(LONG + 1), *text = malloc(TEXT);
    memset(stop, 'a', LONG - 1); // aaa...ab: the naive way compares LONG bytes at each place
    stop[LONG - 1] = 'b';
    memset(text, 'a', TEXT);
    const ssm_string string = {stop, LONG};
    ssm_stopper *s;
    ssm_text out = {0};
    const clock_t start = clock();
    ck_assert_int_eq(ssm_stopper_create(&string, 1, false, &s), 0);
    ck_assert_int_eq(ssm_stopper_push(s, text, TEXT, &out), 0);
    ck_assert_uint_eq(out.len, TEXT - LONG + 1);
    ck_assert_int_eq(ssm_stopper_push(s, "b", 1, &out), 1);
    ck_assert_uint_eq(out.len, TEXT - LONG + 1);
    ck_assert_msg((double)(clock() - start) / CLOCKS_PER_SEC < 5, "not linear");
    ssm_text_dispose(&out);
    ssm_stopper_free(s);
    free(stop);
    free(text);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("stopper");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, text_that_may_begin_a_stop_is_held);
    tcase_add_test(tc, the_end_releases_what_was_held);
    tcase_add_test(tc, stop_can_be_included);
    tcase_add_test(tc, earliest_end_then_earliest_start);
    tcase_add_test(tc, no_stops_and_bad_stops);
    tcase_add_loop_test(tc, random_streams_agree_with_the_definition, 0, 4);
    tcase_add_test(tc, matching_is_linear);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
