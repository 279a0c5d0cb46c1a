// SPDX-License-Identifier: Apache-2.0
#include "engine/text/vocab.h"

#include <stdlib.h>
#include <string.h>

// Multiply-and-fold over eight bytes at a time: the keys are words of 1 to 20 bytes.
static uint64_t hash(const char *s, size_t len) {
    uint64_t h = 0x9e3779b97f4a7c15u ^ len;
    while (len >= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
        s += 8;
        len -= 8;
    }
    uint64_t w = 0;
    memcpy(&w, s, len);
    h = (h ^ w) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 29;
}

void vocab_dispose(vocab *v) {
    ssm_text_dispose(&v->bytes);
    free(v->entries);
    free(v->slots);
    *v = (vocab){0};
}

static void put_slot(vocab *v, int32_t id) {
    const vocab_entry *e = &v->entries[id];
    size_t at = hash(v->bytes.data + e->start, e->len) & (v->n_slots - 1);
    while (v->slots[at] != 0)
        at = (at + 1) & (v->n_slots - 1);
    v->slots[at] = id + 1;
}

// Keeps the table at most half full.
static int grow_slots(vocab *v) {
    if ((size_t)v->count * 2 < v->n_slots)
        return 0;
    const size_t want = v->n_slots ? 2 * v->n_slots : 64;
    int32_t *slots = calloc(want, sizeof *slots);
    if (!slots)
        return SSM_ENOMEM;
    free(v->slots);
    v->slots = slots;
    v->n_slots = want;
    for (int32_t id = 0; id < v->n_ids; id++) {
        if (v->entries[id].present)
            put_slot(v, id);
    }
    return 0;
}

static int grow_ids(vocab *v, int32_t id) {
    if (id < v->cap_ids)
        return 0;
    const int32_t want = id < 512 ? 1024 : 2 * (id + 1);
    vocab_entry *entries = realloc(v->entries, (size_t)want * sizeof *entries);
    if (!entries)
        return SSM_ENOMEM;
    memset(entries + v->cap_ids, 0, (size_t)(want - v->cap_ids) * sizeof *entries);
    v->entries = entries;
    v->cap_ids = want;
    return 0;
}

int vocab_add(vocab *v, const char *s, size_t len, int64_t id) {
    if (id < 0 || id >= VOCAB_MAX_ID || len > UINT32_MAX)
        return SSM_EFORMAT;
    if (id < v->n_ids && v->entries[id].present)
        return SSM_EFORMAT;
    if (vocab_find(v, s, len) >= 0)
        return SSM_EFORMAT;
    if (grow_ids(v, (int32_t)id) != 0 || grow_slots(v) != 0)
        return SSM_ENOMEM;
    const size_t start = v->bytes.len;
    if (ssm_text_append(&v->bytes, s, len) != 0)
        return SSM_ENOMEM;
    v->entries[id] = (vocab_entry){.start = start, .len = (uint32_t)len, .present = true};
    if (id >= v->n_ids)
        v->n_ids = (int32_t)id + 1;
    v->count++;
    put_slot(v, (int32_t)id);
    return 0;
}

int32_t vocab_find(const vocab *v, const char *s, size_t len) {
    if (v->n_slots == 0)
        return -1;
    for (size_t at = hash(s, len) & (v->n_slots - 1); v->slots[at] != 0;
         at = (at + 1) & (v->n_slots - 1)) {
        const vocab_entry *e = &v->entries[v->slots[at] - 1];
        if (e->len == len && memcmp(v->bytes.data + e->start, s, len) == 0)
            return v->slots[at] - 1;
    }
    return -1;
}

const char *vocab_get(const vocab *v, int32_t id, size_t *len) {
    if (id < 0 || id >= v->n_ids || !v->entries[id].present) {
        *len = 0;
        return NULL;
    }
    *len = v->entries[id].len;
    return v->bytes.data + v->entries[id].start;
}
