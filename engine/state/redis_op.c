// SPDX-License-Identifier: Apache-2.0
// A request's life on its way: an op (redis_store.h) waits for the connection, or for room to
// transfer; is active while answers are due; sleeps until it begins again.
//
// What is on its way when the connection is lost is sent again on the next one: scripts know a
// stamp that they have put already, the rest may be repeated. PATIENCE_MS after it was submitted a
// request comes back as SSM_EUNAVAILABLE, at once if Redis has been away for that long. An error
// that Redis answers (OOM, READONLY, MISCONF, NOPERM ..) does the same with its text.
#ifdef SSM_HIREDIS
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_store.h"

enum { PAUSE_MS = 1000, MOST_TRANSFERS = 4 };

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
        store_lease(o, LEASE_CLAIM);
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
        op_start_waiting(s);
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
    case STORE_AWAIT:
        await_start(o);
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

void op_start_waiting(redis_store *s) {
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
void op_give_up(redis_store *s) {
    op *next;
    for (op *o = s->waiting.first; o; o = next) {
        next = o->next;
        if (s->link.state == LINK_UP || !is_late(o))
            continue;
        drop(&s->waiting, o);
        end(o, SSM_EUNAVAILABLE);
    }
}

void op_on_sleep(uv_timer_t *timer) {
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
    op_start_waiting(s);
    op_give_up(s);
    if (!s->asleep.first)
        uv_timer_stop(timer);
}

void op_begin(redis_store *s, store_request *r) {
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
        store_lease(o, LEASE_NONE);
    if (r->kind == STORE_AWAIT)
        store_lease(o, LEASE_AWAIT);
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
#endif
