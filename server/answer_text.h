// SPDX-License-Identifier: Apache-2.0
// What of an answer a chat's session must remember: the hash of the text shown, without the white
// space around it, and where in it each token ends. Fed as the answer comes, as a stream keeps no
// text that it has sent. Belongs to one thread.
#ifndef SSMD_ANSWER_TEXT_H
#define SSMD_ANSWER_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/tokenizer.h>

#include "chat_note.h"

typedef struct answer_token {
    uint64_t end; // bytes of text that were settled when it had come
    int32_t id;
} answer_token;

typedef struct answer_text {
    struct XXH3_state_s *hash; // of the core
    uint64_t lead, core;       // bytes
    ssm_text space;            // since the core's last character
    answer_token *tokens;
    size_t n, cap;
} answer_text;

int answer_text_init(answer_text *a); // 0 or SSM_ENOMEM; dispose in any case
void answer_text_dispose(answer_text *a);

int answer_text_show(answer_text *a, const char *text, size_t len); // more text was shown
int answer_text_token(answer_text *a, int32_t id, uint64_t end);    // a token came

// The answer's end: how many tokens the session is to keep, and the answer's part of the note.
typedef struct answer_end {
    bool is_cut;         // by a stop string: what lies behind the text shown goes
    bool has_stop_token; // the last token ended it
    const char *closing; // what the template writes behind an answer
} answer_end;
size_t answer_text_end(const answer_text *a, const answer_end *end, const ssm_tokenizer *tokenizer,
                       chat_note *note);

#endif
