// SPDX-License-Identifier: Apache-2.0
// Strings of chat templates as Python sees them: sequences of characters, Unicode's white space,
// one-to-one changes of case (and the sharp s; other characters whose upper case is longer than
// one character keep their simple form).
#define _GNU_SOURCE // memmem
#include "template.h"

#include <string.h>

#include <utf8proc.h>

bool tpl_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

int32_t tpl_char_at(const char *s, size_t len, size_t *n) {
    utf8proc_int32_t c;
    const utf8proc_ssize_t used =
        utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)len, &c);
    *n = used > 0 ? (size_t)used : 1; // a template's own broken bytes pass one by one
    return used > 0 ? c : 0xfffd;
}

size_t tpl_char_count(const char *s, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xc0) != 0x80;
    return n;
}

size_t tpl_char_offset(const char *s, size_t len, size_t chars) {
    size_t i = 0;
    while (i < len && chars > 0) {
        i++;
        while (i < len && ((unsigned char)s[i] & 0xc0) == 0x80)
            i++;
        chars--;
    }
    return i;
}

ptrdiff_t tpl_find(tpl_value s, tpl_value part, bool last) {
    if (part.len > s.len)
        return -1;
    if (part.len == 0)
        return last ? (ptrdiff_t)s.len : 0;
    if (!last) {
        const char *found = memmem(s.s, s.len, part.s, part.len);
        return found ? found - s.s : -1;
    }
    for (size_t i = s.len - part.len + 1; i-- > 0;) {
        if (s.s[i] == part.s[0] && memcmp(s.s + i, part.s, part.len) == 0)
            return (ptrdiff_t)i;
    }
    return -1;
}

// ---- strip

static bool is_in(tpl_value chars, const char *c, size_t n) {
    return tpl_find(chars, tpl_string(c, n), false) >= 0;
}

static bool is_stripped(tpl_value chars, const char *s, size_t len, size_t *n) {
    const int32_t c = tpl_char_at(s, len, n);
    return chars.kind == V_STRING ? is_in(chars, s, *n) : tpl_is_space(c);
}

tpl_value tpl_strip(tpl_run *r, tpl_value s, tpl_value chars, unsigned sides) {
    if (chars.kind != V_STRING && chars.kind != V_NONE && chars.kind != V_ABSENT)
        tpl_fail(r, SSM_EINVAL, "strip takes a string, not %s", tpl_kind_name(chars.kind));
    tpl_charge(r, (s.len + chars.len) / 64);
    size_t begin = 0, end = s.len, n;
    while ((sides & TPL_LEFT) && begin < end && is_stripped(chars, s.s + begin, end - begin, &n))
        begin += n;
    while ((sides & TPL_RIGHT) && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)s.s[at] & 0xc0) == 0x80)
            at--;
        if (!is_stripped(chars, s.s + at, end - at, &n))
            break;
        end = at;
    }
    return tpl_string(s.s + begin, end - begin);
}

// ---- replace, split, join

// Python puts the new text before each character and at the end when the old one is empty.
static tpl_value replace_gaps(tpl_run *r, tpl_value s, tpl_value new_, int64_t count) {
    tpl_buffer b = {.r = r};
    size_t i = 0, n;
    for (; count != 0 && i <= s.len && tpl_charge(r, 1); count--) {
        tpl_put(&b, new_.s, new_.len);
        if (i == s.len)
            return tpl_take(&b);
        tpl_char_at(s.s + i, s.len - i, &n);
        tpl_put(&b, s.s + i, n);
        i += n;
    }
    tpl_put(&b, s.s + i, s.len - i);
    return tpl_take(&b);
}

tpl_value tpl_replace(tpl_run *r, tpl_value s, tpl_value old, tpl_value new_, int64_t count) {
    if (old.len == 0)
        return replace_gaps(r, s, new_, count);
    tpl_buffer b = {.r = r};
    while (count != 0 && tpl_charge(r, 1)) {
        const ptrdiff_t at = tpl_find(s, old, false);
        if (at < 0)
            break;
        tpl_put(&b, s.s, (size_t)at);
        tpl_put(&b, new_.s, new_.len);
        s = tpl_string(s.s + at + old.len, s.len - (size_t)at - old.len);
        count--;
    }
    tpl_put(&b, s.s, s.len);
    return tpl_take(&b);
}

static size_t skip(tpl_value s, size_t i, bool space) {
    size_t n;
    while (i < s.len && tpl_is_space(tpl_char_at(s.s + i, s.len - i, &n)) == space)
        i += n;
    return i;
}

// split(None): words; what follows the most-th keeps its inner white space.
static tpl_value split_words(tpl_run *r, tpl_value s, int64_t most) {
    tpl_list *words = tpl_list_create(r, 0);
    s = tpl_strip(r, s, tpl_none(), TPL_LEFT);
    for (size_t i = 0; i < s.len && tpl_charge(r, 1);) {
        size_t end = skip(s, i, false);
        const bool is_last = most >= 0 && (int64_t)words->n == most;
        if (is_last)
            end = s.len;
        const tpl_value word = tpl_string(s.s + i, end - i);
        tpl_list_push(r, words, is_last ? tpl_strip(r, word, tpl_none(), TPL_RIGHT) : word);
        i = skip(s, end, true);
    }
    return tpl_list_value(V_LIST, words);
}

static void reverse(tpl_list *list) {
    for (size_t i = 0; i + 1 < list->n - i; i++) {
        const tpl_value v = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = v;
    }
}

static tpl_value split_right(tpl_run *r, tpl_value s, tpl_value separator, int64_t most) {
    tpl_list *parts = tpl_list_create(r, 0);
    for (; most != 0 && tpl_charge(r, 1); most--) {
        const ptrdiff_t at = tpl_find(s, separator, true);
        if (at < 0)
            break;
        const size_t behind = (size_t)at + separator.len;
        tpl_list_push(r, parts, tpl_string(s.s + behind, s.len - behind));
        s.len = (size_t)at;
    }
    tpl_list_push(r, parts, s);
    if (r->code == 0)
        reverse(parts);
    return tpl_list_value(V_LIST, parts);
}

tpl_value tpl_split(tpl_run *r, tpl_value s, tpl_value separator, int64_t most, bool from_right) {
    tpl_charge(r, s.len / 64);
    if (separator.kind != V_STRING && from_right && most >= 0) {
        tpl_fail(r, SSM_EINVAL,
                 "rsplit at white space with a limit is not in the supported subset");
        return tpl_none();
    }
    if (separator.kind != V_STRING)
        return split_words(r, s, most);
    if (separator.len == 0) {
        tpl_fail(r, SSM_EINVAL, "split at an empty separator");
        return tpl_none();
    }
    if (from_right)
        return split_right(r, s, separator, most);
    tpl_list *parts = tpl_list_create(r, 0);
    for (; most != 0 && tpl_charge(r, 1); most--) {
        const ptrdiff_t at = tpl_find(s, separator, false);
        if (at < 0)
            break;
        tpl_list_push(r, parts, tpl_string(s.s, (size_t)at));
        s = tpl_string(s.s + at + separator.len, s.len - (size_t)at - separator.len);
    }
    tpl_list_push(r, parts, s);
    return tpl_list_value(V_LIST, parts);
}

static bool is_line_end(int32_t c) {
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

tpl_value tpl_split_lines(tpl_run *r, tpl_value s, bool keep_ends) {
    tpl_list *lines = tpl_list_create(r, 0);
    size_t begin = 0, i = 0, n;
    while (i < s.len && r->code == 0) {
        const int32_t c = tpl_char_at(s.s + i, s.len - i, &n);
        size_t next = i + n;
        if (!is_line_end(c)) {
            i = next;
            continue;
        }
        if (c == '\r' && next < s.len && s.s[next] == '\n')
            next++;
        tpl_charge(r, 1 + (next - begin) / 64);
        tpl_list_push(r, lines, tpl_string(s.s + begin, (keep_ends ? next : i) - begin));
        begin = i = next;
    }
    if (begin < s.len)
        tpl_list_push(r, lines, tpl_string(s.s + begin, s.len - begin));
    return tpl_list_value(V_LIST, lines);
}

tpl_value tpl_join(tpl_run *r, tpl_value separator, const tpl_list *items, bool strict) {
    tpl_buffer b = {.r = r};
    for (size_t i = 0; i < items->n && tpl_charge(r, 1); i++) {
        if (strict && items->items[i].kind != V_STRING)
            tpl_fail(r, SSM_EINVAL, "join takes strings, not %s",
                     tpl_kind_name(items->items[i].kind));
        const tpl_value v = tpl_str(r, items->items[i]);
        if (i > 0)
            tpl_put(&b, separator.s, separator.len);
        tpl_put(&b, v.s, v.len);
    }
    return tpl_take(&b);
}

// ---- case

static bool is_cased(int32_t c) {
    const utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
           category == UTF8PROC_CATEGORY_LT;
}

// Where the filter title starts a word: behind a run of these, jinja2's own choice.
static bool is_title_break(int32_t c) {
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || tpl_is_space(c);
}

static void put_upper(tpl_buffer *b, int32_t c, bool title) {
    if (c == 0xdf) {
        tpl_puts(b, title ? "Ss" : "SS");
        return;
    }
    utf8proc_uint8_t bytes[4];
    const int32_t to = title ? utf8proc_totitle(c) : utf8proc_toupper(c);
    tpl_put(b, (char *)bytes, (size_t)utf8proc_encode_char(to, bytes));
}

static void put_lower(tpl_buffer *b, int32_t c) {
    utf8proc_uint8_t bytes[4];
    tpl_put(b, (char *)bytes, (size_t)utf8proc_encode_char(utf8proc_tolower(c), bytes));
}

tpl_value tpl_recase(tpl_run *r, tpl_value s, enum tpl_case how) {
    if (!tpl_charge(r, s.len / 16))
        return s;
    tpl_buffer b = {.r = r};
    bool starts = true; // a word, or the text
    for (size_t i = 0, n; i < s.len && r->code == 0; i += n) {
        const int32_t c = tpl_char_at(s.s + i, s.len - i, &n);
        if (how == TPL_UPPER || (how != TPL_LOWER && starts))
            put_upper(&b, c, how == TPL_CAPITALIZE || how == TPL_TITLE);
        else
            put_lower(&b, c);
        if (how == TPL_TITLE) // str.title: behind whatever has no case
            starts = !is_cased(c);
        else
            starts = how == TPL_TITLE_WORDS && is_title_break(c);
    }
    return tpl_take(&b);
}

bool tpl_is_cased(tpl_value s, bool upper) {
    bool any = false;
    for (size_t i = 0, n; i < s.len; i += n) {
        const int32_t c = tpl_char_at(s.s + i, s.len - i, &n);
        if (!is_cased(c))
            continue;
        if ((utf8proc_category(c) == UTF8PROC_CATEGORY_LU) != upper)
            return false;
        any = true;
    }
    return any;
}
