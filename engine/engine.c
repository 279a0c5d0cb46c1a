// SPDX-License-Identifier: Apache-2.0
// An engine comes to be and goes. What it is made of is in engine.h.
#include "engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/model.h"

void ssm_engine_options_init(ssm_engine_options *options) {
    *options = (ssm_engine_options){
        .device = "auto", .max_queue = 1024, .cache_bytes = -1, .checkpoint_tokens = 256};
}

void ssm_request_init(ssm_request *request) {
    *request = (ssm_request){.n = 1, .max_tokens = 16, .logprobs = -1, .cache_prompt = true};
}

// ---- create and free

static int check_options(const ssm_engine_options *o, ssm_error *err) {
    const struct {
        const char *name;
        int32_t value, min;
    } ranges[] = {
        {"threads", o->threads, 0},
        {"max_sessions", o->max_sessions, 0},
        {"max_queue", o->max_queue, 1},
        {"step_tokens", o->step_tokens, 0},
        {"chunk_tokens", o->chunk_tokens, 0},
        {"vocab_limit", o->vocab_limit, 0},
        {"checkpoint_tokens", o->checkpoint_tokens, 0},
        {"session_max", o->session_max, 0},
        {"session_key_max", o->session_key_max, 0},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value < ranges[i].min)
            return ssm_error_set(err, SSM_EINVAL, ranges[i].name, "%s must be at least %d, got %d",
                                 ranges[i].name, ranges[i].min, ranges[i].value);
    }
    return 0;
}

static void describe(ssm_engine *engine) {
    const ssm_device_info *d = &engine->device_info;
    snprintf(engine->text, sizeof engine->text, "%s; %d sessions of %.2f MiB, %d saved states",
             d->text, engine->n_sessions, (double)d->slot_bytes / 1048576,
             d->n_slots - engine->n_sessions);
}

static void on_moved(void *ctx, spill_move *m) {
    // Without memory for a command the state would be lost and its job wait: try until there is.
    while (!engine_send(ctx, &(command){.kind = COMMAND_MOVED, .moved = m})) {
    }
}

static int open_disk(ssm_engine *engine, cache_options *c, ssm_error *err) {
    const ssm_engine_options *o = &engine->options;
    if (!o->cache_dir || c->n_slots == 0)
        return 0;
    const int rc = spill_open(o->cache_dir, engine->states.bytes, on_moved, engine, &c->disk, err);
    if (rc != 0)
        return rc;
    const uint64_t rows = o->cache_disk_bytes / spill_row_bytes(c->disk);
    c->n_disk_rows = rows < MOST_CACHE_ROWS ? (int32_t)rows : MOST_CACHE_ROWS;
    return 0;
}

static int allocate(ssm_engine *engine, ssm_error *err) {
    const ssm_device_info *d = &engine->device_info;
    const ssm_geometry *g = &ssm_model_weights(engine->model)->geometry;
    assert(d->max_rows >= engine->n_sessions);
    if (d->max_tokens <= engine->n_sessions)
        return ssm_error_set(err, SSM_EINVAL, "max_sessions",
                             "a step of %d tokens cannot hold a row for each of %d sessions",
                             d->max_tokens, engine->n_sessions);
    engine->state_floats = ssm_state_conv_floats(g) + ssm_state_ssm_floats(g);
    int rc =
        state_pool_init(&engine->states, engine->info.saved_bytes, engine->backend, engine->device);
    if (rc != 0)
        return ssm_error_set(err, rc, NULL, "no memory for states on the host");
    const size_t n = (size_t)engine->n_sessions;
    engine->active = calloc(n, sizeof(choice *));
    engine->prompts = calloc(n, sizeof(choice *));
    engine->scratch = malloc((engine->state_floats + 1) * sizeof *engine->scratch);
    cache_options c = {.backend = engine->backend,
                       .device = engine->device,
                       .first_slot = engine->n_sessions,
                       .n_slots = d->n_slots - engine->n_sessions,
                       .first_row = d->max_rows,
                       .host_bytes = engine->options.cache_host_bytes,
                       .state_floats = engine->state_floats,
                       .vocab = (size_t)engine->info.vocab_size,
                       .states = &engine->states,
                       .poison = engine->options.poison_slots,
                       .let_go = durable_let_go,
                       .ctx = engine};
    rc = open_disk(engine, &c, err);
    if (rc != 0)
        return rc;
    rc = slots_init(&engine->slots, engine->n_sessions);
    if (rc == 0)
        rc = cache_init(&engine->cache, &c);
    for (int i = 0; rc == 0 && i < 2; i++)
        rc = flight_init(&engine->flights[i], d->max_tokens, engine->n_sessions, d->max_rows);
    if (engine->cache.disk != c.disk) // the cache did not come to be
        spill_close(c.disk);
    if (rc != 0 || !engine->active || !engine->prompts || !engine->scratch)
        return ssm_error_set(err, SSM_ENOMEM, "max_sessions", "no memory for %d sessions",
                             engine->n_sessions);
    engine->n_free_slots = engine->n_sessions;
    return 0;
}

static void dispose(ssm_engine *engine) {
    durable_close(engine); // if the thread never ran
    spill_close(engine->cache.disk);
    sessions_dispose(&engine->sessions, &engine->cache);
    cache_dispose(&engine->cache);
    state_pool_dispose(&engine->states);
    if (engine->device)
        engine->backend->close(engine->device);
    for (int i = 0; i < 2; i++)
        flight_dispose(&engine->flights[i]);
    slots_dispose(&engine->slots);
    free(engine->active);
    free(engine->prompts);
    free(engine->scratch);
    free(engine->ports.items);
    pthread_cond_destroy(&engine->wake);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

int ssm_engine_create(const ssm_model *model, const ssm_engine_options *options, ssm_engine **out,
                      ssm_error *err) {
    return engine_create_on(NULL, model, options, out, err);
}

int engine_create_on(const ssm_backend *backend, const ssm_model *model,
                     const ssm_engine_options *options, ssm_engine **out, ssm_error *err) {
    int rc = check_options(options, err);
    if (rc != 0)
        return rc;
    ssm_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for an engine");
    engine->backend = backend;
    engine->model = model;
    engine->info = *ssm_model_get_info(model);
    engine->options = *options;
    engine->inbox_last = &engine->inbox_first;
    engine->next_id = 1;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->wake, NULL);
    if ((rc = device_open(engine, err)) != 0)
        goto fail;
    if ((rc = allocate(engine, err)) != 0)
        goto fail;
    if ((rc = durable_open(engine, err)) != 0)
        goto fail;
    describe(engine);
    if (pthread_create(&engine->thread, NULL, engine_thread, engine) != 0) {
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "the engine thread could not be started");
        goto fail;
    }
    *out = engine;
    return 0;
fail:
    dispose(engine);
    return rc;
}

void ssm_engine_drain(ssm_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->is_draining = true;
    pthread_mutex_unlock(&engine->lock);
}

size_t ssm_engine_free(ssm_engine *engine) {
    if (!engine)
        return 0;
    pthread_mutex_lock(&engine->lock);
    engine->is_stopping = engine->is_draining = true;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
    pthread_join(engine->thread, NULL);
    assert(!engine->running.first && !engine->waiting.first && !engine->ended.first);
    assert(engine->slots.n_free == engine->slots.total);
    cache_check(&engine->cache);
    for (size_t i = 0; i < engine->ports.n; i++) {
        port_detach(engine->ports.items[i]);
        port_unref(engine->ports.items[i]);
    }
    const size_t n_lost = engine->n_lost;
    dispose(engine);
    return n_lost;
}

// ---- ports

bool engine_add_port(ssm_engine *engine, ssm_port *port) {
    pthread_mutex_lock(&engine->lock);
    const bool is_added = engine->ports.n < MAX_PORTS && port_list_add(&engine->ports, port);
    pthread_mutex_unlock(&engine->lock);
    return is_added;
}

void engine_notice_close(ssm_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->has_closed_ports = true;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
}

const char *ssm_engine_describe(const ssm_engine *engine) {
    return engine->text;
}

const char *ssm_engine_backends(void) {
    return ssm_backend_find("cuda") ? "cpu, reference, cuda" : "cpu, reference";
}

const char *ssm_engine_stores(void) {
#ifdef SSM_HIREDIS
    return "folder, redis";
#else
    return "folder";
#endif
}
