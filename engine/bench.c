// SPDX-License-Identifier: Apache-2.0
#include <ssm/bench.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "kernels/backend.h"
#include "model/model.h"

enum { MAX_STEPS = 2000, MIN_STEPS = 5 };

typedef struct bench {
    const ssm_bench_options *options;
    const ssm_weights *weights;
    ssm_dtype weight_dtype; // of the large projections on the device
    const ssm_backend *backend;
    ssm_device *device;
    ssm_bench_result *out;
    int32_t *tokens;       // [largest step]
    ssm_segment *segments; // [largest batch]
    ssm_sample *samples;   // [largest batch]
    ssm_sampled *drawn;    // [largest batch]
    double times[MAX_STEPS];
} bench;

static double now(void) {
    return 1e-9 * (double)engine_now_ns();
}

// ---- what a step must do

static double elements(const ssm_tensor *t) {
    return t->data ? (double)t->rows * (double)t->cols : 0;
}

static bool is_quantised(ssm_dtype dtype) {
    return dtype >= SSM_DTYPE_INT8;
}

// Bytes of a matrix; one that is quantised carries an fp32 scale a row, below int8 also one byte a
// group of 32 inputs.
static double matrix_bytes(const ssm_tensor *t, ssm_dtype dtype) {
    const double rows = is_quantised(dtype) ? 4.0 * (double)t->rows : 0;
    const double scales = rows + (dtype > SSM_DTYPE_INT8 ? elements(t) / 32 : 0);
    return (double)ssm_dtype_bytes(dtype, (size_t)elements(t)) + scales;
}

static double small_bytes(const ssm_tensor *t) {
    return t->data ? (double)ssm_dtype_bytes(t->dtype, (size_t)elements(t)) : 0;
}

static void count_work(const bench *b, ssm_bench_row *row) {
    const ssm_weights *w = b->weights;
    const ssm_dtype dtype = b->weight_dtype;
    const double states =
        4.0 * (double)(ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry));
    const double reads = row->is_prefill ? 1 : 2; // a fresh state is only written
    double bytes = row->sessions * states * reads, per_token = 0;
    for (int32_t i = 0; i < w->geometry.n_layers; i++) {
        const ssm_layer *l = &w->layers[i];
        const ssm_tensor *rest[] = {&l->norm,      &l->in_bias,   &l->conv_weight,
                                    &l->conv_bias, &l->dt_bias,   &l->A_log,
                                    &l->D,         &l->gate_norm, &l->out_bias};
        const ssm_tensor *large[] = {&l->in_proj, &l->out_proj, &l->lti.q_proj, &l->lti.k_proj,
                                     &l->lti.v_proj};
        const ssm_tensor *middle[] = {&l->x_proj, &l->dt_proj};
        for (size_t k = 0; k < sizeof large / sizeof large[0]; k++) {
            bytes += large[k]->data ? matrix_bytes(large[k], dtype) : 0;
            per_token += elements(large[k]);
        }
        for (int k = 0; k < 2; k++) {
            const ssm_tensor *t = middle[k];
            bytes += t->data ? matrix_bytes(t, is_quantised(dtype) ? t->dtype : dtype) : 0;
            per_token += elements(t);
        }
        for (size_t k = 0; k < sizeof rest / sizeof rest[0]; k++)
            bytes += small_bytes(rest[k]);
    }
    row->bytes = bytes + matrix_bytes(&w->lm_head, dtype);
    row->flops = 2 * (per_token * row->tokens + elements(&w->lm_head) * row->sessions);
}

// ---- measuring

static int open_device(bench *b, int32_t max_tokens, int32_t slots, ssm_error *err) {
    const ssm_engine_options *o = b->options->engine;
    const char *name = o->device && strcmp(o->device, "auto") != 0 ? o->device : "cuda";
    char base[16] = "";
    const ssm_device_options d = {.index = strchr(name, ':') ? atoi(strchr(name, ':') + 1) : 0,
                                  .n_slots = slots,
                                  .max_tokens = max_tokens,
                                  .max_rows = slots,
                                  .threads = o->threads,
                                  .pin_threads = o->pin_threads,
                                  .weight_dtype = o->weight_dtype,
                                  .state_dtype = o->state_dtype,
                                  .activation_dtype = o->activation_dtype,
                                  .unpacked = o->unpacked};
    snprintf(base, sizeof base, "%.*s", (int)strcspn(name, ":"), name);
    b->backend = ssm_backend_find(base);
    const bool is_auto = !o->device || strcmp(o->device, "auto") == 0;
    if (is_auto && b->backend && b->backend->open(b->weights, &d, &b->device, NULL) == 0)
        return 0;
    if (is_auto)
        b->backend = ssm_backend_find("cpu");
    if (!b->backend)
        return ssm_error_set(err, SSM_EINVAL, "device", "device \"%.40s\" is not one of auto, %s",
                             name, ssm_engine_backends());
    return b->backend->open(b->weights, &d, &b->device, err);
}

static int run_step(bench *b, const ssm_bench_row *row, bool fresh, ssm_error *err) {
    const int32_t count = row->tokens / row->sessions;
    for (int32_t i = 0; i < row->sessions; i++)
        b->segments[i] = (ssm_segment){i, i * count, count, fresh, SSM_WANT_LAST};
    const ssm_plan plan = {b->tokens, row->tokens, b->segments, row->sessions};
    int rc = b->backend->step(b->device, &plan, err);
    if (rc != 0)
        return rc;
    rc = b->backend->sample(b->device, b->samples, row->sessions, err);
    return rc != 0 ? rc : b->backend->collect(b->device, b->drawn, row->sessions, err);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure(bench *b, ssm_bench_row *row, ssm_error *err) {
    const double seconds = b->options->seconds > 0 ? b->options->seconds : 1;
    int rc = run_step(b, row, true, err); // warms caches up and leaves states to go on from
    const double start = now();
    while (rc == 0 && row->steps < MAX_STEPS &&
           (row->steps < MIN_STEPS || now() - start < seconds)) {
        const double t = now();
        rc = run_step(b, row, row->is_prefill, err);
        b->times[row->steps++] = now() - t;
    }
    if (rc != 0)
        return rc;
    qsort(b->times, (size_t)row->steps, sizeof b->times[0], by_size);
    const double median = b->times[row->steps / 2];
    row->best_ms = 1e3 * b->times[0];
    row->median_ms = 1e3 * median;
    row->tokens_per_second = row->tokens / median;
    count_work(b, row);
    if (b->out->read_bytes_per_second > 0)
        row->read_share = row->bytes / median / b->out->read_bytes_per_second;
    if (b->out->product_flops_per_second > 0)
        row->product_share = row->flops / median / b->out->product_flops_per_second;
    return 0;
}

static void say(const bench *b, const char *what) {
    if (b->options->progress)
        b->options->progress(b->options->ctx, what);
}

static int measure_all(bench *b, ssm_error *err) {
    const ssm_bench_options *o = b->options;
    int rc = 0;
    say(b, "ceilings");
    ssm_ceilings c = {0};
    if (b->backend->ceilings)
        rc = b->backend->ceilings(b->device, &c, err);
    b->out->read_bytes_per_second = c.read_bytes_per_second;
    b->out->product_flops_per_second = c.product_flops_per_second;
    for (int32_t i = 0; rc == 0 && i < o->n_prompts + o->n_batches; i++) {
        const bool is_prefill = i < o->n_prompts;
        const int32_t n = is_prefill ? o->prompts[i] : o->batches[i - o->n_prompts];
        ssm_bench_row *row = &b->out->rows[b->out->n_rows++];
        *row =
            (ssm_bench_row){.is_prefill = is_prefill, .sessions = is_prefill ? 1 : n, .tokens = n};
        char what[64];
        snprintf(what, sizeof what, is_prefill ? "prefill of %d tokens" : "decode of %d sessions",
                 n);
        say(b, what);
        rc = measure(b, row, err);
    }
    return rc;
}

// ---- the run

static int check(const ssm_bench_options *o, ssm_error *err) {
    const int32_t n = o->n_batches + o->n_prompts;
    if (n < 1 || n > SSM_BENCH_MAX_ROWS)
        return ssm_error_set(err, SSM_EINVAL, "batches", "1 to %d rows, not %d", SSM_BENCH_MAX_ROWS,
                             n);
    for (int32_t i = 0; i < n; i++) {
        const int32_t x = i < o->n_prompts ? o->prompts[i] : o->batches[i - o->n_prompts];
        if (x < 1)
            return ssm_error_set(err, SSM_EINVAL, i < o->n_prompts ? "prompts" : "batches",
                                 "a row of %d tokens", x);
    }
    return 0;
}

static int32_t largest(const int32_t *x, int32_t n, int32_t least) {
    for (int32_t i = 0; i < n; i++)
        least = x[i] > least ? x[i] : least;
    return least;
}

static int run(bench *b, ssm_error *err) {
    static const ssm_sampling greedy = {.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    const ssm_bench_options *o = b->options;
    const int32_t slots = largest(o->batches, o->n_batches, 1);
    const int32_t tokens = largest(o->prompts, o->n_prompts, slots);
    b->tokens = calloc((size_t)tokens, sizeof *b->tokens);
    b->segments = calloc((size_t)slots, sizeof *b->segments);
    b->samples = calloc((size_t)slots, sizeof *b->samples);
    b->drawn = calloc((size_t)slots, sizeof *b->drawn);
    if (!b->tokens || !b->segments || !b->samples || !b->drawn)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for steps of %d tokens", tokens);
    for (int32_t i = 0; i < tokens; i++)
        b->tokens[i] = (int32_t)((int64_t)i * 7919 % b->weights->geometry.vocab_size);
    for (int32_t i = 0; i < slots; i++)
        b->samples[i] =
            (ssm_sample){.row = i, .slot = i, .target = -1, .n_top = -1, .params = &greedy};
    say(b, "loading");
    const double start = now();
    const int rc = open_device(b, tokens, slots, err);
    if (rc != 0)
        return rc;
    b->out->load_seconds = now() - start;
    ssm_device_info info;
    b->backend->info(b->device, &info);
    snprintf(b->out->device, sizeof b->out->device, "%s", info.text);
    return measure_all(b, err);
}

int ssm_bench_run(const ssm_model *model, const ssm_bench_options *options, ssm_bench_result *out,
                  ssm_error *err) {
    *out = (ssm_bench_result){0};
    int rc = check(options, err);
    bench *b = rc == 0 ? calloc(1, sizeof *b) : NULL;
    if (!b)
        return rc != 0 ? rc : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a benchmark");
    b->options = options;
    b->weights = ssm_model_weights(model);
    b->weight_dtype = options->engine->weight_dtype != SSM_DTYPE_AUTO
                          ? options->engine->weight_dtype
                          : ssm_weights_dtype(b->weights);
    b->out = out;
    rc = run(b, err);
    if (b->device)
        b->backend->close(b->device);
    free(b->tokens);
    free(b->segments);
    free(b->samples);
    free(b->drawn);
    free(b);
    return rc;
}
