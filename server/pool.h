// SPDX-License-Identifier: Apache-2.0
// Work on libuv's pool, in lines: of a kind so much at once, the rest waits here and not in the
// pool's own queue, which has one order for all. So neither texts of many megabytes nor sessions in
// a store that does not answer (5 s a call) hold up the other kind. Beside eight clients with 10 MB
// each a look at a session took 3 to 5 s while all shared libuv's four threads; a text of 100 KB
// behind 24 looks at sessions in a silent Redis took 10 s while these had all threads.
//
// A line is a loop's, and everything here but run is on its thread.
#ifndef SSMD_POOL_H
#define SSMD_POOL_H

#include <stdbool.h>

#include <uv.h>

struct loop;

enum {
    POOL_ENCODES = 4,      // of all loops together; at least one a loop. 30 MB/s or so, more than
                           // any engine reads
    POOL_SESSION_CALLS = 8 // which wait for an engine, or a store, more than they compute
};

typedef struct pool_work {
    void (*run)(struct pool_work *w);  // on the pool
    void (*done)(struct pool_work *w); // exactly once, unless it was dropped
    void *owner;
    // the line's
    struct pool_line *line;
    struct pool_work *next;
    uv_work_t uv;
} pool_work;

typedef struct pool_line {
    struct loop *loop;
    int n, most; // on the pool
    pool_work *first, **last;
    // What a work takes beside a place, and gives back: false if it cannot be had now; NULL:
    // nothing.
    bool (*take)(pool_work *w);
    void (*give)(pool_work *w);
} pool_line;

// Before the first work, and before threads: how many the pool has, unless UV_THREADPOOL_SIZE is
// set.
void pool_size(int n_loops);

// A loop's line of the kind of which all loops have `together` on the pool at once.
void pool_line_init(pool_line *line, struct loop *l, int together);
void pool_join(pool_line *line, pool_work *w);
// Nobody waits for it any more. True if it was in line still: it is the caller's again and done is
// not called. False if it is on the pool, which cannot be stopped, is over, or never joined.
bool pool_drop(pool_work *w);

#endif
