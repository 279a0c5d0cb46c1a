// SPDX-License-Identifier: Apache-2.0
// Sessions in a Redis or Valkey, shared by any number of servers.
//
//     ssmd:secret              what owners are hashed with (secret.h), set by the first that comes
//     ssmd:{MODEL}:s:ID        a session, a hash: name, owner, created, last_used, tokens, chain,
//                              memo, for lists; stamp, size, expires; 0, 1, 2 ..: the state's
//                              file (snapshot_file.h, without a label) in parts of a megabyte
//     ssmd:{MODEL}:l:ID        who has claimed it, for LEASE_MS
//     ssmd:{MODEL}:w:ID        somebody waits for it
//     ssmd:{MODEL}:o:OWNER     an owner's sessions, by when they expire
//     ssmd:{MODEL}:all         all of them
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
// Claims. A turn holds `l:ID` from its beginning until its state is in place; the script that puts
// it there gives the claim up, so that whoever has been told that the turn is durable may go to any
// server. A claim is a lease, renewed by every heartbeat; a server that was killed holds its
// sessions up for LEASE_MS at most. One that stalls for longer finds its session claimed, or
// another stamp there: its turn fails (SSM_ECONFLICT) and changes nothing. Who waits for a claim
// asks again, at growing intervals to a third of a second; Redis could have called (keyspace
// events, BLPOP) over one more connection and with more to go wrong. It also leaves a wish, which a
// server with turns enough of its own sees when it puts one in place (shared.c).
//
// Failure. What is on its way when the connection is lost is sent again on the next one: scripts
// know a stamp that they have put already, the rest may be repeated. PATIENCE_MS after it was
// submitted a request comes back as SSM_EUNAVAILABLE, at once if Redis has been away for that long.
// An error that Redis answers (OOM, READONLY, MISCONF, NOPERM ..) does the same with its text.
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

#include "redis_scripts.h"
#include "redis_store.h"
#include "secret.h"

enum {
    PATIENCE_MS = 2000,
    BEAT_MS = 1000,
    RENEW_EVERY = 2, // beats
    RENEW_KEYS = 128,
    NAP_MS = 20,
    PAUSE_MS = 1000,
    MOST_TRANSFERS = 4,
};

// ---- keys

void id_digits(const uint64_t id[2], char out[33]) {
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, id[0], id[1]);
}

void id_of(const redis_store *s, const uint64_t owner[2], const char *name, uint64_t out[2]) {
    uint8_t text[16 + SSM_SESSION_NAME], hash[16];
    const size_t n = strnlen(name, SSM_SESSION_NAME);
    for (int i = 0; i < 16; i++)
        text[i] = (uint8_t)(owner[i / 8] >> 8 * (i % 8));
    memcpy(text + 16, name, n);
    siphash128(s->base.secret, text, 16 + n, hash);
    out[0] = out[1] = 0;
    for (int i = 0; i < 16; i++)
        out[i / 8] = out[i / 8] << 8 | hash[i];
}

void key_of(const op *o, char kind, const uint64_t id[2], char out[KEY_BYTES]) {
    char digits[33];
    id_digits(id, digits);
    snprintf(out, KEY_BYTES, "%s%c:%s", o->store->prefix, kind, digits);
}

void key_own(const op *o, char out[KEY_BYTES]) {
    key_of(o, 'o', o->r->label.owner, out);
}

void key_all(const redis_store *s, char out[KEY_BYTES]) {
    snprintf(out, KEY_BYTES, "%sall", s->prefix);
}

// ---- lists of ops

static void add(op_list *list, op *o) { // by serial: nearly always at the end
    const op *end = list->first ? (const op *)((char *)list->last - offsetof(op, next)) : NULL;
    op **at = end && end->serial < o->serial ? list->last : &list->first;
    while (*at && (*at)->serial < o->serial)
        at = &(*at)->next;
    o->next = *at;
    *at = o;
    if (!o->next)
        list->last = &o->next;
}

static void drop(op_list *list, op *o) {
    op **at = &list->first;
    while (*at != o)
        at = &(*at)->next;
    *at = o->next;
    if (!o->next)
        list->last = at;
    o->next = NULL;
}

// ---- an op's life

static void start_waiting(redis_store *s);

static void end(op *o, int rc) { // in no list
    redis_store *s = o->store;
    store_request *r = o->r;
    r->rc = rc;
    if (rc == SSM_EUNAVAILABLE && !*r->reason)
        snprintf(r->reason, sizeof r->reason, "%s", *o->error ? o->error : s->link.reason);
    if (*o->error) {
        pthread_mutex_lock(&s->lock);
        snprintf(s->status.reason, sizeof s->status.reason, "%s", o->error);
        pthread_mutex_unlock(&s->lock);
    }
    s->n_transfers -= o->is_transfer;
    free(o->bytes);
    free(o->ids);
    free(o);
    s->base.on_done(s->base.ctx, r);
}

static bool is_late(const op *o) {
    const redis_store *s = o->store;
    return s->is_ending || uv_now(&s->loop) >= o->deadline_ms;
}

// No answer is due: it is over, or begins again.
static void settle(op *o) {
    redis_store *s = o->store;
    const bool was_transfer = o->is_transfer;
    drop(&s->active, o);
    if (o->r->kind == STORE_PUT && o->r->releases && !o->is_over) // the claim is wanted on
        store_lease(o, true);
    if (o->is_over || *o->error) {
        end(o, o->is_over ? o->rc : SSM_EUNAVAILABLE);
    } else if (o->is_lost && is_late(o)) {
        end(o, SSM_EUNAVAILABLE);
    } else if (o->wake_ms) {
        add(&s->asleep, o);
        if (!uv_is_active((uv_handle_t *)&s->sleep))
            uv_timer_again(&s->sleep);
    } else { // lost, or it wants room
        add(&s->waiting, o);
    }
    if (was_transfer)
        start_waiting(s);
}

// A key that is no session: no error to those who list, and no session.
static bool is_foreign(const op *o, const redisReply *reply) {
    return o->asks_info && strncmp(reply->str, "WRONGTYPE", 9) == 0;
}

static void on_command(void *ctx, const redisReply *reply) {
    op *o = ctx;
    o->n_due--;
    if (!reply)
        o->is_lost = true;
    else if (reply->type == REDIS_REPLY_ERROR && !*o->error && !is_foreign(o, reply))
        snprintf(o->error, sizeof o->error, "%s", reply->str);
    if (reply && !o->is_lost && !*o->error)
        o->step(o, reply);
    if (o->n_due == 0)
        settle(o);
}

void op_send(op *o, int n, const char **words, const size_t *lengths) {
    o->n_due++;
    if (o->store->link.state == LINK_UP &&
        link_send(&o->store->link, on_command, o, n, words, lengths))
        return;
    o->n_due--;
    o->is_lost = true;
}

void op_eval(op *o, const char *script, int n_keys, size_t n, const char *const *args) {
    const char *words[32] = {"EVAL", script};
    char keys[12];
    assert(n + 3 <= sizeof words / sizeof *words);
    snprintf(keys, sizeof keys, "%d", n_keys);
    words[2] = keys;
    memcpy(words + 3, args, n * sizeof *args);
    op_send(o, (int)n + 3, words, NULL);
}

void op_over(op *o, int rc) {
    o->is_over = true;
    o->rc = rc;
}

void op_sleep(op *o, uint64_t ms) {
    o->wake_ms = uv_now(&o->store->loop) + ms;
}

bool op_may_transfer(op *o) {
    redis_store *s = o->store;
    if (!o->is_transfer && s->n_transfers >= MOST_TRANSFERS) {
        o->wants_room = true;
        return false;
    }
    s->n_transfers += !o->is_transfer;
    o->is_transfer = true;
    return true;
}

void op_take_limit(op *o, const char *word) {
    const store_limits *limits = &o->store->limits;
    store_request *r = o->r;
    r->is_own = strncmp(word, "own", 3) == 0;
    r->count = (size_t)(r->is_own ? limits->of_one : limits->sessions);
    op_over(o, SSM_EQUOTA);
}

void store_count(op *o, const redisReply *reply, size_t at) {
    const redisReply *count = item(reply, at);
    if (!count || count->type != REDIS_REPLY_INTEGER)
        return;
    pthread_mutex_lock(&o->store->lock);
    o->store->status.sessions = (uint64_t)count->integer;
    pthread_mutex_unlock(&o->store->lock);
}

// ---- claims

void store_lease(op *o, bool is_held) {
    lease **at = &o->store->leases;
    while (*at && memcmp((*at)->id, o->id, sizeof o->id) != 0)
        at = &(*at)->next;
    lease *l = *at;
    if (is_held && !l && (l = malloc(sizeof *l))) { // without it the claim lapses
        *l = (lease){.id = {o->id[0], o->id[1]}};
        *at = l;
    } else if (!is_held && l) {
        *at = l->next;
        free(l);
    }
}

static void say_status(redis_store *s, bool is_up, const char *reason);

// The first one's answer shows that scripts may run here.
static void on_renewed(void *ctx, const redisReply *reply) {
    redis_store *s = ctx;
    op o = {.store = s}; // for its store
    if (!reply)
        return;
    store_count(&o, reply, 1);
    if (!s->is_open)
        say_status(s, reply->type != REDIS_REPLY_ERROR, reply->str);
}

static void renew(redis_store *s) {
    char keys[2 * RENEW_KEYS + 1][KEY_BYTES], n_keys[12], lease_ms[12];
    const char *words[2 * RENEW_KEYS + 6] = {"EVAL", script_renew, n_keys};
    const op o = {.store = s};
    const lease *l = s->leases;
    snprintf(lease_ms, sizeof lease_ms, "%d", LEASE_MS);
    do {
        int n = 0;
        key_all(s, keys[n++]);
        for (; l && n < 2 * RENEW_KEYS; l = l->next) {
            key_of(&o, 's', l->id, keys[n++]);
            key_of(&o, 'l', l->id, keys[n++]);
        }
        snprintf(n_keys, sizeof n_keys, "%d", n);
        for (int i = 0; i < n; i++)
            words[3 + i] = keys[i];
        words[3 + n] = s->me;
        words[4 + n] = lease_ms;
        if (s->link.state == LINK_UP)
            link_send(&s->link, on_renewed, s, n + 5, words, NULL);
    } while (l);
}

static void on_released(op *o, const redisReply *reply) {
    op_over(o, 0);
}

static void release_start(op *o) {
    char keys[2][KEY_BYTES];
    key_of(o, 's', o->id, keys[0]);
    key_of(o, 'l', o->id, keys[1]);
    o->step = on_released;
    op_eval(o, script_release, 2, 3, (const char *[]){keys[0], keys[1], o->store->me});
}

static void on_deleted(op *o, const redisReply *reply) {
    store_count(o, reply, 1);
    op_over(o, strcmp(text_at(reply, 0), "ok") == 0 ? 0 : SSM_ENOTFOUND);
}

static void delete_start(op *o) {
    char keys[3][KEY_BYTES], id[33];
    key_of(o, 's', o->id, keys[0]);
    key_own(o, keys[1]);
    key_all(o->store, keys[2]);
    id_digits(o->id, id);
    o->step = on_deleted;
    op_eval(o, script_delete, 3, 4, (const char *[]){keys[0], keys[1], keys[2], id});
}

// ---- beginning

static void start(op *o) {
    redis_store *s = o->store;
    o->is_lost = o->is_over = o->wants_room = o->is_damaged = o->is_replaced = false;
    o->asks_info = false;
    o->wake_ms = 0;
    o->n_due = 0;
    o->n_tries++;
    add(&s->active, o);
    switch (o->r->kind) {
    case STORE_PUT:
        if (op_may_transfer(o))
            put_start(o);
        break;
    case STORE_GET:
        get_start(o);
        break;
    case STORE_DELETE:
        delete_start(o);
        break;
    case STORE_CLAIM:
        claim_start(o);
        break;
    case STORE_RELEASE:
        release_start(o);
        break;
    case STORE_LOOK:
        look_start(o);
        break;
    case STORE_LIST:
        list_start(o);
        break;
    case STORE_FORK:
        fork_start(o);
        break;
    case STORE_PAUSE:
        op_over(o, 0);
        break;
    }
    if (o->n_due == 0) // sent nothing
        settle(o);
}

static bool can_start(const redis_store *s, const op *o) {
    return s->link.state == LINK_UP && (!o->wants_room || s->n_transfers < MOST_TRANSFERS);
}

static void start_waiting(redis_store *s) {
    op *next;
    if (s->is_starting) { // one that began is over already, and has made room
        s->starts_again = true;
        return;
    }
    s->is_starting = true;
    do {
        s->starts_again = false;
        for (op *o = s->waiting.first; o; o = next) {
            next = o->next;
            if (!can_start(s, o))
                continue;
            drop(&s->waiting, o);
            start(o); // may stand here again, before `next`
        }
    } while (s->starts_again);
    s->is_starting = false;
}

// Those whose time is up while there is no connection.
static void give_up(redis_store *s) {
    op *next;
    for (op *o = s->waiting.first; o; o = next) {
        next = o->next;
        if (s->link.state == LINK_UP || !is_late(o))
            continue;
        drop(&s->waiting, o);
        end(o, SSM_EUNAVAILABLE);
    }
}

static void on_sleep(uv_timer_t *timer) {
    redis_store *s = timer->data;
    op *next;
    for (op *o = s->asleep.first; o; o = next) {
        next = o->next;
        if (!s->is_ending && uv_now(&s->loop) < o->wake_ms)
            continue;
        drop(&s->asleep, o);
        if (o->r->kind == STORE_PAUSE)
            end(o, s->link.state == LINK_UP ? 0 : SSM_EUNAVAILABLE);
        else
            add(&s->waiting, o);
    }
    start_waiting(s);
    give_up(s);
    if (!s->asleep.first)
        uv_timer_stop(timer);
}

// ---- the connection

static void say_status(redis_store *s, bool is_up, const char *reason) {
    pthread_mutex_lock(&s->lock);
    s->status.is_up = is_up;
    s->status.connects += is_up;
    snprintf(s->status.reason, sizeof s->status.reason, "%s", is_up ? "" : reason);
    s->is_open |= is_up;
    s->is_refused = !s->is_open;
    pthread_cond_signal(&s->opened);
    pthread_mutex_unlock(&s->lock);
}

static void on_up(void *ctx) {
    redis_store *s = ctx;
    if (!s->is_open) // nobody else reads it yet
        memcpy(s->base.secret, s->link.secret, sizeof s->base.secret);
    s->down_ms = 0;
    if (s->is_open)
        say_status(s, true, NULL);
    renew(s);
    start_waiting(s);
}

static void on_down(void *ctx) {
    redis_store *s = ctx;
    if (s->down_ms == 0)
        s->down_ms = uv_now(&s->loop);
    // A Redis that is started beside this process has as long to come up as a request would wait.
    if (s->is_open || uv_now(&s->loop) - s->down_ms >= PATIENCE_MS)
        say_status(s, false, s->link.reason);
    give_up(s);
}

static void on_beat(uv_timer_t *timer) {
    redis_store *s = timer->data;
    link_watch(&s->link);
    if (s->link.state == LINK_UP && s->n_beats++ % RENEW_EVERY == 0)
        renew(s);
    give_up(s);
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

static void begin(redis_store *s, store_request *r) {
    op *o = calloc(1, sizeof *o);
    if (!o) {
        r->rc = SSM_ENOMEM;
        s->base.on_done(s->base.ctx, r);
        return;
    }
    const uint64_t now = uv_now(&s->loop);
    *o = (op){.store = s, .r = r, .serial = ++s->serial};
    o->deadline_ms = (s->down_ms ? s->down_ms : now) + PATIENCE_MS;
    id_of(s, r->label.owner, r->label.name, o->id);
    if (r->kind == STORE_RELEASE)
        store_lease(o, false);
    const bool is_pause = r->kind == STORE_PAUSE && s->link.state != LINK_UP;
    if (is_pause || r->delay_ms > 0) {
        op_sleep(o, is_pause ? PAUSE_MS : r->delay_ms);
        o->deadline_ms += r->delay_ms;
        add(&s->asleep, o);
        uv_timer_again(&s->sleep);
        return;
    }
    add(&s->waiting, o);
}

static void end_all(redis_store *s) {
    s->is_ending = true;
    link_close(&s->link); // active ones come to wait
    on_sleep(&s->sleep);
    give_up(s);
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
        begin(s, r);
        r = next;
    }
    start_waiting(s);
    give_up(s);
    if (is_closing && !s->is_ending)
        end_all(s);
}

static void *store_thread(void *arg) {
    redis_store *s = arg;
    uint8_t fresh[16];
    uv_timer_start(&s->beat, on_beat, BEAT_MS, BEAT_MS);
    uv_timer_start(&s->sleep, on_sleep, NAP_MS, NAP_MS);
    memcpy(fresh, s->base.secret, sizeof fresh);
    link_open(&s->link, fresh);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    return NULL;
}

// ---- life

static void get_status(store *base, store_status *out) {
    redis_store *s = (redis_store *)base;
    pthread_mutex_lock(&s->lock);
    *out = s->status;
    pthread_mutex_unlock(&s->lock);
}

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
