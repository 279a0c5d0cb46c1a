// SPDX-License-Identifier: Apache-2.0
// A state out of Redis, with or without a claim on it.
//
// What is read part by part may be replaced meanwhile (not under a claim): each part comes with its
// stamp, and reading begins again if that is another one. Of the fields only sizes are used, and
// within what a state of this model can have; what the parts come to is checked as any foreign
// file is. What does not hold is set aside, by its stamp, so that nobody runs into it again.
#ifdef SSM_HIREDIS
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_scripts.h"
#include "redis_store.h"

enum { MOST_RESTARTS = 8, FIRST_SLEEP_MS = 20, LAST_SLEEP_MS = 320 };

bool redis_number(const char *text, uint64_t most, uint64_t *out) {
    char *end;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && strlen(text) < 20 && *end == '\0' && *out <= most;
}

static bool is_stamp(const char *text) {
    return strlen(text) == STAMP_DIGITS && strspn(text, "0123456789abcdef") == STAMP_DIGITS;
}

// ---- damaged

static void on_aside(op *o, const redisReply *reply) {
    store_lease(o, LEASE_NONE);
    op_over(o, SSM_EINVAL);
}

static void set_aside(op *o) {
    char keys[5][KEY_BYTES], id[33];
    key_of(o, 's', o->id, keys[0]);
    key_of(o, 'b', o->id, keys[1]);
    key_of(o, 'l', o->id, keys[2]);
    key_own(o, keys[3]);
    key_all(o->store, keys[4]);
    id_digits(o->id, id);
    o->step = on_aside;
    const char *args[] = {keys[0], keys[1], keys[2], keys[3], keys[4], o->stamp, o->store->me, id};
    op_eval(o, script_set_aside, 5, sizeof args / sizeof *args, args);
}

// ---- parts

static void decode(op *o) {
    store_request *r = o->r;
    const int rc =
        snapshot_file_decode(o->store->base.model, o->bytes, o->size, &r->image, NULL, NULL, NULL);
    free(o->bytes);
    o->bytes = NULL;
    if (rc == SSM_EINVAL) {
        set_aside(o);
        return;
    }
    sscanf(o->stamp, "%" SCNx64, &r->stamp);
    op_over(o, rc);
}

static void ask_parts(op *o) {
    char key[KEY_BYTES], field[24];
    key_of(o, 's', o->id, key);
    while (!o->is_lost && o->n_sent < o->n_parts && o->n_due < WINDOW) {
        snprintf(field, sizeof field, "%zu", o->n_sent++);
        op_send(o, 4, (const char *[]){"HMGET", key, "stamp", field}, NULL);
    }
}

// False: the part is not what it must be.
static bool take_part(op *o, const redisReply *reply) {
    const size_t at = o->n_got * redis_part_bytes;
    const size_t n = o->size - at < redis_part_bytes ? o->size - at : redis_part_bytes;
    const redisReply *part = item(reply, 1);
    if (!part || part->type != REDIS_REPLY_STRING || part->len != n)
        return false;
    memcpy(o->bytes + at, part->str, n);
    o->n_got++;
    return true;
}

static void begin(op *o) {
    o->is_damaged = o->is_replaced = false;
    if (o->r->kind == STORE_CLAIM)
        claim_start(o);
    else
        get_start(o);
}

static void on_part(op *o, const redisReply *reply) {
    if (strcmp(text_at(reply, 0), o->stamp) != 0)
        o->is_replaced = true;
    else if (!o->is_replaced && !o->is_damaged && !take_part(o, reply))
        o->is_damaged = true;
    if (!o->is_replaced && !o->is_damaged)
        ask_parts(o);
    if (o->n_due > 0)
        return;
    if (o->is_replaced && o->n_restarts++ == MOST_RESTARTS) {
        snprintf(o->r->reason, sizeof o->r->reason, "the session changes faster than it is read");
        op_over(o, SSM_EUNAVAILABLE);
    } else if (o->is_replaced) {
        begin(o);
    } else if (o->is_damaged) {
        set_aside(o);
    } else {
        decode(o);
    }
}

static void read_parts(op *o, uint64_t size) {
    free(o->bytes);
    o->bytes = malloc(size);
    if (!o->bytes) {
        op_over(o, SSM_ENOMEM);
        return;
    }
    o->size = (size_t)size;
    o->n_parts = (o->size + redis_part_bytes - 1) / redis_part_bytes;
    o->n_sent = o->n_got = 0;
    o->step = on_part;
    ask_parts(o);
}

// ---- what there is: ok stamp size created last_used name owner

static bool is_ours(const op *o, const redisReply *reply) {
    const snapshot_label *label = &o->r->label;
    char owner[33];
    snprintf(owner, sizeof owner, "%016" PRIx64 "%016" PRIx64, label->owner[0], label->owner[1]);
    return strcmp(text_at(reply, 5), label->name) == 0 && strcmp(text_at(reply, 6), owner) == 0;
}

static void on_found(op *o, const redisReply *reply) {
    store_request *r = o->r;
    uint64_t stamp = 0, size, created, used;
    const bool has_stamp = is_stamp(text_at(reply, 1));
    snprintf(o->stamp, sizeof o->stamp, "%s", has_stamp ? text_at(reply, 1) : "");
    if (has_stamp)
        sscanf(o->stamp, "%" SCNx64, &stamp);
    const bool is_good =
        stamp != 0 && is_ours(o, reply) &&
        redis_number(text_at(reply, 2), snapshot_file_max(o->store->base.model), &size) &&
        size > 0 && redis_number(text_at(reply, 3), INT64_MAX, &created) &&
        redis_number(text_at(reply, 4), INT64_MAX, &used);
    if (!is_good) {
        set_aside(o);
        return;
    }
    r->label.created = (int64_t)created;
    r->label.last_used = (int64_t)used;
    if (r->kind == STORE_CLAIM && r->stamp == stamp)
        op_over(o, 0);
    else if (op_may_transfer(o))
        read_parts(o, size);
}

static void on_busy(op *o) {
    const uint64_t now = uv_now(o->store->link.loop);
    if (o->wait_ms == 0)
        o->wait_ms = now + CLAIM_WAIT_MS;
    if (!o->r->waits || now >= o->wait_ms) {
        op_over(o, SSM_ESESSIONBUSY);
        return;
    }
    o->pause_ms = o->pause_ms == 0              ? FIRST_SLEEP_MS
                  : o->pause_ms < LAST_SLEEP_MS ? 2 * o->pause_ms
                                                : LAST_SLEEP_MS;
    op_sleep(o, o->pause_ms);
}

static void on_state(op *o, const redisReply *reply) {
    const char *word = text_at(reply, 0);
    store_request *r = o->r;
    const bool is_claim = r->kind == STORE_CLAIM;
    *o->stamp = '\0';
    if (strcmp(word, "busy") == 0) {
        const redisReply *is_there = item(reply, 1);
        r->is_there = is_there && is_there->type == REDIS_REPLY_INTEGER && is_there->integer > 0;
        on_busy(o);
        return;
    }
    if (strcmp(word, "full") == 0 || strcmp(word, "own full") == 0) {
        op_take_limit(o, word);
        return;
    }
    if (is_claim)
        store_lease(o, LEASE_CLAIM);
    if (strcmp(word, "none") == 0) {
        r->stamp = 0;
        op_over(o, is_claim ? 0 : SSM_ENOTFOUND);
    } else if (strcmp(word, "ok") == 0) {
        on_found(o, reply);
    } else {
        set_aside(o);
    }
}

void claim_start(op *o) {
    char keys[5][KEY_BYTES], own[24], all[24];
    key_of(o, 's', o->id, keys[0]);
    key_of(o, 'l', o->id, keys[1]);
    key_own(o, keys[2]);
    key_all(o->store, keys[3]);
    key_of(o, 'w', o->id, keys[4]);
    snprintf(own, sizeof own, "%" PRIu64, o->store->limits.of_one);
    snprintf(all, sizeof all, "%" PRIu64, o->store->limits.sessions);
    o->step = on_state;
    const char *args[] = {keys[0],
                          keys[1],
                          keys[2],
                          keys[3],
                          keys[4],
                          o->store->me,
                          LEASE_MS,
                          HOLD_MS,
                          own,
                          all,
                          o->r->waits ? "1" : "0"};
    op_eval(o, script_claim, 5, sizeof args / sizeof *args, args);
}

void get_start(op *o) {
    char key[KEY_BYTES];
    key_of(o, 's', o->id, key);
    o->step = on_state;
    op_eval(o, script_get, 1, 1, (const char *[]){key});
}
#endif
