// SPDX-License-Identifier: Apache-2.0
// URLs of a Redis: what is taken, what is refused, and that nothing refused is repeated with its
// password.
#include <string.h>

#include "engine/state/redis_url.h"
#include "tests/suite.h"

START_TEST(urls) {
    redis_url u;
    ssm_error err;
    ck_assert_int_eq(redis_url_parse("redis://h", &u, NULL), 0);
    ck_assert(strcmp(u.host, "h") == 0 && u.port == 6379 && u.db == 0 && !*u.user && !*u.password);
    ck_assert_int_eq(redis_url_parse("valkey://u:p%40@h.example:7000/12", &u, NULL), 0);
    ck_assert(strcmp(u.host, "h.example") == 0 && u.port == 7000 && u.db == 12);
    ck_assert(strcmp(u.user, "u") == 0 && strcmp(u.password, "p@") == 0);
    ck_assert_int_eq(redis_url_parse("redis://:a@b/c@[::1]:7/", &u, NULL), 0);
    ck_assert(strcmp(u.host, "::1") == 0 && u.port == 7 && strcmp(u.password, "a@b/c") == 0);
    ck_assert_int_eq(redis_url_parse("unix:///run/r.sock?db=4", &u, NULL), 0);
    ck_assert(strcmp(u.host, "/run/r.sock") == 0 && u.port == 0 && u.db == 4);
    ck_assert_int_eq(redis_url_parse("unix://u:p@/run/r", &u, NULL), 0);
    ck_assert(strcmp(u.host, "/run/r") == 0 && strcmp(u.user, "u") == 0);
    static const char *const bad[] = {
        "",
        "redis",
        "redis:/h",
        "redis://",
        "redis://:7",
        "redis://h:",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:x",
        "redis://h:7x",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://[::1",
        "redis://[::1]x",
        "redis://hunter2@h",
        "redis://u:@h",
        "redis://:%zz@h",
        "redis://:%00@h",
        "rediss://:hunter2@h",
        "http://h",
        "unix://",
        "unix://run",
        "unix:///run?x=1",
        "unix:///run?db=",
        "unix:///run?db=x",
        "redis://:hunter2@h:x",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(redis_url_parse(bad[i], &u, &err) == SSM_EINVAL, "%s", bad[i]);
        ck_assert_msg(!strstr(err.message, "hunter2"), "%s", err.message);
    }
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    memcpy(big, "redis://", 8);
    ck_assert_int_eq(redis_url_parse(big, &u, &err), SSM_EINVAL);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("redis_url");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, urls);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
