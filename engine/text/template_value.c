// SPDX-License-Identifier: Apache-2.0
// Values of the chat template interpreter, with the truth, equality and order that Python gives
// them (booleans are numbers; undefined equals undefined), and the arena that they live in.
#include "template.h"

#include <stdlib.h>
#include <string.h>

// ---- memory

enum { CHUNK_BYTES = 64 << 10, ALIGN = 16 };

struct tpl_chunk {
    struct tpl_chunk *next;
    size_t used, cap;
    _Alignas(ALIGN) char data[];
};

void *tpl_arena_alloc(tpl_arena *arena, size_t n) {
    if (n > arena->limit)
        return NULL;
    n = (n + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    struct tpl_chunk *c = arena->chunks;
    if (!c || c->cap - c->used < n) {
        const size_t cap = n > CHUNK_BYTES ? n : CHUNK_BYTES;
        if (arena->bytes + cap > arena->limit)
            return NULL;
        c = malloc(sizeof *c + cap);
        if (!c)
            return NULL;
        *c = (struct tpl_chunk){.cap = cap};
        arena->bytes += cap;
        if (n > CHUNK_BYTES && arena->chunks) { // a large one leaves the current chunk in use
            c->next = arena->chunks->next;
            arena->chunks->next = c;
        } else {
            c->next = arena->chunks;
            arena->chunks = c;
        }
    }
    void *p = c->data + c->used;
    c->used += n;
    return memset(p, 0, n);
}

void tpl_arena_dispose(tpl_arena *arena) {
    for (struct tpl_chunk *c = arena->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *arena = (tpl_arena){0};
}

tpl_value tpl_copy(tpl_run *r, const char *s, size_t len) {
    char *kept = tpl_charge(r, len / 64) ? tpl_alloc(r, len + 1) : NULL;
    if (!kept)
        return tpl_string("", 0);
    if (len > 0)
        memcpy(kept, s, len);
    return tpl_string(kept, len);
}

// ---- lists and dicts

// Room for one more element of an array in the arena: doubles, and leaves the old one behind.
static void *grow(tpl_run *r, void *items, size_t n, size_t *cap, size_t size) {
    if (n < *cap)
        return items;
    const size_t want = *cap ? 2 * *cap : 4;
    void *bigger = want < SIZE_MAX / 2 / size ? tpl_alloc(r, want * size) : NULL;
    if (!bigger)
        return NULL;
    if (n > 0)
        memcpy(bigger, items, n * size);
    *cap = want;
    return bigger;
}

// What is handed out when memory has run out: it stays empty, for nothing is done after a failure.
static tpl_list no_list;
static tpl_dict no_dict;

tpl_list *tpl_list_create(tpl_run *r, size_t cap) {
    tpl_list *list = tpl_alloc(r, sizeof *list);
    if (!list)
        return &no_list;
    if (cap > 0)
        list->items = tpl_alloc(r, cap * sizeof *list->items);
    list->cap = list->items ? cap : 0;
    return list;
}

void tpl_list_push(tpl_run *r, tpl_list *list, tpl_value v) {
    if (r->code != 0)
        return;
    tpl_value *items = grow(r, list->items, list->n, &list->cap, sizeof *items);
    if (!items)
        return;
    list->items = items;
    list->items[list->n++] = v;
}

tpl_value tpl_list_value(tpl_kind kind, tpl_list *list) {
    return (tpl_value){.kind = kind, .list = list};
}

tpl_dict *tpl_dict_create(tpl_run *r, size_t cap) {
    tpl_dict *dict = tpl_alloc(r, sizeof *dict);
    if (!dict)
        return &no_dict;
    if (cap > 0)
        dict->pairs = tpl_alloc(r, cap * sizeof *dict->pairs);
    dict->cap = dict->pairs ? cap : 0;
    return dict;
}

static bool is_hashable(tpl_run *r, tpl_value key) {
    if (key.kind == V_NONE || key.kind == V_STRING || tpl_is_number(key) || key.kind == V_TUPLE)
        return true;
    tpl_fail(r, SSM_EINVAL, "a key of a dict cannot be %s", tpl_kind_name(key.kind));
    return false;
}

const tpl_value *tpl_dict_find(tpl_run *r, const tpl_dict *dict, tpl_value key) {
    if (!tpl_charge(r, dict->n / 16))
        return NULL;
    for (size_t i = 0; i < dict->n; i++) {
        const tpl_value *k = &dict->pairs[i].key;
        if (k->kind == V_STRING && key.kind == V_STRING) { // nearly always
            if (k->len == key.len && memcmp(k->s, key.s, key.len) == 0)
                return &dict->pairs[i].value;
        } else if (tpl_equal(r, *k, key)) {
            return &dict->pairs[i].value;
        }
    }
    return NULL;
}

void tpl_dict_set(tpl_run *r, tpl_dict *dict, tpl_value key, tpl_value v) {
    if (r->code != 0 || !is_hashable(r, key))
        return;
    tpl_value *found = (tpl_value *)tpl_dict_find(r, dict, key);
    if (found) {
        *found = v;
        return;
    }
    tpl_pair *pairs = grow(r, dict->pairs, dict->n, &dict->cap, sizeof *pairs);
    if (!pairs)
        return;
    dict->pairs = pairs;
    dict->pairs[dict->n++] = (tpl_pair){key, v};
}

// ---- what values are

const char *tpl_kind_name(tpl_kind kind) {
    static const char *const names[] = {
        [V_ABSENT] = "nothing",        [V_UNDEFINED] = "undefined",  [V_NONE] = "none",
        [V_BOOL] = "a boolean",        [V_INT] = "an integer",       [V_FLOAT] = "a float",
        [V_STRING] = "a string",       [V_LIST] = "a list",          [V_TUPLE] = "a tuple",
        [V_VIEW] = "a view",           [V_ITERATOR] = "an iterator", [V_DICT] = "a dict",
        [V_NAMESPACE] = "a namespace", [V_LOOP] = "a loop",          [V_MACRO] = "a macro",
        [V_FUNCTION] = "a function",
    };
    return names[kind];
}

bool tpl_truth(tpl_value v) {
    switch (v.kind) {
    case V_ABSENT:
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOL:
        return v.b;
    case V_INT:
        return v.i != 0;
    case V_FLOAT:
        return v.f != 0;
    case V_STRING:
        return v.len > 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        return v.list->n > 0;
    case V_DICT:
        return v.dict->n > 0;
    default:
        return true;
    }
}

int64_t tpl_length(tpl_run *r, tpl_value v) {
    switch (v.kind) {
    case V_UNDEFINED:
        return 0;
    case V_STRING:
        tpl_charge(r, v.len / 64);
        return (int64_t)tpl_char_count(v.s, v.len);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        return (int64_t)v.list->n;
    case V_DICT:
        return (int64_t)v.dict->n;
    case V_LOOP:
        return (int64_t)v.loop->items->n;
    default:
        tpl_fail(r, SSM_EINVAL, "%s has no length", tpl_kind_name(v.kind));
        return 0;
    }
}

// ---- equality and order

enum { MAX_NEST = 300 }; // deeper than any value that JSON or a tree of nodes can make

static bool equal_below(tpl_run *r, tpl_value a, tpl_value b, int depth);

static bool equal_lists(tpl_run *r, const tpl_list *a, const tpl_list *b, int depth) {
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        if (!equal_below(r, a->items[i], b->items[i], depth + 1))
            return false;
    }
    return true;
}

static bool equal_dicts(tpl_run *r, const tpl_dict *a, const tpl_dict *b, int depth) {
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const tpl_value *other = tpl_dict_find(r, b, a->pairs[i].key);
        if (!other || !equal_below(r, a->pairs[i].value, *other, depth + 1))
            return false;
    }
    return true;
}

static bool equal_below(tpl_run *r, tpl_value a, tpl_value b, int depth) {
    if (!tpl_charge(r, 1))
        return false;
    if (depth > MAX_NEST) {
        tpl_fail(r, SSM_EINVAL, "values nested too deep");
        return false;
    }
    if (tpl_is_number(a) && tpl_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT)
            return tpl_number(a) == tpl_number(b);
        return tpl_integer(a) == tpl_integer(b);
    }
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case V_UNDEFINED:
    case V_NONE:
        return true;
    case V_STRING:
        return a.len == b.len && memcmp(a.s, b.s, a.len) == 0;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        return equal_lists(r, a.list, b.list, depth);
    case V_DICT:
        return equal_dicts(r, a.dict, b.dict, depth);
    default:
        return a.list == b.list; // the same object
    }
}

bool tpl_equal(tpl_run *r, tpl_value a, tpl_value b) {
    return equal_below(r, a, b, 0);
}

static int order_strings(tpl_value a, tpl_value b) { // UTF-8 sorts as its code points do
    const size_t n = a.len < b.len ? a.len : b.len;
    const int c = n > 0 ? memcmp(a.s, b.s, n) : 0;
    return c != 0 ? c : (a.len > b.len) - (a.len < b.len);
}

int tpl_order(tpl_run *r, tpl_value a, tpl_value b) {
    if (tpl_is_number(a) && tpl_is_number(b)) {
        if (a.kind != V_FLOAT && b.kind != V_FLOAT)
            return (tpl_integer(a) > tpl_integer(b)) - (tpl_integer(a) < tpl_integer(b));
        return (tpl_number(a) > tpl_number(b)) - (tpl_number(a) < tpl_number(b));
    }
    if (a.kind == V_STRING && b.kind == V_STRING)
        return order_strings(a, b);
    if ((a.kind == V_LIST || a.kind == V_TUPLE) && a.kind == b.kind) {
        for (size_t i = 0; i < a.list->n && i < b.list->n; i++) {
            if (!tpl_equal(r, a.list->items[i], b.list->items[i]))
                return r->depth > MAX_NEST ? 0 : tpl_order(r, a.list->items[i], b.list->items[i]);
        }
        return (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    if (a.kind == V_UNDEFINED || b.kind == V_UNDEFINED) {
        const tpl_value u = a.kind == V_UNDEFINED ? a : b;
        tpl_fail(r, SSM_EINVAL, "'%.*s' is undefined", (int)(u.len < 60 ? u.len : 60), u.s);
    }
    tpl_fail(r, SSM_EINVAL, "%s and %s have no order", tpl_kind_name(a.kind),
             tpl_kind_name(b.kind));
    return 0;
}

bool tpl_contains(tpl_run *r, tpl_value set, tpl_value item) {
    if (set.kind == V_STRING) {
        if (item.kind != V_STRING) {
            tpl_fail(r, SSM_EINVAL, "'in' looks for %s in a string", tpl_kind_name(item.kind));
            return false;
        }
        tpl_charge(r, set.len / 64);
        return tpl_find(set, item, false) >= 0;
    }
    if (set.kind == V_DICT)
        return is_hashable(r, item) && tpl_dict_find(r, set.dict, item) != NULL;
    const tpl_list *items = tpl_iterate(r, set);
    for (size_t i = 0; i < items->n && r->code == 0; i++) {
        if (tpl_equal(r, items->items[i], item))
            return true;
    }
    return false;
}

// ---- going through

static const tpl_list *characters(tpl_run *r, tpl_value v) {
    tpl_list *list = tpl_list_create(r, 0);
    for (size_t i = 0, n; i < v.len && tpl_charge(r, 1); i += n) {
        tpl_char_at(v.s + i, v.len - i, &n);
        tpl_list_push(r, list, tpl_string(v.s + i, n));
    }
    return list;
}

static const tpl_list *keys(tpl_run *r, const tpl_dict *dict) {
    tpl_list *list = tpl_list_create(r, dict->n);
    for (size_t i = 0; i < dict->n && tpl_charge(r, 1); i++)
        tpl_list_push(r, list, dict->pairs[i].key);
    return list;
}

const tpl_list *tpl_iterate(tpl_run *r, tpl_value v) {
    switch (v.kind) {
    case V_STRING:
        return characters(r, v);
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        return v.list;
    case V_ITERATOR: {
        tpl_list *rest = tpl_list_create(r, 0);
        if (r->code == 0 && v.list->n > 0) {
            rest->items = v.list->items + v.list->taken;
            rest->n = rest->cap = v.list->n - v.list->taken;
            v.list->taken = v.list->n;
        }
        return rest;
    }
    case V_DICT:
        return keys(r, v.dict);
    default:
        tpl_fail(r, SSM_EINVAL, "%s cannot be iterated over", tpl_kind_name(v.kind));
        return &no_list;
    case V_UNDEFINED:
        return &no_list;
    }
}
