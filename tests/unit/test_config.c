// SPDX-License-Identifier: Apache-2.0
// JSON as configs hold it, and getters that name the key at fault.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/config.h"
#include "tests/suite.h"

static config parse(const char *text, ssm_error *err) {
    config c;
    *err = (ssm_error){0};
    const int rc = config_parse(&c, text, strlen(text), "config.json", err);
    ck_assert_msg(rc == 0, "%s: %s", text, err->message);
    return c;
}

// ---- bare infinities

START_TEST(bare_words_become_numbers) {
    ssm_error err;
    config c = parse("{\"a\":Infinity,\"b\": -Infinity ,\"c\":[0.0,Infinity],\"d\":NaN,\n"
                     "\"s\":\"x: Infinity, \\\": NaN,\\\\\",\"e\":{\"__float__\":\"Infinity\"},"
                     "\"k Infinity\":-Infinity}",
                     &err);
    ck_assert(config_real(&c, "a", 0, INFINITY, 1) == INFINITY);
    ck_assert(config_real(&c, "b", -INFINITY, 0, 1) == -INFINITY);
    ck_assert(config_real(&c, "e", 0, INFINITY, 1) == INFINITY);
    ck_assert(config_real(&c, "k Infinity", -INFINITY, 0, 1) == -INFINITY);
    ck_assert_str_eq(config_string(&c, "s", NULL), "x: Infinity, \": NaN,\\");
    float low = 7, high = 7;
    config_pair(&c, "c", &low, &high);
    ck_assert(low == 0 && high == INFINITY);
    ck_assert_int_eq(c.rc, 0);
    config_real(&c, "d", -INFINITY, INFINITY, 1); // NaN is in no range
    ck_assert_int_eq(c.rc, SSM_EFORMAT);
    ck_assert_str_eq(err.param, "d");
    config_dispose(&c);
}
END_TEST

static const char *const not_json[] = {
    "{\"a\":Infinit}",
    "{\"a\":XInfinity}",
    "{\"a\":Infinityx}",
    "{\"a\":--Infinity}",
    "{Infinity:1}",
    "{\"a\":+Infinity}",
    "{\"a\":infinity}",
    "{\"a\":NaN0}",
    "{\"a\":1Infinity}",
    "{\"a\":\"Infinity}",
    "{\"a\":1,}",
    "{\"a\":1,\"a\":2}",
    "[1]",
    "",
    "{\"a\":1}x",
    "{\"a\":\"\xff\"}",
    "Infinity",
};

START_TEST(what_is_not_json) {
    config c;
    ssm_error err = {0};
    const char *text = not_json[_i];
    ck_assert_msg(config_parse(&c, text, strlen(text), "config.json", &err) == SSM_EFORMAT, "%s",
                  text);
    ck_assert_str_eq(err.param, "config.json");
}
END_TEST

START_TEST(sizes_and_depths) {
    config c;
    ssm_error err;
    const size_t n = (16 << 20) + 1;
    char *big = malloc(n);
    memset(big, ' ', n);
    ck_assert_int_eq(config_parse(&c, big, n, "config.json", &err), SSM_EFORMAT);
    memset(big, '[', n);
    memcpy(big, "{\"a\":", 5);
    ck_assert_int_eq(config_parse(&c, big, 1000000, "config.json", &err), SSM_EFORMAT);
    for (size_t i = 0; i + 4 <= 1000000; i += 4) // the most that spelling out can grow
        memcpy(big + i, "NaN,", 4);
    ck_assert_int_eq(config_parse(&c, big, 1000000, "config.json", &err), SSM_EFORMAT);
    free(big);
}
END_TEST

// ---- getters

START_TEST(values_and_defaults) {
    ssm_error err;
    config c = parse("{\"i\":5,\"r\":1.5,\"t\":true,\"s\":\"x\",\"n\":null}", &err);
    ck_assert_int_eq(config_int(&c, "i", 0, 10, 3), 5);
    ck_assert_int_eq(config_int(&c, "n", 0, 10, 3), 3);
    ck_assert_int_eq(config_int(&c, "no", 0, 10, 3), 3);
    ck_assert(config_real(&c, "r", 0, 2, 1) == 1.5);
    ck_assert(config_real(&c, "i", 0, 10, 1) == 5);
    ck_assert(config_bool(&c, "t", false));
    ck_assert(config_bool(&c, "n", true));
    ck_assert_str_eq(config_string(&c, "s", "d"), "x");
    ck_assert_str_eq(config_string(&c, "n", "d"), "d");
    ck_assert_int_eq(c.rc, 0);
    config_dispose(&c);
}
END_TEST

static void ask_int(config *c) {
    config_int(c, "k", 1, 10, CONFIG_REQUIRED);
}
static void ask_real(config *c) {
    config_real(c, "k", 0, 1, 0);
}
static void ask_bool(config *c) {
    config_bool(c, "k", false);
}
static void ask_string(config *c) {
    config_string(c, "k", NULL);
}
static void ask_pair(config *c) {
    float low, high;
    config_pair(c, "k", &low, &high);
}
static void ask_ids(config *c) {
    int32_t ids[2], n = 0;
    config_ids(c, "k", 10, ids, &n, 2);
}

static const struct {
    const char *text;
    void (*ask)(config *c);
    int code;
} wrong[] = {
    {"{}", ask_int, SSM_EFORMAT},
    {"{\"k\":null}", ask_int, SSM_EFORMAT},
    {"{\"k\":0}", ask_int, SSM_EFORMAT},
    {"{\"k\":11}", ask_int, SSM_EFORMAT},
    {"{\"k\":4294967297}", ask_int, SSM_EFORMAT}, // 1 in 32 bits
    {"{\"k\":5.0}", ask_int, SSM_EFORMAT},
    {"{\"k\":\"5\"}", ask_int, SSM_EFORMAT},
    {"{\"k\":true}", ask_int, SSM_EFORMAT},
    {"{\"k\":2}", ask_real, SSM_EFORMAT},
    {"{\"k\":Infinity}", ask_real, SSM_EFORMAT},
    {"{\"k\":NaN}", ask_real, SSM_EFORMAT},
    {"{\"k\":\"Infinity\"}", ask_real, SSM_EFORMAT},
    {"{\"k\":{\"__float__\":\"1\"}}", ask_real, SSM_EFORMAT},
    {"{\"k\":0}", ask_bool, SSM_EFORMAT},
    {"{\"k\":\"false\"}", ask_bool, SSM_EFORMAT},
    {"{\"k\":5}", ask_string, SSM_EFORMAT},
    {"{\"k\":[0]}", ask_pair, SSM_EFORMAT},
    {"{\"k\":[0,1,2]}", ask_pair, SSM_EFORMAT},
    {"{\"k\":[1,0]}", ask_pair, SSM_EFORMAT},
    {"{\"k\":[-1,0]}", ask_pair, SSM_EFORMAT},
    {"{\"k\":[0,NaN]}", ask_pair, SSM_EFORMAT},
    {"{\"k\":5}", ask_pair, SSM_EFORMAT},
    {"{\"k\":\"1\"}", ask_ids, SSM_EFORMAT},
    {"{\"k\":10}", ask_ids, SSM_EFORMAT},
    {"{\"k\":[0,-1]}", ask_ids, SSM_EFORMAT},
    {"{\"k\":[0,1.5]}", ask_ids, SSM_EFORMAT},
    {"{\"k\":[0,1,2]}", ask_ids, SSM_EUNSUPPORTED},
};

START_TEST(wrong_values_name_the_key) {
    ssm_error err;
    config c = parse(wrong[_i].text, &err);
    wrong[_i].ask(&c);
    ck_assert_msg(c.rc == wrong[_i].code, "%s: %d", wrong[_i].text, c.rc);
    ck_assert_str_eq(err.param, "k");
    ck_assert_msg(strncmp(err.message, "config.json: k ", 15) == 0, "%s", err.message);
    config_dispose(&c);
}
END_TEST

START_TEST(the_first_failure_stays) {
    ssm_error err;
    config c = parse("{\"a\":-5,\"b\":7}", &err);
    ck_assert_int_eq(config_int(&c, "a", 2, 9, 3), 2);
    ck_assert_int_eq(config_int(&c, "b", 1, 9, 3), 1);
    ck_assert_int_eq(config_int(&c, "c", 4, 9, CONFIG_REQUIRED), 4);
    ck_assert_str_eq(err.param, "a");
    config_dispose(&c);
}
END_TEST

START_TEST(lists_of_ids) {
    ssm_error err;
    config c = parse("{\"one\":3,\"more\":[3,1,3],\"none\":null}", &err);
    int32_t ids[4], n = 0;
    config_ids(&c, "one", 10, ids, &n, 4);
    config_ids(&c, "more", 10, ids, &n, 4);
    config_ids(&c, "none", 10, ids, &n, 4);
    ck_assert_int_eq(n, 2);
    ck_assert_int_eq(ids[0], 3);
    ck_assert_int_eq(ids[1], 1);
    ck_assert_int_eq(c.rc, 0);
    config_dispose(&c);
}
END_TEST

START_TEST(what_asks_for_something) {
    ssm_error err;
    config c = parse("{\"a\":null,\"b\":false,\"c\":0,\"d\":\"\",\"e\":[],\"f\":{},\"g\":0.0,"
                     "\"h\":true,\"i\":1,\"j\":\"x\",\"k\":[0],\"l\":{\"x\":1},\"m\":0.5}",
                     &err);
    for (const char *key = "abcdefg_"; *key; key++)
        ck_assert_msg(!config_asks(&c, (char[]){*key, '\0'}), "%c", *key);
    for (const char *key = "hijklm"; *key; key++)
        ck_assert_msg(config_asks(&c, (char[]){*key, '\0'}), "%c", *key);
    config_dispose(&c);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, bare_words_become_numbers);
    tcase_add_loop_test(tc, what_is_not_json, 0, sizeof not_json / sizeof not_json[0]);
    tcase_add_test(tc, sizes_and_depths);
    tcase_add_test(tc, values_and_defaults);
    tcase_add_loop_test(tc, wrong_values_name_the_key, 0, sizeof wrong / sizeof wrong[0]);
    tcase_add_test(tc, the_first_failure_stays);
    tcase_add_test(tc, lists_of_ids);
    tcase_add_test(tc, what_asks_for_something);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
