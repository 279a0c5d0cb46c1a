// SPDX-License-Identifier: Apache-2.0
// The places of saved states, and the moves between them: what cache.c is made of. See cache.h.
#ifndef SSM_ENGINE_TIERS_H
#define SSM_ENGINE_TIERS_H

#include "cache.h"

void tiers_add(cache *c, snapshot *s);     // to the list of the place where it is, as the newest
void tiers_remove(cache *c, snapshot *s);  // before it changes its place
void tiers_touch(cache *c, snapshot *s);   // it was used
void tiers_discard(cache *c, snapshot *s); // the end of one that nobody needs

// It took so long to have a state back from a tier.
void tiers_restored(cache *c, ssm_tier tier, uint64_t began_ns);

static inline bool tiers_is_idle(const snapshot *s) {
    return s->pins == 0 && s->keeps == 0 && !s->is_moving;
}

// Of a state on the host, with or without the logits behind it.
static inline size_t tiers_image_bytes(const cache *c, bool with_logits) {
    return (c->o.state_floats + (with_logits ? c->o.vocab : 0)) * sizeof(float);
}

static inline size_t tiers_bytes(const cache *c) { // of a buffer
    return tiers_image_bytes(c, true);
}

// Where a row of the device has its logits.
static inline int32_t tiers_logits_row(const cache *c, int32_t slot) {
    return c->o.first_row + slot - c->o.first_slot;
}

static inline float *tiers_take_host(const cache *c) { // NULL: no memory
    return state_pool_take(c->o.states, tiers_bytes(c));
}

static inline void tiers_give_host(const cache *c, snapshot *s) {
    state_pool_give(c->o.states, s->host, s->ticket);
    s->host = NULL;
    s->ticket = 0;
}

// Between the device, as it is when the copies asked for are made, and the host: see
// kernels/backend.h. The ticket is 0 after an error.
int tiers_export(cache *c, int32_t slot, int32_t row, float *out, uint64_t *ticket, ssm_error *err);
int tiers_import(cache *c, snapshot *s, int32_t slot, int32_t row, ssm_error *err);

// A row for a new snapshot, -1 if none can be had. eager: an older one may go for it. rc is the
// device's.
int tiers_take_row(cache *c, bool eager, int32_t *slot, ssm_error *err);
void tiers_give_row(cache *c, int32_t slot);

#endif
