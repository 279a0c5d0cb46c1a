// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <ssm/json.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

json_t *json_parse_object(const char *body, size_t len, ssm_error *err) {
    json_error_t where;
    json_t *root = ssm_json_read(body, len);
    if (!root) {
        root = json_loadb(body, len, JSON_ALLOW_NUL, &where);
    }
    if (!root) {
        ssm_error_set(err, SSM_EINVAL, NULL,
                      "the body is not valid JSON: %.160s (line %d, column %d)", where.text,
                      where.line, where.column);
        return NULL;
    }
    if (!json_is_object(root)) {
        ssm_error_set(err, SSM_EINVAL, NULL, "the body must be a JSON object, got %s",
                      json_type_text(root));
        json_decref(root);
        return NULL;
    }
    return root;
}

// ---- writing

static void put_object(buf *out, const json_t *object) {
    const char *key, *before = "{";
    json_t *value;
    json_object_foreach((json_t *)object, key, value) { // it does not change
        buf_str(out, before);
        json_put_text(out, key);
        buf_str(out, ":");
        json_put_tree(out, value);
        before = ",";
    }
    buf_str(out, before[0] == '{' ? "{}" : "}");
}

static void put_list(buf *out, const json_t *list) {
    buf_str(out, "[");
    for (size_t i = 0; i < json_array_size(list); i++) {
        buf_add(out, ",", i > 0);
        json_put_tree(out, json_array_get(list, i));
    }
    buf_str(out, "]");
}

static void put_other(buf *out, const json_t *value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    if (text) {
        buf_str(out, text);
    } else {
        out->failed = true;
    }
    free(text);
}

void json_put_tree(buf *out, const json_t *value) {
    if (json_is_object(value)) {
        put_object(out, value);
    } else if (json_is_array(value)) {
        put_list(out, value);
    } else if (json_is_string(value)) {
        json_put_string(out, json_string_value(value), json_string_length(value));
    } else {
        put_other(out, value);
    }
}

const char *json_type_text(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

static const json_t *present(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value) ? value : NULL;
}

static int wrong_type(const char *key, const char *want, const json_t *value, ssm_error *err) {
    return ssm_error_set(err, SSM_EINVAL, key, "%s must be %s, got %s", key, want,
                         json_type_text(value));
}

int json_get_bool(const json_t *object, const char *key, bool *out, ssm_error *err) {
    const json_t *value = present(object, key);
    if (value && !json_is_boolean(value)) {
        return wrong_type(key, "a boolean", value, err);
    }
    *out = value ? json_is_true(value) : *out;
    return 0;
}

int json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out,
                 ssm_error *err) {
    const json_t *value = present(object, key);
    if (!value) {
        return 0;
    }
    if (!json_is_integer(value)) {
        return wrong_type(key, "an integer", value, err);
    }
    const int64_t number = json_integer_value(value);
    if (number < min || number > max) {
        return ssm_error_set(err, SSM_EINVAL, key, "%s must be between %lld and %lld, got %lld",
                             key, (long long)min, (long long)max, (long long)number);
    }
    *out = number;
    return 0;
}

int json_get_number(const json_t *object, const char *key, double min, double max, float *out,
                    ssm_error *err) {
    const json_t *value = present(object, key);
    if (!value) {
        return 0;
    }
    if (!json_is_number(value)) {
        return wrong_type(key, "a number", value, err);
    }
    const double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        return ssm_error_set(err, SSM_EINVAL, key, "%s must be between %g and %g, got %.9g", key,
                             min, max, number);
    }
    *out = (float)number;
    return 0;
}

int json_get_string(const json_t *object, const char *key, const char **out, size_t *len,
                    ssm_error *err) {
    const json_t *value = present(object, key);
    if (value && !json_is_string(value)) {
        return wrong_type(key, "a string", value, err);
    }
    if (value) {
        *out = json_string_value(value);
        *len = json_string_length(value);
    }
    return 0;
}

int json_get_object(const json_t *object, const char *key, const json_t **out, ssm_error *err) {
    *out = present(object, key);
    return *out && !json_is_object(*out) ? wrong_type(key, "an object", *out, err) : 0;
}

int json_get_array(const json_t *object, const char *key, const json_t **out, ssm_error *err) {
    *out = present(object, key);
    return *out && !json_is_array(*out) ? wrong_type(key, "a list", *out, err) : 0;
}
