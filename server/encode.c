// SPDX-License-Identifier: Apache-2.0
#include "encode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "loop.h"
#include "server.h"

int encode_share(int n_loops) {
    return n_loops < ENCODES_AT_ONCE ? ENCODES_AT_ONCE / n_loops : 1;
}

void encode_size_pool(int n_loops) {
    char n[16];
    snprintf(n, sizeof n, "%d", encode_share(n_loops) * n_loops + ENCODE_OTHERS);
    (void)setenv("UV_THREADPOOL_SIZE", n, 0);
}

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

static void on_work(uv_work_t *work) {
    encode_all(work->data);
}

static void on_worked(uv_work_t *work, int status);

// Whether the first in line may begin: alone always, beside others if there is memory for it.
static bool may_start(loop *l, encode *e) {
    if (l->n_encodes >= encode_share(l->server->n_loops)) {
        return false;
    }
    const size_t bytes = ENCODE_SCRATCH * e->bytes;
    e->scratch = budget_take(&l->server->budget, bytes) ? bytes : 0;
    return e->scratch > 0 || l->n_encodes == 0;
}

static void start_some(loop *l) {
    encode *e;
    while ((e = l->encodes) && may_start(l, e)) {
        l->encodes = e->next;
        l->n_encodes++;
        const int rc = uv_queue_work(&l->uv, &e->work, on_work, on_worked);
        assert(rc == 0); // it fails for want of a function alone
        (void)rc;
    }
}

static void on_worked(uv_work_t *work, int status) {
    encode *e = work->data;
    loop *l = e->loop;
    l->n_works--;
    l->n_encodes--;
    budget_give(&l->server->budget, e->scratch);
    start_some(l);
    e->done(e);
}

static void join(loop *l, encode *e) {
    e->next = NULL;
    if (!l->encodes) {
        l->last_encode = &l->encodes;
    }
    *l->last_encode = e;
    l->last_encode = &e->next;
    l->n_works++;
    start_some(l);
}

bool encode_drop(encode *e) {
    loop *l = e->loop;
    for (encode **at = l ? &l->encodes : NULL; at && *at; at = &(*at)->next) {
        if (*at == e) {
            *at = e->next;
            if (!e->next) {
                l->last_encode = at;
            }
            l->n_works--;
            start_some(l); // what is behind it may need less memory
            return true;
        }
    }
    return false;
}

int encode_start(encode *e, loop *l) {
    size_t bytes = e->prepare_bytes;
    for (size_t i = 0; i < e->n; i++) {
        bytes += e->items[i].text ? e->items[i].len : 0;
    }
    e->work.data = e;
    e->loop = l;
    e->bytes = bytes;
    if (bytes > ENCODE_INLINE) {
        join(l, e);
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
