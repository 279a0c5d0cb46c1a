// SPDX-License-Identifier: Apache-2.0
// One connection to a Redis or Valkey, on a libuv loop, that comes back by itself.
//
// A link is DOWN, CONNECTING, GREETING or UP. Greeting: AUTH and SELECT if the URL says so; the
// secret of the database is read, or set by the first that comes, which also shows whether anything
// can be written there (a replica, a full server, a user without rights say no here and not in the
// middle of a turn); and the version must have what the scripts use. What goes wrong puts the link
// DOWN with a reason, and it tries again after a pause that doubles from 50 ms to a second.
//
// Commands are sent without waiting for answers; each answer comes to its callback, in order. When
// the connection is lost, or has been silent for ANSWER_MS with an answer due, every callback
// outstanding comes with NULL: whether Redis has run the command is not known.
//
// hiredis brings an adapter for libuv (adapters/libuv.h). It ignores a poll that ends with an
// error, which is how libuv reports a connection that was refused or reset: nothing would ever be
// called back. So this has its own, in which an error is an event like any other.
//
// Everything here on the loop's thread; looking up a host's name waits on it, too.
#ifndef SSM_ENGINE_REDIS_LINK_H
#define SSM_ENGINE_REDIS_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <uv.h>

#include "redis_url.h"

typedef enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_GREETING, LINK_UP } link_state;

typedef struct redis_link {
    redis_url url;
    uv_loop_t *loop;
    void (*on_up)(void *ctx);
    void (*on_down)(void *ctx); // lost, or an attempt has failed
    void *ctx;
    redisAsyncContext *ac; // NULL: none
    link_state state;
    uv_timer_t timer; // the next attempt, or the end of this one's time
    unsigned pause_ms;
    int n_due;                  // answers
    uint64_t heard_ms;          // the last one, or when the first became due
    int n_greetings;            // answers due to the greeting
    uint8_t secret[16];         // of the database, once has_secret
    bool has_secret;            // it has been UP
    char reason[160];           // why it is not UP
    char name[REDIS_TEXT + 32]; // of the other end, for people
} redis_link;

typedef void (*link_answer)(void *ctx, const redisReply *reply);

// Begins to connect. fresh: the secret if there is none yet.
void link_open(redis_link *link, const uint8_t fresh[16]);
void link_close(redis_link *link); // outstanding callbacks come; the handles close with the loop

// Only while UP. False: no memory, the callback will not come.
bool link_send(redis_link *link, link_answer fn, void *ctx, int n, const char **words,
               const size_t *lengths);

// Now and then: a connection on which an answer is overdue goes down.
void link_watch(redis_link *link);

#endif
