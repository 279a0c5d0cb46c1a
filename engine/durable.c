// SPDX-License-Identifier: Apache-2.0
// Durability: what of sessions goes to the store, and who waits for it.
//
// With SSM_DURABILITY_SYNC whoever changed a session - a job, a caller of ssm/session.h - is
// answered when the change is on the disk: its `ticket` goes with the write and comes back as a
// command. With ASYNC writes are queued at once and nobody waits. With NONE everything is written
// once, when the engine is freed. At the start all sessions found are taken in, in host memory.
#include "engine.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "state/store.h"

struct ticket {
    job *job;           // or
    session_call *call; // who waits
};

static void on_stored(void *ctx, void *tag, int rc) {
    // Without memory for a command the waiter would wait for ever: try until there is.
    while (!engine_send(ctx, &(command){.kind = COMMAND_STORED, .ticket = tag, .choice = rc})) {
    }
}

static void take_in(void *ctx, snapshot_image *image, const snapshot_label *label) {
    ssm_engine *engine = ctx;
    session *s = sessions_ref(&engine->sessions, label->owner, label->name);
    if (!s)
        return;
    const uint64_t position = image->text.n_tokens - image->text.n_pending;
    snapshot *state = cache_adopt(&engine->cache, position, image->state, image->logits);
    if (state) {
        image->state = image->logits = NULL;
        session_set(s, &engine->cache, state, &image->text);
        s->created = label->created;
        s->last_used = label->last_used;
        engine->sessions.n_alive++;
    }
    sessions_unref(&engine->sessions, &engine->cache, s);
}

int durable_open(ssm_engine *engine, ssm_error *err) {
    const char *root = engine->options.state_dir;
    char folder[4096];
    uint64_t hash[2];
    if (!root)
        return 0;
    model_hash(engine->model, hash); // a folder each, so that models may share a state_dir
    snprintf(folder, sizeof folder, "%.3800s/%016" PRIx64 "%016" PRIx64, root, hash[0], hash[1]);
    if (mkdir(root, 0700) != 0 && errno != EEXIST)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot make the folder %.300s: %m", root);
    int rc = store_open(engine->model, folder, on_stored, engine, &engine->store, err);
    if (rc == 0)
        rc = store_load(engine->store, take_in, engine, &engine->stats.sessions_set_aside, err);
    return rc;
}

// The session's state in a buffer of its own.
static int make_image(ssm_engine *engine, const session *s, snapshot_image *image) {
    const size_t vocab = (size_t)engine->info.vocab_size;
    const bool has_logits = s->text.n_pending == 0;
    *image = (snapshot_image){.state = malloc(engine->state_floats * sizeof(float)),
                              .logits = has_logits ? malloc(vocab * sizeof(float)) : NULL};
    if (!image->state || (has_logits && !image->logits) ||
        !session_text_copy(&image->text, &s->text)) {
        snapshot_image_dispose(image);
        return SSM_ENOMEM;
    }
    if (has_logits)
        memcpy(image->logits, s->state->logits, vocab * sizeof(float));
    return cache_read(&engine->cache, s->state, image->state, NULL);
}

static int put(ssm_engine *engine, const session *s, struct ticket *ticket) {
    snapshot_image image;
    snapshot_label label = {
        .owner = {s->owner[0], s->owner[1]}, .created = s->created, .last_used = s->last_used};
    memcpy(label.name, s->name, sizeof label.name);
    int rc = make_image(engine, s, &image);
    if (rc == 0)
        rc = store_put(engine->store, &image, &label, ticket);
    snapshot_image_dispose(&image);
    return rc;
}

// A ticket for whoever must wait; *out stays NULL if nobody need.
static int make_ticket(const ssm_engine *engine, job *j, session_call *call, struct ticket **out) {
    *out = NULL;
    if (engine->options.durability != SSM_DURABILITY_SYNC)
        return 0;
    if (!(*out = malloc(sizeof **out)))
        return SSM_ENOMEM;
    **out = (struct ticket){.job = j, .call = call};
    return 0;
}

static bool is_on(const ssm_engine *engine) {
    return engine->store && engine->options.durability != SSM_DURABILITY_NONE;
}

static int change(ssm_engine *engine, const session *s, bool is_gone, job *j, session_call *call,
                  bool *waits) {
    struct ticket *ticket;
    *waits = false;
    if (!is_on(engine) && !(is_gone && engine->store)) // what is gone stays gone
        return 0;
    int rc = make_ticket(engine, j, call, &ticket);
    if (rc == 0)
        rc = is_gone ? store_delete(engine->store, s->owner, s->name, ticket)
                     : put(engine, s, ticket);
    *waits = rc == 0 && ticket;
    if (rc != 0)
        free(ticket);
    return rc;
}

void durable_turn(ssm_engine *engine, job *j) {
    bool waits;
    const int rc = change(engine, j->session, false, j, NULL, &waits);
    j->n_stores += waits;
    if (rc != 0)
        durable_failed(j, rc);
}

void durable_failed(job *j, int rc) {
    if (j->error != 0)
        return;
    j->error = rc;
    snprintf(j->message, sizeof j->message, "the session could not be written to the disk");
}

int durable_call(ssm_engine *engine, const session *s, bool is_gone, session_call *call,
                 bool *waits) {
    return change(engine, s, is_gone, NULL, call, waits);
}

void durable_stored(ssm_engine *engine, struct ticket *ticket, int rc) {
    if (ticket->call) {
        session_finish(engine, ticket->call, rc);
    } else {
        assert(ticket->job->n_stores > 0);
        ticket->job->n_stores--;
        if (rc != 0)
            durable_failed(ticket->job, rc);
    }
    free(ticket);
}

void durable_close(ssm_engine *engine) {
    if (engine->store && engine->options.durability == SSM_DURABILITY_NONE && !engine->is_failed) {
        for (size_t i = 0; i < SESSION_BUCKETS; i++) {
            for (const session *s = engine->sessions.buckets[i]; s; s = s->next) {
                if (s->state)
                    put(engine, s, NULL);
            }
        }
    }
    store_close(engine->store);
    engine->store = NULL;
}
