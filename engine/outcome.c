// SPDX-License-Identifier: Apache-2.0
// What a collected step means to its choices: tokens, scores, ends.
#include "engine.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"

void job_post(ssm_engine *engine, job *j, const ssm_event *event) {
    ssm_event e = *event;
    e.user = j->user;
    e.request = j->id;
    if (!port_post(j->port, &e) && j->error == 0) {
        j->error = SSM_ENOMEM; // an answer with a hole is no answer: the next turn ends the job
        snprintf(j->message, sizeof j->message, "no memory for an event");
    }
}

static void poison(ssm_engine *engine, int32_t slot) {
    for (size_t i = 0; i < engine->state_floats; i++)
        engine->scratch[i] = NAN;
    (void)cache_settle(&engine->cache, NULL); // it may have been saved; the next step tells
    engine->backend->slot_write(engine->device, slot, engine->scratch, NULL);
}

static void release_slot(ssm_engine *engine, choice *c) {
    if (c->slot < 0)
        return;
    assert(engine->active[c->slot] == c);
    if (engine->options.poison_slots)
        poison(engine, c->slot);
    engine->active[c->slot] = NULL;
    slots_give(&engine->slots, c->slot);
    c->job->client->slots--;
    c->slot = -1;
}

// The prompt's runner leaves before its siblings have begun: the next of them takes over its slot.
static bool hand_over_prompt(ssm_engine *engine, choice *c) {
    choice *heir = job_pending_choice(c->job);
    if (c->state != CHOICE_PREFILL || !heir || c->job->error != 0)
        return false;
    heir->slot = c->slot;
    heir->state = CHOICE_PREFILL;
    engine->active[c->slot] = heir;
    c->slot = -1;
    return true;
}

void choice_end(ssm_engine *engine, choice *c, ssm_finish reason, int32_t stop_id) {
    job *j = c->job;
    if (c->state == CHOICE_ENDED)
        return;
    const bool was_held = c->state == CHOICE_HELD;
    const bool is_held = !was_held && j->session && turn_hold(engine, c, reason);
    if (j->session && !is_held)
        turn_end(engine, c, reason);
    else if (!j->session && reason != SSM_FINISH_ERROR)
        reuse_save_answer(engine, c);
    if (!hand_over_prompt(engine, c))
        release_slot(engine, c);
    c->state = is_held ? CHOICE_HELD : CHOICE_ENDED;
    assert(j->n_open > 0);
    if (!was_held)
        job_post(
            engine, j,
            &(ssm_event){
                .kind = SSM_EVENT_FINISH, .choice = c->index, .token = stop_id, .finish = reason});
    if (is_held || --j->n_open > 0)
        return;
    reuse_forget(engine, j);
    turn_leave(engine, j);
    list_remove(j->is_running ? &engine->running : &engine->waiting, j);
    list_append(&engine->ended, j);
}

void job_end(ssm_engine *engine, job *j, ssm_finish reason, int code, const char *message) {
    if (j->error == 0 && code != 0) {
        j->error = code;
        snprintf(j->message, sizeof j->message, "%s", message ? message : ssm_error_text(code));
    }
    for (int32_t i = j->n_choices - 1; i >= 0; i--) // the prompt's runner last: no heirs
        choice_end(engine, &j->choices[i], reason, -1);
}

static void on_token(ssm_engine *engine, choice *c, const ssm_sampled *s) {
    job *j = c->job;
    if (s->token < 0) {
        job_end(engine, j, SSM_FINISH_ERROR, SSM_EINTERNAL,
                "no token could be drawn: the logits are not finite or every token is banned");
        return;
    }
    if (j->keeps_tokens && !choice_remember(c, s->token))
        j->uses_cache = j->keeps_tokens = false;
    const int64_t position = c->generated++;
    c->last_token = s->token;
    j->completion_tokens++;
    if (j->first_token_ns == 0)
        j->first_token_ns = engine_now_ns();
    if (c->history && history_push(c->history, s->token) != 0) {
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for penalties");
        return;
    }
    job_post(engine, j,
             &(ssm_event){.kind = SSM_EVENT_TOKEN,
                          .choice = c->index,
                          .token = s->token,
                          .position = position,
                          .logprob = j->logprobs < 0 ? NAN : s->logprob,
                          .n_top = j->logprobs < 0 ? 0 : s->n_top,
                          .top_ids = s->top_ids,
                          .top_logprobs = s->top_logprobs});
    if (c->generated > j->min_tokens && job_is_stop(j, s->token))
        choice_end(engine, c, SSM_FINISH_STOP, s->token);
    else if (c->generated >= j->max_tokens)
        choice_end(engine, c, SSM_FINISH_LENGTH, -1);
}

static void on_score(ssm_engine *engine, job *j, int64_t position, const ssm_sampled *s) {
    if (position == 1) // nothing predicts the prompt's first token
        job_post(engine, j,
                 &(ssm_event){.kind = SSM_EVENT_PROMPT, .token = j->prompt[0], .logprob = NAN});
    job_post(engine, j,
             &(ssm_event){.kind = SSM_EVENT_PROMPT,
                          .token = j->prompt[position],
                          .position = position,
                          .logprob = s->logprob,
                          .n_top = s->n_top,
                          .top_ids = s->top_ids,
                          .top_logprobs = s->top_logprobs});
}

static void on_prompt_end(ssm_engine *engine, job *j) {
    if (j->n_open == 0)
        return;
    job_end(engine, j, SSM_FINISH_LENGTH, 0, NULL);
}

void outcome_sampled(ssm_engine *engine, flight *f) {
    for (int32_t i = 0; i < f->n_entries; i++) {
        const entry *e = &f->entries[i];
        choice *c = e->choice;
        job *j = c->job;
        j->refs--;
        if (e->kind == ENTRY_DRAW)
            c->in_flight--;
        if (c->state == CHOICE_ENDED || c->state == CHOICE_HELD)
            continue; // it was cancelled, or its last token ended it, while this step was under way
        // A one-token prompt has no score to bring its first token's event with it.
        const bool is_bare = j->prompt_logprobs && j->n_prompt == 1 && c->generated == 0 &&
                             j->completion_tokens == 0 && e->kind != ENTRY_SCORE;
        if (is_bare)
            job_post(engine, j,
                     &(ssm_event){.kind = SSM_EVENT_PROMPT, .token = j->prompt[0], .logprob = NAN});
        if (e->kind == ENTRY_DRAW)
            on_token(engine, c, &f->sampled[e->sample]);
        else if (e->kind == ENTRY_SCORE)
            on_score(engine, j, e->position, &f->sampled[e->sample]);
        else
            on_prompt_end(engine, j);
    }
}

static bool post_done(ssm_engine *engine, job *j) {
    const uint64_t now = engine_now_ns();
    const uint64_t started = j->started_ns ? j->started_ns : now;
    const uint64_t first = j->first_token_ns ? j->first_token_ns : now;
    const ssm_usage usage = {.prompt_tokens = j->base + j->n_prompt,
                             .cached_tokens = j->cached,
                             .completion_tokens = j->completion_tokens,
                             .queue_ns = started - j->submitted_ns,
                             .prefill_ns = first - started,
                             .decode_ns = now - first};
    return port_post(j->port, &(ssm_event){.user = j->user,
                                           .request = j->id,
                                           .kind = SSM_EVENT_DONE,
                                           .token = -1,
                                           .usage = &usage,
                                           .error = j->error,
                                           .message = j->error ? j->message : NULL});
}

void jobs_sweep(ssm_engine *engine) {
    job *next;
    for (job *j = engine->ended.first; j; j = next) {
        next = j->next;
        if (!j->is_done && j->n_stores == 0 && post_done(engine, j))
            j->is_done = true;
        if (!j->is_done || j->refs > 0)
            continue;
        list_remove(&engine->ended, j);
        port_unref(j->port);
        if (j->client)
            clients_unref(&engine->clients, j->client);
        job_free(j);
    }
}
