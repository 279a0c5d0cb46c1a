// SPDX-License-Identifier: Apache-2.0
// Device, host, disk: who goes where when a place is full.
//
// A row of the device is taken from the oldest snapshot that no restore is planned from. That one
// goes to the host; what the host has too much of goes to the disk, by a copy that the disk's
// thread writes while the snapshot stays of use where it is; what the disk has no row for goes
// away. At most MOST_LEAVING states are on their way to the disk: they are beyond the host's bytes,
// and past them states are forgotten sooner than waited for. Sessions' states do not take this way:
// the session store has them, or they stay.
#include "tiers.h"

#include <assert.h>
#include <stdlib.h>

#include "engine/clock.h"
#include "engine/histogram.h"

enum {
    MOST_ASKED = 8, // of those that are kept, before a search ends
    MOST_LEAVING = 4,
};

// ---- the lists by last use

ssm_tier cache_tier(const snapshot *s) {
    return s->slot >= 0 ? SSM_TIER_DEVICE : s->host ? SSM_TIER_HOST : SSM_TIER_DISK;
}

static snapshot_list *place_of(cache *c, const snapshot *s) {
    snapshot_list *const lists[SSM_TIERS] = {&c->on_device, &c->on_host, &c->on_disk};
    return lists[cache_tier(s)];
}

void tiers_add(cache *c, snapshot *s) {
    snapshot_list *list = place_of(c, s);
    s->newer = NULL;
    s->older = list->newest;
    if (list->newest)
        list->newest->newer = s;
    else
        list->oldest = s;
    list->newest = s;
    list->n++;
}

void tiers_remove(cache *c, snapshot *s) {
    snapshot_list *list = place_of(c, s);
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

void tiers_touch(cache *c, snapshot *s) {
    tiers_remove(c, s);
    tiers_add(c, s);
}

// ---- what it takes

void tiers_restored(cache *c, ssm_tier tier, uint64_t began_ns) {
    histogram_add(&c->counts.tier[tier].restore_seconds, ssm_restore_seconds_bounds,
                  (double)(engine_now_ns() - began_ns) * 1e-9);
}

// ---- rows and bytes

uint64_t cache_host_bytes(const cache *c) {
    return (uint64_t)c->on_host.n * tiers_bytes(c);
}

uint64_t cache_disk_bytes(const cache *c) {
    return c->disk ? (uint64_t)(c->n_disk_rows - c->n_free_disk) * spill_row_bytes(c->disk) : 0;
}

// Of states that are to stay.
static uint64_t resting_bytes(const cache *c) {
    return (uint64_t)(c->on_host.n - (size_t)c->n_leaving) * tiers_bytes(c);
}

void tiers_give_row(cache *c, int32_t slot) {
    if (c->nan) {
        (void)cache_settle(c, NULL); // a device that has failed fails its next call too
        c->o.backend->slot_write(c->o.device, slot, c->nan, NULL);
        c->o.backend->logits_write(c->o.device, tiers_logits_row(c, slot), c->nan, NULL);
    }
    c->free[c->n_free++] = slot;
    assert(c->n_free <= c->o.n_slots);
}

int tiers_export(cache *c, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                 ssm_error *err) {
    *ticket = 0;
    const int rc = cache_settle(c, err);
    return rc != 0 ? rc : ssm_slot_export(c->o.backend, c->o.device, slot, row, out, ticket, err);
}

int tiers_import(cache *c, snapshot *s, int32_t slot, int32_t row, ssm_error *err) {
    const int rc = cache_settle(c, err);
    return rc != 0 ? rc
                   : ssm_slot_import(c->o.backend, c->o.device, slot, row, s->host, s->ticket,
                                     &s->ticket, err);
}

static void give_disk_row(cache *c, int32_t row) {
    c->free_disk[c->n_free_disk++] = row;
    assert(c->n_free_disk <= c->n_disk_rows);
}

void tiers_discard(cache *c, snapshot *s) {
    assert(tiers_is_idle(s));
    tiers_remove(c, s);
    if (s->slot >= 0)
        tiers_give_row(c, s->slot);
    if (s->disk_row >= 0)
        give_disk_row(c, s->disk_row);
    if (s->node)
        prefix_drop(&c->tree, s->node);
    tiers_give_host(c, s);
    free(s);
}

static void evict(cache *c, snapshot *s) {
    c->counts.tier[cache_tier(s)].evictions++;
    tiers_discard(c, s);
}

// ---- to the disk and back

// -1: none can be had.
static int32_t take_disk_row(cache *c) {
    if (c->n_free_disk == 0) {
        snapshot *s = c->on_disk.oldest;
        while (s && !tiers_is_idle(s))
            s = s->newer;
        if (s)
            evict(c, s);
    }
    return c->n_free_disk > 0 ? c->free_disk[--c->n_free_disk] : -1;
}

static void submit(cache *c, snapshot *s, spill_move *m) {
    m->snapshot = s;
    m->began_ns = engine_now_ns();
    s->is_moving = true;
    spill_submit(c->disk, m);
}

static bool can_leave(const cache *c, const snapshot *s) {
    return c->disk && s->node && c->n_leaving < MOST_LEAVING;
}

// Begins to write a state that is on the host and in nobody's use; false: it cannot leave.
static bool start_leaving(cache *c, snapshot *s) {
    if (!can_leave(c, s))
        return false;
    spill_move *m = malloc(sizeof *m);
    const int32_t row = m ? take_disk_row(c) : -1;
    if (row < 0) {
        free(m);
        return false;
    }
    c->n_leaving++;
    *m = (spill_move){.row = row, .pool = c->o.states, .ticket = s->ticket};
    m->state = s->host;
    m->bytes = tiers_image_bytes(c, s->has_logits);
    submit(c, s, m);
    return true;
}

bool cache_is_away(const snapshot *s) {
    return cache_tier(s) == SSM_TIER_DISK;
}

bool cache_fetch(cache *c, snapshot *s) {
    assert(cache_is_away(s));
    if (s->is_moving)
        return true;
    spill_move *m = calloc(1, sizeof *m);
    if (m) {
        *m = (spill_move){.is_read = true, .row = s->disk_row, .sum = {s->sum[0], s->sum[1]}};
        m->state = tiers_take_host(c);
        m->bytes = tiers_image_bytes(c, s->has_logits);
    }
    if (!m || !m->state) {
        free(m);
        evict(c, s);
        return false;
    }
    submit(c, s, m);
    return true;
}

static void on_written(cache *c, snapshot *s, const spill_move *m) {
    c->n_leaving--;
    c->counts.disk_failures += m->rc != 0 && m->rc != SSM_ECANCELED;
    if (m->rc != 0 || !tiers_is_idle(s)) { // failed, or in use again: it stays
        give_disk_row(c, m->row);
        if (m->rc != 0 && tiers_is_idle(s))
            evict(c, s);
        return;
    }
    tiers_remove(c, s);
    tiers_give_host(c, s);
    s->disk_row = m->row;
    s->sum[0] = m->sum[0];
    s->sum[1] = m->sum[1];
    tiers_add(c, s);
    c->counts.tier[SSM_TIER_DISK].moves++;
}

static bool on_read(cache *c, snapshot *s, const spill_move *m) {
    c->counts.disk_failures += m->rc != 0 && m->rc != SSM_ECANCELED;
    if (m->rc != 0) {
        state_pool_give(c->o.states, m->state, 0);
        evict(c, s);
        return false;
    }
    tiers_remove(c, s);
    give_disk_row(c, s->disk_row);
    s->disk_row = -1;
    s->host = m->state;
    tiers_add(c, s);
    tiers_restored(c, SSM_TIER_DISK, m->began_ns);
    return true;
}

bool cache_moved(cache *c, const spill_move *m) {
    snapshot *s = m->snapshot;
    s->is_moving = false;
    if (m->is_read)
        return on_read(c, s, m);
    on_written(c, s, m);
    return true;
}

// ---- from place to place

static bool have_let_go(cache *c, snapshot *s) {
    return c->o.let_go && c->o.let_go(c->o.ctx, s);
}

// The oldest that nobody needs goes, or has just gone with the last session that kept it.
static bool drop_oldest(cache *c, snapshot_list *list) {
    int asked = 0;
    snapshot *newer;
    for (snapshot *s = list->oldest; s && asked < MOST_ASKED; s = newer) {
        newer = s->newer;
        if (s->pins > 0 || s->is_moving)
            continue;
        const bool is_known = s->node, is_kept = s->keeps > 0;
        asked += is_kept;
        if (is_kept && !have_let_go(c, s))
            continue;
        const bool is_here = !is_kept || is_known;
        if (is_here && !(s->host && start_leaving(c, s)))
            evict(c, s);
        return true;
    }
    return false;
}

static void trim_host(cache *c, uint64_t bytes) {
    while (resting_bytes(c) > bytes && drop_oldest(c, &c->on_host)) {
    }
}

void cache_trim(cache *c) {
    trim_host(c, c->o.host_bytes);
}

// Whether one more state may go to the host; the oldest there make room.
static bool has_host_room(cache *c) {
    if (c->o.host_bytes < tiers_bytes(c))
        return false;
    trim_host(c, c->o.host_bytes - tiers_bytes(c));
    return resting_bytes(c) + tiers_bytes(c) <= c->o.host_bytes;
}

// Moves a snapshot from its row to the host; rc is the device's. Without memory it stays.
static int demote(cache *c, snapshot *s, ssm_error *err) {
    float *host = tiers_take_host(c);
    if (!host)
        return 0;
    const int32_t row = s->has_logits ? tiers_logits_row(c, s->slot) : -1;
    uint64_t ticket;
    const int rc = tiers_export(c, s->slot, row, host, &ticket, err);
    if (rc != 0) {
        state_pool_give(c->o.states, host, ticket);
        return rc;
    }
    tiers_remove(c, s);
    tiers_give_row(c, s->slot);
    s->slot = -1;
    s->host = host;
    s->ticket = ticket;
    tiers_add(c, s);
    c->counts.tier[SSM_TIER_HOST].moves++;
    return 0;
}

// Takes a snapshot's row if that can be.
static int vacate(cache *c, snapshot *s, ssm_error *err) {
    const bool is_known = s->node;
    int rc = 0;
    if (s->keeps > 0 && have_let_go(c, s) && !is_known)
        return 0; // it has gone
    if (s->keeps > 0 || has_host_room(c) || can_leave(c, s))
        rc = demote(c, s, err);
    if (rc == 0 && s->slot >= 0 && tiers_is_idle(s))
        evict(c, s);
    if (c->disk)
        cache_trim(c); // it may be the host's one too many
    return rc;
}

int tiers_take_row(cache *c, bool eager, int32_t *slot, ssm_error *err) {
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
