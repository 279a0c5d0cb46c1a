// SPDX-License-Identifier: Apache-2.0
#include "tiers.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"

enum { TENANT = 4 }; // tokens of a key before the text's own

// ---- life

int cache_init(cache *c, const cache_options *options) {
    *c = (cache){.o = *options};
    prefix_init(&c->tree);
    c->free = malloc(((size_t)options->n_slots + 1) * sizeof *c->free);
    if (options->poison)
        c->nan = malloc(tiers_state_bytes(c) + 1);
    c->n_disk_rows = c->n_free_disk = options->disk ? options->n_disk_rows : 0;
    c->free_disk = malloc(((size_t)c->n_disk_rows + 1) * sizeof *c->free_disk);
    c->disk = options->disk;
    if (!c->free || !c->free_disk || (options->poison && !c->nan)) {
        cache_dispose(c);
        return SSM_ENOMEM;
    }
    for (size_t i = 0; c->nan && i < options->state_floats; i++)
        c->nan[i] = NAN;
    for (int32_t i = 0; i < c->n_disk_rows; i++)
        c->free_disk[i] = c->n_disk_rows - 1 - i;
    while (c->n_free < options->n_slots) { // the first row on top
        c->free[c->n_free] = options->first_slot + options->n_slots - 1 - c->n_free;
        c->n_free++;
    }
    return 0;
}

void cache_dispose(cache *c) {
    while (c->on_device.oldest)
        tiers_discard(c, c->on_device.oldest);
    while (c->on_host.oldest)
        tiers_discard(c, c->on_host.oldest);
    while (c->on_disk.oldest)
        tiers_discard(c, c->on_disk.oldest);
    prefix_dispose(&c->tree);
    free(c->free);
    free(c->free_disk);
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
    size_t n_disk = (size_t)c->n_free_disk;
    for (const snapshot *s = c->on_disk.oldest; s; s = s->newer) {
        assert(s->slot < 0 && !s->host && !s->logits && s->node && s->node->value == s);
        assert(s->disk_row >= 0 && s->keeps == 0 && s->pins == 0);
        n_nodes++;
        n_disk++;
    }
    assert(n_disk + (size_t)c->n_leaving == (size_t)c->n_disk_rows);
    assert(n_rows == (size_t)c->o.n_slots);
    assert(c->tree.n >= n_nodes && c->tree.n <= 2 * n_nodes);
    prefix_check(&c->tree);
    (void)n_rows, (void)n_nodes, (void)n_disk;
}

// ---- find and save

// Whether a prompt of n tokens can go on from it: at its very end it takes logits to.
static bool can_begin(const snapshot *s, size_t n, bool here) {
    return (s->position < n || s->has_logits) && !(here && cache_is_away(s));
}

snapshot *cache_find(const cache *c, const int32_t tenant[4], const int32_t *tokens, size_t n,
                     bool here, size_t *known) {
    const prefix_key key = {.part = {tenant, tokens}, .n = {TENANT, n}};
    const prefix_match match = prefix_find(&c->tree, &key);
    *known = match.known > TENANT ? match.known - TENANT : 0;
    const prefix_node *node = match.node;
    while (node && !can_begin(node->value, n, here))
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
    int rc = tiers_take_row(c, eager, &to, err);
    if (rc != 0 || to < 0)
        return rc;
    snapshot *s = calloc(1, sizeof *s);
    if (!s) {
        tiers_give_row(c, to);
        return 0;
    }
    *s = (snapshot){.position = position, .slot = to, .disk_row = -1};
    rc = c->o.backend->slots_copy(c->o.device, &slot, &to, 1, err);
    if (rc == 0)
        rc = read_logits(c, row, &s->logits, err);
    s->has_logits = s->logits;
    tiers_add(c, s);
    if (rc != 0) {
        tiers_discard(c, s);
        return rc;
    }
    c->counts.saves++;
    *out = s;
    return 0;
}

// A state that is known already was used again; it may get the logits that it lacks.
static int add_logits(cache *c, snapshot *s, int32_t row, ssm_error *err) {
    tiers_touch(c, s);
    if (s->has_logits || s->is_moving || cache_is_away(s))
        return 0;
    const int rc = read_logits(c, row, &s->logits, err);
    s->has_logits = s->logits;
    return rc;
}

int cache_save(cache *c, const cache_text *text, int32_t slot, int32_t row, bool eager,
               ssm_error *err) {
    const prefix_key key = {.part = {text->tenant, text->prompt, text->answer},
                            .n = {TENANT, text->n_prompt, text->n_answer}};
    const size_t position = text->n_prompt + text->n_answer;
    const prefix_match match = prefix_find(&c->tree, &key);
    if (match.node && match.node->depth == TENANT + position) { // known already
        snapshot *known = match.node->value;
        const bool is_replaced = cache_is_away(known) && eager && tiers_is_idle(known);
        if (!is_replaced)
            return add_logits(c, known, row, err);
        tiers_discard(c, known); // what is at hand is as good, and nearer
    }
    snapshot *s;
    const int rc = create(c, position, slot, row, eager, &s, err);
    if (rc != 0 || !s)
        return rc;
    s->node = prefix_insert(&c->tree, &key);
    if (s->node)
        s->node->value = s;
    else
        tiers_discard(c, s);
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
    float *state = tiers_take_host(c), *logits = NULL; // no row: straight to the host
    if (!state)
        return 0;
    uint64_t ticket = 0;
    rc = ssm_slot_export(c->o.backend, c->o.device, slot, state, &ticket, err);
    if (rc == 0)
        rc = read_logits(c, row, &logits, err);
    if (rc == 0 && (*out = cache_adopt(c, position, state, logits))) {
        (*out)->ticket = ticket;
        return 0;
    }
    state_pool_give(c->o.states, state, ticket);
    free(logits);
    return rc;
}

snapshot *cache_adopt(cache *c, uint64_t position, float *state, float *logits) {
    snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (snapshot){.position = position,
                    .slot = -1,
                    .disk_row = -1,
                    .host = state,
                    .logits = logits,
                    .has_logits = logits,
                    .keeps = 1};
    tiers_add(c, s);
    return s;
}

void cache_release(cache *c, snapshot *s) {
    assert(s->keeps > 0);
    s->keeps--;
    if (tiers_is_idle(s) && !s->node)
        tiers_discard(c, s);
}

// ---- use

void cache_pin(cache *c, snapshot *s) {
    s->pins++;
    tiers_touch(c, s);
}

void cache_unpin(cache *c, snapshot *s) {
    assert(s->pins > 0);
    s->pins--;
    if (tiers_is_idle(s) && !s->node)
        tiers_discard(c, s);
}

// A snapshot that is used again moves back to the device, by way of the slot that it was written
// to.
static int promote(cache *c, snapshot *s, int32_t slot, ssm_error *err) {
    int32_t row;
    if (s->is_moving) // it is being written from where it is
        return 0;
    s->pins++; // not for itself
    int rc = tiers_take_row(c, true, &row, err);
    s->pins--;
    if (rc != 0 || row < 0)
        return rc;
    rc = c->o.backend->slots_copy(c->o.device, &slot, &row, 1, err);
    if (rc != 0) {
        tiers_give_row(c, row);
        return rc;
    }
    tiers_remove(c, s);
    tiers_give_host(c, s);
    s->slot = row;
    tiers_add(c, s);
    return 0;
}

int cache_restore(cache *c, snapshot *s, int32_t slot, ssm_error *err) {
    const ssm_tier tier = cache_tier(s);
    const uint64_t began_ns = engine_now_ns();
    assert(!cache_is_away(s));
    int rc =
        tier == SSM_TIER_DEVICE
            ? c->o.backend->slots_copy(c->o.device, &s->slot, &slot, 1, err)
            : ssm_slot_import(c->o.backend, c->o.device, slot, s->host, s->ticket, &s->ticket, err);
    if (rc != 0)
        return rc;
    tiers_restored(c, tier, began_ns);
    if (tier == SSM_TIER_HOST)
        return promote(c, s, slot, err);
    tiers_touch(c, s);
    return 0;
}

int cache_read(cache *c, const snapshot *s, float *out, uint64_t *ticket, ssm_error *err) {
    *ticket = 0;
    if (s->slot >= 0)
        return ssm_slot_export(c->o.backend, c->o.device, s->slot, out, ticket, err);
    const int rc = ssm_ticket_wait(c->o.backend, c->o.device, s->ticket, err);
    if (rc == 0)
        memcpy(out, s->host, tiers_state_bytes(c));
    return rc;
}
