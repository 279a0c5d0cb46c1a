// SPDX-License-Identifier: Apache-2.0
// The reference backend: the table of backend.h over model.c, one token at a time, one thread.
// Everything else is checked against it, so it is written to be read, not to be fast: one sum in
// double for every output, states in canonical form, no layout of its own.
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/sampler.h"
#include "model.h"

typedef struct ref_device {
    ssm_device base;
    ref_model model;
    int32_t n_slots, max_tokens, max_rows, kept_rows;
    float *states;  // [n_slots][state_floats]
    float *logits;  // [max_rows + kept_rows][vocab_size]
    int32_t *drawn; // [n_slots] what SSM_TOKEN_SAMPLED stands for
    ssm_sampler sampler;
    ssm_draws draws;
} ref_device;

static void close_device(ssm_device *device) {
    ref_device *d = (ref_device *)device;
    if (!d)
        return;
    ref_model_dispose(&d->model);
    ssm_sampler_dispose(&d->sampler);
    ssm_draws_dispose(&d->draws);
    free(d->states);
    free(d->logits);
    free(d->drawn);
    free(d);
}

static int check_options(const ssm_device_options *o, ssm_error *err) {
    const ssm_dtype types[] = {o->weight_dtype, o->state_dtype, o->activation_dtype};
    const char *const names[] = {"weight_dtype", "state_dtype", "activation_dtype"};
    for (int i = 0; i < 3; i++) {
        if (types[i] != SSM_DTYPE_AUTO && types[i] != SSM_DTYPE_F32)
            return ssm_error_set(err, SSM_EUNSUPPORTED, names[i],
                                 "the reference backend computes in f32 only, %s is %s", names[i],
                                 ssm_dtype_name(types[i]));
    }
    return 0;
}

static int open_device(const ssm_weights *weights, const ssm_device_options *o, ssm_device **out,
                       ssm_error *err) {
    const ssm_geometry *g = &weights->geometry;
    const int32_t limit = o->vocab_limit > 0 ? o->vocab_limit : g->vocab_size;
    int rc = check_options(o, err);
    if (rc != 0)
        return rc;
    ref_device *d = calloc(1, sizeof *d);
    if (!d)
        goto no_memory;
    d->base.backend = &ssm_backend_reference;
    d->n_slots = o->n_slots > 0 ? o->n_slots : 64;
    d->max_tokens = o->max_tokens > 0 ? o->max_tokens : 512;
    d->max_rows = o->max_rows > 0 ? o->max_rows : d->n_slots + 128;
    d->kept_rows = ssm_kept_rows(o, d->n_slots);
    d->base.state_floats = ssm_state_conv_floats(g) + ssm_state_ssm_floats(g);
    d->states = calloc((size_t)d->n_slots * d->base.state_floats, sizeof *d->states);
    d->logits =
        calloc((size_t)(d->max_rows + d->kept_rows) * (size_t)g->vocab_size, sizeof *d->logits);
    d->drawn = calloc((size_t)d->n_slots, sizeof *d->drawn);
    if (!d->states || !d->logits || !d->drawn ||
        ssm_sampler_init(&d->sampler, limit < g->vocab_size ? limit : g->vocab_size) != 0 ||
        ssm_draws_init(&d->draws, 4 * (size_t)(d->n_slots + d->max_rows)) != 0)
        goto no_memory;
    rc = ref_model_init(&d->model, weights, err);
    if (rc != 0) {
        close_device(&d->base);
        return rc;
    }
    *out = &d->base;
    return 0;
no_memory:
    close_device((ssm_device *)d);
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model and its slots");
}

static void get_info(const ssm_device *device, ssm_device_info *out) {
    const ref_device *d = (const ref_device *)device;
    *out = (ssm_device_info){
        .n_slots = d->n_slots,
        .max_tokens = d->max_tokens,
        .max_rows = d->max_rows,
        .kept_rows = d->kept_rows,
        .slot_bytes = d->base.state_floats * sizeof(float),
        .weight_bytes = d->model.bytes,
    };
    snprintf(out->text, sizeof out->text, "reference, 1 thread, f32 weights, f32 activations");
}

static float *state_of(ref_device *d, int32_t slot) {
    assert(slot >= 0 && slot < d->n_slots);
    return d->states + (size_t)slot * d->base.state_floats;
}

static float *row_of(ref_device *d, int32_t row) {
    assert(row >= 0 && row < d->max_rows + d->kept_rows);
    return d->logits + (size_t)row * (size_t)d->model.g.vocab_size;
}

static int step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    assert(plan->n_tokens <= d->max_tokens && plan->n_segments <= d->n_slots);
    int32_t row = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        float *state = state_of(d, s->slot);
        if (s->fresh)
            memset(state, 0, d->base.state_floats * sizeof *state);
        for (int32_t t = 0; t < s->count; t++) {
            const int32_t id = plan->tokens[s->first + t];
            const int32_t token = id == SSM_TOKEN_SAMPLED ? d->drawn[s->slot] : id;
            const bool wanted =
                s->want == SSM_WANT_ALL || (s->want == SSM_WANT_LAST && t == s->count - 1);
            assert(token >= 0 && token < d->model.g.vocab_size);
            ref_model_forward(&d->model, token, state, wanted ? row_of(d, row) : NULL);
            row += wanted;
        }
    }
    return 0;
}

static int sample(ssm_device *device, const ssm_sample *samples, int32_t n, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    size_t first;
    const int rc = ssm_draws_push(&d->draws, n, &first, err);
    if (rc != 0)
        return rc;
    for (int32_t i = 0; i < n; i++) {
        const ssm_sample *s = &samples[i];
        ssm_sampled *out = ssm_draws_at(&d->draws, first + (size_t)i);
        ssm_sampler_draw(&d->sampler, row_of(d, s->row), s, out);
        if (s->slot >= 0) // a failed draw ends its session; until then any token will do
            d->drawn[s->slot] = out->token >= 0 ? out->token : 0;
    }
    return 0;
}

static int collect(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err) {
    return ssm_draws_pop(&((ref_device *)device)->draws, out, n, err);
}

static int slots_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err) {
    ref_device *d = (ref_device *)device;
    for (int32_t i = 0; i < n; i++) {
        memcpy(state_of(d, dst[i]), state_of(d, src[i]), d->base.state_floats * sizeof(float));
        d->drawn[dst[i]] = d->drawn[src[i]];
    }
    return 0;
}

static int slot_read(ssm_device *device, int32_t slot, float *out, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    memcpy(out, state_of(d, slot), d->base.state_floats * sizeof *out);
    return 0;
}

static int slot_write(ssm_device *device, int32_t slot, const float *state, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    memcpy(state_of(d, slot), state, d->base.state_floats * sizeof *state);
    return 0;
}

static int logits_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err) {
    ref_device *d = (ref_device *)device;
    for (int32_t i = 0; i < n; i++)
        memcpy(row_of(d, dst[i]), row_of(d, src[i]), (size_t)d->model.g.vocab_size * sizeof(float));
    return 0;
}

static int logits_read(ssm_device *device, int32_t row, float *out, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    memcpy(out, row_of(d, row), (size_t)d->model.g.vocab_size * sizeof *out);
    return 0;
}

static int logits_write(ssm_device *device, int32_t row, const float *logits, ssm_error *err) {
    ref_device *d = (ref_device *)device;
    memcpy(row_of(d, row), logits, (size_t)d->model.g.vocab_size * sizeof *logits);
    return 0;
}

const ssm_backend ssm_backend_reference = {
    .name = "reference",
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
};
