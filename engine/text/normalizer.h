// SPDX-License-Identifier: Apache-2.0
// The "normalizer" of a tokenizer.json: text to text, before anything is split.
#ifndef SSM_ENGINE_TEXT_NORMALIZER_H
#define SSM_ENGINE_TEXT_NORMALIZER_H

#include <stdbool.h>

#include <jansson.h>

#include "engine/text/pattern.h"

typedef struct normalizer normalizer; // immutable, shared by threads

// json: the file's value, NULL or null for none (*out is NULL then, which the others accept).
int normalizer_create(const json_t *json, normalizer **out, ssm_error *err);
void normalizer_free(normalizer *n);

// Puts the normal form of valid UTF-8 into *out, which is replaced. *kept_start: the first
// character of the result comes from the first of the input (a Metaspace with the scheme `first`
// asks). m may be NULL if there is no normalizer.
int normalizer_run(const normalizer *n, matcher *m, const char *s, size_t len, ssm_text *out,
                   bool *kept_start, ssm_error *err);

#endif
