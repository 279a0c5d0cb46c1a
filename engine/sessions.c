// SPDX-License-Identifier: Apache-2.0
// The calls of ssm/session.h: a caller's thread leaves a session_call in the inbox and sleeps until
// the engine's thread has answered it. States cross in canonical form, in buffers that one side
// allocates and the other frees; files are read and written on the caller's side.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "session_call.h"

// ---- on the engine's thread

void session_describe(const ssm_engine *engine, const session *s, ssm_session_info *out) {
    if (!out)
        return;
    memset(out, 0, sizeof *out);
    memcpy(out->name, s->name, sizeof out->name);
    out->tokens = s->text.n_tokens;
    out->bytes = engine->state_floats * sizeof(float);
    out->created = s->created;
    out->last_used = s->last_used;
    out->at = session_point(&s->text);
    out->n_memo = s->text.n_memo;
    memcpy(out->memo, s->text.memo, s->text.n_memo);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const ssm_session_info *)a)->name, ((const ssm_session_info *)b)->name);
}

static int list(ssm_engine *engine, session_call *call) {
    const session_table *t = &engine->sessions;
    call->infos = calloc(t->n + 1, sizeof *call->infos);
    if (!call->infos)
        return ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for the list of sessions");
    for (size_t i = 0; i < SESSION_BUCKETS; i++) {
        for (const session *s = t->buckets[i]; s; s = s->next) {
            if (session_is_alive(s) && memcmp(s->owner, call->owner, sizeof s->owner) == 0)
                session_describe(engine, s, &call->infos[call->n_infos++]);
        }
    }
    qsort(call->infos, call->n_infos, sizeof *call->infos, by_name);
    return 0;
}

static int fork_session(ssm_engine *engine, session_call *call, const session *from, bool *waits) {
    session_table *t = &engine->sessions;
    if (sessions_find(t, call->owner, call->target))
        return ssm_error_set(&call->error, SSM_EINVAL, "id", "session %s exists already",
                             call->target);
    session_text text;
    if (!session_text_copy(&text, &from->text))
        return ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a session");
    session *to = sessions_ref(t, call->owner, call->target);
    if (!to) {
        session_text_dispose(&text);
        return ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a session");
    }
    int rc = quota_check(engine, to, &call->error);
    if (rc != 0) {
        session_text_dispose(&text);
        sessions_unref(t, &engine->cache, to);
        return rc;
    }
    from->state->keeps++;
    session_set(to, &engine->cache, from->state, &text);
    session_describe(engine, to, call->infos);
    t->n_alive++;
    rc = durable_call(engine, to, call, waits);
    sessions_unref(t, &engine->cache, to);
    return rc;
}

int session_image(ssm_engine *engine, const session *s, snapshot_image *image, ssm_error *err) {
    const bool has_logits = s->text.n_pending == 0;
    *image = (snapshot_image){.pool = &engine->states};
    image->state = state_pool_take(image->pool, image->pool->bytes);
    if (!image->state || !session_text_copy(&image->text, &s->text))
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's state");
    image->logits = has_logits ? image->state + engine->state_floats : NULL;
    return cache_read(&engine->cache, s->state, has_logits, image->state, &image->ticket, err);
}

static int write_session(ssm_engine *engine, session_call *call, bool *waits) {
    session_table *t = &engine->sessions;
    snapshot_image *image = &call->image;
    session *s = sessions_ref(t, call->owner, call->name);
    if (!s)
        return ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a session");
    int rc = quota_check(engine, s, &call->error);
    const uint64_t position = image->text.n_tokens - image->text.n_pending;
    snapshot *state = NULL;
    if (rc == 0 && s->holder)
        rc = ssm_error_set(&call->error, SSM_ESESSIONBUSY, NULL, "a request is at session %s",
                           call->name);
    else if (rc == 0 &&
             !(state = cache_adopt(&engine->cache, position, image->state, image->logits)))
        rc = ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a session");
    if (rc == 0) {
        image->state = image->logits = NULL;
        t->n_alive += !session_is_alive(s);
        session_set(s, &engine->cache, state, &image->text);
        session_describe(engine, s, call->infos);
        rc = durable_call(engine, s, call, waits);
    }
    sessions_unref(t, &engine->cache, s);
    return rc;
}

static int answer(ssm_engine *engine, session_call *call, bool *waits) {
    session_table *t = &engine->sessions;
    if (engine->is_failed)
        return ssm_error_set(&call->error, SSM_EDEVICE, NULL, "the device has failed");
    if (engine->is_shared)
        return shared_call(engine, call, waits);
    if (call->op == SESSION_LIST)
        return list(engine, call);
    if (call->op == SESSION_WRITE)
        return write_session(engine, call, waits);
    session *s = sessions_find(t, call->owner, call->name);
    if (!s || !session_is_alive(s))
        return ssm_error_set(&call->error, SSM_ENOTFOUND, NULL, "there is no session %s",
                             call->name);
    if (session_is_away(s) && (call->op == SESSION_FORK || call->op == SESSION_READ)) {
        call->next = s->calls;
        s->calls = call;
        *waits = true;
        durable_load(engine, s);
        return 0;
    }
    if (call->op == SESSION_FORK)
        return fork_session(engine, call, s, waits);
    if (call->op == SESSION_READ)
        return session_image(engine, s, &call->image, &call->error);
    session_describe(engine, s, call->infos);
    if (call->op != SESSION_DELETE)
        return 0;
    const int rc = durable_delete(engine, s, call, waits);
    if (rc == 0) {
        t->n_alive--;
        sessions_delete(t, &engine->cache, s);
    }
    return rc;
}

void session_finish(ssm_engine *engine, session_call *call, int rc) {
    call->rc = rc;
    if (rc != 0 && call->error.code == 0)
        ssm_error_set(&call->error, rc, NULL, "%s", durable_unwritten(rc));
    pthread_mutex_lock(&engine->lock);
    call->is_done = true;
    pthread_cond_signal(&call->done);
    pthread_mutex_unlock(&engine->lock);
}

void session_fail(ssm_engine *engine, session_call *call, int rc, const char *message) {
    ssm_error_set(&call->error, rc, NULL, "%s", message);
    session_finish(engine, call, rc);
}

session_call *session_next_call(session *s) {
    session_call *call = s->calls;
    if (call)
        s->calls = call->next;
    return call;
}

void session_answer(ssm_engine *engine, session_call *call) {
    bool waits = false;
    const int rc = answer(engine, call, &waits);
    if (!waits)
        session_finish(engine, call, rc);
}

// ---- on the caller's

static int check_name(const char *name, const char *param, ssm_error *err) {
    if (session_name_is_valid(name))
        return 0;
    return ssm_error_set(err, SSM_EINVAL, param,
                         "a session's name is 1 to 128 characters of A-Z a-z 0-9 . _ -");
}

static int run_call(ssm_engine *engine, const uint64_t owner[2], session_call *call,
                    ssm_error *err) {
    int rc = call->name ? check_name(call->name, "session", err) : 0;
    if (rc == 0 && call->target)
        rc = check_name(call->target, "id", err);
    if (rc != 0)
        return rc;
    durable_owner(engine, owner, call->owner);
    pthread_cond_init(&call->done, NULL);
    if (engine_send(engine, &(command){.kind = COMMAND_SESSION, .call = call})) {
        pthread_mutex_lock(&engine->lock);
        while (!call->is_done)
            pthread_cond_wait(&call->done, &engine->lock);
        pthread_mutex_unlock(&engine->lock);
    } else {
        call->rc = ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a command");
    }
    pthread_cond_destroy(&call->done);
    if (call->rc != 0 && err)
        *err = call->error;
    return call->rc;
}

int ssm_session_list(ssm_engine *engine, const uint64_t owner[2], ssm_session_info **out, size_t *n,
                     ssm_error *err) {
    session_call call = {.op = SESSION_LIST};
    const int rc = run_call(engine, owner, &call, err);
    *out = call.infos;
    *n = call.n_infos;
    return rc;
}

int ssm_session_get(ssm_engine *engine, const uint64_t owner[2], const char *name,
                    ssm_session_info *out, ssm_error *err) {
    session_call call = {.op = SESSION_GET, .name = name, .infos = out};
    return run_call(engine, owner, &call, err);
}

int ssm_session_delete(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       ssm_error *err) {
    session_call call = {.op = SESSION_DELETE, .name = name};
    return run_call(engine, owner, &call, err);
}

int ssm_session_fork(ssm_engine *engine, const uint64_t owner[2], const char *name,
                     const char *target, ssm_session_info *out, ssm_error *err) {
    session_call call = {.op = SESSION_FORK, .name = name, .target = target, .infos = out};
    return run_call(engine, owner, &call, err);
}

int ssm_session_export(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       const char *path, ssm_error *err) {
    session_call call = {.op = SESSION_READ, .name = name};
    int rc = run_call(engine, owner, &call, err);
    if (rc == 0)
        rc = snapshot_file_write(engine->model, &call.image, NULL, path, false, err);
    snapshot_image_dispose(&call.image);
    return rc;
}

int ssm_session_export_fd(ssm_engine *engine, const uint64_t owner[2], const char *name, int fd,
                          uint64_t *size, ssm_error *err) {
    session_call call = {.op = SESSION_READ, .name = name};
    int rc = run_call(engine, owner, &call, err);
    if (rc == 0)
        rc = snapshot_file_put(engine->model, &call.image, fd, size, err);
    snapshot_image_dispose(&call.image);
    return rc;
}

int ssm_session_import(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       const char *path, ssm_session_info *out, ssm_error *err) {
    session_call call = {
        .op = SESSION_WRITE, .name = name, .infos = out, .image = {.pool = &engine->states}};
    int rc = check_name(name, "session", err);
    if (rc == 0)
        rc = snapshot_file_read(engine->model, path, &call.image, NULL, NULL, err);
    if (rc == 0)
        rc = run_call(engine, owner, &call, err);
    snapshot_image_dispose(&call.image);
    return rc;
}

int ssm_session_export_bytes(ssm_engine *engine, const uint64_t owner[2], const char *name,
                             uint8_t **out, size_t *size, ssm_error *err) {
    session_call call = {.op = SESSION_READ, .name = name};
    int rc = run_call(engine, owner, &call, err);
    if (rc == 0)
        rc = snapshot_file_encode(engine->model, &call.image, NULL, out, size, err);
    snapshot_image_dispose(&call.image);
    return rc;
}

int ssm_session_import_bytes(ssm_engine *engine, const uint64_t owner[2], const char *name,
                             const uint8_t *bytes, size_t size, ssm_session_info *out,
                             ssm_error *err) {
    session_call call = {
        .op = SESSION_WRITE, .name = name, .infos = out, .image = {.pool = &engine->states}};
    int rc = check_name(name, "session", err);
    if (rc == 0)
        rc = snapshot_file_decode(engine->model, bytes, size, &call.image, NULL, NULL, err);
    if (rc == 0)
        rc = run_call(engine, owner, &call, err);
    snapshot_image_dispose(&call.image);
    return rc;
}

uint64_t ssm_session_max_file(const ssm_engine *engine) {
    return snapshot_file_max(engine->model);
}
