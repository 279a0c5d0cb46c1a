// SPDX-License-Identifier: Apache-2.0
// Reading options: defaults, file, environment, flags, in this order, each over the one before.
//
// Every source ends in options_set, which knows a row's type and range, so that a bad value is
// refused with the same words wherever it came from (option_value.c).
//
// Only this file calls getenv (through environ). Orchestrators put variables of their own into the
// environment: for a service named ssmd, Kubernetes sets SSMD_PORT=tcp://10.0.0.1:8080 and
// SSMD_SERVICE_HOST, which are not ours and are passed over.
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

const option_row *options_find(const char *name, size_t len) {
    for (size_t i = 0; i < option_table_rows; i++) {
        const char *have = option_table[i].name;
        size_t k = 0;
        while (k < len && have[k] && (have[k] == name[k] || (have[k] == '-' && name[k] == '_'))) {
            k++;
        }
        if (k == len && !have[k]) {
            return &option_table[i];
        }
    }
    return NULL;
}

enum options_source options_where(const options *o, const char *name) {
    const option_row *row = options_find(name, strlen(name));
    return row ? o->source[row - option_table] : OPTIONS_DEFAULT;
}

// ---- the configuration file

static int set_from_json(options *o, const option_row *row, const json_t *value, ssm_error *err) {
    char number[64];
    switch (json_typeof(value)) {
    case JSON_TRUE:
    case JSON_FALSE:
        if (row->type == OPTION_BOOL) {
            return options_set(o, row, json_is_true(value) ? "true" : "false", OPTIONS_FILE, err);
        }
        break;
    case JSON_INTEGER:
        if (row->type == OPTION_INT || row->type == OPTION_BYTES || row->type == OPTION_FLOAT) {
            snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
            return options_set(o, row, number, OPTIONS_FILE, err);
        }
        break;
    case JSON_REAL:
        if (row->type == OPTION_FLOAT) {
            snprintf(number, sizeof number, "%.17g", json_real_value(value));
            return options_set(o, row, number, OPTIONS_FILE, err);
        }
        break;
    case JSON_STRING:
        if (row->type == OPTION_STRING || row->type == OPTION_LIST || row->type == OPTION_BYTES) {
            return options_set(o, row, json_string_value(value), OPTIONS_FILE, err);
        }
        break;
    default:
        break;
    }
    return ssm_error_set(err, SSM_EINVAL, row->name, "%s (configuration file): wrong type of value",
                         row->name);
}

static int set_row_from_json(options *o, const option_row *row, const json_t *value,
                             ssm_error *err) {
    if (json_is_null(value)) {
        return 0; // as if it were not there
    }
    if (!json_is_array(value) || row->type != OPTION_LIST) {
        return set_from_json(o, row, value, err);
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const int rc = set_from_json(o, row, json_array_get(value, i), err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

int options_read_json(options *o, const char *json, size_t len, ssm_error *err) {
    json_error_t where;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &where);
    int rc = 0;
    if (!root) {
        return ssm_error_set(err, SSM_EFORMAT, "config", "configuration file, line %d: %s",
                             where.line, where.text);
    }
    if (!json_is_object(root)) {
        rc = ssm_error_set(err, SSM_EFORMAT, "config", "configuration file: an object is wanted");
    }
    for (void *it = json_object_iter(root); it && rc == 0; it = json_object_iter_next(root, it)) {
        const char *key = json_object_iter_key(it);
        const option_row *row = options_find(key, strlen(key));
        if (strcmp(key, "$schema") == 0) {
            continue;
        }
        rc =
            row ? set_row_from_json(o, row, json_object_iter_value(it), err)
                : ssm_error_set(err, SSM_EINVAL, key, "configuration file: no option '%.60s'", key);
    }
    json_decref(root);
    return rc;
}

static int read_file(options *o, const char *path, ssm_error *err) {
    enum { LIMIT = 1 << 20 };
    FILE *file = fopen(path, "rb");
    if (!file) {
        return ssm_error_set(err, SSM_EIO, "config", "--config: cannot open %.200s: %s", path,
                             strerror(errno));
    }
    char *json = malloc(LIMIT);
    const size_t len = json ? fread(json, 1, LIMIT, file) : 0;
    int rc;
    if (ferror(file) || len == LIMIT) {
        rc = ssm_error_set(err, SSM_EIO, "config", "--config: cannot read %.200s: %s", path,
                           len == LIMIT ? "longer than 1 MiB" : strerror(errno));
    } else {
        rc = options_read_json(o, json, len, err);
        if (rc < 0 && err) {
            const ssm_error what = *err;
            ssm_error_set(err, what.code, what.param, "%.200s: %s", path, what.message);
        }
    }
    free(json);
    fclose(file);
    return rc;
}

// ---- the environment

// SSMD_MAX_QUEUE=5 -> the row of max-queue; NULL if the variable is none of ours.
static const option_row *variable_row(const char *variable, size_t len) {
    char name[64];
    if (len <= 5 || len - 5 >= sizeof name || strncmp(variable, "SSMD_", 5) != 0) {
        return NULL;
    }
    for (size_t i = 5; i < len; i++) {
        name[i - 5] = (char)tolower((unsigned char)variable[i]);
    }
    return options_find(name, len - 5);
}

static int set_from_variable(options *o, const option_row *row, const char *value, ssm_error *err) {
    if (row->type != OPTION_LIST) {
        return options_set(o, row, value, OPTIONS_ENVIRONMENT, err);
    }
    char *copy = strdup(value);
    int rc = copy ? 0 : ssm_error_set(err, SSM_ENOMEM, row->name, "out of memory");
    char *rest = copy;
    for (char *item; rc == 0 && (item = strsep(&rest, ",")) != NULL;) {
        rc = *item ? options_set(o, row, item, OPTIONS_ENVIRONMENT, err) : 0;
    }
    free(copy);
    return rc;
}

static int read_environment(options *o, ssm_error *err) {
    for (char **at = environ; at && *at; at++) {
        const char *equals = strchr(*at, '=');
        const option_row *row = equals ? variable_row(*at, (size_t)(equals - *at)) : NULL;
        if (!row || strncmp(equals + 1, "tcp://", 6) == 0) {
            continue;
        }
        const int rc = set_from_variable(o, row, equals + 1, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

// ---- flags

enum { PRINT_NONE, PRINT_HELP, PRINT_CONFIG, PRINT_SCHEMA, PRINT_REFERENCE };

static int printing_of(const char *flag) {
    static const struct {
        const char *flag;
        int what;
    } words[] = {{"--help", PRINT_HELP},
                 {"-h", PRINT_HELP},
                 {"--print-config", PRINT_CONFIG},
                 {"--print-schema", PRINT_SCHEMA},
                 {"--print-reference", PRINT_REFERENCE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(flag, words[i].flag) == 0) {
            return words[i].what;
        }
    }
    return PRINT_NONE;
}

struct flag {
    const option_row *row;
    const char *value;
};

// The command line, taken apart before anything is set: --config's file must be read first.
struct flags {
    struct flag *items; // room for argc of them
    int n, printing;
};

static int parse_flag(const char *word, unsigned command, struct flag *out, ssm_error *err) {
    const char *name = word + 2;
    const char *equals = strchr(name, '=');
    const size_t len = equals ? (size_t)(equals - name) : strlen(name);
    *out = (struct flag){options_find(name, len), equals ? equals + 1 : NULL};
    if (!out->row && !equals && len > 3 && strncmp(name, "no-", 3) == 0) {
        const option_row *row = options_find(name + 3, len - 3);
        *out = (struct flag){row && row->type == OPTION_BOOL ? row : NULL, "false"};
    }
    if (!out->row || word[1] != '-') {
        return ssm_error_set(err, SSM_EINVAL, name, "no option %.60s (--help lists them)", word);
    }
    if (!(out->row->commands & command)) {
        return ssm_error_set(err, SSM_EINVAL, out->row->name,
                             "--%s is not an option of this command", out->row->name);
    }
    if (!out->value && out->row->type == OPTION_BOOL) {
        out->value = "true";
    }
    return 0;
}

// Flags into *flags; what is no flag moves to the front of o->args (argv itself).
static int scan_flags(options *o, struct flags *flags, unsigned command, int argc, char **argv,
                      ssm_error *err) {
    bool only_arguments = false;
    o->args = argv + 1;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        if (only_arguments || word[0] != '-' || strcmp(word, "-") == 0) {
            o->args[o->n_args++] = word;
            continue;
        }
        if (strcmp(word, "--") == 0) {
            only_arguments = true;
            continue;
        }
        const int printing = printing_of(word);
        if (printing != PRINT_NONE) {
            flags->printing = printing;
            continue;
        }
        struct flag *flag = &flags->items[flags->n++];
        const int rc = parse_flag(word, command, flag, err);
        if (rc < 0) {
            return rc;
        }
        if (!flag->value && i + 1 >= argc) {
            return ssm_error_set(err, SSM_EINVAL, flag->row->name, "--%s needs a value",
                                 flag->row->name);
        }
        flag->value = flag->value ? flag->value : argv[++i];
    }
    return 0;
}

static int set_flags(options *o, const struct flags *flags, ssm_error *err) {
    for (int i = 0; i < flags->n; i++) {
        const struct flag *flag = &flags->items[i];
        const int rc = options_set(o, flag->row, flag->value, OPTIONS_FLAG, err);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

// --config's value, flag over environment; NULL if there is none.
static const char *config_path(const struct flags *flags) {
    const char *path = getenv("SSMD_CONFIG");
    for (int i = 0; i < flags->n; i++) {
        path = strcmp(flags->items[i].row->name, "config") == 0 ? flags->items[i].value : path;
    }
    return path && *path ? path : NULL;
}

static void print(const options *o, int what, unsigned command, const char *word) {
    switch (what) {
    case PRINT_HELP:
        options_print_help(command, word, stdout);
        break;
    case PRINT_CONFIG:
        options_print_config(o, command, stdout);
        break;
    case PRINT_SCHEMA:
        options_print_schema(stdout);
        break;
    case PRINT_REFERENCE:
        options_print_reference(stdout);
        break;
    default:
        break;
    }
}

int options_load(options *o, unsigned command, int argc, char **argv, ssm_error *err) {
    struct flags flags = {.items = calloc((size_t)argc, sizeof(struct flag))};
    options_init(o);
    int rc = flags.items ? scan_flags(o, &flags, command, argc, argv, err)
                         : ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    if (flags.printing == PRINT_HELP) {
        rc = 0; // help helps even beside a mistake
        goto done;
    }
    const char *path = rc == 0 ? config_path(&flags) : NULL;
    if (path) {
        rc = read_file(o, path, err);
    }
    if (rc == 0) {
        rc = read_environment(o, err);
    }
    if (rc == 0) {
        rc = set_flags(o, &flags, err);
    }
done:
    if (rc == 0 && flags.printing != PRINT_NONE) {
        print(o, flags.printing, command, argv[0]);
        rc = 1;
    }
    free(flags.items);
    return rc;
}
