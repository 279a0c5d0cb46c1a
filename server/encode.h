// SPDX-License-Identifier: Apache-2.0
// Texts to ids, on the spot or on libuv's pool. Tokenizing is linear but not free: past
// ENCODE_INLINE bytes it would hold up every stream of the loop.
//
// A text of many megabytes has its thread for seconds, and calls at sessions are on the pool, too.
// So the loops together have ENCODES_AT_ONCE there and keep the others in line themselves, and the
// pool has threads beyond these: beside eight clients with 10 MB each a look at a session took 3 to
// 5 s while all shared libuv's four threads. One begins beside others only if --max-request-memory
// has room for what it needs meanwhile: four texts of 4 MB would take 200 MB of a small container.
#ifndef SSMD_ENCODE_H
#define SSMD_ENCODE_H

#include <stdbool.h>
#include <stddef.h>

#include <uv.h>

#include <ssm/tokenizer.h>

struct loop;

enum {
    ENCODE_INLINE = 64 << 10,
    ENCODES_AT_ONCE = 4, // 30 MB/s or so, more than any engine reads; at least one a loop
    ENCODE_OTHERS = 4,   // threads that are left to others
    ENCODE_SCRATCH = 8,  // bytes that a text's byte takes while it is tokenized, about
};

typedef struct encode_item {
    const char *text; // borrowed until done
    size_t len;
    ssm_ids ids; // out
} encode_item;

typedef struct encode {
    const ssm_tokenizer *tokenizer;
    unsigned flags;
    encode_item *items; // owned: malloc
    size_t n;
    // Makes the texts first, where the texts become ids; NULL: they are there. 0 or a code.
    int (*prepare)(struct encode *e);
    size_t prepare_bytes; // about what it has to read
    // Makes of the ids what is wanted, where they were made, or fails (rc, err); NULL: nothing.
    void (*finish)(struct encode *e);
    int rc; // out: 0 or the first failure's code
    ssm_error err;
    void (*done)(struct encode *e); // on the loop thread
    void *owner;
    struct loop *loop;
    struct encode *next;   // of the loop's line
    size_t bytes, scratch; // to read; of the budget, meanwhile
    uv_work_t work;
} encode;

int encode_share(int n_loops); // of ENCODES_AT_ONCE, a loop's

// Before the first work on libuv's pool, and before threads: how many it has, unless
// UV_THREADPOOL_SIZE is set.
void encode_size_pool(int n_loops);

// Calls done exactly once: before it returns 0 if the texts are short, later if not; returns 1
// then. The encode and its texts must stay until done.
int encode_start(encode *e, struct loop *loop);
// Nobody waits for it any more. True if it was in line still: it is the caller's again and done is
// not called. False if it is on the pool, which cannot be stopped, is over, or never began.
bool encode_drop(encode *e);
void encode_dispose(encode *e);

#endif
