// SPDX-License-Identifier: Apache-2.0
#include "encode.h"

#include <stdlib.h>

#include "loop.h"

static void encode_all(encode *e) {
    e->rc = e->prepare ? e->prepare(e) : 0;
    for (size_t i = 0; i < e->n && e->rc == 0; i++) {
        encode_item *item = &e->items[i];
        if (item->text) {
            e->rc = ssm_tokenizer_encode(e->tokenizer, item->text, item->len, e->flags, &item->ids,
                                         &e->err);
        }
    }
}

static void on_work(uv_work_t *work) {
    encode_all(work->data);
}

static void on_worked(uv_work_t *work, int status) {
    encode *e = work->data;
    e->loop->n_works--;
    e->done(e);
}

int encode_start(encode *e, loop *l) {
    size_t bytes = e->prepare_bytes;
    for (size_t i = 0; i < e->n; i++) {
        bytes += e->items[i].text ? e->items[i].len : 0;
    }
    e->work.data = e;
    e->loop = l;
    if (bytes > ENCODE_INLINE && uv_queue_work(&l->uv, &e->work, on_work, on_worked) == 0) {
        l->n_works++;
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
