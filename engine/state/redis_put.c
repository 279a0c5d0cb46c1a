// SPDX-License-Identifier: Apache-2.0
// A state into Redis: uploaded under a name of its own, then put in place by one script.
//
// The upload begins with the fields that describe it and its expiry, so that whatever ends this
// process leaves nothing for good; then come the parts, a few on their way at a time; the script
// that makes it the session follows them without waiting, as commands of one connection run in
// order, and counts whether all are there. A small state so takes one round trip. hiredis copies
// what it sends, and moves what is left each time the socket has taken some: hence parts of a
// megabyte and not states of hundreds.
#ifdef SSM_HIREDIS
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_scripts.h"
#include "redis_store.h"

enum { N_FIELDS = 9 };

size_t redis_part_bytes = 1 << 20;

static void take_result(op *o, const char *word) {
    static const struct {
        const char *word;
        int rc;
    } words[] = {{"ok", 0},
                 {"busy", SSM_ESESSIONBUSY},
                 {"moved", SSM_ECONFLICT},
                 {"deleted", SSM_ENOTFOUND},
                 {"gone", SSM_ENOTFOUND}};
    o->r->is_lost = strcmp(word, "gone") == 0;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(word, words[i].word) == 0) {
            op_over(o, words[i].rc);
            return;
        }
    }
    if (strstr(word, "full")) {
        op_take_limit(o, word);
        return;
    }
    if (!*o->error)
        snprintf(o->error, sizeof o->error, "an upload did not arrive whole");
}

// No heartbeat may renew behind the script what the script has given up.
static void finish(op *o) {
    const store_limits *limits = &o->store->limits;
    const store_request *r = o->r;
    char keys[4][KEY_BYTES], wish[KEY_BYTES], grave[KEY_BYTES],
        base[20] = "", stamp[20], fields[24], ttl[24], own[24], all[24], id[33];
    key_of(o, 's', o->id, keys[0]);
    key_of(o, 'l', o->id, keys[1]);
    key_own(o, keys[2]);
    key_all(o->store, keys[3]);
    key_of(o, 'w', o->id, wish);
    key_of(o, 'd', o->id, grave);
    id_digits(o->id, id);
    if (r->base)
        snprintf(base, sizeof base, "%016" PRIx64, r->base);
    snprintf(stamp, sizeof stamp, "%016" PRIx64, r->stamp);
    snprintf(fields, sizeof fields, "%zu", N_FIELDS + o->n_parts);
    snprintf(ttl, sizeof ttl, "%" PRId64, limits->ttl);
    snprintf(own, sizeof own, "%" PRIu64, limits->of_one);
    snprintf(all, sizeof all, "%" PRIu64, limits->sessions);
    const char *args[] = {keys[0],
                          keys[1],
                          keys[2],
                          keys[3],
                          o->upload,
                          wish,
                          grave,
                          o->store->me,
                          base,
                          stamp,
                          fields,
                          r->is_import ? "1" : "0",
                          r->releases ? "1" : "0",
                          ttl,
                          own,
                          all,
                          id,
                          HOLD_MS};
    if (r->releases)
        store_lease(o, LEASE_NONE);
    op_eval(o, script_put, 7, sizeof args / sizeof *args, args);
}

static void send_parts(op *o) {
    while (!o->is_lost && o->n_sent < o->n_parts && o->n_due <= WINDOW) {
        const size_t at = o->n_sent++ * redis_part_bytes;
        const size_t n = o->size - at < redis_part_bytes ? o->size - at : redis_part_bytes;
        char field[24];
        snprintf(field, sizeof field, "%zu", o->n_sent - 1);
        const size_t lengths[] = {4, strlen(o->upload), strlen(field), n};
        op_send(o, 4, (const char *[]){"HSET", o->upload, field, (const char *)o->bytes + at},
                lengths);
        if (o->n_sent == o->n_parts)
            finish(o);
    }
}

static void on_answer(op *o, const redisReply *reply) {
    const bool is_last = o->n_due == 0 && o->n_sent == o->n_parts; // the script's
    if (!is_last) {
        send_parts(o);
        return;
    }
    store_count(o, reply, 1);
    const redisReply *wish = item(reply, 2);
    o->r->is_wanted = wish && wish->type == REDIS_REPLY_INTEGER && wish->integer > 0;
    take_result(o, text_at(reply, 0));
}

static void open_upload(op *o) {
    const store_request *r = o->r;
    const session_text *text = &r->image.text;
    char stamp[20], owner[33], created[24], used[24], tokens[24], chain[33], size[24],
        memo[2 * SSM_SESSION_MEMO + 1] = "";
    snprintf(stamp, sizeof stamp, "%016" PRIx64, r->stamp);
    snprintf(o->upload, sizeof o->upload, "%st:%s:%d", o->store->prefix, stamp, o->n_tries);
    snprintf(owner, sizeof owner, "%016" PRIx64 "%016" PRIx64, r->label.owner[0],
             r->label.owner[1]);
    snprintf(created, sizeof created, "%" PRId64, r->label.created);
    snprintf(used, sizeof used, "%" PRId64, r->label.last_used);
    snprintf(tokens, sizeof tokens, "%" PRIu64, text->n_tokens);
    snprintf(chain, sizeof chain, "%016" PRIx64 "%016" PRIx64, text->chain.hi, text->chain.lo);
    snprintf(size, sizeof size, "%zu", o->size);
    for (size_t i = 0; i < text->n_memo; i++)
        snprintf(memo + 2 * i, 3, "%02x", text->memo[i]);
    const char *args[] = {o->upload, "stamp", stamp,       "name", r->label.name, "owner", owner,
                          "created", created, "last_used", used,   "tokens",      tokens,  "chain",
                          chain,     "memo",  memo,        "size", size};
    op_eval(o, script_open, 1, sizeof args / sizeof *args, args);
}

void put_start(op *o) {
    store_request *r = o->r;
    if (!o->bytes) {
        const int rc =
            snapshot_file_encode(o->store->base.model, &r->image, NULL, &o->bytes, &o->size, NULL);
        if (rc != 0) {
            op_over(o, rc);
            return;
        }
        state_pool_give(r->image.pool, r->image.state, 0); // in the bytes; its text is still wanted
        r->image.state = r->image.logits = NULL;
    }
    o->n_parts = (o->size + redis_part_bytes - 1) / redis_part_bytes;
    o->n_sent = 0;
    o->step = on_answer;
    open_upload(o);
    send_parts(o);
}
#endif
