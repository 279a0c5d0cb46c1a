// SPDX-License-Identifier: Apache-2.0
// JSON of configs, as it is found in the wild.
//
// Python's json module writes infinities and NaN as bare words, which JSON does not have and
// jansson refuses; transformers has since moved to {"__float__": "Infinity"}. spell_out turns the
// first form into the second before parsing, outside strings only and only where a whole value
// stands, so that one reader (number_of) knows both and nothing else changes its meaning.
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Far above any config; an index.json of 100,000 tensors has 10 MB.
enum { MAX_BYTES = 16 << 20 };

static const char *const float_words[] = {"-Infinity", "Infinity", "NaN"};
enum { FLOAT_WORDS = 3, MAX_GROWTH = 7 }; // NaN, 3 bytes, becomes 19

// ---- bytes

static bool is_before_value(char c) {
    return memchr(" \t\r\n[,:", c, 7) != NULL;
}

static bool is_after_value(char c) {
    return memchr(" \t\r\n],}", c, 7) != NULL;
}

// The float word that stands as a whole value at text[i], or NULL.
static const char *float_word_at(const char *text, size_t len, size_t i) {
    if (i > 0 && !is_before_value(text[i - 1]))
        return NULL;
    for (int w = 0; w < FLOAT_WORDS; w++) {
        const size_t n = strlen(float_words[w]);
        if (len - i >= n && memcmp(text + i, float_words[w], n) == 0 &&
            (len - i == n || is_after_value(text[i + n])))
            return float_words[w];
    }
    return NULL;
}

// The text with its bare float words spelt out, to be freed, or NULL: out of memory.
static char *spell_out(const char *text, size_t len, size_t *out_len) {
    char *out = malloc(len * MAX_GROWTH + 1);
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; out && i < len;) {
        const char *word = in_string ? NULL : float_word_at(text, len, i);
        if (word) {
            n += (size_t)sprintf(out + n, "{\"__float__\":\"%s\"}", word);
            i += strlen(word);
            continue;
        }
        if (text[i] == '"')
            in_string = !in_string;
        else if (in_string && text[i] == '\\' && i + 1 < len)
            out[n++] = text[i++]; // what follows is escaped, be it a quote
        out[n++] = text[i++];
    }
    *out_len = n;
    return out;
}

int config_parse(config *c, const char *text, size_t len, const char *file, ssm_error *err) {
    *c = (config){.file = file, .err = err};
    if (len > MAX_BYTES)
        return ssm_error_set(err, SSM_EFORMAT, file, "%s has %zu bytes, more than %d", file, len,
                             MAX_BYTES);
    size_t n;
    char *spelt = spell_out(text, len, &n);
    if (!spelt)
        return ssm_error_set(err, SSM_ENOMEM, file, "no memory for %s", file);
    json_error_t at;
    c->root = json_loadb(spelt, n, JSON_REJECT_DUPLICATES, &at);
    free(spelt);
    if (!c->root)
        return ssm_error_set(err, SSM_EFORMAT, file, "%s is not valid JSON: %s (line %d)", file,
                             at.text, at.line);
    if (!json_is_object(c->root) || json_object_get(c->root, "__float__")) { // or a bare Infinity
        config_dispose(c);
        return ssm_error_set(err, SSM_EFORMAT, file, "%s is not a JSON object", file);
    }
    return 0;
}

void config_dispose(config *c) {
    json_decref(c->root);
    c->root = NULL;
}

static int read_file(int fd, const char *file, char **text, size_t *len, ssm_error *err) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return ssm_error_set(err, SSM_EIO, file, "cannot read %s: %m", file);
    if (!S_ISREG(st.st_mode))
        return ssm_error_set(err, SSM_EIO, file, "%s is not a regular file", file);
    if (st.st_size > MAX_BYTES)
        return ssm_error_set(err, SSM_EFORMAT, file, "%s has %lld bytes, more than %d", file,
                             (long long)st.st_size, MAX_BYTES);
    *text = malloc((size_t)st.st_size + 1);
    if (!*text)
        return ssm_error_set(err, SSM_ENOMEM, file, "no memory for %s", file);
    for (*len = 0; *len < (size_t)st.st_size;) {
        const ssize_t n = read(fd, *text + *len, (size_t)st.st_size - *len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ssm_error_set(err, SSM_EIO, file, "cannot read %s: %m", file);
        if (n == 0)
            break;
        *len += (size_t)n;
    }
    return 0;
}

int config_open(config *c, const char *folder, const char *file, ssm_error *err) {
    *c = (config){.file = file, .err = err};
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, file) >= sizeof path)
        return ssm_error_set(err, SSM_EIO, file, "the path of %s is too long", file);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not block here
    if (fd < 0)
        return ssm_error_set(err, errno == ENOENT ? SSM_ENOTFOUND : SSM_EIO, file,
                             "cannot open %s: %m", path);
    char *text = NULL;
    size_t len = 0;
    int rc = read_file(fd, file, &text, &len, err);
    if (rc == 0)
        rc = config_parse(c, text, len, file, err);
    free(text);
    close(fd);
    return rc;
}

// ---- values

void config_fail(config *c, int code, const char *key, const char *fmt, ...) {
    if (c->rc)
        return;
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    c->rc = ssm_error_set(c->err, code, key, "%s: %s %s", c->file, key, text);
}

json_t *config_get(const config *c, const char *key) {
    json_t *v = json_object_get(c->root, key);
    return json_is_null(v) ? NULL : v;
}

static bool number_of(const json_t *v, double *out) {
    if (json_is_number(v)) {
        *out = json_number_value(v);
        return true;
    }
    const char *word = json_string_value(json_object_get(v, "__float__"));
    if (!word)
        return false;
    if (strcmp(word, "Infinity") == 0)
        *out = INFINITY;
    else if (strcmp(word, "-Infinity") == 0)
        *out = -INFINITY;
    else if (strcmp(word, "NaN") == 0)
        *out = NAN;
    else
        return false;
    return true;
}

int32_t config_int(config *c, const char *key, int32_t min, int32_t max, int64_t missing) {
    const json_t *v = config_get(c, key);
    if (c->rc)
        return min;
    if (!v && missing == CONFIG_REQUIRED) {
        config_fail(c, SSM_EFORMAT, key, "is missing");
    } else if (v && !json_is_integer(v)) {
        config_fail(c, SSM_EFORMAT, key, "must be an integer");
    } else {
        const int64_t x = v ? json_integer_value(v) : missing;
        if (x >= min && x <= max)
            return (int32_t)x;
        config_fail(c, SSM_EFORMAT, key, "must be in [%d, %d], got %lld", min, max, (long long)x);
    }
    return min;
}

double config_real(config *c, const char *key, double min, double max, double missing) {
    const json_t *v = config_get(c, key);
    double x = missing;
    if (c->rc)
        return min;
    if (v && !number_of(v, &x))
        config_fail(c, SSM_EFORMAT, key, "must be a number");
    else if (!(x >= min && x <= max))
        config_fail(c, SSM_EFORMAT, key, "must be in [%g, %g], got %g", min, max, x);
    return c->rc ? min : x;
}

bool config_bool(config *c, const char *key, bool missing) {
    const json_t *v = config_get(c, key);
    if (v && !json_is_boolean(v))
        config_fail(c, SSM_EFORMAT, key, "must be true or false");
    return v ? json_is_true(v) : missing;
}

const char *config_string(config *c, const char *key, const char *missing) {
    const json_t *v = config_get(c, key);
    if (v && !json_is_string(v))
        config_fail(c, SSM_EFORMAT, key, "must be a string");
    return json_is_string(v) ? json_string_value(v) : missing;
}

void config_pair(config *c, const char *key, float *low, float *high) {
    const json_t *v = config_get(c, key);
    double a, b;
    if (!v)
        return;
    if (json_array_size(v) != 2 || !number_of(json_array_get(v, 0), &a) ||
        !number_of(json_array_get(v, 1), &b)) {
        config_fail(c, SSM_EFORMAT, key, "must be a list of two numbers");
    } else if (!(a >= 0 && a <= b)) {
        config_fail(c, SSM_EFORMAT, key, "must be an ascending pair from 0 on, got [%g, %g]", a, b);
    } else {
        *low = (float)a;
        *high = (float)b;
    }
}

static void add_id(config *c, const char *key, const json_t *v, int32_t vocab, int32_t *ids,
                   int32_t *n, int32_t max) {
    if (!json_is_integer(v)) {
        config_fail(c, SSM_EFORMAT, key, "must be an id or a list of ids");
        return;
    }
    const json_int_t id = json_integer_value(v);
    if (id < 0 || id >= vocab) {
        config_fail(c, SSM_EFORMAT, key, "must be in [0, %d), got %lld", vocab, (long long)id);
        return;
    }
    for (int32_t i = 0; i < *n; i++) {
        if (ids[i] == id)
            return;
    }
    if (*n == max)
        config_fail(c, SSM_EUNSUPPORTED, key, "has more than %d ids", max);
    else
        ids[(*n)++] = (int32_t)id;
}

void config_ids(config *c, const char *key, int32_t vocab, int32_t *ids, int32_t *n, int32_t max) {
    const json_t *v = config_get(c, key);
    if (json_is_array(v)) {
        for (size_t i = 0; i < json_array_size(v); i++)
            add_id(c, key, json_array_get(v, i), vocab, ids, n, max);
    } else if (v) {
        add_id(c, key, v, vocab, ids, n, max);
    }
}

bool config_asks(const config *c, const char *key) {
    const json_t *v = config_get(c, key);
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_NULL:
    case JSON_FALSE:
        return false;
    case JSON_STRING:
        return json_string_length(v) > 0;
    case JSON_INTEGER:
        return json_integer_value(v) != 0;
    case JSON_REAL:
        return json_real_value(v) != 0;
    case JSON_ARRAY:
        return json_array_size(v) > 0;
    case JSON_OBJECT:
        return json_object_size(v) > 0;
    case JSON_TRUE:
        break;
    }
    return true;
}
