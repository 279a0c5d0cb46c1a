// SPDX-License-Identifier: Apache-2.0
// What needs no session's state: its fields, those of all of an owner, a fork, its deletion.
//
// A list is the owner's index, then the fields of each session, some at a time so that nobody else
// at the server waits for a long one. A field that is none leaves a session out: it is for those
// who want its state to set it aside.
#ifdef SSM_HIREDIS
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_scripts.h"
#include "redis_store.h"

enum { LIST_WINDOW = 64 };

static const char *const fields[] = {"name",   "owner", "created", "last_used",
                                     "tokens", "chain", "memo"};

enum { NAME, OWNER, CREATED, LAST_USED, TOKENS, CHAIN, MEMO, N_INFO };

static bool read_memo(const char *at, ssm_session_info *out) {
    const size_t n = strlen(at);
    if (n % 2 != 0 || n / 2 > sizeof out->memo || strspn(at, "0123456789abcdef") != n)
        return false;
    for (; *at; at += 2) {
        unsigned byte;
        if (sscanf(at, "%2x", &byte) != 1)
            return false;
        out->memo[out->n_memo++] = (uint8_t)byte;
    }
    return true;
}

// From N_INFO values, the first at `from`; name NULL: any.
static bool read_info(const op *o, const redisReply *reply, size_t from, const char *name,
                      ssm_session_info *out) {
    const snapshot_label *label = &o->r->label;
    const char *text[N_INFO];
    char owner[33];
    uint64_t created, used;
    for (size_t i = 0; i < N_INFO; i++)
        text[i] = text_at(reply, from + i);
    memset(out, 0, sizeof *out);
    id_digits(label->owner, owner);
    if (!session_name_is_valid(text[NAME]) || strcmp(text[OWNER], owner) != 0 ||
        (name && strcmp(name, text[NAME]) != 0))
        return false;
    strcpy(out->name, text[NAME]);
    if (!redis_number(text[CREATED], INT64_MAX, &created) ||
        !redis_number(text[LAST_USED], INT64_MAX, &used) ||
        !redis_number(text[TOKENS], INT64_MAX, &out->tokens))
        return false;
    out->created = (int64_t)created;
    out->last_used = (int64_t)used;
    out->at.tokens = out->tokens;
    return strlen(text[CHAIN]) == 32 && strspn(text[CHAIN], "0123456789abcdef") == 32 &&
           sscanf(text[CHAIN], "%16" SCNx64 "%16" SCNx64, &out->at.chain[0], &out->at.chain[1]) ==
               2 &&
           read_memo(text[MEMO], out);
}

static void ask_info(op *o, const uint64_t id[2]) {
    const char *words[2 + N_INFO] = {"HMGET"};
    char key[KEY_BYTES];
    key_of(o, 's', id, key);
    words[1] = key;
    for (size_t i = 0; i < N_INFO; i++)
        words[2 + i] = fields[i];
    o->asks_info = true;
    op_send(o, 2 + N_INFO, words, NULL);
}

static void take_one(op *o, const redisReply *reply, size_t from, const char *name) {
    store_request *r = o->r;
    r->infos = r->infos ? r->infos : malloc(sizeof *r->infos);
    r->n_infos = r->infos && read_info(o, reply, from, name, r->infos);
    op_over(o, !r->infos ? SSM_ENOMEM : r->n_infos ? 0 : SSM_ENOTFOUND);
}

// ---- one

static void on_look(op *o, const redisReply *reply) {
    take_one(o, reply, 0, o->r->label.name);
}

void look_start(op *o) {
    o->step = on_look;
    ask_info(o, o->id);
}

// ---- all

static void ask_more(op *o) {
    while (!o->is_lost && o->n_sent < o->n_ids && o->n_due < LIST_WINDOW) {
        uint64_t id[2];
        sscanf(o->ids[o->n_sent++], "%16" SCNx64 "%16" SCNx64, &id[0], &id[1]);
        ask_info(o, id);
    }
    if (o->n_due == 0 && !o->is_lost)
        op_over(o, 0);
}

static void on_info(op *o, const redisReply *reply) {
    store_request *r = o->r;
    r->n_infos += read_info(o, reply, 0, NULL, &r->infos[r->n_infos]);
    ask_more(o);
}

static void on_names(op *o, const redisReply *reply) {
    store_request *r = o->r;
    const size_t n = reply->type == REDIS_REPLY_ARRAY ? reply->elements : 0;
    free(o->ids);
    free(r->infos);
    o->ids = calloc(n + 1, sizeof *o->ids);
    r->infos = calloc(n + 1, sizeof *r->infos);
    o->n_ids = o->n_sent = r->n_infos = 0;
    if (!o->ids || !r->infos) {
        op_over(o, SSM_ENOMEM);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const char *id = text_at(reply, i);
        if (strlen(id) == 32 && strspn(id, "0123456789abcdef") == 32)
            memcpy(o->ids[o->n_ids++], id, 33);
    }
    o->step = on_info;
    ask_more(o);
}

void list_start(op *o) {
    char key[KEY_BYTES];
    key_own(o, key);
    o->step = on_names;
    op_eval(o, script_list, 1, 1, (const char *[]){key});
}

// ---- a fork

static void on_forked(op *o, const redisReply *reply) {
    const char *word = text_at(reply, 0);
    store_count(o, reply, 1);
    if (strcmp(word, "ok") == 0) {
        uint64_t id[2];
        id_of(o->store, o->r->label.owner, o->r->target, id);
        snprintf(o->r->label.name, sizeof o->r->label.name, "%s", o->r->target);
        o->step = on_look;
        ask_info(o, id);
    } else if (strstr(word, "full")) {
        op_take_limit(o, word);
    } else {
        op_over(o, strcmp(word, "exists") == 0 ? SSM_EINVAL : SSM_ENOTFOUND);
    }
}

void fork_start(op *o) {
    const store_limits *limits = &o->store->limits;
    const store_request *r = o->r;
    char keys[5][KEY_BYTES], stamp[20], now[24], ttl[24], own[24], all[24], id[33];
    uint64_t to[2];
    id_of(o->store, r->label.owner, r->target, to);
    key_of(o, 's', o->id, keys[0]);
    key_of(o, 's', to, keys[1]);
    key_of(o, 'l', to, keys[2]);
    key_own(o, keys[3]);
    key_all(o->store, keys[4]);
    id_digits(to, id);
    snprintf(stamp, sizeof stamp, "%016" PRIx64, r->stamp);
    snprintf(now, sizeof now, "%" PRId64, r->label.created);
    snprintf(ttl, sizeof ttl, "%" PRId64, limits->ttl);
    snprintf(own, sizeof own, "%" PRIu64, limits->of_one);
    snprintf(all, sizeof all, "%" PRIu64, limits->sessions);
    o->step = on_forked;
    const char *args[] = {keys[0],   keys[1], keys[2], keys[3], keys[4], stamp,
                          r->target, now,     ttl,     own,     all,     id};
    op_eval(o, script_fork, 5, sizeof args / sizeof *args, args);
}

// ---- a deletion

static void on_deleted(op *o, const redisReply *reply) {
    store_count(o, reply, 1);
    op_over(o, strcmp(text_at(reply, 0), "ok") == 0 ? 0 : SSM_ENOTFOUND);
}

void delete_start(op *o) {
    char keys[5][KEY_BYTES], id[33];
    key_of(o, 's', o->id, keys[0]);
    key_own(o, keys[1]);
    key_all(o->store, keys[2]);
    key_of(o, 'l', o->id, keys[3]);
    key_of(o, 'd', o->id, keys[4]);
    id_digits(o->id, id);
    o->step = on_deleted;
    const char *args[] = {keys[0], keys[1], keys[2], keys[3], keys[4], id, HOLD_MS};
    op_eval(o, script_delete, 5, sizeof args / sizeof *args, args);
}
#endif
