// SPDX-License-Identifier: Apache-2.0
#include "engine/text/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/unicode.h"

fields fields_open(const json_t *json, const char *where, bool typed, ssm_error *err) {
    fields f = {.object = json, .where = where, .type = "", .err = err};
    if (!json_is_object(json)) {
        fields_fail(&f, SSM_EFORMAT, "is not an object");
        return f;
    }
    if (typed) {
        const ssm_string type = fields_string(&f, "type", true);
        if (f.code == 0)
            f.type = type.data;
    }
    return f;
}

int fields_fail(fields *f, int code, const char *fmt, ...) {
    if (f->code != 0)
        return f->code;
    char what[320];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    f->code = ssm_error_set(f->err, code, f->where, "tokenizer.json: %s%s%.60s: %s", f->where,
                            f->type[0] ? " " : "", f->type, what);
    return f->code;
}

int fields_unsupported(fields *f) {
    if (f->code != 0)
        return f->code;
    f->code =
        ssm_error_set(f->err, SSM_EUNSUPPORTED, f->where,
                      "tokenizer.json: %s of type %.100s is not supported", f->where, f->type);
    return f->code;
}

static bool is_seen(const fields *f, const char *key) {
    for (size_t i = 0; i < f->n_seen; i++) {
        if (strcmp(f->seen[i], key) == 0)
            return true;
    }
    return false;
}

int fields_done(fields *f) {
    if (f->code != 0)
        return f->code;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)f->object, key, value) {
        if (!is_seen(f, key) && !json_is_null(value))
            return fields_fail(f, SSM_EUNSUPPORTED, "option %.100s is not supported", key);
    }
    return 0;
}

const json_t *fields_any(fields *f, const char *key) {
    if (f->code != 0)
        return NULL;
    if (f->n_seen < FIELDS_MAX)
        f->seen[f->n_seen++] = key;
    const json_t *value = json_object_get(f->object, key);
    return json_is_null(value) ? NULL : value;
}

// The value if it is of the wanted kind; errors otherwise. NULL if absent.
static const json_t *get(fields *f, const char *key, bool required, json_type type,
                         const char *kind) {
    const json_t *value = fields_any(f, key);
    if (f->code != 0)
        return NULL;
    if (!value) {
        if (required)
            fields_fail(f, SSM_EFORMAT, "%s is missing", key);
        return NULL;
    }
    if (json_typeof(value) != type) {
        fields_fail(f, SSM_EFORMAT, "%s is not %s", key, kind);
        return NULL;
    }
    return value;
}

bool fields_bool(fields *f, const char *key, bool absent) {
    const json_t *value = fields_any(f, key);
    if (f->code != 0 || !value)
        return absent;
    if (!json_is_boolean(value)) {
        fields_fail(f, SSM_EFORMAT, "%s is not true or false", key);
        return absent;
    }
    return json_is_true(value);
}

ssm_string fields_string(fields *f, const char *key, bool required) {
    const json_t *value = get(f, key, required, JSON_STRING, "a string");
    return value ? json_text(value) : (ssm_string){0};
}

const json_t *fields_array(fields *f, const char *key, bool required) {
    return get(f, key, required, JSON_ARRAY, "an array");
}

const json_t *fields_object(fields *f, const char *key, bool required) {
    return get(f, key, required, JSON_OBJECT, "an object");
}

size_t fields_size(fields *f, const char *key, size_t max) {
    const json_t *value = get(f, key, true, JSON_INTEGER, "an integer");
    if (!value)
        return 0;
    const json_int_t n = json_integer_value(value);
    if (n < 0 || (unsigned long long)n > max) {
        fields_fail(f, SSM_EFORMAT, "%s is out of range: %lld", key, (long long)n);
        return 0;
    }
    return (size_t)n;
}

int32_t fields_char(fields *f, const char *key) {
    const ssm_string s = fields_string(f, key, true);
    if (f->code != 0)
        return 0;
    if (s.len == 0 || utf8_width((unsigned char)s.data[0]) != s.len) {
        fields_fail(f, SSM_EFORMAT, "%s is not one character", key);
        return 0;
    }
    return utf8_get(s.data);
}
