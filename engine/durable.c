// SPDX-License-Identifier: Apache-2.0
// Durability: how sessions get to the store and back.
//
// A changed session joins the list of dirty ones; a few of them at a time are written (a write
// holds a copy of a state, a place in the list holds nothing), and a session that changes again
// meanwhile is written once. A disk that is slower than the turns, or takes nothing, makes turns
// wait: none begins while more than BACKLOG of states is in host memory for want of being written.
// With SSM_DURABILITY_SYNC whoever changed a session - a job, a caller of ssm/session.h - leaves a
// ticket and is answered when that version or a later one is on the disk. With ASYNC nobody waits.
// With NONE nothing is written before the engine is freed, but what BACKLOG cannot hold.
//
// How they get back, and when they let go of what they have in memory: durable_load.c. What becomes
// of writes that fail: durable_retry.c, for a shared store shared.c.
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state/secret.h"
#include "state/store.h"

enum { MOST_WRITES = 4, LEAST_BACKLOG = 8 }; // at once; states

static const uint64_t BACKLOG = 256 << 20; // bytes

typedef struct ticket {
    struct ticket *next;
    job *job;           // or
    session_call *call; // who waits
    uint64_t version;
} ticket;

void durable_owner(const ssm_engine *engine, const uint64_t owner[2], uint64_t out[2]) {
    if (engine->has_secret)
        secret_owner(engine->secret, owner, out);
    else
        memcpy(out, owner, 2 * sizeof *out);
}

// ---- tickets

static int add_ticket(const ssm_engine *engine, session *s, job *j, session_call *call,
                      bool *waits) {
    *waits = false;
    if (engine->options.durability != SSM_DURABILITY_SYNC)
        return 0;
    ticket *t = malloc(sizeof *t);
    if (!t)
        return SSM_ENOMEM;
    *t = (ticket){.next = s->tickets, .job = j, .call = call, .version = s->version};
    s->tickets = t;
    if (j)
        j->n_stores++;
    *waits = true;
    return 0;
}

const char *durable_unwritten(int rc) {
    return rc == SSM_EDISKFULL ? "the session could not be written to the disk, which is full"
                               : "the session could not be written to the disk";
}

static void fail_job(job *j, int rc, const char *message) {
    if (j->error != 0)
        return;
    j->error = rc;
    snprintf(j->message, sizeof j->message, "%s", message);
}

void durable_failed(job *j, int rc) {
    fail_job(j, rc, durable_unwritten(rc));
}

// Answers those who wait for this version or an older one.
void durable_answer(ssm_engine *engine, session *s, uint64_t version, int rc, const char *message) {
    for (ticket **at = &s->tickets; *at;) {
        ticket *t = *at;
        if (t->version > version) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        if (t->call)
            session_finish(engine, t->call, rc);
        else
            t->job->n_stores--;
        if (t->job && rc != 0)
            fail_job(t->job, rc, message);
        free(t);
    }
}

// ---- writing

bool durable_is_full(const ssm_engine *engine) {
    const uint64_t state = engine->state_floats * sizeof(float);
    const uint64_t backlog = BACKLOG > LEAST_BACKLOG * state ? BACKLOG : LEAST_BACKLOG * state;
    return cache_host_bytes(&engine->cache) > engine->options.cache_host_bytes + backlog;
}

bool durable_is_behind(const ssm_engine *engine) {
    return (engine->n_writes > 0 || engine->has_unwritten) && durable_is_full(engine);
}

store_request *durable_request(ssm_engine *engine, const session *s, int kind) {
    store_request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    *r = (store_request){.kind = (store_kind)kind,
                         .image = {.pool = &engine->states},
                         .label = {.owner = {s->owner[0], s->owner[1]},
                                   .created = s->created,
                                   .last_used = s->last_used},
                         .version = s->version,
                         .began_ns = engine_now_ns()};
    memcpy(r->label.name, s->name, sizeof r->label.name);
    return r;
}

void durable_send(ssm_engine *engine, session *s, store_request *r) {
    r->session = s;
    if (s)
        s->refs++;
    engine->n_stores++;
    engine->store->ops->submit(engine->store, r);
}

static int start_write(ssm_engine *engine, session *s) {
    store_request *r = durable_request(engine, s, STORE_PUT);
    const int rc = r ? session_image(engine, s, &r->image, NULL) : SSM_ENOMEM;
    if (rc != 0) {
        store_request_free(r);
        return rc;
    }
    if (engine->is_shared)
        shared_prepare(engine, s, r);
    s->is_writing = true;
    engine->n_writes++;
    durable_send(engine, s, r);
    return 0;
}

void durable_push(ssm_engine *engine, session *s) {
    if (s->is_dirty || s->is_writing) // when it is written, what is newer is pushed
        return;
    s->is_dirty = true;
    s->next_dirty = NULL;
    *engine->dirty_last = s;
    engine->dirty_last = &s->next_dirty;
}

static void remove_dirty(ssm_engine *engine, session *s) {
    session **at = &engine->dirty;
    if (!s->is_dirty)
        return;
    while (*at != s)
        at = &(*at)->next_dirty;
    *at = s->next_dirty;
    if (engine->dirty_last == &s->next_dirty)
        engine->dirty_last = at;
    s->is_dirty = false;
}

void durable_write_some(ssm_engine *engine) {
    while (engine->dirty && engine->n_writes < MOST_WRITES && !engine->is_pausing) {
        session *s = engine->dirty;
        remove_dirty(engine, s);
        const int rc = start_write(engine, s);
        if (rc != 0) {
            durable_answer(engine, s, s->version, rc, durable_unwritten(rc));
            durable_failed_write(engine);
        }
    }
}

static void on_put(ssm_engine *engine, session *s, const store_request *r) {
    s->is_writing = false;
    engine->n_writes--;
    if (r->rc == 0) {
        s->stored = r->version;
        engine->session_counts.writes++;
        durable_wrote(engine);
    } else {
        engine->session_counts.write_failures++;
        memcpy(engine->session_counts.reason, r->reason, sizeof r->reason);
        s->is_unwritable = engine->is_flushing;
        durable_failed_write(engine);
    }
    durable_answer(engine, s, r->version, r->rc, durable_unwritten(r->rc));
    if (s->is_listed && s->version > r->version &&
        engine->options.durability != SSM_DURABILITY_NONE)
        durable_push(engine, s);
}

// ---- changes

static int change(ssm_engine *engine, session *s, job *j, session_call *call, bool *waits) {
    *waits = false;
    if (!engine->store || engine->options.durability == SSM_DURABILITY_NONE)
        return 0;
    const int rc = add_ticket(engine, s, j, call, waits);
    durable_push(engine, s);
    if (!engine->is_shared) // there the job's end does it
        durable_write_some(engine);
    return rc;
}

void durable_turn(ssm_engine *engine, job *j) {
    bool waits;
    const int rc = change(engine, j->session, j, NULL, &waits);
    if (rc != 0)
        durable_failed(j, rc);
}

int durable_call(ssm_engine *engine, session *s, session_call *call, bool *waits) {
    return change(engine, s, NULL, call, waits);
}

int durable_delete(ssm_engine *engine, session *s, session_call *call, bool *waits) {
    const bool is_there = s->stored > 0 || s->is_writing; // what is gone stays gone
    *waits = false;
    if (engine->store && is_there) {
        store_request *r = durable_request(engine, s, STORE_DELETE);
        if (!r)
            return SSM_ENOMEM;
        *waits = call && engine->options.durability == SSM_DURABILITY_SYNC;
        r->call = *waits ? call : NULL;
        durable_send(engine, s, r);
    }
    remove_dirty(engine, s);
    durable_answer(engine, s, s->version, 0, NULL);
    s->stored = 0;
    return 0;
}

// ---- life

void durable_done(ssm_engine *engine, store_request *r) {
    session *s = r->session;
    engine->n_stores--;
    if (engine->is_shared)
        shared_done(engine, r);
    else if (r->kind == STORE_PUT)
        on_put(engine, s, r);
    else if (r->kind == STORE_GET)
        durable_got(engine, s, r);
    else if (r->call)
        session_finish(engine, r->call, r->rc);
    if (s)
        sessions_unref(&engine->sessions, &engine->cache, s);
    store_request_free(r);
    durable_write_some(engine);
    cache_trim(&engine->cache);
}

static void on_done(void *ctx, store_request *r) {
    // Without memory for a command the waiter would wait for ever: try until there is.
    while (!engine_send(ctx, &(command){.kind = COMMAND_STORED, .stored = r})) {
    }
}

static void take_name(void *ctx, const store_entry *found) {
    ssm_engine *engine = ctx;
    const snapshot_label *label = found->label;
    session *s = sessions_ref(&engine->sessions, label->owner, label->name);
    if (!s)
        return;
    s->created = label->created;
    s->last_used = label->last_used;
    session_text_dispose(&s->text);
    s->text = *found->text;
    *found->text = (session_text){0};
    s->version = s->stored = 1;
    engine->sessions.n_alive++;
    sessions_unref(&engine->sessions, &engine->cache, s);
}

int durable_open(ssm_engine *engine, ssm_error *err) {
    const ssm_engine_options *o = &engine->options;
    engine->dirty_last = &engine->dirty;
    if (!o->state_dir && !o->state_url)
        return 0;
    int rc = o->state_url ? shared_open(engine, err, on_done)
                          : store_open_folder(engine->model, o->state_dir, on_done, engine,
                                              &engine->store, err);
    if (rc == 0) {
        engine->has_secret = true;
        memcpy(engine->secret, engine->store->secret, sizeof engine->secret);
    }
    if (rc == 0 && !engine->is_shared) {
        rc = engine->store->ops->list(engine->store, take_name, engine,
                                      &engine->session_counts.set_aside, err);
        stats_cache(engine); // the thread is not there yet
    }
    return rc;
}

bool durable_flush(ssm_engine *engine) {
    if (!engine->store)
        return false;
    engine->is_flushing = true;
    for (size_t i = 0; i < SESSION_BUCKETS && !engine->is_failed; i++) {
        for (session *s = engine->sessions.buckets[i]; s; s = s->next) {
            if (s->state && s->stored != s->version && !s->is_unwritable)
                durable_push(engine, s);
        }
    }
    durable_write_some(engine);
    return engine->n_stores > 0;
}

void durable_close(ssm_engine *engine) {
    store *s = engine->store;
    pthread_mutex_lock(&engine->lock);
    engine->store = NULL;
    pthread_mutex_unlock(&engine->lock);
    if (s)
        s->ops->close(s);
}
