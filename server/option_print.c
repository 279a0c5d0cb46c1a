// SPDX-License-Identifier: Apache-2.0
// What the option table says of itself: --help, --print-config, the file's JSON schema, and the
// table for the documentation.
#include <string.h>

#include <jansson.h>

#include "buf.h"
#include "options.h"

static const char *const type_text[] = {"bool",   "integer", "bytes",
                                        "number", "string",  "list of strings"};

// "max-queue" -> "max_queue", as the file spells it.
static void key_of(const option_row *row, char *out, size_t size) {
    snprintf(out, size, "%s", row->name);
    for (char *at = out; *at; at++) {
        *at = *at == '-' ? '_' : *at;
    }
}

static bool has_range(const option_row *row) {
    return row->type == OPTION_INT || row->type == OPTION_BYTES || row->type == OPTION_FLOAT;
}

static const char session_words[] =
    "  list              the sessions of the API key: tokens, bytes, model, last use\n"
    "  save NAME FILE    a session's state into a file (-: standard output)\n"
    "  load NAME FILE    a session from a file (-: standard input); one of that name is replaced\n"
    "  fork NAME NEW     a second session in the state of the first\n"
    "  rm NAME...        removes sessions\n"
    "\nExit status: 0, done; 1, refused, no answer, or a file's fault; 2, a wrong command "
    "line.\n\n";

// "  --flag VALUE   what it does", wrapped.
static void print_entry(const char *flag, const char *text, FILE *to) {
    enum { INDENT = 31, COLUMNS = 100 };
    int column = fprintf(to, "  %-*s", INDENT - 2, flag);
    if (strlen(flag) > INDENT - 3) {
        column = fprintf(to, "\n%*s", INDENT, "") - 1;
    }
    while (*text) {
        const int word = (int)strcspn(text, " ");
        if (column > INDENT && column + 1 + word > COLUMNS) {
            column = fprintf(to, "\n%*s", INDENT, "") - 1;
        }
        column += fprintf(to, "%s%.*s", column > INDENT ? " " : "", word, text);
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', to);
}

static void print_row(const option_row *row, FILE *to) {
    char flag[80];
    buf text = {0};
    snprintf(flag, sizeof flag, "--%s%s%s", row->name, row->metavar ? " " : "",
             row->metavar ? row->metavar : "");
    buf_str(&text, row->help);
    if (row->choices) {
        buf_printf(&text, "; one of %s", row->choices);
    }
    if (row->fallback && row->type != OPTION_BOOL) {
        buf_printf(&text, " (default %s", row->fallback);
        if (has_range(row) && row->max < OPTION_MOST) {
            buf_printf(&text, ", %.16g to %.16g", row->min, row->max);
        } else if (has_range(row) && row->min > -OPTION_MOST) {
            buf_printf(&text, ", %.16g or more", row->min);
        }
        buf_str(&text, ")");
    }
    buf_add(&text, "", 1);
    print_entry(flag, text.failed ? row->help : text.data, to);
    buf_dispose(&text);
}

void options_print_help(unsigned command, const char *word, FILE *to) {
    const char *rest = command & OPTIONS_GENERATE  ? " \"PROMPT\""
                       : command & OPTIONS_HEALTH  ? " [URL]"
                       : command & OPTIONS_INSPECT ? " PATH"
                       : command & OPTIONS_SESSION ? " WORD [NAME] [FILE]"
                                                   : "";
    fprintf(to, "usage: ssmd %s [options]%s\n\n%s", word, rest,
            command & OPTIONS_SESSION ? session_words : "");
    for (size_t i = 0; i < option_table_rows; i++) {
        if (option_table[i].commands & command) {
            print_row(&option_table[i], to);
        }
    }
    print_entry("--print-config", "print the options in force and exit", to);
    print_entry("--help", "print this and exit", to);
    fprintf(to, "\nAlso from the environment (SSMD_NAME) and from --config's file ({\"name\": "
                "value}); flags win over the\nenvironment, that over the file.\n");
}

static json_t *list_of(const options_list *list, bool secret) {
    json_t *array = json_array();
    for (size_t i = 0; i < list->n; i++) {
        json_array_append_new(array, json_string(secret ? "(set)" : list->items[i]));
    }
    return array;
}

static json_t *value_of(const options *o, const option_row *row) {
    const void *field = (const char *)o + row->offset;
    switch (row->type) {
    case OPTION_BOOL:
        return json_boolean(*(const bool *)field);
    case OPTION_INT:
    case OPTION_BYTES:
        return json_integer(*(const int64_t *)field);
    case OPTION_FLOAT: {
        const double number = *(const double *)field;
        return number == (double)(json_int_t)number ? json_integer((json_int_t)number)
                                                    : json_real(number);
    }
    case OPTION_STRING: {
        const char *text = *(char *const *)field;
        return text ? json_string(row->secret ? "(set)" : text) : json_null();
    }
    case OPTION_LIST:
        return list_of(field, row->secret);
    }
    return json_null();
}

static void print_json(json_t *root, FILE *to) {
    json_dumpf(root, to, JSON_INDENT(4) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));
    fputc('\n', to);
    json_decref(root);
}

void options_print_config(const options *o, unsigned command, FILE *to) {
    json_t *root = json_object();
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        if ((row->commands & command) && strcmp(row->name, "config") != 0) {
            char key[64];
            key_of(row, key, sizeof key);
            json_object_set_new(root, key, value_of(o, row));
        }
    }
    print_json(root, to);
}

static json_t *schema_of(const option_row *row) {
    static const char *const names[] = {"boolean", "integer", "integer",
                                        "number",  "string",  "array"};
    json_t *types = json_array();
    json_array_append_new(types, json_string(names[row->type]));
    if (row->type == OPTION_BYTES) {
        json_array_append_new(types, json_string("string"));
    }
    json_array_append_new(types, json_string("null"));
    json_t *schema = json_pack("{s:s, s:o}", "description", row->help, "type", types);
    if (has_range(row)) {
        json_object_set_new(schema, "minimum", json_integer((json_int_t)row->min));
        if (row->type == OPTION_FLOAT) {
            json_object_set_new(schema, "minimum", json_real(row->min));
        }
        json_object_set_new(schema, "maximum", json_integer((json_int_t)row->max));
    }
    if (row->type == OPTION_LIST) {
        json_object_set_new(schema, "items", json_pack("{s:s}", "type", "string"));
    }
    if (row->choices) {
        json_t *values = json_array();
        for (const char *at = row->choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL) {
            json_array_append_new(values, json_stringn(at, strcspn(at, "|")));
        }
        json_array_append_new(values, json_null());
        json_object_set_new(schema, "enum", values);
    }
    return schema;
}

void options_print_schema(FILE *to) {
    json_t *properties = json_pack("{s:{s:s}}", "$schema", "type", "string");
    options defaults;
    options_init(&defaults);
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        char key[64];
        key_of(row, key, sizeof key);
        if (strcmp(key, "config") != 0) {
            json_t *schema = schema_of(row);
            json_object_set_new(schema, "default", value_of(&defaults, row));
            json_object_set_new(properties, key, schema);
        }
    }
    options_dispose(&defaults);
    print_json(json_pack("{s:s, s:s, s:s, s:b, s:o}", "$schema",
                         "https://json-schema.org/draft/2020-12/schema", "title",
                         "Options of ssmd, as --config reads them", "type", "object",
                         "additionalProperties", 0, "properties", properties),
               to);
}

void options_print_reference(FILE *to) {
    fprintf(to, "| option | type | default | what |\n|---|---|---|---|\n");
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        fprintf(to, "| `--%s` | %s | %s | %s", row->name, type_text[row->type],
                row->fallback ? row->fallback : "", row->help);
        if (row->choices) {
            fprintf(to, " (");
            for (const char *at = row->choices; *at; at++) {
                fprintf(to, *at == '|' ? ", " : "%c", *at);
            }
            fputc(')', to);
        }
        fprintf(to, " |\n");
    }
}
