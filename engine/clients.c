// SPDX-License-Identifier: Apache-2.0
#include "clients.h"

#include <assert.h>
#include <stdlib.h>

static client **bucket(clients *all, uint64_t key) {
    return &all->buckets[key * 0x9e3779b97f4a7c15u >> 56];
}

client *clients_ref(clients *all, uint64_t key) {
    client **head = bucket(all, key);
    client *c = *head;
    while (c && c->key != key)
        c = c->next;
    if (!c) {
        if (!(c = calloc(1, sizeof *c)))
            return NULL;
        c->key = key;
        c->next = *head;
        *head = c;
    }
    c->jobs++;
    return c;
}

void clients_unref(clients *all, client *c) {
    if (--c->jobs > 0)
        return;
    assert(c->slots == 0);
    client **at = bucket(all, c->key);
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    free(c);
}
