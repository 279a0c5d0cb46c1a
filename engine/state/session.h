// SPDX-License-Identifier: Apache-2.0
// Sessions: states with a name that outlive their requests.
//
// A session is a snapshot and the few tokens behind it that its next turn runs first: the last one
// drawn has been fed to nothing yet, and an answer that its consumer cut short is run again from
// the prompt's end. Either there are such tokens or the snapshot holds the next token's logits, so
// that a turn can always begin. Of all tokens before it keeps their number, a 128-bit chain over
// them and the last few: a session of a million tokens has the size of one of ten. The chain tells
// whether a conversation that a client sends whole is this session's, continued; it is no defence
// against someone who may write the session anyway.
//
// With a store (store.h) a session is where its state is: here, there, or both. `version` counts
// its changes, `stored` is the version that the store has. One that is stored and not at work may
// be let go (session_unload): the record stays, with what a list says of it; its state comes back
// when it is used.
//
// Names belong to owners. A record lives while it is in the table or a job refers to it: one that
// is deleted under a turn goes with that turn. Engine thread only.
#ifndef SSM_ENGINE_SESSION_H
#define SSM_ENGINE_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/session.h>

#include "cache.h"

enum { SESSION_LAST = 16 }; // tokens kept to be looked at

typedef struct token_chain {
    uint64_t lo, hi;
} token_chain;

token_chain chain_begin(void);
token_chain chain_add(token_chain chain, const int32_t *tokens, size_t n);
bool chain_is(token_chain a, token_chain b);

typedef struct session_text { // what is known of a session's tokens
    uint64_t n_tokens;        // the pending ones included
    token_chain chain;        // over all of them
    int32_t *pending;         // [n_pending] behind the state, in order
    size_t n_pending;
    int32_t last[SESSION_LAST];
    size_t n_last;
    uint8_t memo[SSM_SESSION_MEMO]; // its last turn's consumer's, not read here
    size_t n_memo;
} session_text;

typedef struct session {
    struct session *next; // in its bucket
    uint64_t owner[2];
    char name[SSM_SESSION_NAME + 1];
    snapshot *state;            // kept; NULL: no turn yet, or it is in the store
    struct session *next_alike; // another one in the same state
    session_text text;          // without a state: no pending tokens
    int64_t created, last_used; // Unix time, seconds
    const void *holder;         // the job whose turn it is
    int32_t refs;               // the table's, jobs' and the store's
    int32_t n_jobs;             // that refer to it
    bool is_listed;             // in the table
    uint64_t version, stored;   // 0: none
    uint64_t stamp;             // shared.c: of the version that is stored
    bool is_claiming, is_claimed, has_yielded;
    bool is_awaited;             // shared_line.c: and not claimed
    uint64_t claimed_ns;         // since when
    uint64_t tried, tried_stamp; // the version last sent to be stored, and as what
    bool is_loading, is_writing;
    bool is_dirty; // in the list of those to be written
    bool is_unwritable;
    struct session *next_dirty;
    struct ticket *tickets;     // durable.c: who waits for a version to be stored
    struct session_call *calls; // sessions.c: who waits for the state
} session;

static inline bool session_is_alive(const session *s) {
    return s->state || s->stored > 0;
}

static inline bool session_is_away(const session *s) { // in the store alone
    return !s->state && s->stored > 0;
}

enum { SESSION_BUCKETS = 1024, OWNER_BUCKETS = 256 };

typedef struct session_owner {
    struct session_owner *next;
    uint64_t owner[2];
    size_t n; // of its sessions that are listed, 1 or more
} session_owner;

typedef struct session_table {
    session *buckets[SESSION_BUCKETS];
    session_owner *owners[OWNER_BUCKETS];
    size_t n;       // listed
    size_t n_alive; // with a state
} session_table;

bool session_name_is_valid(const char *name);

session *sessions_find(const session_table *t, const uint64_t owner[2], const char *name);
// Found or made, with one reference more; NULL: no memory.
session *sessions_ref(session_table *t, const uint64_t owner[2], const char *name);
size_t sessions_of(const session_table *t, const uint64_t owner[2]); // listed
// A record without a state goes with its last job.
void sessions_unref(session_table *t, cache *c, session *s);
void sessions_delete(session_table *t, cache *c, session *s);
void sessions_dispose(session_table *t, cache *c);

// A new state and its text, both taken over; what was there before is released.
void session_set(session *s, cache *c, snapshot *state, session_text *text);

// The state of a session that is stored, back from there; both are taken over.
void session_load(session *s, snapshot *state, session_text *text);
void session_unload(session *s, cache *c);
void session_reset(session *s, cache *c); // as one without a turn

// Appends tokens to the text's number, chain and last ones; pending is the caller's business.
void session_text_add(session_text *text, const int32_t *tokens, size_t n);
bool session_text_copy(session_text *to, const session_text *from); // false: no memory
ssm_session_point session_point(const session_text *text);
void session_text_dispose(session_text *text);

#endif
