// SPDX-License-Identifier: Apache-2.0
#include "copies.h"

#include <stdbool.h>

// Whether it can be made in any order with these.
static bool is_free_of(const copy_pairs *p, int32_t src, int32_t dst) {
    bool is_free = true;
    for (int32_t i = 0; i < p->n; i++)
        is_free &= p->dst[i] != src && p->src[i] != dst;
    return is_free;
}

// Where a copy to the same place waits, or the end.
static int32_t place_of(const copy_pairs *p, int32_t dst) {
    int32_t i = 0;
    while (i < p->n && p->dst[i] != dst)
        i++;
    return i;
}

static int add(copies *c, copy_pairs *p, int32_t src, int32_t dst, ssm_error *err) {
    int32_t at = place_of(p, dst);
    if (at == MOST_COPIES || !is_free_of(p, src, dst)) {
        const int rc = copies_make(c, err);
        if (rc != 0)
            return rc;
        at = 0;
    }
    p->src[at] = src;
    p->dst[at] = dst;
    p->n += at == p->n;
    return 0;
}

int copies_add_slot(copies *c, int32_t src, int32_t dst, ssm_error *err) {
    return add(c, &c->slots, src, dst, err);
}

int copies_add_row(copies *c, int32_t src, int32_t dst, ssm_error *err) {
    return add(c, &c->rows, src, dst, err);
}

int copies_make(copies *c, ssm_error *err) {
    copy_pairs *s = &c->slots, *r = &c->rows;
    const int32_t n_slots = s->n, n_rows = r->n;
    int rc = 0;
    s->n = r->n = 0; // also if the device fails
    if (n_slots > 0)
        rc = c->backend->slots_copy(c->device, s->src, s->dst, n_slots, err);
    if (rc == 0 && n_rows > 0)
        rc = c->backend->logits_copy(c->device, r->src, r->dst, n_rows, err);
    return rc;
}
