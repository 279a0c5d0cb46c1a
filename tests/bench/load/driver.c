// SPDX-License-Identifier: Apache-2.0
// When requests start. Closed loop: a connection that was answered asks again at once, so the
// server sets the pace. Open loop: requests are due at random moments, whatever the server does;
// one that finds no connection free waits its turn, and its times count from when it was due, so
// that a server that stalls cannot hide it (coordinated omission).
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

enum { REST_MS = 50 };

uint64_t load_random(load_driver *d) { // splitmix64
    uint64_t z = d->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void start(load_driver *d, load_connection *c, uint64_t due_ns) {
    d->open++;
    if (d->measuring) {
        uint64_t now = uv_hrtime();
        d->stats.started++;
        histogram_add(&d->stats.wait, now > due_ns ? now - due_ns : 0);
        d->stats.max_open = d->open > d->stats.max_open ? d->open : d->stats.max_open;
    }
    load_connection_start(c, due_ns);
}

// ---- requests that are due, a ring

static void push_due(load_driver *d, uint64_t due_ns) {
    if (d->due_len == d->due_cap) {
        uint64_t cap = d->due_cap ? 2 * d->due_cap : 1024;
        uint64_t *grown = malloc(cap * sizeof *grown);
        assert(grown);
        for (uint64_t i = 0; i < d->due_len; i++) {
            grown[i] = d->due[(d->due_head + i) % d->due_cap];
        }
        free(d->due);
        d->due = grown;
        d->due_cap = cap;
        d->due_head = 0;
    }
    d->due[(d->due_head + d->due_len++) % d->due_cap] = due_ns;
}

static uint64_t pop_due(load_driver *d) {
    assert(d->due_len > 0);
    uint64_t due_ns = d->due[d->due_head];
    d->due_head = (d->due_head + 1) % d->due_cap;
    d->due_len--;
    return due_ns;
}

static void start_due(load_driver *d) {
    while (d->due_len > 0 && d->idle) {
        load_connection *c = d->idle;
        d->idle = c->next;
        start(d, c, pop_due(d));
    }
}

static uint64_t exponential_ns(load_driver *d) {
    double u = ((double)(load_random(d) >> 11) + 0.5) * 0x1p-53;
    return (uint64_t)(-log(u) / d->options->rate * 1e9);
}

static void on_arrival(uv_timer_t *timer) {
    load_driver *d = timer->data;
    if (d->over) {
        return;
    }
    uint64_t now = uv_hrtime();
    while (d->next_due_ns <= now) {
        push_due(d, d->next_due_ns);
        d->next_due_ns += exponential_ns(d);
    }
    start_due(d);
    // libuv's timers count milliseconds: round down and look again
    uv_timer_start(&d->arrivals, on_arrival, (d->next_due_ns - now) / 1000000, 0);
}

static void push_idle(load_driver *d, load_connection *c) {
    c->next = d->idle;
    d->idle = c;
}

static void reuse(load_driver *d, load_connection *c) {
    if (d->options->rate > 0) {
        push_idle(d, c);
        start_due(d);
    } else {
        start(d, c, uv_hrtime());
    }
}

// A server that refuses is not asked again in the same millisecond.
static void on_rested(uv_timer_t *timer) {
    load_driver *d = timer->data;
    load_connection *c = d->resting;
    d->resting = NULL;
    while (c && !d->over) {
        load_connection *next = c->next;
        reuse(d, c);
        c = next;
    }
}

void load_driver_on_end(load_driver *d, load_connection *c, bool well) {
    d->open--;
    if (d->over) {
        return;
    }
    if (well) {
        reuse(d, c);
    } else {
        c->next = d->resting;
        d->resting = c;
    }
}

// ---- phases: warm-up, measured seconds, the end

static void on_end(uv_timer_t *timer) {
    load_driver *d = timer->data;
    d->stats.seconds = (double)(uv_hrtime() - d->begun_ns) / 1e9;
    d->stats.open_at_end = d->open;
    d->measuring = false;
    d->over = true;
    uv_close((uv_handle_t *)&d->arrivals, NULL);
    uv_close((uv_handle_t *)&d->phase, NULL);
    uv_close((uv_handle_t *)&d->rest, NULL);
    for (int i = 0; i < d->options->clients; i++) {
        load_connection_close(&d->connections[i]);
    }
}

static void on_warm(uv_timer_t *timer) {
    load_driver *d = timer->data;
    d->measuring = true;
    d->begun_ns = uv_hrtime();
    uv_timer_start(&d->phase, on_end, (uint64_t)(d->options->duration * 1000), 0);
}

static void begin(load_driver *d) {
    uint64_t now = uv_hrtime();
    uv_timer_start(&d->phase, on_warm, (uint64_t)(d->options->warmup * 1000), 0);
    uv_timer_start(&d->rest, on_rested, REST_MS, REST_MS);
    for (int i = 0; i < d->options->clients; i++) {
        load_connection *c = &d->connections[i];
        load_connection_init(c, d);
        if (d->options->rate > 0) {
            push_idle(d, c);
        } else {
            start(d, c, now);
        }
    }
    if (d->options->rate > 0) {
        d->next_due_ns = now + exponential_ns(d);
        on_arrival(&d->arrivals);
    }
}

int load_driver_run(load_driver *d, const load_options *options) {
    memset(d, 0, sizeof *d);
    d->options = options;
    d->loop = uv_default_loop();
    d->random_state = options->seed;
    d->connections = calloc((size_t)options->clients, sizeof *d->connections);
    assert(d->connections);
    uv_timer_init(d->loop, &d->arrivals);
    uv_timer_init(d->loop, &d->phase);
    uv_timer_init(d->loop, &d->rest);
    d->arrivals.data = d->phase.data = d->rest.data = d;
    begin(d);
    uv_run(d->loop, UV_RUN_DEFAULT);
    for (int i = 0; i < options->clients; i++) {
        free(d->connections[i].request);
    }
    free(d->connections);
    free(d->due);
    return d->stats.finished > 0 ? 0 : -1;
}
