// SPDX-License-Identifier: Apache-2.0
// Turns: jobs that go on from a session and leave their end there.
//
// A turn owns its session from the moment it starts to its end; other jobs of the session wait in
// the queue meanwhile, holding no slot. It runs the session's pending tokens and the new ones as
// one prompt that begins at the session's state, `base` tokens in, so that nothing else of the
// engine knows the difference. A first turn is an ordinary request: it may begin from the prefix
// tree, and saves there.
//
// What a finished turn leaves. The slot's state covers the tokens fed; those drawn and not fed are
// pending. An engine that runs ahead has fed the last token too: then the logits behind it are read
// from the last step, so that the next turn can begin whatever it brings. If the consumer cut the
// answer short (ssm_engine_finish) at less than was fed, the state is of no use, as no recurrence
// can be run backwards: the one kept at the prompt's end is taken, and the tokens wanted are
// pending behind it. A turn that is cancelled or fails leaves the session as it was: nothing of it
// is touched before.
//
// Who has the last word. A consumer that cuts answers (stop strings) may find the place to cut when
// the choice has ended by itself already, so that what a session kept would depend on who was
// faster. With session_hold an ended choice is HELD: its slot is free, its state is kept twice, at
// the prompt's end and at its own, and the session stays the turn's until the consumer says how
// many tokens count, and what note goes with them.
#include "engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void turn_submit(ssm_engine *engine, job *j) {
    ssm_error err;
    j->session = sessions_ref(&engine->sessions, j->owner, j->session_name);
    if (!j->session)
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for the session");
    else if (j->session->n_jobs++ > 0 && j->waits_not)
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ESESSIONBUSY,
                "another request is at this session");
    else if (quota_check(engine, j->session, &err) != 0)
        job_end(engine, j, SSM_FINISH_ERROR, SSM_EQUOTA, err.message);
}

bool turn_is_due(const ssm_engine *engine, const job *j) {
    return !j->is_fetching && (!j->session || (!j->session->holder && !durable_is_behind(engine)));
}

static void refuse(ssm_engine *engine, job *j) {
    char message[128];
    snprintf(message, sizeof message,
             "the conversation does not begin with the %llu tokens of session %.40s",
             (unsigned long long)j->session->text.n_tokens, j->session_name);
    job_end(engine, j, SSM_FINISH_ERROR, SSM_EMISMATCH, message);
}

static bool is_at(const session *s, const ssm_session_point *at) {
    const ssm_session_point here =
        session_is_alive(s) ? session_point(&s->text) : (ssm_session_point){0};
    return here.tokens == at->tokens &&
           (here.tokens == 0 || memcmp(here.chain, at->chain, sizeof here.chain) == 0);
}

// The pending tokens and the new ones in one array.
static bool join_prompt(job *j, size_t skip) {
    const session_text *text = &j->session->text;
    const size_t n_new = j->n_prompt - skip, n = text->n_pending + n_new;
    int32_t *prompt = malloc((n + 1) * sizeof *prompt);
    if (!prompt)
        return false;
    if (text->n_pending > 0)
        memcpy(prompt, text->pending, text->n_pending * sizeof *prompt);
    if (n_new > 0)
        memcpy(prompt + text->n_pending, j->prompt + skip, n_new * sizeof *prompt);
    free(j->prompt);
    j->prompt = prompt;
    j->n_prompt = n;
    j->n_old = text->n_pending;
    return true;
}

void turn_begin(ssm_engine *engine, job *j) {
    session *s = j->session;
    assert(!s->holder && !session_is_away(s) && j->n_choices == 1);
    s->holder = j;
    j->keeps_tokens = true;
    if (j->is_pinned && !is_at(s, &j->at)) {
        job_end(engine, j, SSM_FINISH_ERROR, SSM_EMOVED, "the session has changed meanwhile");
        return;
    }
    if (!s->state)
        return;
    const size_t n = (size_t)s->text.n_tokens;
    const bool is_other =
        j->is_whole &&
        (j->n_prompt < n || !chain_is(chain_add(chain_begin(), j->prompt, n), s->text.chain));
    if (is_other) {
        refuse(engine, j);
        return;
    }
    const int32_t bos = engine->info.bos_id; // it begins texts, not turns
    const bool has_bos =
        !j->is_whole && !j->is_pinned && bos >= 0 && j->n_prompt > 0 && j->prompt[0] == bos;
    if (!join_prompt(j, j->is_whole ? n : has_bos)) {
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for the session's prompt");
        return;
    }
    j->uses_cache = false; // its tokens before `base` are not known
    j->base = j->cached = (size_t)s->state->position;
    j->hit = s->state;
    cache_pin(&engine->cache, j->hit);
    engine->cache.counts.cached_tokens += j->base;
}

int turn_keep(ssm_engine *engine, choice *c, int32_t row, ssm_error *err) {
    job *j = c->job;
    assert(!j->kept && j->prefilled == j->n_prompt);
    const bool may_end_here = j->max_tokens == 0 || j->holds; // then the next turn wants logits
    return cache_keep(&engine->cache, j->base + j->n_prompt, c->slot, may_end_here ? row : -1,
                      &j->kept, err);
}

void turn_keep_hit(job *j) {
    if (!j->hit || !job_has_end(j) || j->hit->position == 0)
        return;
    j->kept = j->hit;
    j->kept->keeps++;
}

// The state in a choice's slot, with logits if they are at hand and wanted; NULL: no memory, or the
// device has failed, as the next step will say.
static snapshot *keep_slot(ssm_engine *engine, choice *c, bool with_logits) {
    const job *j = c->job;
    const bool has_logits = c->fed > 0 && c->serial == engine->n_launched;
    const uint64_t position = j->base + j->n_prompt + (uint64_t)c->fed;
    snapshot *state = NULL;
    if (cache_keep(&engine->cache, position, c->slot, with_logits && has_logits ? c->row : -1,
                   &state, NULL) != 0)
        return NULL;
    return state;
}

// The state to leave and how many of the answer's first tokens it covers; NULL: there is none.
static snapshot *take_state(ssm_engine *engine, choice *c, int64_t keep, int64_t *covered) {
    job *j = c->job;
    snapshot *state = j->last;
    j->last = NULL;
    if (c->fed <= keep && c->slot >= 0)
        state = keep_slot(engine, c, c->fed == keep);
    *covered = c->fed;
    if (state && (c->fed < keep || (c->fed == keep && state->has_logits)))
        return state;
    if (state)
        cache_release(&engine->cache, state);
    *covered = 0;
    state = j->kept;
    if (!state || (keep == 0 && !state->has_logits))
        return NULL;
    j->kept = NULL;
    return state;
}

static void commit(ssm_engine *engine, choice *c) {
    job *j = c->job;
    session *s = j->session;
    const int64_t keep = c->cut >= 0 ? c->cut : c->generated;
    int64_t covered = 0;
    snapshot *state = j->keeps_tokens ? take_state(engine, c, keep, &covered) : NULL;
    const size_t n_pending = state ? (size_t)(keep - covered) : 0;
    int32_t *pending = malloc((n_pending + 1) * sizeof *pending);
    if (!state || !pending) {
        if (state)
            cache_release(&engine->cache, state);
        free(pending);
        j->error = j->error ? j->error : SSM_ENOMEM;
        snprintf(j->message, sizeof j->message, "no memory to keep the session's state");
        return;
    }
    session_text text = s->text;
    memcpy(text.memo, j->memo, j->n_memo);
    text.n_memo = j->n_memo;
    if (n_pending > 0)
        memcpy(pending, c->tokens + covered, n_pending * sizeof *pending);
    text.pending = pending;
    text.n_pending = n_pending;
    session_text_add(&text, j->prompt + j->n_old, j->n_prompt - j->n_old);
    session_text_add(&text, c->tokens, (size_t)keep);
    engine->sessions.n_alive += !session_is_alive(s) && s->is_listed;
    session_set(s, &engine->cache, state, &text);
    durable_turn(engine, j);
}

// Whether a choice that ends so changes its session.
static bool is_turn(const ssm_engine *engine, const choice *c, ssm_finish reason) {
    const job *j = c->job;
    const bool is_finished = reason == SSM_FINISH_STOP || reason == SSM_FINISH_LENGTH;
    const bool has_run = c->state == CHOICE_DECODE || c->state == CHOICE_HELD;
    const bool is_empty = j->base + j->n_prompt + (size_t)c->generated == 0;
    return is_finished && has_run && j->error == 0 && !engine->is_failed &&
           j->session->holder == j && j->session->is_listed && !is_empty;
}

bool turn_hold(ssm_engine *engine, choice *c, ssm_finish reason) {
    job *j = c->job;
    if (!j->holds || c->cut >= 0 || !is_turn(engine, c, reason))
        return false;
    if (c->fed > 0 && c->fed <= c->generated) // else the prompt's end is all there is
        j->last = keep_slot(engine, c, true);
    return true;
}

void turn_end(ssm_engine *engine, choice *c, ssm_finish reason) {
    if (is_turn(engine, c, reason))
        commit(engine, c);
}

void turn_leave(ssm_engine *engine, job *j) {
    if (j->kept)
        cache_release(&engine->cache, j->kept);
    if (j->last)
        cache_release(&engine->cache, j->last);
    j->kept = j->last = NULL;
    if (!j->session)
        return;
    if (j->session->holder == j)
        j->session->holder = NULL;
    j->session->n_jobs--;
    if (engine->is_shared)
        shared_leave(engine, j->session);
    sessions_unref(&engine->sessions, &engine->cache, j->session);
    j->session = NULL;
}
