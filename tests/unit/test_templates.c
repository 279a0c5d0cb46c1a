// SPDX-License-Identifier: Apache-2.0
// Chat templates against jinja2 (tests/golden/make_templates.py), and their bounds.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include <ssm/template.h>

#include "tests/suite.h"

static char *read_data(const char *file, size_t *len) {
    char path[512];
    snprintf(path, sizeof path, SSM_TEST_DATA "/templates/%s", file);
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "no %s", path);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    *len = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*len + 1);
    ck_assert_uint_eq(fread(text, 1, *len, f), *len);
    fclose(f);
    text[*len] = '\0';
    return text;
}

static char *source_of(const json_t *test, size_t *len) {
    const char *file = json_string_value(json_object_get(test, "file"));
    if (file)
        return read_data(file, len);
    const json_t *source = json_object_get(test, "source");
    *len = json_string_length(source);
    char *text = malloc(*len + 1);
    memcpy(text, json_string_value(source), *len + 1);
    return text;
}

// Complaints, counted: a broken feature shows in full.
static int check_render(const json_t *test, const char *source, const ssm_template *tpl,
                        const ssm_template_limits *limits) {
    ssm_text text = {0};
    ssm_error err = {0};
    char *context = json_dumps(json_object_get(test, "context"), JSON_COMPACT);
    const int rc = ssm_template_render(tpl, context, strlen(context), limits, &text, &err);
    const json_t *want = json_object_get(test, "text");
    const json_t *raised = json_object_get(test, "raised");
    int bad;
    if (want)
        bad = rc != 0 || text.len != json_string_length(want) ||
              (text.len > 0 && memcmp(text.data, json_string_value(want), text.len) != 0);
    else if (raised)
        bad = rc != SSM_EINVAL || strcmp(err.param, "messages") != 0 ||
              strcmp(err.message, json_string_value(raised)) != 0;
    else
        bad = rc != SSM_EINVAL || strcmp(err.param, "chat_template") != 0;
    if (bad)
        fprintf(stderr, "--- %.300s\nwant: %s\n got: %d %s %s\n", source,
                want     ? json_string_value(want)
                : raised ? json_string_value(raised)
                         : "an error",
                rc, err.message, rc == 0 && text.data ? text.data : "");
    ssm_text_dispose(&text);
    free(context);
    return bad;
}

static int check_case(const json_t *test, const ssm_template_limits *limits) {
    size_t len;
    int bad = 0;
    ssm_error err = {0};
    ssm_template *tpl = NULL;
    char *source = source_of(test, &len), line[32] = "";
    const json_t *refused = json_object_get(test, "refused");
    const json_t *broken = json_object_get(test, "broken");
    const int rc = ssm_template_create(source, len, &tpl, &err);
    if (refused || broken) {
        snprintf(line, sizeof line,
                 "line %d:", (int)json_integer_value(refused ? refused : broken));
        bad = rc != (refused ? SSM_EUNSUPPORTED : SSM_EFORMAT) || !strstr(err.message, line);
    } else {
        bad = rc != 0;
    }
    if (bad)
        fprintf(stderr, "--- %.300s\n%s: got %d %s\n", source,
                refused  ? "to be refused"
                : broken ? "to be found broken"
                         : "to be compiled",
                rc, err.message);
    else if (rc == 0)
        bad = check_render(test, source, tpl, limits);
    ssm_template_free(tpl);
    free(source);
    return bad;
}

START_TEST(equal_to_jinja2) {
    size_t len;
    setenv("TZ", "UTC", 1);
    tzset();
    char *text = read_data("cases.json", &len);
    json_error_t at;
    json_t *root = json_loadb(text, len, JSON_ALLOW_NUL, &at);
    ck_assert_msg(root != NULL, "%s", at.text);
    const ssm_template_limits limits = {
        .now = (time_t)json_integer_value(json_object_get(root, "now"))};
    const json_t *cases = json_object_get(root, "cases");
    ck_assert_uint_gt(json_array_size(cases), 500);
    int bad = 0;
    for (size_t i = 0; i < json_array_size(cases); i++)
        bad += check_case(json_array_get(cases, i), &limits);
    ck_assert_int_eq(bad, 0);
    json_decref(root);
    free(text);
}
END_TEST

// ---- bounds

static int render_with(const char *source, const char *context, const ssm_template_limits *limits,
                       ssm_error *err) {
    ssm_template *tpl = NULL;
    ssm_text text = {0};
    int rc = ssm_template_create(source, strlen(source), &tpl, err);
    if (rc == 0)
        rc = ssm_template_render(tpl, context, strlen(context), limits, &text, err);
    ssm_text_dispose(&text);
    ssm_template_free(tpl);
    return rc;
}

static void expect_limit(const char *source, const char *what) {
    ssm_error err = {0};
    const int rc = render_with(source, "{}", NULL, &err);
    ck_assert_msg(rc == SSM_EINVAL && strstr(err.message, what), "%.80s: %d %s", source, rc,
                  err.message);
}

START_TEST(renderings_are_bounded) {
    const char *r = "range(100000)";
    char source[512];
    snprintf(source, sizeof source,
             "{%% for a in %s %%}{%% for b in %s %%}{%% endfor %%}{%% endfor %%}", r, r);
    expect_limit(source, "steps");
    expect_limit("{% set ns = namespace(s='x') %}{% for i in range(99999) %}"
                 "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
                 "more than");
    expect_limit("{{ 'x' * 999999999999 }}", "more than");
    expect_limit("{{ ('x' * 60000) * 60000 }}", "more than");
    expect_limit("{{ [0] * 999999999 }}", "more than");
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deep");
    expect_limit("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | string }}", "no text");
    expect_limit("{{ 'x' | tojson(indent=999999999) }}", "more than");
    expect_limit("{{ 'a' | indent(999999999) }}", "more than");
    expect_limit("{{ 9223372036854775807 + 1 }}", "64 bits");
    expect_limit("{{ strftime_now('%99999d') }}", "too much");
    const ssm_template_limits few = {.output = 10};
    ssm_error err = {0};
    ck_assert_int_eq(render_with("{{ 'x' * 11 }}", "{}", &few, &err), SSM_EINVAL);
    ck_assert_int_eq(render_with("{{ 'x' * 10 }}", "{}", &few, &err), 0);
}
END_TEST

START_TEST(deep_and_large_sources_are_refused) {
    enum { N = 100000 };
    static const char *const pieces[] = {
        "(",       "[",           "{% if x %}", "not ", "-",          "x+",    "x if y else ",
        "x|trim|", "{% set x %}", "x.y.",       "a[",   "x is y is ", "{{ {1:"};
    char *source = malloc(N * 16 + 8);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char *to = source;
        if (pieces[i][0] != '{')
            to += sprintf(to, "{{ ");
        for (int k = 0; k < N; k++)
            to += sprintf(to, "%s", pieces[i]);
        ssm_template *tpl = NULL;
        ck_assert_int_lt(ssm_template_create(source, (size_t)(to - source), &tpl, NULL), 0);
    }
    free(source);
    ssm_error err;
    ck_assert_int_eq(render_with("{{ x }}", "[1]", NULL, &err), SSM_EINVAL);
    ck_assert_int_eq(render_with("{{ x }}", "{\"x\":", NULL, &err), SSM_EINVAL);
    char deep[3000] = "{\"x\":";
    memset(deep + 5, '[', 600);
    memset(deep + 605, ']', 600);
    strcpy(deep + 1205, "}");
    ck_assert_int_eq(render_with("{{ x }}", deep, NULL, &err), SSM_EINVAL);
}
END_TEST

// 100,000 messages through a template with everything that published ones do.
START_TEST(long_conversations_are_linear) {
    enum { N = 100000 };
    size_t len;
    char *source = read_data("llama-3.1.jinja", &len);
    ssm_template *tpl = NULL;
    ck_assert_int_eq(ssm_template_create(source, len, &tpl, NULL), 0);
    ssm_text context = {0}, text = {0};
    const char *open = "{\"bos_token\":\"<s>\",\"messages\":[";
    ssm_text_append(&context, open, strlen(open));
    for (int i = 0; i < N; i++) {
        const char *m = i % 2 ? "{\"role\":\"assistant\",\"content\":\"well\"}"
                              : "{\"role\":\"user\",\"content\":\"so?\"}";
        ssm_text_append(&context, i ? "," : "", i ? 1 : 0);
        ssm_text_append(&context, m, strlen(m));
    }
    ssm_text_append(&context, "]}", 2);
    ssm_error err = {0};
    const int rc = ssm_template_render(tpl, context.data, context.len, NULL, &text, &err);
    ck_assert_msg(rc == 0, "%s", err.message);
    ck_assert_uint_gt(text.len, (size_t)N * 40);
    ssm_text_dispose(&context);
    ssm_text_dispose(&text);
    ssm_template_free(tpl);
    free(source);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("templates");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, equal_to_jinja2);
    tcase_add_test(tc, renderings_are_bounded);
    tcase_add_test(tc, deep_and_large_sources_are_refused);
    tcase_add_test(tc, long_conversations_are_linear);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
