// SPDX-License-Identifier: Apache-2.0
// The value of one option: text to its type, its range checked, and the field's memory.
//
// Lists are replaced, not joined, by the first value of a stronger source, and grow with every
// further one of the same source. Out of memory here aborts: it is a few bytes, before anything
// runs.
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

static const char *const source_text[] = {"default", "configuration file", "environment",
                                          "command line"};

static void *field_of(options *o, const option_row *row) {
    return (char *)o + row->offset;
}

static char *duplicate(const char *text) {
    char *copy = strdup(text);
    if (!copy) {
        abort();
    }
    return copy;
}

static void list_clear(options_list *list) {
    for (size_t i = 0; i < list->n; i++) {
        free(list->items[i]);
    }
    free(list->items);
    *list = (options_list){0};
}

static void list_append(options_list *list, const char *text) {
    char **items = realloc(list->items, (list->n + 1) * sizeof *items);
    if (!items) {
        abort();
    }
    list->items = items;
    list->items[list->n++] = duplicate(text);
}

static int refuse(const option_row *row, const char *text, enum options_source source,
                  const char *want, ssm_error *err) {
    return ssm_error_set(err, SSM_EINVAL, row->name, "--%s (%s): %s wanted, got '%.60s'", row->name,
                         source_text[source], want, text);
}

static int refuse_range(const option_row *row, const char *text, enum options_source source,
                        ssm_error *err) {
    return ssm_error_set(err, SSM_EINVAL, row->name,
                         "--%s (%s): must be between %.16g and %.16g, got '%.60s'", row->name,
                         source_text[source], row->min, row->max, text);
}

static int set_bool(bool *out, const option_row *row, const char *text, enum options_source source,
                    ssm_error *err) {
    static const char *const yes[] = {"true", "1", "yes", "on"};
    static const char *const no[] = {"false", "0", "no", "off"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out = strcmp(text, yes[i]) == 0;
            return 0;
        }
    }
    return refuse(row, text, source, "true or false", err);
}

// K, M, G: powers of 1024; "KiB" and "KB" mean the same here.
static int64_t unit_of(const char *suffix) {
    static const char letters[] = "KMGT";
    const char *at = *suffix ? strchr(letters, toupper((unsigned char)*suffix)) : NULL;
    if (!at || (suffix[1] && strcmp(suffix + 1, "iB") != 0 && strcmp(suffix + 1, "B") != 0)) {
        return 0;
    }
    return (int64_t)1 << (10 * (at - letters + 1));
}

static int set_int(int64_t *out, const option_row *row, const char *text,
                   enum options_source source, ssm_error *err) {
    char *end;
    errno = 0;
    const long long number = strtoll(text, &end, 10);
    const int64_t unit = row->type == OPTION_BYTES && *end ? unit_of(end) : 1;
    if (end == text || isspace((unsigned char)*text) || unit == 0 ||
        (row->type == OPTION_INT && *end)) {
        return refuse(row, text, source,
                      row->type == OPTION_BYTES ? "a number of bytes, K, M or G may follow,"
                                                : "a whole number",
                      err);
    }
    int64_t value;
    if (errno == ERANGE || __builtin_mul_overflow((int64_t)number, unit, &value) ||
        !((double)value >= row->min && (double)value <= row->max)) {
        return refuse_range(row, text, source, err);
    }
    *out = value;
    return 0;
}

static int set_float(double *out, const option_row *row, const char *text,
                     enum options_source source, ssm_error *err) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text)) {
        return refuse(row, text, source, "a number", err);
    }
    if (!(value >= row->min && value <= row->max)) {
        return refuse_range(row, text, source, err);
    }
    *out = value;
    return 0;
}

static bool is_choice(const char *choices, const char *text) {
    const size_t len = strlen(text);
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL) {
        const size_t n = strcspn(at, "|");
        if (n == len && memcmp(at, text, n) == 0) {
            return true;
        }
    }
    return false;
}

static int set_string(char **out, const option_row *row, const char *text,
                      enum options_source source, ssm_error *err) {
    if (row->choices && !is_choice(row->choices, text)) {
        return ssm_error_set(err, SSM_EINVAL, row->name, "--%s (%s): one of %s wanted, got '%.60s'",
                             row->name, source_text[source], row->choices, text);
    }
    free(*out);
    *out = duplicate(text);
    return 0;
}

int options_set(options *o, const option_row *row, const char *text, enum options_source source,
                ssm_error *err) {
    void *field = field_of(o, row);
    unsigned char *from = &o->source[row - option_table];
    int rc = 0;
    switch (row->type) {
    case OPTION_BOOL:
        rc = set_bool(field, row, text, source, err);
        break;
    case OPTION_INT:
    case OPTION_BYTES:
        rc = set_int(field, row, text, source, err);
        break;
    case OPTION_FLOAT:
        rc = set_float(field, row, text, source, err);
        break;
    case OPTION_STRING:
        rc = set_string(field, row, text, source, err);
        break;
    case OPTION_LIST:
        if (*from != source) {
            list_clear(field);
        }
        list_append(field, text);
        break;
    }
    if (rc == 0) {
        *from = (unsigned char)source;
    }
    return rc;
}

void options_init(options *o) {
    *o = (options){0};
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        if (row->fallback) {
            ssm_error err;
            const int rc = options_set(o, row, row->fallback, OPTIONS_DEFAULT, &err);
            if (rc != 0) {
                abort(); // a row whose default is out of its own range
            }
        }
    }
}

void options_dispose(options *o) {
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        if (row->type == OPTION_STRING) {
            free(*(char **)field_of(o, row));
        } else if (row->type == OPTION_LIST) {
            list_clear(field_of(o, row));
        }
    }
    *o = (options){0};
}
