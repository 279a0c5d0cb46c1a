// SPDX-License-Identifier: Apache-2.0
// The filters of chat templates, a row each; map, select and reject are in template_call.c.
#include "template.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool is_given(tpl_value v) {
    return v.kind != V_ABSENT && v.kind != V_NONE;
}

static int64_t integer_or(tpl_run *r, tpl_value v, int64_t absent) {
    if (!is_given(v))
        return absent;
    if (v.kind != V_INT && v.kind != V_BOOL)
        tpl_fail(r, SSM_EINVAL, "an integer is expected, not %s", tpl_kind_name(v.kind));
    return r->code == 0 ? tpl_integer(v) : absent;
}

static tpl_value string_or(tpl_run *r, tpl_value v, const char *absent) {
    return v.kind == V_ABSENT ? tpl_string(absent, strlen(absent)) : tpl_str(r, v);
}

static tpl_value filter_abs(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind == V_FLOAT)
        return tpl_float(fabs(v.f));
    if (!tpl_is_number(v) || tpl_integer(v) == INT64_MIN)
        tpl_fail(r, SSM_EINVAL, "abs of %s", tpl_kind_name(v.kind));
    return r->code == 0 ? tpl_int(llabs(tpl_integer(v))) : v;
}

static tpl_value filter_capitalize(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_recase(r, tpl_str(r, v), TPL_CAPITALIZE);
}

static tpl_value filter_lower(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_recase(r, tpl_str(r, v), TPL_LOWER);
}

static tpl_value filter_upper(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_recase(r, tpl_str(r, v), TPL_UPPER);
}

static tpl_value filter_title(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_recase(r, tpl_str(r, v), TPL_TITLE_WORDS);
}

static tpl_value filter_default(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind == V_UNDEFINED || (tpl_truth(args[1]) && !tpl_truth(v)))
        return args[0].kind == V_ABSENT ? tpl_string("", 0) : args[0];
    return v;
}

static tpl_value filter_first(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind == V_ITERATOR) {
        if (v.list->taken < v.list->n)
            return v.list->items[v.list->taken++];
        return tpl_undefined("first", 5);
    }
    if (v.kind == V_STRING) // without a list of all its characters
        return v.len == 0 ? tpl_undefined("first", 5)
                          : tpl_string(v.s, tpl_char_offset(v.s, v.len, 1));
    const tpl_list *items = tpl_iterate(r, v);
    return items->n > 0 ? items->items[0] : tpl_undefined("first", 5);
}

static tpl_value filter_last(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind == V_ITERATOR)
        tpl_fail(r, SSM_EINVAL, "last of an iterator");
    const tpl_list *items = tpl_iterate(r, v);
    return items->n > 0 ? items->items[items->n - 1] : tpl_undefined("last", 4);
}

static tpl_value filter_length(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_int(tpl_length(r, v));
}

static tpl_value filter_list(tpl_run *r, tpl_value v, const tpl_value *args) {
    tpl_list *list = tpl_list_create(r, 0);
    if (r->code == 0)
        *list = *tpl_iterate(r, v);
    return tpl_list_value(V_LIST, list);
}

static tpl_value filter_items(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind == V_UNDEFINED)
        return tpl_list_value(V_ITERATOR, tpl_list_create(r, 0));
    if (v.kind != V_DICT) {
        tpl_fail(r, SSM_EINVAL, "items of %s", tpl_kind_name(v.kind));
        return v;
    }
    tpl_value items = tpl_method_of(v, "items")->call(r, v, args);
    items.kind = V_ITERATOR;
    return items;
}

static tpl_value filter_join(tpl_run *r, tpl_value v, const tpl_value *args) {
    const tpl_list *items = tpl_iterate(r, v);
    if (is_given(args[1])) {
        tpl_list *attributes = tpl_list_create(r, items->n);
        for (size_t i = 0; i < items->n && tpl_charge(r, 1); i++)
            tpl_list_push(r, attributes, tpl_item(r, items->items[i], args[1]));
        items = attributes;
    }
    return tpl_join(r, string_or(r, args[0], ""), items, false);
}

static tpl_value filter_replace(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_replace(r, tpl_str(r, v), tpl_str(r, args[0]), tpl_str(r, args[1]),
                       integer_or(r, args[2], -1));
}

static tpl_value filter_reverse(tpl_run *r, tpl_value v, const tpl_value *args) {
    const tpl_list *items = tpl_iterate(r, v);
    tpl_list *list = tpl_list_create(r, items->n);
    for (size_t i = items->n; i-- > 0 && tpl_charge(r, 1);)
        tpl_list_push(r, list, items->items[i]);
    if (v.kind == V_STRING)
        return tpl_join(r, tpl_string("", 0), list, true);
    return tpl_list_value(V_ITERATOR, list);
}

static tpl_value filter_string(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_str(r, v);
}

static tpl_value filter_trim(tpl_run *r, tpl_value v, const tpl_value *args) {
    return tpl_strip(r, tpl_str(r, v), args[0], TPL_LEFT | TPL_RIGHT);
}

// The indentation of tojson and indent: a string, or so many spaces.
static tpl_value indentation(tpl_run *r, tpl_value v, int64_t absent) {
    if (v.kind == V_STRING)
        return v;
    const int64_t width = integer_or(r, v, absent);
    tpl_buffer b = {.r = r};
    for (int64_t i = 0; i < width && tpl_charge(r, 1); i++)
        tpl_put(&b, " ", 1);
    return tpl_take(&b);
}

static tpl_value filter_indent(tpl_run *r, tpl_value v, const tpl_value *args) {
    const tpl_value width = indentation(r, args[0], 4);
    const bool blank = tpl_truth(args[2]);
    tpl_value s = tpl_str(r, v);
    tpl_buffer b = {.r = r};
    tpl_put(&b, s.s, s.len);
    tpl_put(&b, "\n", 1); // jinja2's own way to keep a last empty line
    const tpl_value lines = tpl_split_lines(r, tpl_take(&b), false);
    if (tpl_truth(args[1]))
        tpl_put(&b, width.s, width.len);
    for (size_t i = 0; i < lines.list->n && tpl_charge(r, 1); i++) {
        const tpl_value line = lines.list->items[i];
        if (i > 0)
            tpl_put(&b, "\n", 1);
        if (i > 0 && (blank || line.len > 0))
            tpl_put(&b, width.s, width.len);
        tpl_put(&b, line.s, line.len);
    }
    return tpl_take(&b);
}

// Python's int(text): white space around, a sign, digits with single underscores between them.
static bool parse_int(tpl_value s, int64_t *out) {
    char digits[24];
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        const bool is_digit = s.s[i] >= '0' && s.s[i] <= '9';
        const bool is_sign = i == 0 && (s.s[i] == '-' || s.s[i] == '+');
        const bool is_gap = s.s[i] == '_' && i > 0 && i + 1 < s.len && s.s[i - 1] != '_' &&
                            s.s[i - 1] != '-' && s.s[i - 1] != '+';
        if (is_gap)
            continue;
        if ((!is_digit && !is_sign) || n + 1 == sizeof digits)
            return false;
        digits[n++] = s.s[i];
    }
    digits[n] = '\0';
    char *end;
    errno = 0;
    *out = strtoll(digits, &end, 10);
    return end > digits && *end == '\0' && errno == 0;
}

static bool parse_float(tpl_value s, double *out) {
    char text[64];
    if (s.len == 0 || s.len >= sizeof text || memchr(s.s, 'x', s.len) || memchr(s.s, 'X', s.len) ||
        memchr(s.s, '(', s.len) || memchr(s.s, '\0', s.len))
        return false;
    memcpy(text, s.s, s.len);
    text[s.len] = '\0';
    char *end;
    *out = strtod(text, &end);
    return end > text && *end == '\0';
}

static tpl_value filter_float(tpl_run *r, tpl_value v, const tpl_value *args) {
    double f;
    if (tpl_is_number(v))
        return tpl_float(tpl_number(v));
    if (v.kind == V_UNDEFINED)
        tpl_fail(r, SSM_EINVAL, "float of undefined");
    if (v.kind == V_STRING && parse_float(tpl_strip(r, v, tpl_none(), 3), &f))
        return tpl_float(f);
    return args[0].kind == V_ABSENT ? tpl_float(0) : args[0];
}

static tpl_value filter_int(tpl_run *r, tpl_value v, const tpl_value *args) {
    int64_t i;
    double f = NAN;
    if (integer_or(r, args[1], 10) != 10)
        tpl_fail(r, SSM_EINVAL, "int with another base than 10 is not in the supported subset");
    if (v.kind == V_UNDEFINED)
        tpl_fail(r, SSM_EINVAL, "int of undefined");
    if (v.kind == V_INT || v.kind == V_BOOL)
        return tpl_int(tpl_integer(v));
    if (v.kind == V_STRING) {
        const tpl_value s = tpl_strip(r, v, tpl_none(), TPL_LEFT | TPL_RIGHT);
        if (parse_int(s, &i))
            return tpl_int(i);
        if (!parse_float(s, &f))
            f = NAN;
    } else if (v.kind == V_FLOAT) {
        f = v.f;
    }
    if (!isfinite(f))
        return args[0].kind == V_ABSENT ? tpl_int(0) : args[0];
    if (fabs(f) >= 9.2e18)
        tpl_fail(r, SSM_EINVAL, "an integer beyond 64 bits");
    return r->code == 0 ? tpl_int((int64_t)f) : v;
}

static tpl_value separator(tpl_run *r, tpl_value pair, size_t at) {
    if ((pair.kind == V_TUPLE || pair.kind == V_LIST) && pair.list->n == 2 &&
        pair.list->items[at].kind == V_STRING)
        return pair.list->items[at];
    tpl_fail(r, SSM_EINVAL, "tojson: separators are two strings");
    return tpl_string("", 0);
}

static tpl_value filter_tojson(tpl_run *r, tpl_value v, const tpl_value *args) {
    tpl_json_style style = {
        .ensure_ascii = tpl_truth(args[0]),
        .sort_keys = tpl_truth(args[3]),
        .pretty = is_given(args[1]),
        .indent = indentation(r, args[1], 0),
        .item_separator = tpl_string(", ", 2),
        .key_separator = tpl_string(": ", 2),
    };
    if (style.pretty)
        style.item_separator.len = 1;
    if (is_given(args[2])) {
        style.item_separator = separator(r, args[2], 0);
        style.key_separator = separator(r, args[2], 1);
    }
    return tpl_to_json(r, v, &style);
}

static const tpl_row filters[] = {
    {"abs", "", 0, filter_abs},
    {"capitalize", "", 0, filter_capitalize},
    {"count", "", 0, filter_length},
    {"d", "default_value boolean", 0, filter_default},
    {"default", "default_value boolean", 0, filter_default},
    {"first", "", 0, filter_first},
    {"float", "default", 0, filter_float},
    {"indent", "width first blank", 0, filter_indent},
    {"int", "default base", 0, filter_int},
    {"items", "", 0, filter_items},
    {"join", "d attribute", 0, filter_join},
    {"last", "", 0, filter_last},
    {"length", "", 0, filter_length},
    {"list", "", 0, filter_list},
    {"lower", "", 0, filter_lower},
    {"replace", "old new count", 2, filter_replace},
    {"reverse", "", 0, filter_reverse},
    {"string", "", 0, filter_string},
    {"title", "", 0, filter_title},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, filter_tojson},
    {"trim", "chars", 0, filter_trim},
    {"upper", "", 0, filter_upper},
};

const tpl_row *tpl_filter_find(const char *name) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        if (strcmp(filters[i].name, name) == 0)
            return &filters[i];
    }
    return NULL;
}
