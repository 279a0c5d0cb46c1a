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
    *c = (cache){.o = *options, .copies = {.backend = options->backend, .device = options->device}};
    prefix_init(&c->tree);
    c->free = malloc(((size_t)options->n_slots + 1) * sizeof *c->free);
    if (options->poison)
        c->nan = malloc(tiers_bytes(c));
    c->n_disk_rows = c->n_free_disk = options->disk ? options->n_disk_rows : 0;
    c->free_disk = malloc(((size_t)c->n_disk_rows + 1) * sizeof *c->free_disk);
    c->disk = options->disk;
    if (!c->free || !c->free_disk || (options->poison && !c->nan)) {
        cache_dispose(c);
        return SSM_ENOMEM;
    }
    for (size_t i = 0; c->nan && i < tiers_bytes(c) / sizeof(float); i++)
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
        assert(s->slot < 0 && !s->host && s->node && s->node->value == s);
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

// Logits of a step's row to where a snapshot on the device keeps its own.
static int copy_logits(cache *c, snapshot *s, int32_t row, ssm_error *err) {
    const int rc = copies_add_row(&c->copies, row, tiers_logits_row(c, s->slot), err);
    s->has_logits = rc == 0;
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
    rc = copies_add_slot(&c->copies, slot, to, err);
    if (rc == 0 && row >= 0)
        rc = copy_logits(c, s, row, err);
    tiers_add(c, s);
    if (rc != 0) {
        tiers_discard(c, s);
        return rc;
    }
    *out = s;
    return 0;
}

// Whether a state at hand had better be saved anew than be kept where it is: off the device
// without the logits that are at hand too, or on the disk.
static bool is_poor(const snapshot *s, int32_t row) {
    const bool gets_logits = row >= 0 && !s->has_logits;
    return tiers_is_idle(s) && (cache_is_away(s) || (s->slot < 0 && gets_logits));
}

// A state that is known already was used again; it may get the logits that it lacks.
static int use_again(cache *c, snapshot *s, int32_t row, ssm_error *err) {
    tiers_touch(c, s);
    return s->slot >= 0 && row >= 0 && !s->has_logits ? copy_logits(c, s, row, err) : 0;
}

int cache_save(cache *c, const cache_text *text, int32_t slot, int32_t row, bool eager,
               ssm_error *err) {
    const prefix_key key = {.part = {text->tenant, text->prompt, text->answer},
                            .n = {TENANT, text->n_prompt, text->n_answer}};
    const size_t position = text->n_prompt + text->n_answer;
    const prefix_match match = prefix_find(&c->tree, &key);
    if (match.node && match.node->depth == TENANT + position) { // known already
        snapshot *known = match.node->value;
        if (!eager || !is_poor(known, row))
            return use_again(c, known, row, err);
        tiers_discard(c, known);
    }
    snapshot *s;
    const int rc = create(c, position, slot, row, eager, &s, err);
    if (rc != 0 || !s)
        return rc;
    c->counts.saves++;
    s->node = prefix_insert(&c->tree, &key);
    if (s->node)
        s->node->value = s;
    else
        tiers_discard(c, s);
    return 0;
}

// ---- sessions

// Kept, on the device if there is room, else on the host.
static int keep(cache *c, uint64_t position, int32_t slot, int32_t row, bool eager, snapshot **out,
                ssm_error *err) {
    int rc = create(c, position, slot, row, eager, out, err);
    if (rc != 0 || *out) {
        if (*out)
            (*out)->keeps = 1;
        return rc;
    }
    float *state = tiers_take_host(c);
    if (!state)
        return 0;
    uint64_t ticket;
    rc = tiers_export(c, slot, row, state, &ticket, err);
    if (rc == 0 && (*out = cache_adopt(c, position, state, row >= 0))) {
        (*out)->ticket = ticket;
        return 0;
    }
    state_pool_give(c->o.states, state, ticket);
    return rc;
}

int cache_keep(cache *c, uint64_t position, int32_t slot, int32_t row, snapshot **out,
               ssm_error *err) {
    const int rc = keep(c, position, slot, row, true, out, err);
    c->counts.saves += *out && (*out)->slot >= 0;
    return rc;
}

// From kept to pinned.
static snapshot *hold(cache *c, snapshot *s) {
    if (s) {
        cache_pin(c, s);
        cache_release(c, s);
    }
    return s;
}

int cache_hold(cache *c, uint64_t position, int32_t slot, int32_t row, snapshot **out,
               ssm_error *err) {
    const int rc = keep(c, position, slot, row, false, out, err);
    hold(c, *out);
    return rc;
}

snapshot *cache_hold_zeros(cache *c) {
    float *state = tiers_take_host(c);
    if (!state)
        return NULL;
    memset(state, 0, tiers_bytes(c));
    snapshot *s = cache_adopt(c, 0, state, true);
    if (!s)
        state_pool_give(c->o.states, state, 0);
    return hold(c, s);
}

snapshot *cache_adopt(cache *c, uint64_t position, float *state, bool has_logits) {
    snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (snapshot){.position = position,
                    .slot = -1,
                    .disk_row = -1,
                    .host = state,
                    .has_logits = has_logits,
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

// A snapshot that is used again moves back to the device if there is room. One that is only held
// takes nobody's place.
static int promote(cache *c, snapshot *s, ssm_error *err) {
    const bool is_held = !s->node && s->keeps == 0;
    int32_t to;
    if (s->is_moving) // it is being written from where it is
        return 0;
    s->pins++; // not for itself
    int rc = tiers_take_row(c, !is_held, &to, err);
    s->pins--;
    if (rc != 0 || to < 0)
        return rc;
    rc = tiers_import(c, s, to, s->has_logits ? tiers_logits_row(c, to) : -1, err);
    if (rc != 0) {
        tiers_give_row(c, to);
        return rc;
    }
    tiers_remove(c, s);
    tiers_give_host(c, s);
    s->slot = to;
    tiers_add(c, s);
    return 0;
}

// From the device's row.
static int copy_out(cache *c, const snapshot *s, int32_t slot, int32_t row, ssm_error *err) {
    const int32_t from = tiers_logits_row(c, s->slot);
    int rc = cache_settle(c, err);
    if (rc == 0)
        rc = c->o.backend->slots_copy(c->o.device, &s->slot, &slot, 1, err);
    if (rc == 0 && row >= 0)
        rc = c->o.backend->logits_copy(c->o.device, &from, &row, 1, err);
    return rc;
}

int cache_restore(cache *c, snapshot *s, int32_t slot, int32_t row, ssm_error *err) {
    const ssm_tier tier = cache_tier(s);
    const uint64_t began_ns = engine_now_ns();
    assert(!cache_is_away(s) && (row < 0 || s->has_logits));
    int rc = tier == SSM_TIER_HOST ? promote(c, s, err) : 0;
    if (rc == 0)
        rc = s->slot >= 0 ? copy_out(c, s, slot, row, err) : tiers_import(c, s, slot, row, err);
    if (rc != 0)
        return rc;
    tiers_restored(c, tier, began_ns);
    tiers_touch(c, s);
    return 0;
}

int cache_read(cache *c, const snapshot *s, bool with_logits, float *out, uint64_t *ticket,
               ssm_error *err) {
    assert(!with_logits || s->has_logits);
    *ticket = 0;
    if (s->slot >= 0)
        return tiers_export(c, s->slot, with_logits ? tiers_logits_row(c, s->slot) : -1, out,
                            ticket, err);
    const int rc = ssm_ticket_wait(c->o.backend, c->o.device, s->ticket, err);
    if (rc == 0)
        memcpy(out, s->host, tiers_image_bytes(c, with_logits));
    return rc;
}

int cache_settle(cache *c, ssm_error *err) {
    return copies_make(&c->copies, err);
}
