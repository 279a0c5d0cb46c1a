// SPDX-License-Identifier: Apache-2.0
// A chat's turn at a session: from the whole conversation to the tokens that are to run, and from
// the answer to what the session keeps. chat_note.h says how conversations are told apart.
//
// The session is looked at when the prompt is made, and may have moved on when the turn begins:
// another turn was under way, say. So the turn is pinned to the place where it was seen; the engine
// answers SSM_EMOVED, and the prompt is made again.
#ifndef SSMD_CHAT_TURN_H
#define SSMD_CHAT_TURN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/session.h>

#include "choice_text.h"
#include "completion.h"
#include "registry.h"

enum { CHAT_TURN_TRIES = 4 };

typedef struct chat_turn {
    uint64_t owner[2];
    ssm_session_point at; // where the prompt begins
    bool is_whole;        // the prompt is the whole conversation, to be compared by its tokens
    uint64_t prompt_bytes, prompt_hash[2];
    int tries;
} chat_turn;

// The ids to run of a rendered conversation. Asks the engine, which may take a step of the model:
// on the pool.
int chat_turn_encode(chat_turn *turn, const completion *request, const served_model *model,
                     ssm_ids *out, ssm_error *err);

// The answer is complete: how many of its tokens the session is to keep, and the note for the next
// turn.
size_t chat_turn_end(const chat_turn *turn, const choice_text *choice, uint8_t memo[],
                     size_t *n_memo);

// What a model's template writes behind an assistant's text, as far as it is the same every time:
// out holds CHAT_NOTE_PART bytes and a NUL.
void chat_turn_closing(const ssm_chat *chat, char *out);

#endif
