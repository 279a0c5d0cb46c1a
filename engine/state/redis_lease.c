// SPDX-License-Identifier: Apache-2.0
// Claims at sessions.
//
// A turn holds `l:ID` from its beginning until its state is in place; the script that puts it there
// gives the claim up, so that whoever has been told that the turn is durable may go to any server.
// A claim is a lease, renewed by every heartbeat; a server that was killed holds its sessions up
// for LEASE_MS at most. One that stalls for longer finds its session claimed, or another stamp
// there: its turn fails (SSM_ECONFLICT) and changes nothing. Who waits for a claim asks again, at
// growing intervals to a third of a second; Redis could have called (keyspace events, BLPOP) over
// one more connection and with more to go wrong. It also leaves a wish, which a server with turns
// enough of its own sees when it puts one in place (shared.c).
//
// A session's time does not run out under a claim: from each heartbeat on it stays for half of
// HOLD_MS at least, in the indices too, so that lists and limits have it. (It was two leases, and a
// connection that was gone for 12 seconds took a turn with it.) Who gives the claim up without a
// new state gives the session its own time again. A server that is killed does not: what it was at
// may be there for HOLD_MS beyond its time.
//
// A session that does not exist yet has a place among those that there may be from the claim of its
// first turn on, renewed with the claim, until its state is there or the claim is given up. Else
// two servers' first turns at once would both pass the limit, and one be refused at its end.
//
// A session that is waited for (AWAIT: by a request in line, which claims it when there is a slot)
// is held in the same way. Others' giving it up does not end that: the field `until` says for two
// leases from each heartbeat that somebody waits.
#ifdef SSM_HIREDIS
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_scripts.h"
#include "redis_store.h"

enum { RENEWED = 64 }; // in one command

void store_lease(op *o, lease_kind kind) {
    const uint64_t *owner = o->r->label.owner;
    lease **at = &o->store->leases;
    while (*at && memcmp((*at)->id, o->id, sizeof o->id) != 0)
        at = &(*at)->next;
    lease *l = *at;
    if (kind != LEASE_NONE && !l && (l = malloc(sizeof *l))) { // without it the claim lapses
        *l = (lease){.kind = kind, .id = {o->id[0], o->id[1]}, .owner = {owner[0], owner[1]}};
        *at = l;
    } else if (kind != LEASE_NONE && l) {
        l->kind = kind > l->kind ? kind : l->kind;
    } else if (l) {
        *at = l->next;
        free(l);
    }
}

// The first one's answer shows that scripts may run here.
static void on_renewed(void *ctx, const redisReply *reply) {
    redis_store *s = ctx;
    op o = {.store = s}; // for its store
    if (!reply)
        return;
    store_count(&o, reply, 1);
    if (!s->is_open)
        store_say_status(s, reply->type != REDIS_REPLY_ERROR, reply->str);
}

void store_renew(redis_store *s) {
    char keys[3 * RENEWED + 1][KEY_BYTES], n_keys[12];
    char kinds[RENEWED + 1];
    const char *words[3 + 3 * RENEWED + 1 + 4] = {"EVAL", script_renew, n_keys};
    const op o = {.store = s};
    const lease *l = s->leases;
    do {
        int n = 0, n_kinds = 0;
        key_all(s, keys[n++]);
        for (; l && n_kinds < RENEWED; l = l->next) {
            key_of(&o, 's', l->id, keys[n++]);
            key_of(&o, 'o', l->owner, keys[n++]);
            key_of(&o, 'l', l->id, keys[n++]);
            kinds[n_kinds++] = l->kind == LEASE_CLAIM ? 'c' : 'w';
        }
        kinds[n_kinds] = '\0';
        snprintf(n_keys, sizeof n_keys, "%d", n);
        for (int i = 0; i < n; i++)
            words[3 + i] = keys[i];
        words[3 + n] = s->me;
        words[4 + n] = LEASE_MS;
        words[5 + n] = HOLD_MS;
        words[6 + n] = kinds;
        if (s->link.state == LINK_UP)
            link_send(&s->link, on_renewed, s, n + 7, words, NULL);
    } while (l);
}

static void on_awaited(op *o, const redisReply *reply) {
    op_over(o, strcmp(text_at(reply, 0), "ok") == 0 ? 0 : SSM_ENOTFOUND);
}

void await_start(op *o) {
    char keys[3][KEY_BYTES];
    key_of(o, 's', o->id, keys[0]);
    key_own(o, keys[1]);
    key_all(o->store, keys[2]);
    o->step = on_awaited;
    op_eval(o, script_await, 3, 5, (const char *[]){keys[0], keys[1], keys[2], LEASE_MS, HOLD_MS});
}

static void on_released(op *o, const redisReply *reply) {
    op_over(o, 0);
}

void release_start(op *o) {
    char keys[4][KEY_BYTES];
    key_of(o, 's', o->id, keys[0]);
    key_own(o, keys[1]);
    key_all(o->store, keys[2]);
    key_of(o, 'l', o->id, keys[3]);
    o->step = on_released;
    op_eval(o, script_release, 4, 5,
            (const char *[]){keys[0], keys[1], keys[2], keys[3], o->store->me});
}
#endif
