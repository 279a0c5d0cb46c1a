// SPDX-License-Identifier: Apache-2.0
// Oniguruma's expressions in PCRE2: what is matched, and what is refused. The matches were checked
// against Oniguruma through the tokenizers library.
#include <string.h>

#include "engine/text/pattern.h"
#include "tests/suite.h"

// All matches of a pattern, each in brackets.
static void matches(bool regex, const char *source, const char *text, char *out) {
    pattern *p;
    matcher *m;
    ssm_error err = {0};
    cursor c = {0};
    size_t start, end;
    int rc;
    ck_assert_msg(pattern_create(regex, source, strlen(source), &p, &err) == 0, "%s: %s", source,
                  err.message);
    ck_assert_int_eq(matcher_create(&m), 0);
    *out = '\0';
    while ((rc = pattern_next(p, m, text, strlen(text), &c, &start, &end, &err)) > 0) {
        strcat(out, "[");
        strncat(out, text + start, end - start);
        strcat(out, "]");
    }
    ck_assert_int_eq(rc, 0);
    matcher_free(m);
    pattern_free(p);
}

START_TEST(constructs_that_differ) {
    static const struct {
        const char *pattern, *text, *want;
    } rows[] = {
        {"\\w+", "a_b caf\u00e9 x\u00b2 \u0301 \u24b6!",
         "[a_b][caf\u00e9][x\u00b2][\u0301][\u24b6]"},
        {"\\s+", "a \u00a0\u2003b\u180ec\xc2\x85", "[ \u00a0\u2003][\xc2\x85]"},
        {"\\S+", "a\u180eb c", "[a\u180eb][c]"},
        {"\\h+", "abcz  q 0F", "[abc][0F]"},
        {"[^\\s\\p{L}\\p{N}]+", "a-b, 1\u0301", "[-][,][\u0301]"},
        {"[\\w-]+", "a-b c", "[a-b][c]"},
        {"^b$", "a\nb\nc", "[b]"},
        {"a{1,3}+b", "aaab aaaaaaab", "[aaab][aaaaaaab]"},
        {"a{1,3}+a", "aaa", "[aaa]"},
        {"a?+a", "aa", "[aa]"},
        {"a{2}?", "aaaaab", "[aa][aa][][]"},
        {"a{,2}b", "aaab", "[aab]"},
        {"a{,b", "xa{,b", "[a{,b]"},
        {"(?m)a.b", "a\nb", "[a\nb]"},
        {"a.b", "a\nb", ""},
        {"(?i:'s|'t)", "'S 't '\u017f", "['S]['t]['\u017f]"},
        {"\\p{Han}+", "a\u4f60\u597d\u3001b", "[\u4f60\u597d]"},
        {"\\p{^L}+", "ab12c", "[12]"},
        {"\\bfoo\\b", "foo food \u00e9foo foo", "[foo][foo]"},
        {"\\u00e9|\\x{4f60}", "\u00e9\u4f60", "[\u00e9][\u4f60]"},
        {"[[:alpha:]]+", "ab1\u00e9", "[ab][\u00e9]"},
        {"x*", "aaxxb", "[][][xx][]"},
        {"\\d+(?=a)", "12a34b5a", "[12][5]"},
        {"(?<=a)b", "ab b", "[b]"},
        {"[]a]+", "]a]b", "[]a]]"},
        {"(a|b)\\1", "aabbab", "[aa][bb]"},
        {"\\.\\-\\#", ".-#", "[.-#]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char out[256];
        matches(true, rows[i].pattern, rows[i].text, out);
        ck_assert_msg(strcmp(out, rows[i].want) == 0, "%s on \"%s\": %s, not %s", rows[i].pattern,
                      rows[i].text, out, rows[i].want);
    }
}
END_TEST

START_TEST(literals) {
    char out[64];
    matches(false, "a.b", "a.b axb a.ba.b", out);
    ck_assert_str_eq(out, "[a.b][a.b][a.b]");
    matches(false, "", "ab", out);
    ck_assert_str_eq(out, "[][][]");
}
END_TEST

START_TEST(refused_by_name) {
    static const struct {
        const char *pattern;
        int code;
        const char *named;
    } rows[] = {
        {"[a&&b]", SSM_EUNSUPPORTED, "&&"},
        {"[a[bc]]", SSM_EUNSUPPORTED, "set inside a set"},
        {"[\\W]", SSM_EUNSUPPORTED, "\\W"},
        {"\\Ka", SSM_EUNSUPPORTED, "\\K"},
        {"\\X", SSM_EUNSUPPORTED, "\\X"},
        {"\\g<1>", SSM_EUNSUPPORTED, "\\g"},
        {"\\k<n>", SSM_EUNSUPPORTED, "\\k"},
        {"(?<n>a)", SSM_EUNSUPPORTED, "group"},
        {"(?~a)", SSM_EUNSUPPORTED, "group"},
        {"(?x)a b", SSM_EUNSUPPORTED, "group"},
        {"a(?i)b|c", SSM_EUNSUPPORTED, "option"},
        {"\\xff", SSM_EUNSUPPORTED, "\\x"},
        {"\\p{Graph}", SSM_EUNSUPPORTED, "POSIX"},
        {"\\pL", SSM_EUNSUPPORTED, "\\p"},
        {"\\p{Klingon}", SSM_EFORMAT, "sc:Klingon"},
        {"(a", SSM_EFORMAT, "group"},
        {"a)", SSM_EFORMAT, ")"},
        {"[a", SSM_EFORMAT, "]"},
        {"*a", SSM_EFORMAT, "repeat"},
        {"{1,2}a", SSM_EFORMAT, "repeat"},
        {"a\\", SSM_EFORMAT, "backslash"},
        {"\\p{L", SSM_EFORMAT, "}"},
        {"\\u12", SSM_EFORMAT, "\\u"},
        {"(?", SSM_EUNSUPPORTED, "group"},
        {"a**", SSM_EFORMAT, ""},
        {"\xff", SSM_EFORMAT, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pattern *p = NULL;
        ssm_error err = {0};
        const int rc = pattern_create(true, rows[i].pattern, strlen(rows[i].pattern), &p, &err);
        ck_assert_msg(rc == rows[i].code, "%s: %d %s", rows[i].pattern, rc, err.message);
        ck_assert_msg(strstr(err.message, rows[i].named), "%s: %s", rows[i].pattern, err.message);
    }
    char deep[400];
    memset(deep, '(', 200);
    memset(deep + 200, ')', 200);
    pattern *p = NULL;
    ck_assert_int_eq(pattern_create(true, deep, sizeof deep, &p, NULL), SSM_EUNSUPPORTED);
}
END_TEST

START_TEST(a_runaway_pattern_ends) {
    pattern *p;
    matcher *m;
    cursor c = {0};
    size_t start, end;
    char text[64];
    memset(text, 'a', sizeof text);
    ck_assert_int_eq(pattern_create(true, "(a+)+(b+)+c", 11, &p, NULL), 0);
    pattern_free(p);
    ck_assert_int_eq(pattern_create(true, "(a|aa|aaa)*[bc]$", 16, &p, NULL), 0);
    ck_assert_int_eq(matcher_create(&m), 0);
    text[sizeof text - 1] = 'b';
    text[sizeof text - 2] = 'd';
    ssm_error err;
    const int rc = pattern_next(p, m, text, sizeof text, &c, &start, &end, &err);
    ck_assert_msg(rc == SSM_EUNSUPPORTED || rc >= 0, "%d", rc);
    matcher_free(m);
    pattern_free(p);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("pattern");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, constructs_that_differ);
    tcase_add_test(tc, literals);
    tcase_add_test(tc, refused_by_name);
    tcase_add_test(tc, a_runaway_pattern_ends);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
