// SPDX-License-Identifier: Apache-2.0
// What a choice's next draw must know of its past: counts for penalties, the tail for bad words.
//
// Bounded by the vocabulary and the longest bad word, never by the length of the text. Engine
// thread only, after creation.
#ifndef SSM_ENGINE_HISTORY_H
#define SSM_ENGINE_HISTORY_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

typedef struct history history;

// The sampling is borrowed for the history's life; the prompt only during the call. NULL: no
// memory.
history *history_create(const ssm_sampling *sampling, const int32_t *prompt, size_t n_prompt);
void history_free(history *h);

// A generated token; 0 or SSM_ENOMEM.
int history_push(history *h, int32_t id);

// Every id that a penalty may touch, once each; borrowed until the next push.
const ssm_token_count *history_counts(const history *h, int32_t *n);

// Last ids of the bad words that the text so far is one token short of: written to out, which has
// room for the sampling's n_bad. Returns how many.
int32_t history_bans(const history *h, int32_t *out);

#endif
