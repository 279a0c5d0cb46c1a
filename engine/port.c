// SPDX-License-Identifier: Apache-2.0
#include "port.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

// Events while they are gathered: pointers are offsets into the pools until port_flush.
typedef struct gather {
    ssm_event *events;
    size_t n_events, cap_events;
    char *bytes; // top ids, top logprobs, usages and messages, 8-byte aligned
    size_t n_bytes, cap_bytes;
} gather;

struct ssm_port {
    pthread_mutex_t lock; // guards engine, wake, first, last, is_closed
    ssm_engine *engine;   // NULL once the engine is gone
    void (*wake)(void *ctx);
    void *ctx;
    ssm_batch *first, *last;
    bool is_closed;
    atomic_int refs;
    gather gather; // engine thread only
};

int ssm_port_open(ssm_engine *engine, void (*wake)(void *ctx), void *ctx, ssm_port **out,
                  ssm_error *err) {
    ssm_port *port = calloc(1, sizeof *port);
    if (!port)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a port");
    pthread_mutex_init(&port->lock, NULL);
    port->engine = engine;
    port->wake = wake;
    port->ctx = ctx;
    atomic_init(&port->refs, 2); // the consumer's and the engine's
    if (!engine_add_port(engine, port)) {
        atomic_store(&port->refs, 1);
        port_unref(port);
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a port");
    }
    *out = port;
    return 0;
}

void ssm_port_close(ssm_port *port) {
    if (!port)
        return;
    pthread_mutex_lock(&port->lock);
    assert(!port->is_closed);
    port->is_closed = true; // wake runs under the lock, so none is running now
    ssm_batch *batches = port->first;
    port->first = port->last = NULL;
    // The engine cannot be freed while this holds the lock: its end detaches every port first.
    if (port->engine)
        engine_notice_close(port->engine);
    pthread_mutex_unlock(&port->lock);
    ssm_batch_free(batches);
    port_unref(port);
}

void port_detach(ssm_port *port) {
    pthread_mutex_lock(&port->lock);
    port->engine = NULL;
    pthread_mutex_unlock(&port->lock);
}

bool port_is_closed(ssm_port *port) {
    pthread_mutex_lock(&port->lock);
    const bool is_closed = port->is_closed;
    pthread_mutex_unlock(&port->lock);
    return is_closed;
}

void port_ref(ssm_port *port) {
    atomic_fetch_add(&port->refs, 1);
}

void port_unref(ssm_port *port) {
    if (atomic_fetch_sub(&port->refs, 1) != 1)
        return;
    ssm_batch_free(port->first);
    free(port->gather.events);
    free(port->gather.bytes);
    pthread_mutex_destroy(&port->lock);
    free(port);
}

static size_t align8(size_t n) {
    return (n + 7) & ~(size_t)7;
}

// Room for n more bytes, or false.
static bool reserve_bytes(gather *g, size_t n) {
    if (g->n_bytes + n <= g->cap_bytes)
        return true;
    size_t cap = g->cap_bytes ? 2 * g->cap_bytes : 4096;
    while (cap < g->n_bytes + n)
        cap *= 2;
    char *bytes = realloc(g->bytes, cap);
    if (!bytes)
        return false;
    g->bytes = bytes;
    g->cap_bytes = cap;
    return true;
}

static bool reserve_event(gather *g) {
    if (g->n_events < g->cap_events)
        return true;
    const size_t cap = g->cap_events ? 2 * g->cap_events : 64;
    ssm_event *events = realloc(g->events, cap * sizeof *events);
    if (!events)
        return false;
    g->events = events;
    g->cap_events = cap;
    return true;
}

// Copies n bytes into the pool (room was reserved); the result is an offset + 1 in a pointer's
// clothes.
static const void *stash(gather *g, const void *data, size_t n) {
    if (!data || n == 0)
        return NULL;
    const size_t at = g->n_bytes;
    memcpy(g->bytes + at, data, n);
    g->n_bytes = at + align8(n);
    return (const void *)(uintptr_t)(at + 1);
}

bool port_post(ssm_port *port, const ssm_event *event) {
    gather *g = &port->gather;
    const size_t n_top = (size_t)event->n_top;
    const size_t n_message = event->message ? strlen(event->message) + 1 : 0;
    const size_t need = align8(n_top * sizeof(int32_t)) + align8(n_top * sizeof(float)) +
                        align8(sizeof(ssm_usage)) + align8(n_message);
    if (!reserve_event(g) || !reserve_bytes(g, need))
        return false;
    ssm_event *e = &g->events[g->n_events++];
    *e = *event;
    e->top_ids = stash(g, event->top_ids, n_top * sizeof(int32_t));
    e->top_logprobs = stash(g, event->top_logprobs, n_top * sizeof(float));
    e->usage = stash(g, event->usage, sizeof(ssm_usage));
    e->message = stash(g, event->message, n_message);
    return true;
}

static const void *unstash(const char *base, const void *offset) {
    return offset ? base + ((uintptr_t)offset - 1) : NULL;
}

static ssm_batch *build_batch(const gather *g) {
    const size_t head = align8(sizeof(ssm_batch));
    const size_t events = align8(g->n_events * sizeof(ssm_event));
    ssm_batch *batch = malloc(head + events + g->n_bytes);
    if (!batch)
        return NULL;
    ssm_event *out = (ssm_event *)((char *)batch + head);
    char *pool = (char *)out + events;
    memcpy(out, g->events, g->n_events * sizeof(ssm_event));
    if (g->n_bytes)
        memcpy(pool, g->bytes, g->n_bytes);
    for (size_t i = 0; i < g->n_events; i++) {
        out[i].top_ids = unstash(pool, out[i].top_ids);
        out[i].top_logprobs = unstash(pool, out[i].top_logprobs);
        out[i].usage = unstash(pool, out[i].usage);
        out[i].message = unstash(pool, out[i].message);
    }
    *batch = (ssm_batch){.n_events = g->n_events, .events = out};
    return batch;
}

void port_flush(ssm_port *port) {
    gather *g = &port->gather;
    if (g->n_events == 0)
        return;
    ssm_batch *batch = build_batch(g);
    if (!batch)
        return; // memory is short: keep the events for the next flush
    g->n_events = g->n_bytes = 0;
    pthread_mutex_lock(&port->lock);
    if (port->is_closed) {
        free(batch);
    } else {
        if (port->last)
            port->last->next = batch;
        else
            port->first = batch;
        port->last = batch;
        port->wake(port->ctx);
    }
    pthread_mutex_unlock(&port->lock);
}

ssm_batch *ssm_port_take(ssm_port *port) {
    pthread_mutex_lock(&port->lock);
    ssm_batch *batches = port->first;
    port->first = port->last = NULL;
    pthread_mutex_unlock(&port->lock);
    return batches;
}

void ssm_batch_free(ssm_batch *batches) {
    while (batches) {
        ssm_batch *next = batches->next;
        free(batches);
        batches = next;
    }
}

bool port_list_add(port_list *list, ssm_port *port) {
    if (list->n == list->cap) {
        const size_t cap = list->cap ? 2 * list->cap : 8;
        ssm_port **items = realloc(list->items, cap * sizeof(ssm_port *));
        if (!items)
            return false;
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = port;
    return true;
}

void port_list_remove(port_list *list, ssm_port *port) {
    for (size_t i = 0; i < list->n; i++) {
        if (list->items[i] == port) {
            memmove(list->items + i, list->items + i + 1, (list->n - i - 1) * sizeof(ssm_port *));
            list->n--;
            return;
        }
    }
}
