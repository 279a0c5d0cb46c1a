// SPDX-License-Identifier: Apache-2.0
// JSON to values (the context of a rendering) and values to JSON (the filter tojson, which is
// Python's json.dumps as transformers calls it: no escapes for HTML, no ASCII unless asked for).
#define _GNU_SOURCE // qsort_r
#include "template.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum { MAX_NEST = 256 };

// ---- in

static tpl_value from_json(tpl_run *r, const json_t *json, int depth);

static tpl_value from_array(tpl_run *r, const json_t *json, int depth) {
    tpl_list *list = tpl_list_create(r, json_array_size(json));
    for (size_t i = 0; i < json_array_size(json) && r->code == 0; i++)
        tpl_list_push(r, list, from_json(r, json_array_get(json, i), depth + 1));
    return tpl_list_value(V_LIST, list);
}

static tpl_value from_object(tpl_run *r, const json_t *json, int depth) {
    tpl_dict *dict = tpl_dict_create(r, json_object_size(json));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value) {
        if (r->code != 0 || dict->n == dict->cap)
            break;
        // Keys of a JSON object differ: no search for an equal one.
        const tpl_value name = tpl_copy(r, key, strlen(key));
        dict->pairs[dict->n++] = (tpl_pair){name, from_json(r, value, depth + 1)};
    }
    return (tpl_value){.kind = V_DICT, .dict = dict};
}

static tpl_value from_json(tpl_run *r, const json_t *json, int depth) {
    if (depth > MAX_NEST)
        tpl_fail(r, SSM_EINVAL, "values nested deeper than %d", MAX_NEST);
    if (r->code != 0)
        return tpl_none();
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return from_object(r, json, depth);
    case JSON_ARRAY:
        return from_array(r, json, depth);
    case JSON_STRING:
        return tpl_copy(r, json_string_value(json), json_string_length(json));
    case JSON_INTEGER:
        return tpl_int(json_integer_value(json));
    case JSON_REAL:
        return tpl_float(json_real_value(json));
    case JSON_TRUE:
    case JSON_FALSE:
        return tpl_bool(json_is_true(json));
    default:
        return tpl_none();
    }
}

void tpl_load_context(tpl_run *r, const char *json, size_t len) {
    json_error_t at;
    json_t *root = json_loadb(json, len, JSON_ALLOW_NUL, &at);
    if (root)
        tpl_take_context(r, root);
    else
        tpl_fail(r, SSM_EINVAL, "the context is not valid JSON: %s", at.text);
    json_decref(root);
}

void tpl_take_context(tpl_run *r, json_t *root) {
    if (!json_is_object(root))
        tpl_fail(r, SSM_EINVAL, "the context is not a JSON object");
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        // A name that the template never says cannot be read: it need not be there.
        for (size_t i = 0; i < r->tpl->n_names && r->code == 0; i++) {
            if (strcmp(r->tpl->names[i], key) == 0)
                tpl_frame_set(r, r->tpl->names[i], from_json(r, value, 0));
        }
    }
}

// ---- out

static void put_json(tpl_buffer *b, tpl_value v, const tpl_json_style *style, int depth);

static void put_escape(tpl_buffer *b, unsigned unit) {
    char escape[8];
    snprintf(escape, sizeof escape, "\\u%04x", unit & 0xffff);
    tpl_puts(b, escape);
}

static void put_json_string(tpl_buffer *b, tpl_value v, bool ensure_ascii) {
    static const char letters[] = "\"\\\n\r\t\f\b", names[] = "\"\\nrtfb";
    tpl_puts(b, "\"");
    for (size_t i = 0, n; i < v.len && b->r->code == 0; i += n) {
        const int32_t c = tpl_char_at(v.s + i, v.len - i, &n);
        const char *letter = c > 0 && c < 0x80 ? strchr(letters, (char)c) : NULL;
        if (letter) {
            tpl_put(b, "\\", 1);
            tpl_put(b, &names[letter - letters], 1);
        } else if (c < 0x20 || (ensure_ascii && c > 0x7e && c < 0x10000)) {
            put_escape(b, (unsigned)c);
        } else if (ensure_ascii && c >= 0x10000) {
            put_escape(b, 0xd800 + ((unsigned)(c - 0x10000) >> 10));
            put_escape(b, 0xdc00 + ((unsigned)(c - 0x10000) & 0x3ff));
        } else {
            tpl_put(b, v.s + i, n);
        }
    }
    tpl_puts(b, "\"");
}

static void put_break(tpl_buffer *b, const tpl_json_style *style, int depth) {
    if (!style->pretty)
        return;
    tpl_puts(b, "\n");
    for (int i = 0; i < depth; i++)
        tpl_put(b, style->indent.s, style->indent.len);
}

static void put_json_list(tpl_buffer *b, const tpl_list *list, const tpl_json_style *style,
                          int depth) {
    tpl_puts(b, "[");
    for (size_t i = 0; i < list->n && b->r->code == 0; i++) {
        if (i > 0)
            tpl_put(b, style->item_separator.s, style->item_separator.len);
        put_break(b, style, depth + 1);
        put_json(b, list->items[i], style, depth + 1);
    }
    if (list->n > 0)
        put_break(b, style, depth);
    tpl_puts(b, "]");
}

static void put_json_key(tpl_buffer *b, tpl_value key, const tpl_json_style *style) {
    if (key.kind == V_STRING) {
        put_json_string(b, key, style->ensure_ascii);
        return;
    }
    if (key.kind == V_TUPLE)
        tpl_fail(b->r, SSM_EINVAL, "tojson: a key cannot be a tuple");
    tpl_puts(b, "\"");
    put_json(b, key, style, 0);
    tpl_puts(b, "\"");
}

static int by_key(const void *a, const void *b, void *r) {
    return tpl_order(r, ((const tpl_pair *)a)->key, ((const tpl_pair *)b)->key);
}

static void put_json_dict(tpl_buffer *b, const tpl_dict *dict, const tpl_json_style *style,
                          int depth) {
    const tpl_pair *pairs = dict->pairs;
    if (style->sort_keys && dict->n > 1) {
        tpl_pair *sorted = tpl_alloc(b->r, dict->n * sizeof *sorted);
        if (!sorted)
            return;
        memcpy(sorted, pairs, dict->n * sizeof *sorted);
        qsort_r(sorted, dict->n, sizeof *sorted, by_key, b->r);
        pairs = sorted;
    }
    tpl_puts(b, "{");
    for (size_t i = 0; i < dict->n && b->r->code == 0; i++) {
        if (i > 0)
            tpl_put(b, style->item_separator.s, style->item_separator.len);
        put_break(b, style, depth + 1);
        put_json_key(b, pairs[i].key, style);
        tpl_put(b, style->key_separator.s, style->key_separator.len);
        put_json(b, pairs[i].value, style, depth + 1);
    }
    if (dict->n > 0)
        put_break(b, style, depth);
    tpl_puts(b, "}");
}

static void put_json_float(tpl_buffer *b, double f) {
    if (isnan(f) || isinf(f))
        tpl_puts(b, isnan(f) ? "NaN" : f > 0 ? "Infinity" : "-Infinity");
    else
        tpl_put_float(b, f);
}

static void put_json(tpl_buffer *b, tpl_value v, const tpl_json_style *style, int depth) {
    if (!tpl_charge(b->r, 1))
        return;
    if (depth > MAX_NEST) {
        tpl_fail(b->r, SSM_EINVAL, "tojson: values nested too deep");
        return;
    }
    switch (v.kind) {
    case V_NONE:
        tpl_puts(b, "null");
        break;
    case V_BOOL:
        tpl_puts(b, v.b ? "true" : "false");
        break;
    case V_INT:
        tpl_put_repr(b, v, depth);
        break;
    case V_FLOAT:
        put_json_float(b, v.f);
        break;
    case V_STRING:
        put_json_string(b, v, style->ensure_ascii);
        break;
    case V_LIST:
    case V_TUPLE:
        put_json_list(b, v.list, style, depth);
        break;
    case V_DICT:
        put_json_dict(b, v.dict, style, depth);
        break;
    default:
        tpl_fail(b->r, SSM_EINVAL, "tojson: %s is not JSON", tpl_kind_name(v.kind));
    }
}

tpl_value tpl_to_json(tpl_run *r, tpl_value v, const tpl_json_style *style) {
    tpl_buffer b = {.r = r};
    put_json(&b, v, style, 0);
    return tpl_take(&b);
}
