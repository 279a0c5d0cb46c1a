// SPDX-License-Identifier: Apache-2.0
// Admission: who gets a free slot.
//
// Candidates are the jobs that wait for their first slot and the running jobs whose prompt has
// ended and that have choices without one. The order: priority, which improves by one every
// AGING_SECONDS of waiting so that nothing starves; then the client with the fewest slots in use;
// then first come, first served. The lists are short (max_queue) and are walked only when a slot is
// free.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>

#define AGING_SECONDS 5

void list_append(job_list *list, job *j) {
    j->next = NULL;
    j->prev = list->last;
    if (list->last)
        list->last->next = j;
    else
        list->first = j;
    list->last = j;
    list->n++;
}

job *list_find(const job_list *list, uint64_t id) {
    job *j = list->first;
    while (j && j->id != id)
        j = j->next;
    return j;
}

void list_remove(job_list *list, job *j) {
    if (j->prev)
        j->prev->next = j->next;
    else
        list->first = j->next;
    if (j->next)
        j->next->prev = j->prev;
    else
        list->last = j->prev;
    j->next = j->prev = NULL;
    list->n--;
}

static int64_t aged_priority(const job *j, uint64_t now) {
    return j->priority - (int64_t)((now - j->submitted_ns) / (AGING_SECONDS * 1000000000ull));
}

static bool is_before(const job *a, const job *b, uint64_t now) {
    const int64_t pa = aged_priority(a, now), pb = aged_priority(b, now);
    if (pa != pb)
        return pa < pb;
    if (a->client != b->client && a->client->slots != b->client->slots)
        return a->client->slots < b->client->slots;
    return a->id < b->id;
}

job *admission_best(ssm_engine *engine) {
    const uint64_t now = engine_now_ns();
    job *best = NULL;
    for (job *j = engine->waiting.first; j; j = j->next) {
        if (!j->is_paused && !j->leader && turn_is_due(engine, j) &&
            (!best || is_before(j, best, now)))
            best = j;
    }
    for (job *j = engine->running.first; j; j = j->next) {
        const bool waits = j->prefilled == j->n_prompt && !j->is_paused && job_pending_choice(j);
        if (waits && (!best || is_before(j, best, now)))
            best = j;
    }
    return best;
}

void admission_give_slot(ssm_engine *engine, choice *c, int32_t slot) {
    assert(c->slot == -1 && engine->active[slot] == NULL);
    c->slot = slot;
    engine->active[slot] = c;
    c->job->client->slots++;
}

// A prompt of no tokens has the zero state and the logits of a zero residual: zeros, as no head of
// the family has a bias.
static bool start_empty(ssm_engine *engine, job *j) {
    return (j->hit = cache_hold_zeros(&engine->cache)) != NULL;
}

static void start_job(ssm_engine *engine, job *j) {
    list_remove(&engine->waiting, j);
    list_append(&engine->running, j);
    j->is_running = true;
    j->started_ns = engine_now_ns();
    job_post(engine, j, &(ssm_event){.kind = SSM_EVENT_STARTED, .token = -1});
    if (j->session)
        turn_begin(engine, j);
    if (j->n_open == 0) // another conversation
        return;
    if (j->base + j->n_prompt == 0 && !start_empty(engine, j))
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for an empty state");
    else if (j->base == 0)
        reuse_begin(engine, j);
    if (j->session)
        turn_keep_hit(j);
}

int admission_run(ssm_engine *engine, ssm_error *err) {
    int rc = 0;
    reuse_release_followers(engine);
    while (rc == 0 && engine->slots.n_free > 0) {
        job *j = admission_best(engine);
        if (!j)
            break;
        if (!j->is_running) {
            if (durable_fetch(engine, j) || reuse_fetch(engine, j))
                continue;
            if (reuse_follow(engine, j))
                continue;
            start_job(engine, j);
        }
        choice *c = job_pending_choice(j);
        if (!c)
            continue; // it ended while it started
        admission_give_slot(engine, c, slots_take(&engine->slots));
        rc = reuse_enter(engine, c, err);
    }
    return rc;
}
