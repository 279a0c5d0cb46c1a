// SPDX-License-Identifier: Apache-2.0
// Durability: what is in the store comes into memory when it is wanted, and goes out of it when
// others want the room.
//
// The start takes in names alone. A session's state is read when a request or a call wants it: the
// job stays in the queue, without a slot, the call waits, the engine goes on. And a session that is
// stored and not at work lets go of its state when the cache wants the room: what sessions take in
// memory is what the cache may have, however many there are.
#include "engine.h"

#include <assert.h>

#include "state/store.h"

void durable_wake(ssm_engine *engine, session *s, int rc, const char *message) {
    job *next;
    for (job *j = engine->waiting.first; j; j = next) {
        next = j->next;
        if (j->session != s || !j->is_fetching || j->awaited_state)
            continue;
        j->is_fetching = false;
        if (rc != 0 && (rc != SSM_ESESSIONBUSY || j->waits_not))
            job_end(engine, j, SSM_FINISH_ERROR, rc, message);
    }
}

// Those who wait for the session's state look again, or are told why not.
static void wake(ssm_engine *engine, session *s, int rc) {
    static const char message[] = "the session could not be read";
    durable_wake(engine, s, rc, message);
    while (s->calls) {
        session_call *call = session_next_call(s);
        if (rc != 0)
            session_fail(engine, call, rc, message);
        else
            session_answer(engine, call);
    }
}

void durable_load(ssm_engine *engine, session *s) {
    assert(session_is_away(s));
    if (s->is_loading)
        return;
    store_request *r = durable_request(engine, s, STORE_GET);
    if (!r) {
        wake(engine, s, SSM_ENOMEM);
        return;
    }
    s->is_loading = true;
    durable_send(engine, s, r);
}

bool durable_fetch(ssm_engine *engine, job *j) {
    if (j->session && engine->is_shared)
        return shared_fetch(engine, j);
    if (!j->session || !session_is_away(j->session))
        return false;
    j->is_fetching = true;
    durable_load(engine, j->session);
    return true;
}

snapshot *durable_adopt(ssm_engine *engine, snapshot_image *image) {
    const uint64_t position = image->text.n_tokens - image->text.n_pending;
    snapshot *state = cache_adopt(&engine->cache, position, image->state, image->logits);
    if (state)
        image->state = image->logits = NULL;
    return state;
}

void durable_count_load(ssm_engine *engine, const store_request *r) {
    engine->session_counts.loads++;
    histogram_add(&engine->session_counts.load_seconds, ssm_step_seconds_bounds,
                  (double)(engine_now_ns() - r->began_ns) * 1e-9);
}

static int take_in(ssm_engine *engine, session *s, snapshot_image *image) {
    snapshot *state = durable_adopt(engine, image);
    if (!state)
        return SSM_ENOMEM;
    session_load(s, state, &image->text);
    return 0;
}

void durable_got(ssm_engine *engine, session *s, store_request *r) {
    s->is_loading = false;
    if (r->rc == 0 && !s->state && s->stored == r->version)
        r->rc = take_in(engine, s, &r->image);
    if (r->rc == 0)
        durable_count_load(engine, r);
    const bool is_gone = r->rc == SSM_EINVAL || r->rc == SSM_ENOTFOUND;
    if (is_gone && s->is_listed && !s->state) {
        engine->session_counts.set_aside += r->rc == SSM_EINVAL;
        s->stored = 0;
        engine->sessions.n_alive--;
        sessions_delete(&engine->sessions, &engine->cache, s);
    }
    wake(engine, s, s->state ? 0 : r->rc == SSM_EINVAL ? SSM_EIO : r->rc);
}

// ---- room

static bool can_go(ssm_engine *engine, session *s) {
    if (s->n_jobs > 0 || s->holder || s->is_writing || s->is_loading || s->is_claiming || s->calls)
        return false;
    if (s->stored == s->version)
        return true;
    if (engine->has_unwritten) // it is tried when it is time
        return false;
    if (engine->options.durability != SSM_DURABILITY_NONE || durable_is_full(engine))
        durable_push(engine, s); // it may go when it is written
    durable_write_some(engine);
    return false;
}

bool durable_let_go(void *ctx, snapshot *state) {
    ssm_engine *engine = ctx;
    int32_t n = 0;
    if (!engine->store)
        return false;
    for (session *s = state->sessions; s; s = s->next_alike, n++) {
        if (!can_go(engine, s))
            return false;
    }
    if (n != state->keeps) // a job has it
        return false;
    while (n-- > 0) { // the last may be its end
        if (engine->is_shared)
            shared_let_go(engine, state->sessions);
        else
            session_unload(state->sessions, &engine->cache);
    }
    return true;
}
