// SPDX-License-Identifier: Apache-2.0
// Methods of strings, dicts, lists and loops that chat templates call, a row each. Methods that
// change their object are refused like all unknown ones: the sandbox does not have them either.
#include "template.h"

#include <string.h>

static tpl_value string_argument(tpl_run *r, tpl_value v) {
    if (v.kind == V_STRING)
        return v;
    tpl_fail(r, SSM_EINVAL, "a string is expected, not %s", tpl_kind_name(v.kind));
    return tpl_string("", 0);
}

static int64_t count_argument(tpl_run *r, tpl_value v) {
    if (v.kind == V_ABSENT)
        return -1;
    if (v.kind != V_INT && v.kind != V_BOOL)
        tpl_fail(r, SSM_EINVAL, "an integer is expected, not %s", tpl_kind_name(v.kind));
    return r->code == 0 ? tpl_integer(v) : 0;
}

// ---- strings

static tpl_value string_strip(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_strip(r, s, args[0], TPL_LEFT | TPL_RIGHT);
}

static tpl_value string_lstrip(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_strip(r, s, args[0], TPL_LEFT);
}

static tpl_value string_rstrip(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_strip(r, s, args[0], TPL_RIGHT);
}

static tpl_value string_upper(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_recase(r, s, TPL_UPPER);
}

static tpl_value string_lower(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_recase(r, s, TPL_LOWER);
}

static tpl_value string_title(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_recase(r, s, TPL_TITLE);
}

static tpl_value string_capitalize(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_recase(r, s, TPL_CAPITALIZE);
}

static tpl_value string_isupper(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_bool(tpl_is_cased(s, true));
}

static tpl_value string_islower(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_bool(tpl_is_cased(s, false));
}

static bool begins(tpl_value s, tpl_value part) {
    return s.len >= part.len && memcmp(s.s, part.s, part.len) == 0;
}

static bool ends(tpl_value s, tpl_value part) {
    return s.len >= part.len && memcmp(s.s + s.len - part.len, part.s, part.len) == 0;
}

// One string or a tuple of them.
static tpl_value any_of(tpl_run *r, tpl_value s, tpl_value parts,
                        bool (*is)(tpl_value s, tpl_value part)) {
    if (parts.kind != V_TUPLE)
        return tpl_bool(is(s, string_argument(r, parts)));
    for (size_t i = 0; i < parts.list->n && tpl_charge(r, 1); i++) {
        if (is(s, string_argument(r, parts.list->items[i])))
            return tpl_bool(true);
    }
    return tpl_bool(false);
}

static tpl_value string_startswith(tpl_run *r, tpl_value s, const tpl_value *args) {
    return any_of(r, s, args[0], begins);
}

static tpl_value string_endswith(tpl_run *r, tpl_value s, const tpl_value *args) {
    return any_of(r, s, args[0], ends);
}

static tpl_value string_removeprefix(tpl_run *r, tpl_value s, const tpl_value *args) {
    const tpl_value part = string_argument(r, args[0]);
    return begins(s, part) ? tpl_string(s.s + part.len, s.len - part.len) : s;
}

static tpl_value string_removesuffix(tpl_run *r, tpl_value s, const tpl_value *args) {
    const tpl_value part = string_argument(r, args[0]);
    return ends(s, part) ? tpl_string(s.s, s.len - part.len) : s;
}

static tpl_value string_split(tpl_run *r, tpl_value s, const tpl_value *args) {
    if (args[0].kind != V_ABSENT && args[0].kind != V_NONE)
        string_argument(r, args[0]);
    return tpl_split(r, s, args[0], count_argument(r, args[1]), false);
}

static tpl_value string_rsplit(tpl_run *r, tpl_value s, const tpl_value *args) {
    if (args[0].kind != V_ABSENT && args[0].kind != V_NONE)
        string_argument(r, args[0]);
    return tpl_split(r, s, args[0], count_argument(r, args[1]), true);
}

static tpl_value string_splitlines(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_split_lines(r, s, tpl_truth(args[0]));
}

static tpl_value string_replace(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_replace(r, s, string_argument(r, args[0]), string_argument(r, args[1]),
                       count_argument(r, args[2]));
}

static tpl_value string_join(tpl_run *r, tpl_value s, const tpl_value *args) {
    return tpl_join(r, s, tpl_iterate(r, args[0]), true);
}

static tpl_value find(tpl_run *r, tpl_value s, tpl_value part, bool last) {
    tpl_charge(r, s.len / 64);
    const ptrdiff_t at = tpl_find(s, string_argument(r, part), last);
    return tpl_int(at < 0 ? -1 : (int64_t)tpl_char_count(s.s, (size_t)at));
}

static tpl_value string_find(tpl_run *r, tpl_value s, const tpl_value *args) {
    return find(r, s, args[0], false);
}

static tpl_value string_rfind(tpl_run *r, tpl_value s, const tpl_value *args) {
    return find(r, s, args[0], true);
}

static tpl_value string_index(tpl_run *r, tpl_value s, const tpl_value *args) {
    const tpl_value at = find(r, s, args[0], false);
    if (at.i < 0)
        tpl_fail(r, SSM_EINVAL, "index: substring not found");
    return at;
}

static tpl_value string_count(tpl_run *r, tpl_value s, const tpl_value *args) {
    const tpl_value part = string_argument(r, args[0]);
    int64_t n = 0;
    if (part.len == 0)
        return tpl_int((int64_t)tpl_char_count(s.s, s.len) + 1);
    for (ptrdiff_t at; (at = tpl_find(s, part, false)) >= 0 && tpl_charge(r, 1); n++)
        s = tpl_string(s.s + at + part.len, s.len - (size_t)at - part.len);
    return tpl_int(n);
}

static const tpl_row string_methods[] = {
    {"capitalize", "", 0, string_capitalize},
    {"count", "value", 1, string_count},
    {"endswith", "suffix", 1, string_endswith},
    {"find", "sub", 1, string_find},
    {"index", "value", 1, string_index},
    {"islower", "", 0, string_islower},
    {"isupper", "", 0, string_isupper},
    {"join", "iterable", 1, string_join},
    {"lower", "", 0, string_lower},
    {"lstrip", "chars", 0, string_lstrip},
    {"removeprefix", "prefix", 1, string_removeprefix},
    {"removesuffix", "suffix", 1, string_removesuffix},
    {"replace", "old new count", 2, string_replace},
    {"rfind", "sub", 1, string_rfind},
    {"rsplit", "sep maxsplit", 0, string_rsplit},
    {"rstrip", "chars", 0, string_rstrip},
    {"split", "sep maxsplit", 0, string_split},
    {"splitlines", "keepends", 0, string_splitlines},
    {"startswith", "prefix", 1, string_startswith},
    {"strip", "chars", 0, string_strip},
    {"title", "", 0, string_title},
    {"upper", "", 0, string_upper},
    {NULL, NULL, 0, NULL},
};

// ---- dicts

static tpl_value dict_get(tpl_run *r, tpl_value v, const tpl_value *args) {
    const tpl_value *found = tpl_dict_find(r, v.dict, args[0]);
    return found ? *found : args[1].kind == V_ABSENT ? tpl_none() : args[1];
}

static tpl_value dict_items(tpl_run *r, tpl_value v, const tpl_value *args) {
    tpl_list *list = tpl_list_create(r, v.dict->n);
    for (size_t i = 0; i < v.dict->n && tpl_charge(r, 1); i++) {
        tpl_list *pair = tpl_list_create(r, 2);
        tpl_list_push(r, pair, v.dict->pairs[i].key);
        tpl_list_push(r, pair, v.dict->pairs[i].value);
        tpl_list_push(r, list, tpl_list_value(V_TUPLE, pair));
    }
    return tpl_list_value(V_VIEW, list);
}

static tpl_value dict_keys(tpl_run *r, tpl_value v, const tpl_value *args) {
    tpl_list *list = tpl_list_create(r, v.dict->n);
    for (size_t i = 0; i < v.dict->n && tpl_charge(r, 1); i++)
        tpl_list_push(r, list, v.dict->pairs[i].key);
    return tpl_list_value(V_VIEW, list);
}

static tpl_value dict_values(tpl_run *r, tpl_value v, const tpl_value *args) {
    tpl_list *list = tpl_list_create(r, v.dict->n);
    for (size_t i = 0; i < v.dict->n && tpl_charge(r, 1); i++)
        tpl_list_push(r, list, v.dict->pairs[i].value);
    return tpl_list_value(V_VIEW, list);
}

static const tpl_row dict_methods[] = {
    {"get", "key default", 1, dict_get}, {"items", "", 0, dict_items}, {"keys", "", 0, dict_keys},
    {"values", "", 0, dict_values},      {NULL, NULL, 0, NULL},
};

// ---- lists, tuples, loops

static tpl_value list_count(tpl_run *r, tpl_value v, const tpl_value *args) {
    int64_t n = 0;
    for (size_t i = 0; i < v.list->n && r->code == 0; i++)
        n += tpl_equal(r, v.list->items[i], args[0]);
    return tpl_int(n);
}

static tpl_value list_index(tpl_run *r, tpl_value v, const tpl_value *args) {
    for (size_t i = 0; i < v.list->n && r->code == 0; i++) {
        if (tpl_equal(r, v.list->items[i], args[0]))
            return tpl_int((int64_t)i);
    }
    tpl_fail(r, SSM_EINVAL, "index: not in the list");
    return tpl_none();
}

static const tpl_row list_methods[] = {
    {"count", "value", 1, list_count},
    {"index", "value", 1, list_index},
    {NULL, NULL, 0, NULL},
};

static tpl_value loop_cycle(tpl_run *r, tpl_value v, const tpl_value *args) {
    size_t n = 0;
    while (n < TPL_MAX_ARGS && args[n].kind != V_ABSENT)
        n++;
    return args[v.loop->at % n];
}

static const tpl_row loop_methods[] = {
    {"cycle", "a b c d e f g h", 1, loop_cycle},
    {NULL, NULL, 0, NULL},
};

// ---- finding them

static const tpl_row *const types[] = {string_methods, dict_methods, list_methods, loop_methods};

static const tpl_row *find_in(const tpl_row *rows, const char *name) {
    for (; rows->name; rows++) {
        if (strcmp(rows->name, name) == 0)
            return rows;
    }
    return NULL;
}

const tpl_row *tpl_method_find(const char *name) {
    const tpl_row *row = NULL;
    for (size_t i = 0; i < sizeof types / sizeof *types && !row; i++)
        row = find_in(types[i], name);
    return row;
}

const tpl_row *tpl_method_of(tpl_value self, const char *name) {
    switch (self.kind) {
    case V_STRING:
        return find_in(string_methods, name);
    case V_DICT:
        return find_in(dict_methods, name);
    case V_LIST:
    case V_TUPLE:
        return find_in(list_methods, name);
    case V_LOOP:
        return find_in(loop_methods, name);
    default:
        return NULL;
    }
}

bool tpl_is_method_name(tpl_value self, const char *name) {
    static const char strings[] =
        " capitalize casefold center count encode endswith expandtabs find format format_map index"
        " isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable"
        " isspace istitle isupper join ljust lower lstrip maketrans partition removeprefix"
        " removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines"
        " startswith strip swapcase title translate upper zfill ";
    static const char dicts[] =
        " clear copy fromkeys get items keys pop popitem setdefault update values ";
    static const char lists[] =
        " append clear copy count extend index insert pop remove reverse sort ";
    const char *all = self.kind == V_STRING ? strings : self.kind == V_DICT ? dicts : lists;
    if (self.kind != V_STRING && self.kind != V_DICT && self.kind != V_LIST && self.kind != V_TUPLE)
        return false;
    const size_t len = strlen(name);
    if (len == 0 || strchr(name, ' '))
        return false;
    for (const char *at = all; (at = strstr(at, name)); at++) {
        if (at[-1] == ' ' && at[len] == ' ') // the list begins with a space, a name does not
            return true;
    }
    return false;
}
