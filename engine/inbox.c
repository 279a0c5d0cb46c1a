// SPDX-License-Identifier: Apache-2.0
// What any thread may ask of an engine: a command in its inbox, which the engine thread takes whole
// at the beginning of a turn.
#include "engine.h"

#include <stdlib.h>
#include <string.h>

// Queues a command if it can; the engine's lock is held.
static void push_command(ssm_engine *engine, command *c) {
    *engine->inbox_last = c;
    engine->inbox_last = &c->next;
    pthread_cond_signal(&engine->wake);
}

static int refuse(const ssm_engine *engine, ssm_error *err) {
    if (engine->is_failed)
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has failed");
    if (engine->is_draining)
        return ssm_error_set(err, SSM_EDRAINING, NULL, "the engine is shutting down");
    // Slots that are free take requests out of the queue within a turn.
    if (engine->n_inbox_jobs + engine->n_waiting >=
        engine->options.max_queue + engine->n_free_slots)
        return ssm_error_set(err, SSM_EBUSY, NULL, "%d requests are waiting already, no more fit",
                             engine->n_inbox_jobs + engine->n_waiting);
    return 0;
}

int ssm_engine_submit(ssm_engine *engine, const ssm_request *request, uint64_t *id,
                      ssm_error *err) {
    int rc = request_check(request, &engine->info, err);
    if (rc != 0)
        return rc;
    job *j = job_create(request, engine->info.eos_ids, engine->info.n_eos);
    command *c = calloc(1, sizeof *c);
    if (!j || !c) {
        free(c);
        job_free(j);
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the request");
    }
    *c = (command){.kind = COMMAND_SUBMIT, .job = j};
    durable_owner(engine, request->session_owner, j->owner);
    pthread_mutex_lock(&engine->lock);
    if ((rc = refuse(engine, err)) == 0) {
        j->id = engine->next_id++;
        j->submitted_ns = engine_now_ns();
        if (id)
            *id = j->id;
        port_ref(j->port);
        if (!engine->has_work && !engine->inbox_first)
            engine->last_step_ns = j->submitted_ns;
        engine->n_inbox_jobs++;
        push_command(engine, c);
    }
    pthread_mutex_unlock(&engine->lock);
    if (rc != 0) {
        free(c);
        job_free(j);
    }
    return rc;
}

bool engine_send(ssm_engine *engine, const command *template) {
    command *c = malloc(sizeof *c);
    if (!c)
        return false; // a request then runs to its own end
    *c = *template;
    pthread_mutex_lock(&engine->lock);
    push_command(engine, c);
    pthread_mutex_unlock(&engine->lock);
    return true;
}

void ssm_engine_cancel(ssm_engine *engine, uint64_t id, int32_t index) {
    engine_send(engine, &(command){.kind = COMMAND_CANCEL, .id = id, .choice = index});
}

void ssm_engine_finish(ssm_engine *engine, uint64_t id, int32_t index, int64_t n_tokens) {
    engine_send(
        engine,
        &(command){.kind = COMMAND_FINISH, .id = id, .choice = index, .n_tokens = n_tokens});
}

int ssm_engine_keep(ssm_engine *engine, uint64_t id, int64_t n_tokens, const void *memo,
                    size_t n_memo) {
    uint8_t *copy = n_memo > 0 && n_memo <= SSM_SESSION_MEMO ? malloc(n_memo) : NULL;
    if (n_memo > SSM_SESSION_MEMO)
        return SSM_EINVAL;
    if (copy)
        memcpy(copy, memo, n_memo);
    const command c = {.kind = COMMAND_KEEP,
                       .id = id,
                       .n_tokens = n_tokens,
                       .memo = copy,
                       .n_memo = copy ? n_memo : 0};
    if ((n_memo > 0 && !copy) || !engine_send(engine, &c)) {
        free(copy);
        return SSM_ENOMEM;
    }
    return 0;
}

void ssm_engine_pause(ssm_engine *engine, uint64_t id, bool paused) {
    engine_send(engine, &(command){.kind = COMMAND_PAUSE, .id = id, .paused = paused});
}
