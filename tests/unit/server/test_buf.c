// SPDX-License-Identifier: Apache-2.0
// Buffers, JSON written into them, UTF-8, and keys.
#include "buf.h"

#include <math.h>
#include <stdio.h>

#include "auth.h"
#include "suite.h"

#define WRITES(want, call)                                                                         \
    do {                                                                                           \
        buf b = {0};                                                                               \
        call;                                                                                      \
        ck_assert_msg(b.len == strlen(want) && memcmp(b.data, want, b.len) == 0, "%.*s is not %s", \
                      (int)b.len, b.data, want);                                                   \
        buf_dispose(&b);                                                                           \
    } while (0)

START_TEST(strings_are_always_json) {
    WRITES("\"plain\"", json_put_text(&b, "plain"));
    WRITES("null", json_put_text(&b, NULL));
    WRITES("\"q\\\" b\\\\ n\\n r\\r t\\t \\u0001 \\u0000\"",
           json_put_string(&b, "q\" b\\ n\n r\r t\t \x01 \0", 18));
    WRITES("\"\xc3\xa9\xf0\x9f\x98\x80\"", json_put_text(&b, "\xc3\xa9\xf0\x9f\x98\x80"));
    WRITES("\"a\xef\xbf\xbd\"", json_put_text(&b, "a\xff"));
    WRITES("\"\xef\xbf\xbd\xef\xbf\xbdx\"", json_put_text(&b, "\xe4\xb8x"));
}
END_TEST

START_TEST(numbers) {
    WRITES("0", json_put_int(&b, 0));
    WRITES("-9223372036854775808", json_put_int(&b, INT64_MIN));
    WRITES("9223372036854775807", json_put_int(&b, INT64_MAX));
    WRITES("null", json_put_double(&b, NAN));
}
END_TEST

START_TEST(a_logprob_reads_back_as_itself) {
    WRITES("-9999.0", json_put_logprob(&b, -INFINITY));
    WRITES("-9999.0", json_put_logprob(&b, -1e9f));
    WRITES("null", json_put_logprob(&b, NAN));
    WRITES("0.0", json_put_logprob(&b, 0));
    WRITES("-1.0", json_put_logprob(&b, -1));
    WRITES("-0.1", json_put_logprob(&b, -0.1f));
    unsigned bits = 12345;
    for (int i = 0; i < 20000; i++) {
        bits = bits * 1664525u + 1013904223u;
        const float number = -(float)(bits >> 8) / 65536.0f - (float)(bits & 255) * 1e-6f;
        buf b = {0};
        json_put_logprob(&b, number);
        buf_add(&b, "", 1);
        ck_assert(strtof(b.data, NULL) == number);
        buf_dispose(&b);
    }
}
END_TEST

START_TEST(utf8_is_strict) {
    static const char *const bad[] = {"\x80",
                                      "\xc0\xaf",
                                      "\xc1\x81",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe4\xb8",
                                      "\xff",
                                      "a\xc3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert(!utf8_is_valid(bad[i], strlen(bad[i])));
    }
    const char *good = "a\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf";
    ck_assert(utf8_is_valid(good, strlen(good)));
    ck_assert_uint_eq(utf8_count(good, strlen(good)), 7);
}
END_TEST

START_TEST(a_buffer_grows_and_is_taken) {
    buf b = {0};
    for (int i = 0; i < 1000; i++) {
        buf_printf(&b, "%0300d", i);
    }
    ck_assert_uint_eq(b.len, 300000);
    size_t len;
    char *data = buf_take(&b, &len);
    ck_assert_uint_eq(len, 300000);
    ck_assert_int_eq(data[299999], '9');
    ck_assert_ptr_null(b.data);
    free(data);
    ck_assert(!buf_reserve(&b, SIZE_MAX));
    ck_assert(b.failed);
    buf_dispose(&b);
}
END_TEST

START_TEST(keys) {
    options o;
    auth a;
    ssm_error err;
    options_init(&o);
    ck_assert_int_eq(auth_init(&a, &o, &err), 0);
    ck_assert(auth_check(&a, NULL)); // no keys: open
    auth_dispose(&a);
    options_set(&o, options_find("api-key", 7), "sesame", OPTIONS_FLAG, &err);
    options_set(&o, options_find("api-key", 7), "open", OPTIONS_FLAG, &err);
    ck_assert_int_eq(auth_init(&a, &o, &err), 0);
    ck_assert(auth_check(&a, "Bearer sesame"));
    ck_assert(auth_check(&a, "bearer  open"));
    static const char *const bad[] = {"sesame",
                                      "Bearer",
                                      "Bearer ",
                                      "Bearer sesam",
                                      "Bearer sesamee",
                                      "Basic sesame",
                                      "Bearer sesame ",
                                      "Bearer sesamesesame",
                                      ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(!auth_check(&a, bad[i]), "'%s' was let in", bad[i]);
    }
    ck_assert(!auth_check(&a, NULL));
    auth_dispose(&a);
    options_dispose(&o);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {strings_are_always_json,        numbers,
                                  a_logprob_reads_back_as_itself, utf8_is_strict,
                                  a_buffer_grows_and_is_taken,    keys};
    return RUN_SUITE("buf", tests);
}
