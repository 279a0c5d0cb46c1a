// SPDX-License-Identifier: Apache-2.0
// The load generator's reader and its histogram: what they say must be right before a figure is.
#include <stdlib.h>
#include <string.h>

#include "histogram.h"
#include "response.h"
#include "tests/suite.h"

static char body[4096];
static size_t body_len;

static void on_body(void *ctx, const char *data, size_t len) {
    ck_assert_ptr_eq(ctx, body);
    ck_assert_uint_le(body_len + len, sizeof body);
    memcpy(body + body_len, data, len);
    body_len += len;
}

// Feeds text in pieces of a size; returns the bytes used.
static size_t feed(response *r, const char *text, size_t piece) {
    size_t len = strlen(text), used = 0;
    body_len = 0;
    response_init(r, on_body, body);
    while (used < len) {
        size_t n = len - used < piece ? len - used : piece;
        size_t taken = response_feed(r, text + used, n);
        used += taken;
        if (taken < n) {
            break;
        }
    }
    return used;
}

static void check(const char *text, response_state state, int status, const char *want,
                  bool close) {
    for (size_t piece = 1; piece <= strlen(text); piece++) {
        response r;
        size_t used = feed(&r, text, piece);
        ck_assert_int_eq((int)r.state, (int)state);
        if (state == RESPONSE_BROKEN) {
            continue;
        }
        ck_assert_int_eq(r.status, status);
        ck_assert_uint_eq(body_len, strlen(want));
        ck_assert_mem_eq(body, want, body_len);
        ck_assert(r.close == close);
        ck_assert_uint_le(used, strlen(text));
    }
}

START_TEST(known_length) {
    check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", RESPONSE_DONE, 200, "hello", false);
    check("HTTP/1.1 404 No\r\ncontent-length:0\r\nConnection: close\r\n\r\n", RESPONSE_DONE, 404,
          "", true);
    check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", RESPONSE_BODY, 200, "hel", false);
}
END_TEST

START_TEST(chunks) {
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=1\r\n0123456789\r\n"
          "0\r\n\r\n",
          RESPONSE_DONE, 200, "abc0123456789", false);
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
          RESPONSE_DONE, 200, "a", false);
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", RESPONSE_CHUNK_SIZE,
          200, "abc", false);
}
END_TEST

START_TEST(what_follows_is_not_used) {
    response r;
    const char *text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1";
    ck_assert_uint_eq(feed(&r, text, 1000), strlen(text) - strlen("HTTP/1.1"));
    ck_assert_int_eq((int)r.state, RESPONSE_DONE);
}
END_TEST

START_TEST(broken) {
    check("SSH-2.0-x\r\n", RESPONSE_BROKEN, 0, "", false);
    check("HTTP/1.1 9999 x\r\n", RESPONSE_BROKEN, 0, "", false);
    check("HTTP/1.1 200 OK\r\nno colon\r\n", RESPONSE_BROKEN, 0, "", false);
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", RESPONSE_BROKEN, 0, "",
          false);
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", RESPONSE_BROKEN, 0,
          "", false);
}
END_TEST

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Against sorting, over eleven orders of magnitude.
START_TEST(quantiles) {
    enum { N = 20000 };
    static histogram h;
    static uint64_t values[N];
    uint64_t state = 1;
    memset(&h, 0, sizeof h);
    for (int i = 0; i < N; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        values[i] = (state >> 20) >> (state % 44);
        histogram_add(&h, values[i]);
    }
    qsort(values, N, sizeof *values, compare);
    for (int i = 1; i <= 1000; i++) {
        uint64_t want = values[i * (N / 1000) - 1], got = histogram_quantile(&h, i / 1000.0);
        ck_assert_uint_ge(got, want);
        ck_assert_uint_le(got, want + want / 128);
    }
    ck_assert_uint_eq(histogram_quantile(&h, 1), values[N - 1]);
    ck_assert_uint_eq(h.count, N);
}
END_TEST

START_TEST(empty_histogram) {
    static histogram h;
    memset(&h, 0, sizeof h);
    ck_assert_uint_eq(histogram_quantile(&h, 0.5), 0);
    ck_assert(histogram_mean(&h) == 0);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("load");
    TCase *tc = tcase_create("load");
    tcase_add_test(tc, known_length);
    tcase_add_test(tc, chunks);
    tcase_add_test(tc, what_follows_is_not_used);
    tcase_add_test(tc, broken);
    tcase_add_test(tc, quantiles);
    tcase_add_test(tc, empty_histogram);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
