// SPDX-License-Identifier: Apache-2.0
#include "late_backend.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CPU (&ssm_backend_cpu)

enum { MOST_DEVICES = 8, MOST_COPIES = 4 }; // copies of a device that wait

// One that has been asked for and not done.
typedef struct copy {
    struct copy *next;
    uint64_t ticket;
    int32_t slot, row;  // row -1: no logits behind the state
    float *out, *held;  // export: the state as it was, for out
    const float *state; // import
} copy;

typedef struct late {
    ssm_device *device;
    size_t bytes, with_logits; // of a state
    copy *first, **last;
    int n;
} late;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // guards all below, and the devices
static late all[MOST_DEVICES];
static uint64_t last_ticket;

static late *find(const ssm_device *device) {
    late *d = all;
    while (d->device != device)
        assert(++d < all + MOST_DEVICES);
    return d;
}

// ---- copies, in order; the lock is held

static size_t bytes_of(const late *d, const copy *c) {
    return c->row < 0 ? d->bytes : d->with_logits;
}

static void finish_first(late *d) {
    copy *c = d->first;
    if (!(d->first = c->next))
        d->last = &d->first;
    d->n--;
    uint64_t ticket;
    if (c->out)
        memcpy(c->out, c->held, bytes_of(d, c));
    else
        ssm_slot_import(CPU, d->device, c->slot, c->row, c->state, 0, &ticket, NULL);
    free(c->held);
    free(c);
}

static void finish_until(late *d, uint64_t ticket) {
    while (d->first && d->first->ticket <= ticket)
        finish_first(d);
}

// Imports: the slot is wanted.
static void finish_imports(late *d) {
    uint64_t last = 0;
    for (const copy *c = d->first; c; c = c->next)
        last = c->out ? last : c->ticket;
    finish_until(d, last);
}

static copy *add(late *d, int32_t slot, int32_t row, uint64_t *ticket) {
    copy *c = calloc(1, sizeof *c);
    assert(c);
    while (d->n >= MOST_COPIES)
        finish_first(d);
    *c = (copy){.ticket = ++last_ticket, .slot = slot, .row = row};
    *d->last = c;
    d->last = &c->next;
    d->n++;
    *ticket = c->ticket;
    return c;
}

static late *enter(ssm_device *device) {
    pthread_mutex_lock(&lock);
    late *d = find(device);
    finish_imports(d);
    return d;
}

static int leave(int rc) {
    pthread_mutex_unlock(&lock);
    return rc;
}

static int export_slot(ssm_device *device, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                       ssm_error *err) {
    uint64_t none;
    late *d = enter(device);
    copy *c = add(d, slot, row, ticket);
    c->out = out;
    c->held = malloc(bytes_of(d, c));
    assert(c->held);
    memset(out, 0xff, bytes_of(d, c));
    return leave(ssm_slot_export(CPU, device, slot, row, c->held, &none, err));
}

static int import_slot(ssm_device *device, int32_t slot, int32_t row, const float *state,
                       uint64_t after, uint64_t *ticket, ssm_error *err) {
    late *d = enter(device);
    assert(after <= last_ticket);
    add(d, slot, row, ticket)->state = state;
    return leave(0);
}

static int wait_ticket(ssm_device *device, uint64_t ticket, ssm_error *err) {
    pthread_mutex_lock(&lock);
    finish_until(find(device), ticket);
    return leave(0);
}

static void *alloc(ssm_device *device, size_t bytes) {
    return malloc(bytes);
}

static void give(ssm_device *device, void *memory) {
    free(memory);
}

// ---- the rest, after what it depends on

static int open_late(const ssm_weights *weights, const ssm_device_options *options,
                     ssm_device **out, ssm_error *err) {
    const ssm_geometry *g = &weights->geometry;
    const int rc = CPU->open(weights, options, out, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&lock);
    late *d = find(NULL);
    *d = (late){.device = *out};
    d->bytes = (*out)->state_floats * sizeof(float);
    d->with_logits = d->bytes + (size_t)g->vocab_size * sizeof(float);
    d->last = &d->first;
    return leave(0);
}

static void close_late(ssm_device *device) {
    pthread_mutex_lock(&lock);
    late *d = find(device);
    finish_until(d, last_ticket);
    *d = (late){0};
    pthread_mutex_unlock(&lock);
    CPU->close(device);
}

static void info(const ssm_device *device, ssm_device_info *out) {
    CPU->info(device, out);
    out->run_ahead = true;
}

static int step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    enter(device);
    return leave(CPU->step(device, plan, err));
}

static int sample(ssm_device *device, const ssm_sample *samples, int32_t n, ssm_error *err) {
    enter(device);
    return leave(CPU->sample(device, samples, n, err));
}

static int slots_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err) {
    enter(device);
    return leave(CPU->slots_copy(device, src, dst, n, err));
}

static int slot_read(ssm_device *device, int32_t slot, float *out, ssm_error *err) {
    enter(device);
    return leave(CPU->slot_read(device, slot, out, err));
}

static int slot_write(ssm_device *device, int32_t slot, const float *state, ssm_error *err) {
    enter(device);
    return leave(CPU->slot_write(device, slot, state, err));
}

static int logits_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err) {
    enter(device);
    return leave(CPU->logits_copy(device, src, dst, n, err));
}

static int logits_write(ssm_device *device, int32_t row, const float *logits, ssm_error *err) {
    enter(device);
    return leave(CPU->logits_write(device, row, logits, err));
}

const ssm_backend *late_backend(void) {
    static ssm_backend backend;
    backend = ssm_backend_cpu;
    backend.open = open_late;
    backend.close = close_late;
    backend.info = info;
    backend.step = step;
    backend.sample = sample;
    backend.slots_copy = slots_copy;
    backend.slot_read = slot_read;
    backend.slot_write = slot_write;
    backend.logits_copy = logits_copy;
    backend.logits_write = logits_write;
    backend.host_alloc = alloc;
    backend.host_free = give;
    backend.slot_export = export_slot;
    backend.slot_import = import_slot;
    backend.ticket_wait = wait_ticket;
    return &backend;
}
