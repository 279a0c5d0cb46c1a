// SPDX-License-Identifier: Apache-2.0
#include "cache.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TENANT = 4 }; // tokens of a key before the text's own

// ---- the lists by last use

static snapshot_list *place_of(cache *c, const snapshot *s) {
    return s->slot >= 0 ? &c->on_device : &c->on_host;
}

static void link_newest(snapshot_list *list, snapshot *s) {
    s->newer = NULL;
    s->older = list->newest;
    if (list->newest)
        list->newest->newer = s;
    else
        list->oldest = s;
    list->newest = s;
    list->n++;
}

static void unlink_from(snapshot_list *list, snapshot *s) {
    if (s->newer)
        s->newer->older = s->older;
    else
        list->newest = s->older;
    if (s->older)
        s->older->newer = s->newer;
    else
        list->oldest = s->newer;
    list->n--;
}

static void touch(cache *c, snapshot *s) {
    snapshot_list *list = place_of(c, s);
    unlink_from(list, s);
    link_newest(list, s);
}

// ---- rows and bytes

static size_t state_bytes(const cache *c) {
    return c->o.state_floats * sizeof(float);
}

uint64_t cache_host_bytes(const cache *c) {
    return (uint64_t)c->on_host.n * state_bytes(c);
}

static void give_row(cache *c, int32_t slot) {
    if (c->nan)
        c->o.backend->slot_write(c->o.device, slot, c->nan, NULL);
    c->free[c->n_free++] = slot;
    assert(c->n_free <= c->o.n_slots);
}

static bool is_idle(const snapshot *s) {
    return s->pins == 0 && s->keeps == 0;
}

// The end of a snapshot that nobody needs.
static void discard(cache *c, snapshot *s) {
    assert(is_idle(s));
    unlink_from(place_of(c, s), s);
    if (s->slot >= 0)
        give_row(c, s->slot);
    if (s->node)
        prefix_drop(&c->tree, s->node);
    free(s->host);
    free(s->logits);
    free(s);
}

static bool have_let_go(cache *c, snapshot *s) {
    return c->o.let_go && c->o.let_go(c->o.ctx, s);
}

enum { MOST_ASKED = 8 }; // of those that are kept, before a search ends

// The oldest that nobody needs goes, or has just gone with the last session that kept it.
static bool drop_oldest(cache *c, snapshot_list *list) {
    int asked = 0;
    snapshot *newer;
    for (snapshot *s = list->oldest; s && asked < MOST_ASKED; s = newer) {
        newer = s->newer;
        if (s->pins > 0)
            continue;
        const bool is_known = s->node, is_kept = s->keeps > 0;
        asked += is_kept;
        if (is_kept && !have_let_go(c, s))
            continue;
        if (!is_kept || is_known) {
            c->counts.evictions++;
            discard(c, s);
        }
        return true;
    }
    return false;
}

static void trim_host(cache *c, uint64_t bytes) {
    while (cache_host_bytes(c) > bytes && drop_oldest(c, &c->on_host)) {
    }
}

void cache_trim(cache *c) {
    trim_host(c, c->o.host_bytes);
}

// Whether one more state may go to the host; the oldest there make room.
static bool has_host_room(cache *c) {
    if (c->o.host_bytes < state_bytes(c))
        return false;
    trim_host(c, c->o.host_bytes - state_bytes(c));
    return cache_host_bytes(c) + state_bytes(c) <= c->o.host_bytes;
}

// Moves a snapshot from its row to the host; rc is the device's. Without memory it stays.
static int demote(cache *c, snapshot *s, ssm_error *err) {
    float *host = malloc(state_bytes(c));
    if (!host)
        return 0;
    const int rc = c->o.backend->slot_read(c->o.device, s->slot, host, err);
    if (rc != 0) {
        free(host);
        return rc;
    }
    unlink_from(&c->on_device, s);
    give_row(c, s->slot);
    s->slot = -1;
    s->host = host;
    link_newest(&c->on_host, s);
    c->counts.demotions++;
    return 0;
}

// Takes a snapshot's row if that can be.
static int vacate(cache *c, snapshot *s, ssm_error *err) {
    const bool is_known = s->node;
    int rc = 0;
    if (s->keeps > 0 && have_let_go(c, s) && !is_known)
        return 0; // it has gone
    if (s->keeps > 0 || has_host_room(c))
        rc = demote(c, s, err);
    if (rc == 0 && s->slot >= 0 && is_idle(s)) {
        c->counts.evictions++;
        discard(c, s);
    }
    return rc;
}

// A row for a new snapshot, -1 if none can be had; rc is the device's.
static int take_row(cache *c, bool eager, int32_t *slot, ssm_error *err) {
    *slot = -1;
    if (c->n_free == 0 && eager) {
        snapshot *s = c->on_device.oldest;
        while (s && s->pins > 0)
            s = s->newer;
        if (!s)
            return 0;
        const int rc = vacate(c, s, err);
        if (rc != 0)
            return rc;
    }
    if (c->n_free > 0)
        *slot = c->free[--c->n_free];
    return 0;
}

// ---- life

int cache_init(cache *c, const cache_options *options) {
    *c = (cache){.o = *options};
    prefix_init(&c->tree);
    c->free = malloc(((size_t)options->n_slots + 1) * sizeof *c->free);
    if (options->poison)
        c->nan = malloc(state_bytes(c) + 1);
    if (!c->free || (options->poison && !c->nan)) {
        cache_dispose(c);
        return SSM_ENOMEM;
    }
    for (size_t i = 0; c->nan && i < options->state_floats; i++)
        c->nan[i] = NAN;
    while (c->n_free < options->n_slots) { // the first row on top
        c->free[c->n_free] = options->first_slot + options->n_slots - 1 - c->n_free;
        c->n_free++;
    }
    return 0;
}

void cache_dispose(cache *c) {
    while (c->on_device.oldest)
        discard(c, c->on_device.oldest);
    while (c->on_host.oldest)
        discard(c, c->on_host.oldest);
    prefix_dispose(&c->tree);
    free(c->free);
    free(c->nan);
    *c = (cache){0};
}

void cache_check(const cache *c) {
    size_t n_rows = (size_t)c->n_free, n_nodes = 0;
    for (const snapshot *s = c->on_device.oldest; s; s = s->newer) {
        assert(s->slot >= c->o.first_slot && s->slot < c->o.first_slot + c->o.n_slots && !s->host);
        assert(!s->node || s->node->value == s);
        n_nodes += s->node != NULL;
        n_rows++;
    }
    for (const snapshot *s = c->on_host.oldest; s; s = s->newer) {
        assert(s->slot < 0 && s->host && (!s->node || s->node->value == s));
        n_nodes += s->node != NULL;
    }
    assert(n_rows == (size_t)c->o.n_slots);
    assert(c->tree.n >= n_nodes && c->tree.n <= 2 * n_nodes);
    prefix_check(&c->tree);
    (void)n_rows, (void)n_nodes;
}

// ---- find and save

snapshot *cache_find(const cache *c, const int32_t tenant[4], const int32_t *tokens, size_t n,
                     size_t *known) {
    const prefix_key key = {.part = {tenant, tokens}, .n = {TENANT, n}};
    const prefix_match match = prefix_find(&c->tree, &key);
    *known = match.known > TENANT ? match.known - TENANT : 0;
    const prefix_node *node = match.node;
    while (node && node->depth == TENANT + n && !((snapshot *)node->value)->logits)
        node = prefix_above(node);
    assert(!node || ((snapshot *)node->value)->position == node->depth - TENANT);
    return node ? node->value : NULL;
}

// Logits of a row, or NULL without memory.
static int read_logits(cache *c, int32_t row, float **out, ssm_error *err) {
    *out = NULL;
    if (row < 0 || !(*out = malloc(c->o.vocab * sizeof(float))))
        return 0;
    const int rc = c->o.backend->logits_read(c->o.device, row, *out, err);
    if (rc != 0) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

// A new snapshot of a slot in a row of the device; *out stays NULL if there is no room.
static int create(cache *c, uint64_t position, int32_t slot, int32_t row, bool eager,
                  snapshot **out, ssm_error *err) {
    int32_t to;
    *out = NULL;
    int rc = take_row(c, eager, &to, err);
    if (rc != 0 || to < 0)
        return rc;
    snapshot *s = calloc(1, sizeof *s);
    if (!s) {
        give_row(c, to);
        return 0;
    }
    *s = (snapshot){.position = position, .slot = to};
    rc = c->o.backend->slots_copy(c->o.device, &slot, &to, 1, err);
    if (rc == 0)
        rc = read_logits(c, row, &s->logits, err);
    link_newest(&c->on_device, s);
    if (rc != 0) {
        discard(c, s);
        return rc;
    }
    c->counts.saves++;
    *out = s;
    return 0;
}

int cache_save(cache *c, const cache_text *text, int32_t slot, int32_t row, bool eager,
               ssm_error *err) {
    const prefix_key key = {.part = {text->tenant, text->prompt, text->answer},
                            .n = {TENANT, text->n_prompt, text->n_answer}};
    const size_t position = text->n_prompt + text->n_answer;
    const prefix_match match = prefix_find(&c->tree, &key);
    if (match.node && match.node->depth == TENANT + position) { // known already
        snapshot *s = match.node->value;
        touch(c, s);
        return s->logits ? 0 : read_logits(c, row, &s->logits, err);
    }
    snapshot *s;
    const int rc = create(c, position, slot, row, eager, &s, err);
    if (rc != 0 || !s)
        return rc;
    s->node = prefix_insert(&c->tree, &key);
    if (s->node)
        s->node->value = s;
    else
        discard(c, s);
    return 0;
}

// ---- sessions

int cache_keep(cache *c, uint64_t position, int32_t slot, int32_t row, snapshot **out,
               ssm_error *err) {
    snapshot *s;
    int rc = create(c, position, slot, row, true, &s, err);
    *out = s;
    if (rc != 0)
        return rc;
    if (s) {
        s->keeps = 1;
        return 0;
    }
    float *state = malloc(state_bytes(c)), *logits = NULL; // no row: straight to the host
    if (!state)
        return 0;
    rc = c->o.backend->slot_read(c->o.device, slot, state, err);
    if (rc == 0)
        rc = read_logits(c, row, &logits, err);
    if (rc != 0 || !(*out = cache_adopt(c, position, state, logits))) {
        free(state);
        free(logits);
    }
    return rc;
}

snapshot *cache_adopt(cache *c, uint64_t position, float *state, float *logits) {
    snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (snapshot){.position = position, .slot = -1, .host = state, .logits = logits, .keeps = 1};
    link_newest(&c->on_host, s);
    return s;
}

void cache_release(cache *c, snapshot *s) {
    assert(s->keeps > 0);
    s->keeps--;
    if (is_idle(s) && !s->node)
        discard(c, s);
}

// ---- use

void cache_pin(cache *c, snapshot *s) {
    s->pins++;
    touch(c, s);
}

void cache_unpin(cache *c, snapshot *s) {
    assert(s->pins > 0);
    s->pins--;
    if (is_idle(s) && !s->node)
        discard(c, s);
}

// A snapshot that is used again moves back to the device, by way of the slot that it was written
// to.
static int promote(cache *c, snapshot *s, int32_t slot, ssm_error *err) {
    int32_t row;
    s->pins++; // not for itself
    int rc = take_row(c, true, &row, err);
    s->pins--;
    if (rc != 0 || row < 0)
        return rc;
    rc = c->o.backend->slots_copy(c->o.device, &slot, &row, 1, err);
    if (rc != 0) {
        give_row(c, row);
        return rc;
    }
    unlink_from(&c->on_host, s);
    free(s->host);
    s->host = NULL;
    s->slot = row;
    link_newest(&c->on_device, s);
    return 0;
}

int cache_restore(cache *c, snapshot *s, int32_t slot, ssm_error *err) {
    if (s->slot >= 0) {
        touch(c, s);
        return c->o.backend->slots_copy(c->o.device, &s->slot, &slot, 1, err);
    }
    const int rc = c->o.backend->slot_write(c->o.device, slot, s->host, err);
    return rc != 0 ? rc : promote(c, s, slot, err);
}

int cache_read(cache *c, const snapshot *s, float *out, ssm_error *err) {
    if (s->slot >= 0)
        return c->o.backend->slot_read(c->o.device, s->slot, out, err);
    memcpy(out, s->host, state_bytes(c));
    return 0;
}
