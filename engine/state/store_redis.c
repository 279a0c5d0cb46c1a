// SPDX-License-Identifier: Apache-2.0
// Sessions in a Redis or Valkey, shared by any number of servers.
//
//     ssmd:secret              what owners are hashed with (secret.h), set by the first that comes
//     ssmd:{MODEL}:s:ID        a session, a hash: name, owner, created, last_used, tokens, chain,
//                              memo, for lists; stamp, size, expires, until; 0, 1, 2 ..: the
//                              state's file (snapshot_file.h, without a label) in parts of a
//                              megabyte
//     ssmd:{MODEL}:l:ID        who has claimed it, for LEASE_MS
//     ssmd:{MODEL}:w:ID        somebody waits for it
//     ssmd:{MODEL}:d:ID        the stamp of what was deleted while it was claimed
//     ssmd:{MODEL}:o:OWNER     an owner's sessions, by when they expire
//     ssmd:{MODEL}:all         all of them
//     ssmd:{MODEL}:..:new      of either: claimed by their first turns, until when
//     ssmd:{MODEL}:t:STAMP:N   an upload that is under way; goes by itself after ten minutes
//     ssmd:{MODEL}:b:ID        what could not be read, for a week
//
// MODEL is the model's hash, OWNER the owner's under the secret, ID SipHash of owner and name under
// the secret: keys tell nothing, and a model finds its own alone. The braces make keys of one model
// neighbours in a cluster, to which this does not speak otherwise: it follows no MOVED.
//
// Thread. One of its own runs a libuv loop with one connection (redis_link.h) on which everything
// is pipelined: claims and lists of many sessions do not wait for each other, leases are renewed
// while states move, and neither the engine nor an HTTP loop ever waits for Redis. (hiredis'
// blocking calls on a thread, as the folder's store has them, were the other way: a state of 168 MB
// would have held up every claim and every renewal behind it, or a second connection and thread for
// those would have been needed.) The connection could not be a loop's of the server: several of
// those share an engine, and the engine does not know them.
//
// Atomic. A state is uploaded beside the session and put in its place by one script, which looks at
// the stamp that it replaces (store.h). In parts, no state is too large: Redis limits a value to
// 512 MB, and a value of hundreds of megabytes is copied whole on its way through.
//
// An op's life is in redis_op.c, with what happens when Redis is away; claims are in redis_lease.c;
// what goes over the wire for each kind of request is in redis_put.c, redis_get.c and redis_list.c.
#include "store.h"

#ifndef SSM_HIREDIS
int store_open_redis(const ssm_model *model, const char *url, const store_limits *limits,
                     store_done on_done, void *ctx, store **out, ssm_error *err) {
    return ssm_error_set(err, SSM_EUNSUPPORTED, "state_url",
                         "state_url: this build has no hiredis, so no Redis (libhiredis-dev)");
}
#else
#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_store.h"
#include "secret.h"

enum {
    BEAT_MS = 1000,
    RENEW_EVERY = 2, // beats
    NAP_MS = 20,
};

// ---- its status

void store_count(op *o, const redisReply *reply, size_t at) {
    const redisReply *count = item(reply, at);
    if (!count || count->type != REDIS_REPLY_INTEGER)
        return;
    pthread_mutex_lock(&o->store->lock);
    o->store->status.sessions = (uint64_t)count->integer;
    pthread_mutex_unlock(&o->store->lock);
}

void store_say_status(redis_store *s, bool is_up, const char *reason) {
    pthread_mutex_lock(&s->lock);
    s->status.is_up = is_up;
    s->status.connects += is_up;
    if (!is_up) // it stays: an outage may be over before anybody looks
        snprintf(s->status.reason, sizeof s->status.reason, "%s", reason);
    s->is_open |= is_up;
    s->is_refused = !s->is_open;
    pthread_cond_signal(&s->opened);
    pthread_mutex_unlock(&s->lock);
}

static void get_status(store *base, store_status *out) {
    redis_store *s = (redis_store *)base;
    pthread_mutex_lock(&s->lock);
    *out = s->status;
    pthread_mutex_unlock(&s->lock);
}

// ---- the connection

static void on_up(void *ctx) {
    redis_store *s = ctx;
    if (!s->is_open) // nobody else reads it yet
        memcpy(s->base.secret, s->link.secret, sizeof s->base.secret);
    s->down_ms = 0;
    if (s->is_open)
        store_say_status(s, true, NULL);
    store_renew(s);
    op_start_waiting(s);
}

static void on_down(void *ctx) {
    redis_store *s = ctx;
    if (s->down_ms == 0)
        s->down_ms = uv_now(&s->loop);
    // A Redis that is started beside this process has as long to come up as a request would wait.
    if (s->is_open || uv_now(&s->loop) - s->down_ms >= PATIENCE_MS)
        store_say_status(s, false, s->link.reason);
    op_give_up(s);
}

static void on_beat(uv_timer_t *timer) {
    redis_store *s = timer->data;
    link_watch(&s->link);
    if (s->link.state == LINK_UP && s->n_beats++ % RENEW_EVERY == 0)
        store_renew(s);
    op_give_up(s);
}

// ---- requests

static void submit(store *base, store_request *r) {
    redis_store *s = (redis_store *)base;
    r->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->last = r;
    s->last = &r->next;
    pthread_mutex_unlock(&s->lock);
    uv_async_send(&s->wake);
}

static void end_all(redis_store *s) {
    s->is_ending = true;
    link_close(&s->link); // active ones come to wait
    op_on_sleep(&s->sleep);
    op_give_up(s);
    assert(!s->waiting.first && !s->active.first && !s->asleep.first);
    uv_close((uv_handle_t *)&s->wake, NULL);
    uv_close((uv_handle_t *)&s->beat, NULL);
    uv_close((uv_handle_t *)&s->sleep, NULL);
}

static void on_wake(uv_async_t *handle) {
    redis_store *s = handle->data;
    pthread_mutex_lock(&s->lock);
    store_request *r = s->first;
    s->first = NULL;
    s->last = &s->first;
    const bool is_closing = s->is_closing;
    pthread_mutex_unlock(&s->lock);
    while (r) {
        store_request *next = r->next;
        op_begin(s, r);
        r = next;
    }
    op_start_waiting(s);
    op_give_up(s);
    if (is_closing && !s->is_ending)
        end_all(s);
}

static void *store_thread(void *arg) {
    redis_store *s = arg;
    uint8_t fresh[16];
    uv_timer_start(&s->beat, on_beat, BEAT_MS, BEAT_MS);
    uv_timer_start(&s->sleep, op_on_sleep, NAP_MS, NAP_MS);
    memcpy(fresh, s->base.secret, sizeof fresh);
    link_open(&s->link, fresh);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    return NULL;
}

// ---- life

static void close_handle(uv_handle_t *handle, void *arg) {
    uv_close(handle, NULL);
}

static void close_redis(store *base) {
    redis_store *s = (redis_store *)base;
    if (s->has_thread) {
        pthread_mutex_lock(&s->lock);
        s->is_closing = true;
        pthread_mutex_unlock(&s->lock);
        uv_async_send(&s->wake);
        pthread_join(s->thread, NULL);
    } else {
        uv_walk(&s->loop, close_handle, NULL);
        uv_run(&s->loop, UV_RUN_DEFAULT);
    }
    const int rc = uv_loop_close(&s->loop);
    assert(rc == 0);
    (void)rc;
    while (s->leases) {
        lease *l = s->leases;
        s->leases = l->next;
        free(l);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->opened);
    free(s);
}

static const store_ops ops = {.submit = submit, .close = close_redis, .status = get_status};

// hiredis writes without MSG_NOSIGNAL; signals are for others.
static int start_thread(redis_store *s, ssm_error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    s->has_thread = pthread_create(&s->thread, NULL, store_thread, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return s->has_thread
               ? 0
               : ssm_error_set(err, SSM_ENOMEM, NULL, "the store's thread could not be started");
}

static int wait_open(redis_store *s, ssm_error *err) {
    pthread_mutex_lock(&s->lock);
    while (!s->is_open && !s->is_refused)
        pthread_cond_wait(&s->opened, &s->lock);
    const bool is_open = s->is_open;
    char reason[160];
    memcpy(reason, s->status.reason, sizeof reason);
    pthread_mutex_unlock(&s->lock);
    if (is_open)
        return 0;
    return ssm_error_set(err, SSM_EUNAVAILABLE, "state_url",
                         "state_url: sessions cannot be kept at %.200s: %s", s->link.name, reason);
}

static int fill(redis_store *s, const ssm_model *model, ssm_error *err) {
    uint64_t hash[2];
    uint8_t me[16];
    model_hash(model, hash);
    snprintf(s->prefix, sizeof s->prefix, "ssmd:{%016" PRIx64 "%016" PRIx64 "}:", hash[0], hash[1]);
    int rc = secret_make(s->base.secret, err);
    if (rc == 0)
        rc = secret_make(me, err);
    for (int i = 0; rc == 0 && i < STAMP_DIGITS / 2; i++)
        snprintf(s->me + 2 * i, 3, "%02x", me[i]);
    return rc;
}

int store_open_redis(const ssm_model *model, const char *url, const store_limits *limits,
                     store_done on_done, void *ctx, store **out, ssm_error *err) {
    redis_store *s = calloc(1, sizeof *s);
    if (!s || uv_loop_init(&s->loop) != 0) {
        free(s);
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the store of sessions");
    }
    s->base =
        (store){.ops = &ops, .model = model, .is_shared = true, .on_done = on_done, .ctx = ctx};
    s->limits = *limits;
    s->last = &s->first;
    s->waiting.last = &s->waiting.first;
    s->active.last = &s->active.first;
    s->asleep.last = &s->asleep.first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->opened, NULL);
    s->link.loop = &s->loop;
    s->link.on_up = on_up;
    s->link.on_down = on_down;
    s->link.ctx = s;
    int rc = redis_url_parse(url, &s->link.url, err);
    if (rc == 0)
        rc = fill(s, model, err);
    if (rc == 0) {
        uv_async_init(&s->loop, &s->wake, on_wake);
        uv_timer_init(&s->loop, &s->beat);
        uv_timer_init(&s->loop, &s->sleep);
        s->wake.data = s->beat.data = s->sleep.data = s;
        rc = start_thread(s, err);
    }
    if (rc == 0)
        rc = wait_open(s, err);
    if (rc == 0)
        *out = &s->base;
    else
        close_redis(&s->base);
    return rc;
}
#endif
