// SPDX-License-Identifier: Apache-2.0
// The "decoder" of a tokenizer.json: tokens back to text, as they come.
#ifndef SSM_ENGINE_TEXT_DECODER_H
#define SSM_ENGINE_TEXT_DECODER_H

#include <jansson.h>

#include <ssm/tokenizer.h>

#include "engine/text/vocab.h"

typedef struct decoder decoder;               // immutable, shared by threads
typedef struct decoder_stream decoder_stream; // one stream of tokens, one thread

// json: the file's value; NULL or null joins tokens with spaces.
int decoder_create(const json_t *json, decoder **out, ssm_error *err);
void decoder_free(decoder *d);

int decoder_stream_create(const decoder *d, decoder_stream **out);
void decoder_stream_free(decoder_stream *s);

// One token as the vocabulary spells it; appends to *out what is settled by it.
int decoder_push(decoder_stream *s, const char *token, size_t len, ssm_text *out);
int decoder_finish(decoder_stream *s, ssm_text *out); // the end: appends the rest

// The bytes that a token stands for by itself, in mid-text; appended to *out.
int decoder_bytes(const decoder *d, const char *token, size_t len, ssm_text *out);

#endif
