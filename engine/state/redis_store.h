// SPDX-License-Identifier: Apache-2.0
// The inside of store_redis.c: its operations, and what the files that run them share.
//
// An op is a request on its way. It sends commands and gets their answers in order; when none is
// due any more it is over, or, if the connection was lost, begins again from the beginning until
// its time is up: every one of them may be repeated. All on the store's thread.
#ifndef SSM_ENGINE_REDIS_STORE_H
#define SSM_ENGINE_REDIS_STORE_H

#include "redis_link.h"
#include "store.h"

#include <pthread.h>

// redis_lease.c; as scripts take them
#define LEASE_MS "6000"
#define HOLD_MS  "600000"

enum {
    KEY_BYTES = 128,
    STAMP_DIGITS = 16,
    CLAIM_WAIT_MS = 1000,
    WINDOW = 4, // parts on their way
    PATIENCE_MS = 2000,
};

extern size_t redis_part_bytes; // of a state, in a field each; tests make it small

typedef enum lease_kind { LEASE_NONE, LEASE_AWAIT, LEASE_CLAIM } lease_kind;

typedef struct lease { // of a session that is claimed or waited for
    struct lease *next;
    lease_kind kind;
    uint64_t id[2], owner[2];
} lease;

typedef struct op_list {
    struct op *first, **last;
} op_list;

typedef struct redis_store {
    store base;
    store_limits limits;
    char me[STAMP_DIGITS + 1]; // in claims
    char prefix[48];           // of keys
    pthread_t thread;
    bool has_thread;

    pthread_mutex_t lock;
    pthread_cond_t opened;
    store_request *first, **last; // submitted
    bool is_closing, is_open, is_refused;
    store_status status;

    // the thread's
    uv_loop_t loop;
    uv_async_t wake;
    uv_timer_t beat, sleep;
    redis_link link;
    op_list waiting, active, asleep; // waiting: for the connection, or for room to transfer
    int n_transfers;
    uint64_t serial, down_ms; // since when it is down
    lease *leases;
    unsigned n_beats;
    bool is_ending, is_starting, starts_again;
} redis_store;

typedef struct op {
    struct op *next;
    redis_store *store;
    store_request *r;
    void (*step)(struct op *o, const redisReply *reply); // an answer that is no error
    uint64_t serial, deadline_ms;
    uint64_t id[2]; // of the session, in its key
    int n_due, n_tries, n_restarts;
    bool is_over, is_lost;
    int rc;
    bool is_transfer; // one of the few
    bool wants_room;
    uint64_t wake_ms, pause_ms, wait_ms; // asleep until; CLAIM: how long, and until when at most
    char error[160];                     // the first one that Redis answered
    // a state in parts
    uint8_t *bytes;
    size_t size, n_parts, n_sent, n_got;
    char stamp[STAMP_DIGITS + 1]; // of the one that is read
    bool is_damaged, is_replaced;
    char upload[KEY_BYTES];
    // a list
    char (*ids)[33];
    size_t n_ids;
    bool asks_info; // of sessions, which may be something else
} op;

// ---- redis_op.c
void op_begin(redis_store *s, store_request *r);
void op_start_waiting(redis_store *s); // those that can
void op_give_up(redis_store *s);       // those whose time is up while there is no connection
void op_on_sleep(uv_timer_t *timer);
void op_send(op *o, int n, const char **words, const size_t *lengths);
void op_eval(op *o, const char *script, int n_keys, size_t n, const char *const *args);
void op_over(op *o, int rc);
void op_sleep(op *o, uint64_t ms);           // then it begins again
bool op_may_transfer(op *o);                 // false: it begins again when there is room
void op_take_limit(op *o, const char *word); // "full", "own full"

// ---- redis_lease.c
void store_lease(op *o, lease_kind kind);
void store_renew(redis_store *s); // all that there are
void await_start(op *o);
void release_start(op *o);

// ---- store_redis.c
void store_say_status(redis_store *s, bool is_up, const char *reason);
void store_count(op *o, const redisReply *reply, size_t at); // how many sessions there are

// ---- redis_key.c
// Of a session (s), its claim (l), a wish for it (w), what is set aside (b), what it was when it
// was deleted (d); an owner's index; that of all.
void key_of(const op *o, char kind, const uint64_t id[2], char out[KEY_BYTES]);
void key_own(const op *o, char out[KEY_BYTES]);
void key_all(const redis_store *s, char out[KEY_BYTES]);
void id_of(const redis_store *s, const uint64_t owner[2], const char *name, uint64_t out[2]);
void id_digits(const uint64_t id[2], char out[33]);

static inline const redisReply *item(const redisReply *reply, size_t i) {
    return reply->type == REDIS_REPLY_ARRAY && i < reply->elements ? reply->element[i] : NULL;
}

static inline const char *text_at(const redisReply *reply, size_t i) { // "": no text
    const redisReply *r = item(reply, i);
    return r && r->type == REDIS_REPLY_STRING ? r->str : "";
}

// ---- redis_put.c, redis_get.c, redis_list.c
void put_start(op *o);
void claim_start(op *o);
void get_start(op *o);
bool redis_number(const char *text, uint64_t most, uint64_t *out);
void list_start(op *o);
void look_start(op *o);
void fork_start(op *o);
void delete_start(op *o);

#endif
