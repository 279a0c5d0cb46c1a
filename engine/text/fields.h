// SPDX-License-Identifier: Apache-2.0
// Strict reading of one JSON object of a tokenizer.json: every getter checks the type, and every
// key of the object must have been asked for by the time fields_done is called, so that nothing
// that a file asks for is ignored.
#ifndef SSM_ENGINE_TEXT_FIELDS_H
#define SSM_ENGINE_TEXT_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <ssm/error.h>
#include <ssm/text.h>

enum { FIELDS_MAX = 16 };

typedef struct fields {
    const json_t *object;
    const char *where; // the component's name in messages ("pre_tokenizer")
    const char *type;  // its "type", "" if it has none
    const char *seen[FIELDS_MAX];
    size_t n_seen;
    int code; // the first error; getters do nothing from then on
    ssm_error *err;
} fields;

// json must be an object; typed: it must have a string "type".
fields fields_open(const json_t *json, const char *where, bool typed, ssm_error *err);
int fields_fail(fields *f, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int fields_unsupported(fields *f); // SSM_EUNSUPPORTED that names where and type
int fields_done(fields *f);        // f->code, or SSM_EUNSUPPORTED if a key was never asked for

// NULL or `absent` if the key is missing or null (required: an error).
const json_t *fields_any(fields *f, const char *key);
bool fields_bool(fields *f, const char *key, bool absent);
ssm_string fields_string(fields *f, const char *key, bool required); // .data NULL if absent
const json_t *fields_array(fields *f, const char *key, bool required);
const json_t *fields_object(fields *f, const char *key, bool required);
size_t fields_size(fields *f, const char *key, size_t max); // required, 0..max
int32_t fields_char(fields *f, const char *key);            // required, one character

static inline ssm_string json_text(const json_t *json) {
    return (ssm_string){json_string_value(json), json_string_length(json)};
}

#endif
