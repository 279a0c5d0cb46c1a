// SPDX-License-Identifier: Apache-2.0
// Log-probabilities of a run of tokens, and their JSON. Zero-initialise; dispose when done.
#ifndef SSMD_LOGPROBS_H
#define SSMD_LOGPROBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>
#include <ssm/tokenizer.h>

#include "buf.h"

typedef struct logprob_top {
    int32_t id;
    float logprob;
} logprob_top;

typedef struct logprob_token {
    int32_t id;
    float logprob;      // NAN: none (a prompt's first token)
    size_t text_offset; // characters of the choice's text before it
    size_t top;         // index of its entries in tops
    int32_t n_top;
} logprob_token;

typedef struct logprobs {
    logprob_token *tokens;
    size_t n, cap;
    logprob_top *tops;
    size_t n_tops, cap_tops;
} logprobs;

int logprobs_add(logprobs *l, const ssm_event *event, size_t text_offset); // 0 or SSM_ENOMEM
size_t logprobs_bytes(const logprobs *l);
void logprobs_dispose(logprobs *l);

// A piece of a list.
typedef struct logprobs_span {
    const logprobs *list;
    size_t begin, end;
} logprobs_span;

// {"tokens":[...],"token_logprobs":[...],"top_logprobs":[...],"text_offset":[...]} of spans one
// after the other. as_ids: tokens are written token_id:N.
void logprobs_put(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, const logprobs_span *spans,
                  size_t n_spans);

// A chat's form: {"content":[{"token","logprob","bytes","top_logprobs":[...]}],"refusal":null}.
void logprobs_put_chat(buf *out, const ssm_tokenizer *tokenizer, bool as_ids,
                       const logprobs_span *span);

// One token as a JSON string: its text, or bytes:\xNN... if that is not valid UTF-8.
void logprobs_put_token(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, int32_t id);

#endif
