// SPDX-License-Identifier: Apache-2.0
// Texts to ids, on the spot or on libuv's pool. Tokenizing is linear but not free: past
// ENCODE_INLINE bytes it would hold up every stream of the loop.
#ifndef SSMD_ENCODE_H
#define SSMD_ENCODE_H

#include <stddef.h>

#include <uv.h>

#include <ssm/tokenizer.h>

struct loop;

enum { ENCODE_INLINE = 64 << 10 };

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
    int rc;               // out: 0 or the first failure's code
    ssm_error err;
    void (*done)(struct encode *e); // on the loop thread
    void *owner;
    struct loop *loop;
    uv_work_t work;
} encode;

// Calls done exactly once: before it returns 0 if the texts are short, later if not; returns 1
// then. The encode and its texts must stay until done. It cannot be cancelled: it is short.
int encode_start(encode *e, struct loop *loop);
void encode_dispose(encode *e);

#endif
