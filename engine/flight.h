// SPDX-License-Identifier: Apache-2.0
// A step on its way: the plan, what to draw from its logits, and for whom.
//
// Arrays are sized once, at the engine's creation, for the largest step; only the pool of banned
// ids grows. Rows of logits: those of the plan come first, in token order; then those that are
// written from the host (choices that continue from a snapshot, or start from an empty prompt).
#ifndef SSM_ENGINE_FLIGHT_H
#define SSM_ENGINE_FLIGHT_H

#include "job.h"
#include "kernels/backend.h"

typedef enum entry_kind {
    ENTRY_DRAW,       // a choice's next token
    ENTRY_SCORE,      // a prompt token's logprob
    ENTRY_PROMPT_END, // the prompt has run, nothing is to be drawn (max_tokens 0)
} entry_kind;

typedef struct entry {
    choice *choice;
    entry_kind kind;
    int32_t sample;   // index into samples, or -1
    int64_t position; // SCORE: of the token in the prompt
} entry;

// A state that is to be saved as soon as the step has made it.
typedef struct checkpoint_save {
    choice *choice;
    size_t position; // of the prompt
    int32_t row;     // of the logits, or -1
} checkpoint_save;

typedef struct flight {
    int32_t max_tokens, max_segments,
        max_samples; // capacities; entries: max_samples + max_segments
    int32_t *tokens;
    ssm_segment *segments;
    choice **segment_choices; // [n_segments]
    int32_t n_tokens, n_segments;
    int32_t n_rows; // of logits that the plan leaves
    ssm_sample *samples;
    ssm_sampled *sampled;
    size_t *ban_offsets; // [n_samples] into bans, while they are gathered
    int32_t n_samples;
    entry *entries;
    int32_t n_entries;
    int32_t *bans;
    size_t n_bans, cap_bans;
    choice **restores; // choices whose state and logits are written from the host before the draw
    int32_t n_restores;
    checkpoint_save *saves; // [n_segments] at most
    int32_t n_saves;
    int32_t n_prompt_tokens;
    uint64_t serial; // of the step, from 1
    uint64_t launched_ns;
} flight;

int flight_init(flight *f, int32_t max_tokens, int32_t max_segments, int32_t max_rows);
void flight_dispose(flight *f);
void flight_clear(flight *f);

// Adds a draw or a score; the choice's and its job's counts of what is in flight go up.
void flight_add_draw(flight *f, choice *c, int32_t row);
void flight_add_score(flight *f, choice *c, int32_t row, int64_t position, int32_t target);
void flight_add_prompt_end(flight *f, choice *c);

// Resolves the offsets of banned ids once all samples have been added.
void flight_seal(flight *f);

#endif
