// SPDX-License-Identifier: Apache-2.0
// The pass over raw bodies: what it takes out, what it leaves for jansson, what it prices.
#include "json.h"

#include <malloc.h>
#include <string.h>

#include "suite.h"

static bool is_known(const char *key) {
    return strcmp(key, "prompt") == 0 || strcmp(key, "seed") == 0 || strcmp(key, "n") == 0;
}

static int unknowns;
static void on_unknown(const char *key) {
    unknowns++;
}

static int skim(const char *text, json_skimmer *s, char **out, size_t *len, ssm_error *err) {
    *s = (json_skimmer){
        .ids_key = "prompt", .u64_key = "seed", .is_known = is_known, .on_unknown = on_unknown};
    *len = strlen(text);
    *out = strdup(text);
    unknowns = 0;
    return json_skim(s, *out, len, err);
}

static void leaves(const char *text, const char *want, size_t n_ids, int n_unknown) {
    json_skimmer s;
    ssm_error err = {0};
    char *body;
    size_t len;
    ck_assert_msg(skim(text, &s, &body, &len, &err) == 0, "%s: %s", text, err.message);
    ck_assert_msg(len == strlen(want) && memcmp(body, want, len) == 0, "%s left %.*s", text,
                  (int)len, body);
    ck_assert_msg(s.ids.n == n_ids, "%s: %zu ids", text, s.ids.n);
    ck_assert_int_eq(unknowns, n_unknown);
    json_ids_dispose(&s.ids);
    free(body);
}

START_TEST(lists_of_ids_are_taken_out) {
    leaves("{\"prompt\":[1,2,3],\"n\":1}", "{\"prompt\":[],\"n\":1}", 3, 0);
    leaves("{ \"prompt\" : [ 1 ,\n 2 ] , \"n\" : 2 } ", "{ \"prompt\" :[] , \"n\" :2 } ", 2, 0);
    leaves("{\"prompt\":[[1],[2,3],[]]}", "{\"prompt\":[]}", 3, 0);
    leaves("{\"prompt\":[]}", "{\"prompt\":[]}", 0, 0);
    leaves("{\"prompt\":[\"a\",\"b\"]}", "{\"prompt\":[\"a\",\"b\"]}", 0, 0);
    leaves("{\"prompt\":\"[1,2]\"}", "{\"prompt\":\"[1,2]\"}", 0, 0);
    leaves("{\"x\":[1,2],\"n\":{\"prompt\":[5]}}", "{\"x\":[1,2],\"n\":{\"prompt\":[5]}}", 0, 1);
}
END_TEST

START_TEST(the_last_of_a_name_counts) {
    leaves("{\"prompt\":[1,2],\"prompt\":[3]}", "{\"prompt\":[],\"prompt\":[]}", 1, 0);
    leaves("{\"prompt\":[1,2],\"prompt\":\"x\"}", "{\"prompt\":[],\"prompt\":\"x\"}", 0, 0);
}
END_TEST

START_TEST(lists_say_where_they_end) {
    json_skimmer s;
    ssm_error err;
    char *body;
    size_t len;
    ck_assert_int_eq(skim("{\"prompt\":[[7],[],[8,2147483647]]}", &s, &body, &len, &err), 0);
    ck_assert(s.ids.found && s.ids.nested);
    ck_assert_uint_eq(s.ids.n_lists, 3);
    ck_assert_uint_eq(s.ids.ends[0], 1);
    ck_assert_uint_eq(s.ids.ends[1], 1);
    ck_assert_uint_eq(s.ids.ends[2], 3);
    ck_assert_int_eq(s.ids.data[2], 2147483647);
    json_ids_dispose(&s.ids);
    free(body);
}
END_TEST

START_TEST(what_is_no_id_is_refused_by_name) {
    static const char *const bad[] = {"[1,2,]",
                                      "[1 2]",
                                      "[1,,2]",
                                      "[01]",
                                      "[-1]",
                                      "[1.0]",
                                      "[1e2]",
                                      "[true]",
                                      "[2147483648]",
                                      "[1}",
                                      "[[1],2]",
                                      "[[1]",
                                      "[1,\"a\"]",
                                      "[[1],[2}",
                                      "[{}]",
                                      "[[[1]]]",
                                      "[99999999999999999999]",
                                      "[--1]",
                                      "[-]",
                                      "[null]",
                                      "[1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[80];
        json_skimmer s;
        ssm_error err = {0};
        char *body;
        size_t len;
        snprintf(text, sizeof text, "{\"prompt\":%s}", bad[i]);
        ck_assert_msg(skim(text, &s, &body, &len, &err) == SSM_EINVAL, "accepted: %s", text);
        ck_assert_str_eq(err.param, "prompt");
        ck_assert_ptr_null(s.ids.data);
        free(body);
    }
}
END_TEST

START_TEST(broken_text_is_left_to_jansson) {
    static const char *const broken[] = {
        "",       "{",          "[1,2",          "{\"prompt\"",
        "{\"a",   "{\"n\":",    "{\"n\":1,}",    "{\"n\":[1,2",
        "{\"n\\", "{\"n\":\"a", "{\"prompt\":[", "{\"x\":[}]}",
        "{n:1}",  "\\",         "{\"n\":1}}",    "{\"prompt\":[\"a"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        json_skimmer s;
        ssm_error err = {0};
        char *body;
        size_t len;
        ck_assert_msg(skim(broken[i], &s, &body, &len, &err) == 0, "%s", broken[i]);
        json_t *root = json_parse_object(body, len, &err);
        ck_assert_msg(root == NULL, "%s became JSON", broken[i]);
        ck_assert_int_eq(err.code, SSM_EINVAL);
        json_ids_dispose(&s.ids);
        free(body);
    }
}
END_TEST

static void seed(const char *text, bool found, uint64_t want) {
    json_skimmer s;
    ssm_error err;
    char *body;
    size_t len;
    ck_assert_int_eq(skim(text, &s, &body, &len, &err), 0);
    ck_assert_msg(s.u64_found == found && (!found || s.u64 == want), "%s", text);
    free(body);
}

START_TEST(seeds_of_64_bits) {
    leaves("{\"seed\":18446744073709551615}", "{\"seed\":0}", 0, 0);
    leaves("{\"seed\":9223372036854775807}", "{\"seed\":9223372036854775807}", 0, 0);
    leaves("{\"seed\":18446744073709551616}", "{\"seed\":18446744073709551616}", 0, 0);
    leaves("{\"n\":18446744073709551615}", "{\"n\":18446744073709551615}", 0, 0);
    seed("{\"seed\":18446744073709551615}", true, UINT64_MAX);
    seed("{\"seed\": 9223372036854775808 ,\"n\":1}", true, (uint64_t)1 << 63);
    seed("{\"seed\":18446744073709551615,\"seed\":5}", false, 0);
    seed("{\"seed\":-9223372036854775808}", false, 0);
    seed("{\"seed\":99999999999999999999}", false, 0);
    seed("{\"seed\":1844674407370955161.5}", false, 0);
}
END_TEST

START_TEST(large_strangers_are_cut_out_deep_ones_are_not) {
    enum { N = 1 << 20 };
    char *text = malloc(3 * N);
    size_t len = (size_t)sprintf(text, "{\"n\":1,\"other\":[1");
    for (int i = 0; i < N / 2; i++) {
        len += (size_t)sprintf(text + len, ",1");
    }
    strcpy(text + len, "]}");
    leaves(text, "{\"n\":1,\"other\":0}", 0, 1);
    len = (size_t)sprintf(text, "{\"other\":");
    memset(text + len, '[', N);
    memset(text + len + N, ']', N);
    strcpy(text + len + 2 * N, "}");
    leaves(text, text, 0, 1);
    free(text);
}
END_TEST

// The price of what is kept must bound what jansson takes.
START_TEST(the_price_is_an_upper_bound) {
    static const char *const elements[] = {
        "1",     "1.5",
        "\"\"",  "[]",
        "{}",    "{\"a\":1}",
        "[[1]]", "\"abcdefghijklmnop\"",
        "true",  "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6}"};
    for (size_t e = 0; e < sizeof elements / sizeof *elements; e++) {
        const int n = 70000;
        char *text = malloc(100 + (size_t)n * (strlen(elements[e]) + 1));
        size_t len = (size_t)sprintf(text, "{\"n\":[%s", elements[e]);
        for (int i = 1; i < n; i++) {
            len += (size_t)sprintf(text + len, ",%s", elements[e]);
        }
        strcpy(text + len, "]}");
        json_skimmer s;
        ssm_error err;
        char *body;
        ck_assert_int_eq(skim(text, &s, &body, &len, &err), 0);
        const struct mallinfo2 before = mallinfo2();
        json_t *root = json_parse_object(body, len, &err);
        const struct mallinfo2 after = mallinfo2();
        const size_t used = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
        ck_assert_ptr_nonnull(root);
        ck_assert_msg(s.tree_bytes >= used, "%s: priced %zu, took %zu", elements[e], s.tree_bytes,
                      used);
        json_decref(root);
        free(body);
        free(text);
    }
}
END_TEST

START_TEST(getters_name_the_field) {
    ssm_error err;
    json_t *root =
        json_loads("{\"a\":1,\"b\":1.5,\"c\":true,\"d\":\"x\",\"e\":null,\"f\":1.0}", 0, NULL);
    int64_t number = 7;
    float real = 7;
    bool flag = true;
    ck_assert_int_eq(json_get_int(root, "e", 0, 9, &number, &err), 0);
    ck_assert_int_eq(json_get_int(root, "zz", 0, 9, &number, &err), 0);
    ck_assert_int_eq(number, 7);
    ck_assert_int_eq(json_get_int(root, "a", 0, 9, &number, &err), 0);
    ck_assert_int_eq(number, 1);
    ck_assert_int_eq(json_get_int(root, "a", 2, 9, &number, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "a");
    ck_assert_int_eq(json_get_int(root, "f", 0, 9, &number, &err), SSM_EINVAL);
    ck_assert_int_eq(json_get_number(root, "b", 0, 2, &real, &err), 0);
    ck_assert(real == 1.5f);
    ck_assert_int_eq(json_get_number(root, "a", 0, 2, &real, &err), 0);
    ck_assert_int_eq(json_get_number(root, "c", 0, 2, &real, &err), SSM_EINVAL);
    ck_assert_int_eq(json_get_bool(root, "a", &flag, &err), SSM_EINVAL);
    json_decref(root);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {lists_of_ids_are_taken_out,
                                  the_last_of_a_name_counts,
                                  lists_say_where_they_end,
                                  what_is_no_id_is_refused_by_name,
                                  broken_text_is_left_to_jansson,
                                  seeds_of_64_bits,
                                  large_strangers_are_cut_out_deep_ones_are_not,
                                  the_price_is_an_upper_bound,
                                  getters_name_the_field};
    return RUN_SUITE("json", tests);
}
