// SPDX-License-Identifier: Apache-2.0
// Launching a planned step and its draws, and waiting for them.
//
// Device calls go in this order: states saved since the last one; the step; states and logits
// restored from snapshots; copies of the states of prompts that have just ended to the slots
// of their other choices; the draws. None of them waits for the device. The end of a prompt whose
// choices do not all get slots now is held in the cache.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static int write_restores(ssm_engine *engine, flight *f, ssm_error *err) {
    for (int32_t i = 0; i < f->n_restores; i++) {
        const choice *c = f->restores[i];
        const job *j = c->job;
        assert(job_has_end(j));
        const int rc = cache_restore(&engine->cache, j->hit, c->slot, f->n_rows + i, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int hold_end(ssm_engine *engine, job *j, int32_t slot, int32_t row, ssm_error *err) {
    const int rc = cache_hold(&engine->cache, j->base + j->n_prompt, slot, row, &j->hit, err);
    if (rc == 0 && !j->hit)
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for a snapshot of the prompt");
    return rc;
}

// The prompt of choice `first` has just ended and left its logits in `row`: its siblings follow.
static int fork_siblings(ssm_engine *engine, flight *f, choice *first, int32_t row,
                         ssm_error *err) {
    job *j = first->job;
    while (job_pending_choice(j) && engine->slots.n_free > 0 && admission_best(engine) == j) {
        choice *c = job_pending_choice(j);
        admission_give_slot(engine, c, slots_take(&engine->slots));
        const int rc = engine->backend->slots_copy(engine->device, &first->slot, &c->slot, 1, err);
        if (rc != 0)
            return rc;
        c->state = CHOICE_DECODE;
        flight_add_draw(f, c, row);
    }
    if (!job_pending_choice(j) || reuse_hold_end(engine, j))
        return 0;
    return hold_end(engine, j, first->slot, row, err);
}

static int fork_prompts(ssm_engine *engine, flight *f, ssm_error *err) {
    int32_t row = 0;
    for (int32_t i = 0; i < f->n_segments; i++) {
        const ssm_segment *s = &f->segments[i];
        choice *c = f->segment_choices[i];
        row += s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
        const bool just_ended = c->state == CHOICE_DECODE && c->generated == 0 &&
                                c->job->prefilled == c->job->n_prompt &&
                                job_pending_choice(c->job) && !job_has_end(c->job);
        int rc = 0;
        if (just_ended && c->job->max_tokens > 0)
            rc = fork_siblings(engine, f, c, row - 1, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

// A snapshot is let go when no choice waits for it any more.
static void forget_snapshots(ssm_engine *engine, flight *f) {
    for (int32_t i = 0; i < f->n_restores; i++) {
        job *j = f->restores[i]->job;
        bool is_wanted = false;
        for (int32_t k = 0; k < j->n_choices; k++)
            is_wanted |=
                j->choices[k].state == CHOICE_PENDING || j->choices[k].state == CHOICE_RESTORE;
        if (!is_wanted)
            reuse_forget(engine, j);
    }
}

int step_launch(ssm_engine *engine, flight *f, ssm_error *err) {
    f->launched_ns = engine_now_ns();
    engine->n_launched = f->serial;
    const ssm_plan plan = {.tokens = f->tokens,
                           .n_tokens = f->n_tokens,
                           .segments = f->segments,
                           .n_segments = f->n_segments};
    int rc = cache_settle(&engine->cache, err); // the step changes what they are copied from
    if (rc == 0 && f->n_segments > 0)
        rc = engine->backend->step(engine->device, &plan, err);
    if (rc == 0)
        rc = reuse_save_checkpoints(engine, f, err);
    if (rc == 0)
        rc = write_restores(engine, f, err);
    if (rc == 0)
        rc = fork_prompts(engine, f, err);
    forget_snapshots(engine, f);
    flight_seal(f);
    if (rc == 0 && f->n_samples > 0)
        rc = engine->backend->sample(engine->device, f->samples, f->n_samples, err);
    return rc;
}

int step_collect(ssm_engine *engine, flight *f, ssm_error *err) {
    if (f->n_samples == 0)
        return 0;
    return engine->backend->collect(engine->device, f->sampled, f->n_samples, err);
}
