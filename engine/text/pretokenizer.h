// SPDX-License-Identifier: Apache-2.0
// The "pre_tokenizer" of a tokenizer.json: text to the words that the model sees.
#ifndef SSM_ENGINE_TEXT_PRETOKENIZER_H
#define SSM_ENGINE_TEXT_PRETOKENIZER_H

#include <stdbool.h>

#include <jansson.h>

#include "engine/text/pattern.h"

typedef struct pretokenizer pretokenizer; // immutable, shared by threads

// The words of one text: ranges of `text`, or of the caller's text where no step rewrote it.
typedef struct word {
    size_t start, len;
    bool is_first; // begins where the whole input begins
} word;

// What one call works with; zero-initialise, dispose when done, use again for the next text.
typedef struct words {
    const char *base; // what the ranges point into
    word *list, *spare;
    size_t n, cap, spare_n, spare_cap;
    ssm_text text, text_spare;
} words;

// Two letters, a letter each: how the byte-level families spell a byte. [byte] -> UTF-8, its width
// in the third element.
extern const unsigned char byte_letters[256][3];

// json: the file's value, NULL or null for none (*out is NULL then, which the others accept).
int pretokenizer_create(const json_t *json, pretokenizer **out, ssm_error *err);
void pretokenizer_free(pretokenizer *p);

// Splits s into w->list, which is replaced. The text must live as long as the words are read.
int pretokenizer_run(const pretokenizer *p, matcher *m, const char *s, size_t len, bool is_first,
                     words *w, ssm_error *err);
void words_dispose(words *w);

#endif
