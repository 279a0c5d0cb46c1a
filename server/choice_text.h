// SPDX-License-Identifier: Apache-2.0
// One choice on its way to text: tokens in, text that may be shown out, with stop strings, stop ids
// and log-probabilities. Belongs to one thread.
#ifndef SSMD_CHOICE_TEXT_H
#define SSMD_CHOICE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>
#include <ssm/text.h>
#include <ssm/tokenizer.h>

#include "answer_text.h"
#include "completion.h"
#include "logprobs.h"

enum choice_end { CHOICE_OPEN, CHOICE_STOP_STRING, CHOICE_STOP_ID, CHOICE_EOS, CHOICE_LENGTH };

typedef struct choice_text {
    const completion *request; // borrowed
    const served_model *model; // borrowed
    ssm_detokenizer *detokenizer;
    ssm_stopper *stopper;
    ssm_text scratch;
    ssm_text shown;    // text that may be shown
    size_t shown_sent; // bytes of it that a stream has sent
    size_t chars;      // characters settled so far, shown or held back
    size_t shown_chars;
    logprobs logprobs;
    size_t logprobs_sent;
    ssm_ids ids; // with return_token_ids
    size_t ids_sent;
    bool first_sent, ended_sent; // a stream has sent its first chunk; its last
    int64_t n_tokens;
    double sum_logprob;
    enum choice_end end;
    answer_text *answer; // of a chat's session, or NULL
    uint64_t settled;    // bytes of text so far, shown or held back
    size_t stop_string;  // CHOICE_STOP_STRING: its index
    int32_t stop_id;     // CHOICE_STOP_ID
} choice_text;

int choice_text_init(choice_text *c, const completion *request, const served_model *model,
                     ssm_error *err);
void choice_text_dispose(choice_text *c);

// The prompt, shown before anything else (echo).
int choice_text_echo(choice_text *c, const char *text, size_t len);

// A TOKEN event. 1: a stop string is complete, the choice should be cancelled; 0; or a code.
int choice_text_push(choice_text *c, const ssm_event *event, ssm_error *err);

// The FINISH event: what was held back is shown, unless the choice has ended by itself.
int choice_text_finish(choice_text *c, ssm_finish reason, int32_t token, ssm_error *err);

// Log-probabilities that go with the text shown so far: an end index into logprobs.tokens.
size_t choice_text_listed(const choice_text *c);

size_t choice_text_bytes(const choice_text *c); // of memory that grows with the answer

const char *choice_text_reason(const choice_text *c); // "stop", "length", NULL while open

#endif
