// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // MADV_HUGEPAGE
#include "state_pool.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

static const size_t KEPT_BYTES = 64 << 20, SLAB_BYTES = 64 << 20, HUGE_PAGE = 2 << 20;
enum { LEAST_KEPT = 2, MOST_KEPT = 16, LEAST_SLAB = 4, ALIGNMENT = 256 };

// ---- ordinary memory

// Large pages where the state is as large: reading a file into it takes 11% less.
static float *allocate(size_t bytes) {
    void *state;
    if (bytes < HUGE_PAGE)
        return malloc(bytes + 1);
    if (posix_memalign(&state, HUGE_PAGE, bytes) != 0)
        return NULL;
    madvise(state, bytes, MADV_HUGEPAGE); // where the kernel has none, nothing changes
    return state;
}

static bool is_locked(const state_pool *p) {
    return p->backend && p->backend->host_alloc;
}

// ---- the ring; the lock is held

static bool reserve(state_pool *p, size_t cap) {
    if (cap <= p->cap)
        return true;
    pooled_state *ring = malloc(cap * sizeof *ring);
    if (!ring)
        return false;
    for (size_t i = 0; i < p->n; i++)
        ring[i] = p->kept[(p->first + i) % p->cap];
    free(p->kept);
    p->kept = ring;
    p->first = 0;
    p->cap = cap;
    return true;
}

// What is free at once goes in front, where it is taken from, and may be in a cache still; what a
// copy is under way for, to the end.
static void push(state_pool *p, float *state, uint64_t ticket) {
    assert(p->n < p->cap);
    const size_t at = ticket ? p->first + p->n : p->first + p->cap - 1;
    p->kept[at % p->cap] = (pooled_state){state, ticket};
    if (!ticket)
        p->first = at % p->cap;
    p->n++;
}

static pooled_state pop(state_pool *p) {
    const pooled_state s = p->kept[p->first];
    p->first = (p->first + 1) % p->cap;
    p->n--;
    return s;
}

// ---- page-locked memory; the lock is held

// More of it, with room in the ring for every buffer that there is then.
static bool add_slab(state_pool *p) {
    const size_t each = (p->bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    const size_t many = SLAB_BYTES / each, n = many > LEAST_SLAB ? many : LEAST_SLAB;
    void **slabs = realloc(p->slabs, (p->n_slabs + 1) * sizeof *slabs);
    if (!slabs)
        return false;
    p->slabs = slabs;
    if (!reserve(p, (p->n_slabs + 1) * n))
        return false;
    char *slab = p->backend->host_alloc(p->device, n * each);
    if (!slab)
        return false;
    p->slabs[p->n_slabs++] = slab;
    for (size_t i = 0; i < n; i++)
        push(p, (float *)(void *)(slab + i * each), 0);
    return true;
}

// ---- take and give

int state_pool_init(state_pool *p, size_t bytes, const ssm_backend *backend, ssm_device *device) {
    const size_t most = KEPT_BYTES / (bytes + 1);
    *p = (state_pool){.bytes = bytes, .backend = backend, .device = device};
    p->most = most < LEAST_KEPT ? LEAST_KEPT : most > MOST_KEPT ? MOST_KEPT : most;
    pthread_mutex_init(&p->lock, NULL);
    return (is_locked(p) ? add_slab(p) : reserve(p, p->most)) ? 0 : SSM_ENOMEM;
}

void state_pool_dispose(state_pool *p) {
    if (p->most == 0)
        return; // it was never made
    while (p->n > 0) {
        const pooled_state s = pop(p);
        if (is_locked(p))
            (void)ssm_ticket_wait(p->backend, p->device, s.ticket, NULL);
        else
            free(s.state);
    }
    for (size_t i = 0; i < p->n_slabs; i++)
        p->backend->host_free(p->device, p->slabs[i]);
    free(p->slabs);
    free(p->kept);
    pthread_mutex_destroy(&p->lock);
    *p = (state_pool){0};
}

float *state_pool_take(state_pool *p, size_t bytes) {
    pooled_state s = {NULL, 0};
    if (!p)
        return allocate(bytes);
    assert(bytes == p->bytes);
    pthread_mutex_lock(&p->lock);
    if (p->n == 0 && is_locked(p))
        (void)add_slab(p);
    if (p->n > 0)
        s = pop(p);
    pthread_mutex_unlock(&p->lock);
    if (s.ticket) // a device that has failed fails its next call too
        (void)ssm_ticket_wait(p->backend, p->device, s.ticket, NULL);
    return s.state || is_locked(p) ? s.state : allocate(bytes);
}

void state_pool_give(state_pool *p, float *state, uint64_t ticket) {
    if (p && state) {
        pthread_mutex_lock(&p->lock);
        if (is_locked(p) || p->n < p->most) {
            push(p, state, ticket);
            state = NULL;
        }
        pthread_mutex_unlock(&p->lock);
    }
    free(state);
}
