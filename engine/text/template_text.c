// SPDX-License-Identifier: Apache-2.0
// Values as text: Python's str() and repr().
#include "template.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

void tpl_put(tpl_buffer *b, const char *s, size_t len) {
    if (b->r->code != 0)
        return;
    if (b->text.len + len > b->r->arena.limit)
        tpl_fail(b->r, SSM_EINVAL, "needs more than %zu bytes of memory", b->r->arena.limit);
    else if (ssm_text_append(&b->text, s, len) != 0)
        tpl_fail(b->r, SSM_ENOMEM, "out of memory");
}

void tpl_puts(tpl_buffer *b, const char *s) {
    tpl_put(b, s, strlen(s));
}

tpl_value tpl_take(tpl_buffer *b) {
    const tpl_value v = tpl_copy(b->r, b->text.data, b->text.len);
    ssm_text_dispose(&b->text);
    return v;
}

// The fewest digits that read back as the same number, laid out as Python's repr does.
void tpl_put_float(tpl_buffer *b, double f) {
    if (isnan(f) || isinf(f)) {
        tpl_puts(b, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    char digits[40];
    int precision = 1;
    for (; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    const int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        const int decimals = precision - 1 - exponent;
        snprintf(digits, sizeof digits, "%.*f", decimals < 1 ? 1 : decimals, f);
    } // else %e has it: "1e+16", "1.5e-07"
    tpl_puts(b, digits);
}

static void put_int(tpl_buffer *b, int64_t i) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRId64, i);
    tpl_puts(b, digits);
}

static bool is_printable(int32_t c) {
    if (c == ' ')
        return true;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static void put_string_repr(tpl_buffer *b, tpl_value v) {
    const char quote =
        v.len > 0 && memchr(v.s, '\'', v.len) && !memchr(v.s, '"', v.len) ? '"' : '\'';
    tpl_put(b, &quote, 1);
    for (size_t i = 0, n; i < v.len && b->r->code == 0; i += n) {
        const int32_t c = tpl_char_at(v.s + i, v.len - i, &n);
        char escape[16] = "";
        if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c == '\\' || c == quote)
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (!is_printable(c))
            snprintf(escape, sizeof escape,
                     c < 0x100     ? "\\x%02x"
                     : c < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                     (unsigned)c);
        if (escape[0])
            tpl_puts(b, escape);
        else
            tpl_put(b, v.s + i, n);
    }
    tpl_put(b, &quote, 1);
}

static void put_list_repr(tpl_buffer *b, tpl_value v, int depth) {
    tpl_puts(b, v.kind == V_LIST ? "[" : "(");
    for (size_t i = 0; i < v.list->n && b->r->code == 0; i++) {
        tpl_puts(b, i > 0 ? ", " : "");
        tpl_put_repr(b, v.list->items[i], depth + 1);
    }
    if (v.kind == V_TUPLE && v.list->n == 1)
        tpl_puts(b, ",");
    tpl_puts(b, v.kind == V_LIST ? "]" : ")");
}

static void put_dict_repr(tpl_buffer *b, const tpl_dict *dict, int depth) {
    tpl_puts(b, "{");
    for (size_t i = 0; i < dict->n && b->r->code == 0; i++) {
        tpl_puts(b, i > 0 ? ", " : "");
        tpl_put_repr(b, dict->pairs[i].key, depth + 1);
        tpl_puts(b, ": ");
        tpl_put_repr(b, dict->pairs[i].value, depth + 1);
    }
    tpl_puts(b, "}");
}

void tpl_put_repr(tpl_buffer *b, tpl_value v, int depth) {
    enum { MAX_NEST = 300 };
    if (!tpl_charge(b->r, 1))
        return;
    if (depth > MAX_NEST) {
        tpl_fail(b->r, SSM_EINVAL, "values nested too deep");
        return;
    }
    switch (v.kind) {
    case V_UNDEFINED:
        tpl_puts(b, "Undefined");
        break;
    case V_NONE:
        tpl_puts(b, "None");
        break;
    case V_BOOL:
        tpl_puts(b, v.b ? "True" : "False");
        break;
    case V_INT:
        put_int(b, v.i);
        break;
    case V_FLOAT:
        tpl_put_float(b, v.f);
        break;
    case V_STRING:
        put_string_repr(b, v);
        break;
    case V_LIST:
    case V_TUPLE:
        put_list_repr(b, v, depth);
        break;
    case V_DICT:
        put_dict_repr(b, v.dict, depth);
        break;
    default:
        tpl_fail(b->r, SSM_EINVAL, "%s has no text", tpl_kind_name(v.kind));
    }
}

tpl_value tpl_str(tpl_run *r, tpl_value v) {
    if (v.kind == V_STRING)
        return v;
    if (v.kind == V_UNDEFINED)
        return tpl_string("", 0);
    tpl_buffer b = {.r = r};
    tpl_put_repr(&b, v, 0);
    return tpl_take(&b);
}
