// SPDX-License-Identifier: Apache-2.0
// Texts to ids, on the spot or on libuv's pool. Tokenizing is linear but not free: past
// ENCODE_INLINE bytes it would hold up every stream of the loop.
//
// There texts have a line of their own (pool.h). One begins beside others only if
// --max-request-memory has room for what it needs meanwhile: four texts of 4 MB would take 200 MB
// of a small container.
#ifndef SSMD_ENCODE_H
#define SSMD_ENCODE_H

#include <stdbool.h>
#include <stddef.h>

#include <ssm/tokenizer.h>

#include "pool.h"

struct loop;

enum {
    ENCODE_INLINE = 64 << 10,
    ENCODE_SCRATCH = 8 // bytes that a text's byte takes while it is tokenized, about
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
    size_t bytes, scratch; // to read; of the budget, meanwhile
    pool_work work;
} encode;

void encode_line_init(pool_line *line, struct loop *l); // loop.encodes

// Calls done exactly once: before it returns 0 if the texts are short, later if not; returns 1
// then. The encode and its texts must stay until done.
int encode_start(encode *e, struct loop *loop);
// Nobody waits for it any more. True if it was in line still: it is the caller's again and done is
// not called. False if it is on the pool, which cannot be stopped, is over, or never began.
bool encode_drop(encode *e);
void encode_dispose(encode *e);

#endif
