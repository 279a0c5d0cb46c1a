// SPDX-License-Identifier: Apache-2.0
#include "flight.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"

int flight_init(flight *f, int32_t max_tokens, int32_t max_segments, int32_t max_rows) {
    // One step draws at most once a choice and once more for every row of logits.
    const size_t n_samples = (size_t)max_rows + (size_t)max_segments;
    *f = (flight){
        .max_tokens = max_tokens, .max_segments = max_segments, .max_samples = (int32_t)n_samples};
    f->tokens = malloc((size_t)max_tokens * sizeof *f->tokens);
    f->segments = malloc((size_t)max_segments * sizeof *f->segments);
    f->segment_choices = malloc((size_t)max_segments * sizeof(choice *));
    f->restores = malloc((size_t)max_segments * sizeof(choice *));
    f->saves = malloc((size_t)max_segments * sizeof *f->saves);
    f->samples = malloc(n_samples * sizeof *f->samples);
    f->sampled = malloc(n_samples * sizeof *f->sampled);
    f->ban_offsets = malloc(n_samples * sizeof *f->ban_offsets);
    f->entries = malloc((n_samples + (size_t)max_segments) * sizeof *f->entries);
    if (f->tokens && f->segments && f->segment_choices && f->restores && f->saves && f->samples &&
        f->sampled && f->ban_offsets && f->entries)
        return 0;
    flight_dispose(f);
    return SSM_ENOMEM;
}

void flight_dispose(flight *f) {
    free(f->tokens);
    free(f->segments);
    free(f->segment_choices);
    free(f->restores);
    free(f->saves);
    free(f->samples);
    free(f->sampled);
    free(f->ban_offsets);
    free(f->entries);
    free(f->bans);
    *f = (flight){0};
}

void flight_clear(flight *f) {
    f->n_tokens = f->n_segments = f->n_rows = 0;
    f->n_samples = f->n_entries = f->n_restores = f->n_saves = 0;
    f->n_prompt_tokens = 0;
    f->n_bans = 0;
}

static bool reserve_bans(flight *f, size_t n) {
    if (f->n_bans + n <= f->cap_bans)
        return true;
    size_t cap = f->cap_bans ? 2 * f->cap_bans : 256;
    while (cap < f->n_bans + n)
        cap *= 2;
    int32_t *bans = realloc(f->bans, cap * sizeof *bans);
    if (!bans)
        return false;
    f->bans = bans;
    f->cap_bans = cap;
    return true;
}

// Ids that the choice's next token must not be. If memory is short it goes unbanned: better than
// losing the request, and counted nowhere because malloc of some bytes fails on no system that
// lives.
static void add_bans(flight *f, ssm_sample *s, const choice *c) {
    const job *j = c->job;
    const bool is_early = c->generated + c->in_flight < j->min_tokens;
    const size_t n_stops = is_early ? (size_t)j->n_stops : 0;
    if (!reserve_bans(f, n_stops + (size_t)j->sampling.n_bad))
        return;
    if (n_stops)
        memcpy(f->bans + f->n_bans, j->stops, n_stops * sizeof *f->bans);
    s->n_banned = (int32_t)n_stops;
    if (c->history)
        s->n_banned += history_bans(c->history, f->bans + f->n_bans + n_stops);
    f->n_bans += (size_t)s->n_banned;
}

static ssm_sample *add_sample(flight *f, int32_t row, const job *j) {
    assert(f->n_samples < f->max_samples);
    f->ban_offsets[f->n_samples] = f->n_bans;
    ssm_sample *s = &f->samples[f->n_samples++];
    *s = (ssm_sample){.row = row, .slot = -1, .target = -1, .n_top = j->logprobs};
    s->params = &j->sampling;
    return s;
}

static void add_entry(flight *f, choice *c, entry_kind kind, int32_t sample, int64_t position) {
    f->entries[f->n_entries++] =
        (entry){.choice = c, .kind = kind, .sample = sample, .position = position};
    c->job->refs++;
}

void flight_add_draw(flight *f, choice *c, int32_t row) {
    const job *j = c->job;
    ssm_sample *s = add_sample(f, row, j);
    s->slot = c->slot;
    s->seed = j->seed + (uint64_t)c->index;
    s->position = (uint64_t)(c->generated + c->in_flight);
    add_bans(f, s, c);
    if (c->history)
        s->counts = history_counts(c->history, &s->n_counts);
    c->in_flight++;
    add_entry(f, c, ENTRY_DRAW, f->n_samples - 1, 0);
}

void flight_add_score(flight *f, choice *c, int32_t row, int64_t position, int32_t target) {
    ssm_sample *s = add_sample(f, row, c->job);
    s->target = target;
    s->n_top = c->job->logprobs < 0 ? 0 : c->job->logprobs;
    add_entry(f, c, ENTRY_SCORE, f->n_samples - 1, position);
}

void flight_add_prompt_end(flight *f, choice *c) {
    add_entry(f, c, ENTRY_PROMPT_END, -1, 0);
}

void flight_seal(flight *f) {
    for (int32_t i = 0; i < f->n_samples; i++) {
        if (f->samples[i].n_banned)
            f->samples[i].banned = f->bans + f->ban_offsets[i];
    }
}
