// SPDX-License-Identifier: Apache-2.0
#include "encode.h"

#include <stdlib.h>

#include "loop.h"
#include "server.h"

static void encode_all(encode *e) {
    e->rc = e->prepare ? e->prepare(e) : 0;
    for (size_t i = 0; i < e->n && e->rc == 0; i++) {
        encode_item *item = &e->items[i];
        if (item->text) {
            e->rc = ssm_tokenizer_encode(e->tokenizer, item->text, item->len, e->flags, &item->ids,
                                         &e->err);
        }
    }
    if (e->rc == 0 && e->finish) {
        e->finish(e);
    }
}

static void run(pool_work *w) {
    encode_all(w->owner);
}

static void done(pool_work *w) {
    encode *e = w->owner;
    e->done(e);
}

// Alone always, beside others if there is memory for it.
static bool take(pool_work *w) {
    encode *e = w->owner;
    const size_t bytes = ENCODE_SCRATCH * e->bytes;
    e->scratch = budget_take(&w->line->loop->server->budget, bytes) ? bytes : 0;
    return e->scratch > 0 || w->line->n == 0;
}

static void give(pool_work *w) {
    encode *e = w->owner;
    budget_give(&w->line->loop->server->budget, e->scratch);
}

void encode_line_init(pool_line *line, loop *l) {
    pool_line_init(line, l, POOL_ENCODES);
    line->take = take, line->give = give;
}

bool encode_drop(encode *e) {
    return pool_drop(&e->work);
}

int encode_start(encode *e, loop *l) {
    size_t bytes = e->prepare_bytes;
    for (size_t i = 0; i < e->n; i++) {
        bytes += e->items[i].text ? e->items[i].len : 0;
    }
    e->bytes = bytes;
    if (bytes > ENCODE_INLINE) {
        e->work = (pool_work){.run = run, .done = done, .owner = e};
        pool_join(&l->encodes, &e->work);
        return 1;
    }
    encode_all(e);
    e->done(e);
    return 0;
}

void encode_dispose(encode *e) {
    for (size_t i = 0; i < e->n; i++) {
        ssm_ids_dispose(&e->items[i].ids);
    }
    free(e->items);
    e->items = NULL;
    e->n = 0;
}
