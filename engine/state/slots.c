// SPDX-License-Identifier: Apache-2.0
#include "slots.h"

#include <assert.h>
#include <stdlib.h>

#include <ssm/error.h>

int slots_init(slots *s, int32_t total) {
    *s = (slots){.total = total, .n_free = total};
    s->free = malloc((size_t)total * sizeof *s->free);
    s->is_used = calloc((size_t)total, sizeof *s->is_used);
    if (!s->free || !s->is_used) {
        slots_dispose(s);
        return SSM_ENOMEM;
    }
    for (int32_t i = 0; i < total; i++)
        s->free[i] = total - 1 - i; // slot 0 first
    return 0;
}

void slots_dispose(slots *s) {
    free(s->free);
    free(s->is_used);
    *s = (slots){0};
}

int32_t slots_take(slots *s) {
    if (s->n_free == 0)
        return -1;
    const int32_t slot = s->free[--s->n_free];
    assert(!s->is_used[slot]);
    s->is_used[slot] = true;
    return slot;
}

void slots_give(slots *s, int32_t slot) {
    assert(slot >= 0 && slot < s->total && s->is_used[slot] && s->n_free < s->total);
    s->is_used[slot] = false;
    s->free[s->n_free++] = slot;
}
