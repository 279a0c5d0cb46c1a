// SPDX-License-Identifier: Apache-2.0
// Saved states: what a recurrent model has instead of a cache that grows with every token.
//
// A snapshot is the state after some tokens; it never changes. Two kinds of owners: the prefix tree
// (a beginning of text that some request may share) and sessions, which keep theirs by count, so
// that a fork of a session is one more owner of the same bytes. Three places (tiers.c):
//
//     device   rows of the device's own state array behind the scheduler's slots, in its native
//              layout: saving and restoring are copies on the device, on a GPU in the order of its
//              stream, without a wait. Those of saves are gathered (copies.h)
//     host     canonical fp32 (kernels/weights.h) in buffers of the pool, to and from which a GPU
//              copies beside its steps: whoever looks at one waits for its ticket
//     disk     the same in a file (spill.h), without --cache-dir none
//
// At prompt ends a snapshot holds the next token's logits: an exact repeat then draws at once and
// neither runs a token nor advances the state twice. A snapshot without them is of use only to a
// longer text. They are wherever the state is: on the device in a row of logits behind those of the
// steps, one for each row of states, so that they come and go by copies too; elsewhere right behind
// the state, in the same buffer under the same ticket. The room is there with or without them: 7%
// of a row of mamba-130m, 1% of mamba-2.8b's, counted in every place's bytes. Dropped: page-locked
// buffers for logits alone, to which each prompt's end would have sent 200 KB over the bus, one
// copy a prompt, with memory to be locked as they grow.
//
// A snapshot is in one of them. Each place has a list by last use. When a row is needed the oldest
// goes: to the host if it may (host_bytes) or must (a session has no other copy of it), else away.
// Sessions that can be read back from a store are asked first whether they let go of theirs.
// One that is pinned - a restore from it is planned - is passed over. What falls off the host's end
// goes to the disk, and what falls off that is forgotten. A state on the disk is of use only when
// it has been fetched, which nobody waits for but the request that wants it.
//
// Failures here cost speed, never an answer: no memory, no room: nothing is saved. The only errors
// returned are the device's own. Engine thread only.
#ifndef SSM_ENGINE_CACHE_H
#define SSM_ENGINE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>

#include "copies.h"
#include "kernels/backend.h"
#include "prefix.h"
#include "spill.h"
#include "state_pool.h"

typedef struct snapshot {
    struct snapshot *newer, *older; // in its place's list
    prefix_node *node;              // NULL: no beginning of text
    uint64_t position;              // tokens that it covers
    int32_t slot;                   // the device's row, or -1
    int32_t disk_row;               // or -1
    bool is_moving;                 // to the disk, from the host; or back
    bool has_logits;                // of the next token
    float *host;                    // [state_floats] canonical, [vocab], if it is on the host
    uint64_t ticket;                // of the last copy from or to there (kernels/backend.h)
    uint64_t sum[2];                // on the disk: its checksum
    int32_t pins;                   // restores that are planned
    int32_t keeps;                  // sessions, and jobs of sessions, that own it
    struct session *sessions;       // of them (session.c)
} snapshot;

typedef struct snapshot_list {
    snapshot *newest, *oldest;
    size_t n;
} snapshot_list;

typedef struct cache_options {
    const ssm_backend *backend;
    ssm_device *device;
    int32_t first_slot, n_slots; // rows that are the cache's
    int32_t first_row;           // of logits, n_slots of them
    uint64_t host_bytes;         // for what falls off the device; sessions beyond it all the same
    size_t state_floats, vocab;
    state_pool *states; // where states on the host are from
    spill *disk;        // or NULL; the caller's, who closes it before the cache goes
    int32_t n_disk_rows;
    bool poison; // tests: a row that is given up is filled with NaN
    // Whether all that keep a snapshot have let go of it, which may have been its end. May be NULL.
    bool (*let_go)(void *ctx, snapshot *s);
    void *ctx;
} cache_options;

typedef struct cache_counts {
    ssm_tier_stats tier[SSM_TIERS]; // hits: requests at admission, the engine's to count, as are
    uint64_t misses, cached_tokens;
    uint64_t saves, disk_failures;
} cache_counts;

typedef struct cache {
    cache_options o;
    prefix_tree tree;
    snapshot_list on_device, on_host, on_disk;
    copies copies; // of saves, not yet made
    spill *disk;
    int32_t *free_disk; // [n_disk_rows] rows not in use, the first n_free_disk
    int32_t n_disk_rows, n_free_disk;
    int32_t n_leaving; // on the host, being written
    int32_t *free;     // [n_slots] rows not in use, the first n_free
    int32_t n_free;
    float *nan; // [state_floats], with poison
    cache_counts counts;
} cache;

int cache_init(cache *c, const cache_options *options); // 0 or SSM_ENOMEM
void cache_dispose(cache *c);                           // no snapshot may be pinned or kept

// The longest saved beginning of tenant + tokens that a prompt can start from; NULL: none. `known`
// is how many of the tokens the tree has: where this text parts from others. here: of those that
// are not on the disk. Changes nothing.
snapshot *cache_find(const cache *c, const int32_t tenant[4], const int32_t *tokens, size_t n,
                     bool here, size_t *known);

ssm_tier cache_tier(const snapshot *s); // where it is
// On the disk: to be fetched before anything else is done with it.
bool cache_is_away(const snapshot *s);
// Begins to, if that has not begun; false: there is no memory, it is gone.
bool cache_fetch(cache *c, snapshot *s);
// A move has ended, its snapshot not yet freed elsewhere; false: the snapshot is gone.
bool cache_moved(cache *c, const spill_move *move);

// Saves a slot's state as what tenant + prompt + answer come to, with the logits of a row if row >=
// 0. eager: an older snapshot may go for it; else only a free row is used. rc is the device's.
typedef struct cache_text {
    const int32_t *tenant; // [4]
    const int32_t *prompt, *answer;
    size_t n_prompt, n_answer;
} cache_text;
int cache_save(cache *c, const cache_text *text, int32_t slot, int32_t row, bool eager,
               ssm_error *err);

// A snapshot that a session keeps (keeps is 1). *out stays NULL if memory is short.
int cache_keep(cache *c, uint64_t position, int32_t slot, int32_t row, snapshot **out,
               ssm_error *err);

// A pinned one for whoever is to begin there soon; nothing makes room for it on the device, and it
// goes when it is unpinned. *out stays NULL if memory is short.
int cache_hold(cache *c, uint64_t position, int32_t slot, int32_t row, snapshot **out,
               ssm_error *err);
snapshot *cache_hold_zeros(cache *c); // of no tokens; NULL: no memory

// A kept snapshot from a buffer of the pool, which is taken over: a canonical state, and logits
// behind it if it has them. NULL: no memory.
snapshot *cache_adopt(cache *c, uint64_t position, float *state, bool has_logits);
void cache_release(cache *c, snapshot *s); // one session less keeps it

// A pinned snapshot stays; pinning makes it the last used.
void cache_pin(cache *c, snapshot *s);
void cache_unpin(cache *c, snapshot *s);

// The snapshot's state into a slot, its logits into a row of the device's if row >= 0; it may move
// to the device on the way.
int cache_restore(cache *c, snapshot *s, int32_t slot, int32_t row, ssm_error *err);

// The snapshot's state in canonical form, the logits behind it if they are wanted; there when the
// ticket is due.
int cache_read(cache *c, const snapshot *s, bool with_logits, float *out, uint64_t *ticket,
               ssm_error *err);

// Makes the copies that saves have asked for: before slots or rows of logits change by anything but
// the functions here. rc is the device's.
int cache_settle(cache *c, ssm_error *err);

uint64_t cache_host_bytes(const cache *c);
uint64_t cache_disk_bytes(const cache *c);

// Forgets the oldest states on the host, and has sessions let go of theirs, down to host_bytes.
void cache_trim(cache *c);

// Aborts unless every row is in one place: tests.
void cache_check(const cache *c);

#endif
