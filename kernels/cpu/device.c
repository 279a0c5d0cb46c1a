// SPDX-License-Identifier: Apache-2.0
// The CPU backend's table: slots, rows of logits, draws, around the step (step.c).
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ceilings.h"
#include "kernels/backend.h"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/sampler.h"
#include "lti.h"
#include "slots.h"
#include "step.h"

typedef struct cpu_device {
    ssm_device base;
    cpu_pool *pool;
    cpu_model model;
    cpu_work work;
    cpu_step step;
    int32_t n_slots, max_tokens;
    ssm_dtype weight_dtype;
    size_t slots_bytes;
    int32_t *drawn;        // [n_slots]
    ssm_sampler *samplers; // [threads]
    ssm_draws draws;
} cpu_device;

static void close_device(ssm_device *device) {
    cpu_device *d = (cpu_device *)device;
    if (!d)
        return;
    for (int i = 0; d->samplers && i < cpu_pool_threads(d->pool); i++)
        ssm_sampler_dispose(&d->samplers[i]);
    free(d->samplers);
    cpu_pool_free(d->pool);
    cpu_work_dispose(&d->work);
    cpu_model_dispose(&d->model);
    ssm_draws_dispose(&d->draws);
    cpu_unmap(d->step.slots, d->slots_bytes);
    free(d->step.wanted);
    free(d->step.cut);
    free(d->drawn);
    free(d);
}

static int open_slots(cpu_device *d, ssm_error *err) {
    cpu_step *s = &d->step;
    s->slot_floats = (size_t)d->model.g.n_layers *
                     (cpu_slot_conv_floats(&d->model) + cpu_slot_ssm_floats(&d->model));
    d->slots_bytes = (size_t)d->n_slots * s->slot_floats * sizeof(float);
    s->slots = cpu_map(d->slots_bytes);
    d->drawn = calloc((size_t)d->n_slots, sizeof *d->drawn);
    s->drawn = d->drawn;
    s->cut = calloc((size_t)d->n_slots, sizeof *s->cut);
    if (s->slots && d->drawn && s->cut)
        return 0;
    return ssm_error_set(err, SSM_ENOMEM, "max_sessions",
                         "no memory for %d sessions of %zu bytes each", d->n_slots,
                         s->slot_floats * sizeof(float));
}

static int open_sampling(cpu_device *d, const ssm_device_options *o) {
    const int32_t vocab = d->model.g.vocab_size;
    const int32_t limit = o->vocab_limit > 0 && o->vocab_limit < vocab ? o->vocab_limit : vocab;
    const int threads = cpu_pool_threads(d->pool);
    d->samplers = calloc((size_t)threads, sizeof *d->samplers);
    if (!d->samplers)
        return SSM_ENOMEM;
    for (int i = 0; i < threads; i++) {
        if (ssm_sampler_init(&d->samplers[i], limit) != 0)
            return SSM_ENOMEM;
    }
    return ssm_draws_init(&d->draws, 4 * (size_t)(d->n_slots + d->work.max_rows));
}

static int open_all(cpu_device *d, const ssm_weights *weights, const ssm_device_options *o,
                    ssm_error *err) {
    const int threads = o->threads > 0 ? o->threads : cpu_usable_cores();
    const char *limit = getenv("SSM_CPU_ISA"); // for tests: no better kernels than these
    d->model.kernels = cpu_kernels_choose(limit);
    if (!d->model.kernels)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "SSM_CPU_ISA", "no kernels called %s", limit);
    int rc = cpu_model_choose(&d->model, weights, o, err);
    if (rc != 0)
        return rc;
    d->n_slots = o->n_slots > 0 ? o->n_slots : 64;
    d->weight_dtype =
        o->weight_dtype != SSM_DTYPE_AUTO ? o->weight_dtype : ssm_weights_dtype(weights);
    d->max_tokens = o->max_tokens > 0 ? o->max_tokens : 512;
    const bool is_lti = ssm_block_is_lti(weights->geometry.kind);
    const int32_t window =
        d->max_tokens < CPU_WINDOW || is_lti ? d->max_tokens : CPU_WINDOW; // lti_step.c
    const int32_t max_rows = o->max_rows > 0 ? o->max_rows : d->n_slots + 128;
    const int32_t kept_rows = ssm_kept_rows(o, d->n_slots);
    d->pool = cpu_pool_create(threads, o->pin_threads);
    if (!d->pool)
        return ssm_error_set(err, SSM_ENOMEM, "threads", "%d threads cannot be started", threads);
    rc = open_slots(d, err);
    if (rc == 0 && is_lti)
        rc = cpu_lti_discretise(&d->model, err);
    if (rc != 0)
        return rc;
    d->step.wanted = calloc((size_t)max_rows, sizeof *d->step.wanted);
    if (!d->step.wanted || cpu_model_load(&d->model, d->pool) != 0 ||
        cpu_work_init(&d->work, &d->model, window, max_rows, kept_rows) != 0 ||
        open_sampling(d, o) != 0)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the packed model");
    d->step.model = &d->model;
    d->step.pool = d->pool;
    d->step.work = &d->work;
    return 0;
}

static int open_device(const ssm_weights *weights, const ssm_device_options *o, ssm_device **out,
                       ssm_error *err) {
    cpu_device *d = calloc(1, sizeof *d);
    if (!d)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a device");
    d->base.backend = &ssm_backend_cpu;
    d->base.state_floats =
        ssm_state_conv_floats(&weights->geometry) + ssm_state_ssm_floats(&weights->geometry);
    const int rc = open_all(d, weights, o, err);
    if (rc != 0) {
        close_device(&d->base);
        return rc;
    }
    *out = &d->base;
    return 0;
}

static const char *activations_of(const cpu_model *m) {
    return m->form == CPU_X_BF16 ? "bf16" : m->form == CPU_X_WORD ? "int16" : "f32";
}

static void get_info(const ssm_device *device, ssm_device_info *out) {
    const cpu_device *d = (const cpu_device *)device;
    const int threads = cpu_pool_threads(d->pool);
    *out = (ssm_device_info){
        .n_slots = d->n_slots,
        .max_tokens = d->max_tokens,
        .max_rows = d->work.max_rows,
        .kept_rows = d->work.kept_rows,
        .slot_bytes = d->step.slot_floats * sizeof(float),
        .weight_bytes = cpu_model_bytes(&d->model),
    };
    snprintf(out->text, sizeof out->text, "cpu %s, %d thread%s, %s weights, %s activations",
             d->model.kernels->name, threads, threads == 1 ? "" : "s",
             ssm_dtype_name(d->weight_dtype), activations_of(&d->model));
}

static float *state_of(cpu_device *d, int32_t slot) {
    assert(slot >= 0 && slot < d->n_slots);
    return d->step.slots + (size_t)slot * d->step.slot_floats;
}

static float *row_of(cpu_device *d, int32_t row) {
    assert(row >= 0 && row < d->work.max_rows + d->work.kept_rows);
    return d->work.logits + (size_t)row * (size_t)d->model.vocab_blocks * CPU_LANES;
}

static int step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    assert(plan->n_tokens <= d->max_tokens && plan->n_segments <= d->n_slots);
    d->step.plan = plan;
    if (ssm_block_is_lti(d->model.g.kind))
        cpu_lti_step_run(&d->step);
    else
        cpu_step_run(&d->step);
    return 0;
}

// ---- sampling, rows shared out over the threads

typedef struct draw_job {
    cpu_device *d;
    const ssm_sample *samples;
    int32_t n;
    size_t first;
} draw_job;

static void draw_share(void *arg, int thread) {
    const draw_job *job = arg;
    cpu_device *d = job->d;
    for (int32_t i = thread; i < job->n; i += cpu_pool_threads(d->pool)) {
        const ssm_sample *s = &job->samples[i];
        ssm_sampled *out = ssm_draws_at(&d->draws, job->first + (size_t)i);
        ssm_sampler_draw(&d->samplers[thread], row_of(d, s->row), s, out);
        if (s->slot >= 0) // a failed draw ends its session; until then any token will do
            d->drawn[s->slot] = out->token >= 0 ? out->token : 0;
    }
}

static int sample(ssm_device *device, const ssm_sample *samples, int32_t n, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    draw_job job = {.d = d, .samples = samples, .n = n};
    const int rc = ssm_draws_push(&d->draws, n, &job.first, err);
    if (rc == 0)
        cpu_pool_run(d->pool, draw_share, &job);
    return rc;
}

static int collect(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err) {
    return ssm_draws_pop(&((cpu_device *)device)->draws, out, n, err);
}

// ---- slots

static int slots_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    for (int32_t i = 0; i < n; i++) {
        memcpy(state_of(d, dst[i]), state_of(d, src[i]), d->step.slot_floats * sizeof(float));
        d->drawn[dst[i]] = d->drawn[src[i]];
    }
    return 0;
}

typedef struct move {
    cpu_device *d;
    int32_t slot;
    float *out; // or
    const float *in;
} move;

static void move_share(void *arg, int thread) {
    const move *m = arg;
    const cpu_model *model = &m->d->model;
    const size_t own = cpu_slot_conv_floats(model) + cpu_slot_ssm_floats(model);
    float *state = state_of(m->d, m->slot);
    for (int32_t l = thread; l < model->g.n_layers; l += cpu_pool_threads(m->d->pool)) {
        if (m->out)
            cpu_slot_read(model, state + (size_t)l * own, m->out, l);
        else
            cpu_slot_write(model, state + (size_t)l * own, m->in, l);
    }
}

static int slot_read(ssm_device *device, int32_t slot, float *out, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    cpu_pool_run(d->pool, move_share, &(move){.d = d, .slot = slot, .out = out});
    return 0;
}

static int slot_write(ssm_device *device, int32_t slot, const float *state, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    cpu_pool_run(d->pool, move_share, &(move){.d = d, .slot = slot, .in = state});
    return 0;
}

static int logits_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    for (int32_t i = 0; i < n; i++)
        memcpy(row_of(d, dst[i]), row_of(d, src[i]), (size_t)d->model.g.vocab_size * sizeof(float));
    return 0;
}

static int logits_read(ssm_device *device, int32_t row, float *out, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    memcpy(out, row_of(d, row), (size_t)d->model.g.vocab_size * sizeof *out);
    return 0;
}

static int logits_write(ssm_device *device, int32_t row, const float *logits, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    memcpy(row_of(d, row), logits, (size_t)d->model.g.vocab_size * sizeof *logits);
    return 0;
}

static int ceilings(ssm_device *device, ssm_ceilings *out, ssm_error *err) {
    cpu_device *d = (cpu_device *)device;
    if (cpu_ceilings(d->model.kernels, d->pool, d->model.format, out) == 0)
        return 0;
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory to measure reading");
}

const ssm_backend ssm_backend_cpu = {
    .name = "cpu",
    .open = open_device,
    .close = close_device,
    .info = get_info,
    .step = step,
    .sample = sample,
    .collect = collect,
    .slots_copy = slots_copy,
    .slot_read = slot_read,
    .slot_write = slot_write,
    .logits_copy = logits_copy,
    .logits_read = logits_read,
    .logits_write = logits_write,
    .ceilings = ceilings,
};
