// SPDX-License-Identifier: Apache-2.0
// The "added_tokens" of a tokenizer.json: strings found in the text before the model sees it.
#ifndef SSM_ENGINE_TEXT_ADDED_H
#define SSM_ENGINE_TEXT_ADDED_H

#include <jansson.h>

#include "engine/text/aho.h"
#include "engine/text/normalizer.h"
#include "engine/text/vocab.h"

typedef struct added_token {
    int32_t id;
    bool single_word, left_strip, right_strip, normalized, special;
} added_token;

typedef struct added {
    vocab table; // contents and ids of all of them
    added_token *tokens;
    size_t n;
    aho plain;      // found in the text as it came; the values are indices of tokens
    aho normalized; // found, in normal form, in the normalised text
} added;

// json: the array, or NULL. model: the model's vocabulary, which gives the ids of tokens it knows.
int added_init(added *a, const json_t *json, const vocab *model, const normalizer *n,
               ssm_error *err);
void added_dispose(added *a);

// A part of a text: an added token, or text between them (id -1).
typedef struct span {
    size_t start, len;
    int32_t id;
} span;
typedef struct spans {
    span *list;
    size_t n, cap;
} spans;
void spans_dispose(spans *s);

// Splits s[0..len) at the tokens of one automaton into *out, which is replaced.
int added_split(const added *a, const aho *tokens, const char *s, size_t len, spans *out);

#endif
