// SPDX-License-Identifier: Apache-2.0
// The plan of a step: who goes forward, by how many tokens.
//
// Every decoding choice gets its one row in every step: a stream's pace never depends on its luck.
// What is left of the step's tokens goes to prompts. While streams are decoding that rest is
// bounded by time, MIXED_SECONDS at the measured pace, so that a prompt of any length delays the
// others' next token by a bounded amount; alone, prompts get all of it.
//
// Among prompts the shortest rest goes first, which minimises the mean time to first token, and the
// oldest prompt is sure of a quarter, so that none starves. Prompts are cut at multiples of GRANULE
// tokens from their beginnings: the cuts are the same in any company, and tiles of kernels line up
// with them.
//
// With a backend that runs ahead, a choice whose last token is still on the device is planned with
// SSM_TOKEN_SAMPLED, unless its next draw depends on that token's value on the host (penalties, bad
// words) or it has reached its limit. If the token turns out to end the choice, the extra row is
// wasted.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>

#define MIXED_SECONDS 0.05

typedef struct budget {
    int32_t tokens;     // left in this step
    int32_t score_rows; // rows of logits left for prompts' logprobs, beyond one a slot
} budget;

static void add_segment(flight *f, choice *c, int32_t count, bool fresh, ssm_want want) {
    assert(f->n_segments < f->max_segments);
    f->segment_choices[f->n_segments] = c;
    f->segments[f->n_segments++] = (ssm_segment){
        .slot = c->slot, .first = f->n_tokens, .count = count, .fresh = fresh, .want = want};
    f->n_tokens += count;
    f->n_rows += want == SSM_WANT_ALL ? count : want == SSM_WANT_LAST;
}

static void plan_decode(flight *f, choice *c, budget *b) {
    const job *j = c->job;
    if (c->in_flight && (c->history || c->generated + c->in_flight >= j->max_tokens))
        return;
    f->tokens[f->n_tokens] = c->in_flight ? SSM_TOKEN_SAMPLED : c->last_token;
    add_segment(f, c, 1, false, SSM_WANT_LAST);
    flight_add_draw(f, c, f->n_rows - 1);
    c->fed++;
    c->row = f->n_rows - 1;
    c->serial = f->serial;
    b->tokens--;
}

// Choices that continue from a snapshot draw their first token from its logits.
static void plan_restores(ssm_engine *engine, flight *f) {
    for (int32_t slot = 0; slot < engine->slots.total; slot++) {
        choice *c = engine->active[slot];
        if (!c || c->state != CHOICE_RESTORE || c->job->is_paused)
            continue;
        f->restores[f->n_restores++] = c;
        c->state = CHOICE_DECODE;
        if (c->job->max_tokens > 0)
            flight_add_draw(f, c, f->n_rows + f->n_restores - 1);
        else
            flight_add_prompt_end(f, c);
    }
}

// A prompt is cut at the granule unless it gets to where it is to stop.
static int32_t aligned_count(const ssm_engine *engine, const job *j, int32_t count, size_t stop) {
    if (engine->options.chunk_tokens > 0 || j->prefilled + (size_t)count == stop)
        return count;
    const int32_t over = (int32_t)((j->prefilled + (size_t)count) % GRANULE);
    return count > over ? count - over : 0;
}

static void plan_scores(flight *f, choice *c, int32_t count, int32_t first_row) {
    const job *j = c->job;
    for (int32_t i = 0; i < count; i++) {
        const size_t next = j->prefilled + (size_t)i + 1;
        if (next < j->n_prompt)
            flight_add_score(f, c, first_row + i, (int64_t)next, j->prompt[next]);
    }
}

// Adds up to `most` tokens of a prompt; returns how many.
static int32_t plan_prompt(ssm_engine *engine, flight *f, choice *c, int32_t most, budget *b) {
    job *j = c->job;
    const size_t stop = reuse_next_cut(j), rest = stop - j->prefilled;
    int32_t count = most < b->tokens ? most : b->tokens;
    if (engine->options.chunk_tokens > 0 && count > engine->options.chunk_tokens)
        count = engine->options.chunk_tokens;
    if (rest < (size_t)count)
        count = (int32_t)rest;
    const int32_t cut = aligned_count(engine, j, count, stop);
    if (cut > 0 || f->n_tokens > 0)
        count = cut; // an unaligned cut is only taken where nothing else would move
    if (j->prompt_logprobs && count > b->score_rows)
        count = b->score_rows;
    const bool is_last = j->prefilled + (size_t)count == j->n_prompt;
    if (count <= 0)
        return 0;
    const int32_t first_row = f->n_rows;
    for (int32_t i = 0; i < count; i++)
        f->tokens[f->n_tokens + i] = j->prompt[j->prefilled + (size_t)i];
    add_segment(f, c, count, j->base + j->prefilled == 0,
                j->prompt_logprobs ? SSM_WANT_ALL
                : is_last          ? SSM_WANT_LAST
                                   : SSM_WANT_NONE);
    b->tokens -= count;
    if (j->prompt_logprobs) {
        b->score_rows -= count;
        plan_scores(f, c, count, first_row);
    }
    j->prefilled += (size_t)count;
    if ((j->uses_cache && j->prefilled == stop) || (j->session && is_last))
        f->saves[f->n_saves++] = (checkpoint_save){c, stop, is_last ? f->n_rows - 1 : -1};
    f->n_prompt_tokens += count;
    if (is_last) {
        c->state = CHOICE_DECODE;
        if (j->max_tokens > 0)
            flight_add_draw(f, c, f->n_rows - 1);
        else
            flight_add_prompt_end(f, c);
    }
    return count;
}

static int by_rest(const void *a, const void *b) {
    const job *x = (*(choice *const *)a)->job, *y = (*(choice *const *)b)->job;
    const size_t rest_x = x->n_prompt - x->prefilled, rest_y = y->n_prompt - y->prefilled;
    if (rest_x != rest_y)
        return rest_x < rest_y ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t prompt_budget(const ssm_engine *engine, const budget *b, bool has_streams) {
    int32_t most = engine->options.step_tokens > 0 ? engine->options.step_tokens : b->tokens;
    if (has_streams && engine->seconds_per_token > 0) {
        const double fits = MIXED_SECONDS / engine->seconds_per_token;
        const int32_t bound = fits > GRANULE ? (fits < 1e9 ? (int32_t)fits : 1000000000) : GRANULE;
        most = most < bound ? most : bound;
    }
    return most < b->tokens ? most : b->tokens;
}

static void plan_prompts(ssm_engine *engine, flight *f, budget *b) {
    choice **sorted = engine->prompts;
    int32_t n = 0;
    choice *oldest = NULL;
    for (int32_t slot = 0; slot < engine->slots.total; slot++) {
        choice *c = engine->active[slot];
        if (!c || c->state != CHOICE_PREFILL || c->job->is_paused)
            continue;
        if (!oldest || c->job->id < oldest->job->id)
            oldest = c;
        sorted[n++] = c;
    }
    if (n == 0)
        return;
    int32_t left = prompt_budget(engine, b, f->n_segments > 0 || f->n_restores > 0);
    if (n > 1) {
        const int32_t quarter = left / 4 > GRANULE ? left / 4 : GRANULE;
        left -= plan_prompt(engine, f, oldest, quarter < left ? quarter : left, b);
    }
    qsort(sorted, (size_t)n, sizeof(choice *), by_rest);
    for (int32_t i = 0; i < n && left > 0; i++) {
        const bool is_planned = n > 1 && sorted[i] == oldest; // a slot comes once a plan
        if (!is_planned)
            left -= plan_prompt(engine, f, sorted[i], left, b);
    }
}

bool plan_build(ssm_engine *engine, flight *f) {
    flight_clear(f);
    f->serial = engine->n_launched + 1;
    budget b = {.tokens = f->max_tokens,
                .score_rows = engine->device_info.max_rows - engine->slots.total};
    for (int32_t slot = 0; slot < engine->slots.total; slot++) {
        choice *c = engine->active[slot];
        if (c && c->state == CHOICE_DECODE && !c->job->is_paused)
            plan_decode(f, c, &b);
    }
    plan_prompts(engine, f, &b);
    plan_restores(engine, f);
    return f->n_entries > 0 || f->n_tokens > 0;
}
