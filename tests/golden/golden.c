// SPDX-License-Identifier: Apache-2.0
#include "golden.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS  SSM_TEST_DATA "/models/"
#define GOLDENS SSM_TEST_DATA "/goldens/"

const golden_model golden_trained[] = {
    {SSM_DEMO_MODEL, 1e-4},
    {MODELS "shakespeare-mamba2", 1e-4},
    {MODELS "induction-heads", 1e-4},
    {MODELS "selective-copying", 5e-3},
    {MODELS "copying-mamba", 5e-3},
    {MODELS "shakespeare-s4d", 1e-4},
    {MODELS "copying-s4d", 5e-3},
    {MODELS "copying-lssl", 5e-3},
    {MODELS "induction-h3", 5e-3},
    {MODELS "selective-s4d", 5e-3},
    {MODELS "selective-s4d-256", 5e-3},
    {MODELS "selective-h3", 5e-3},
    {MODELS "selective-h3-256", 5e-3},
};
const int golden_n_trained = sizeof golden_trained / sizeof golden_trained[0];

const golden_model golden_odd[] = {
    {GOLDENS "mamba-kernel3-expand3", 1e-4},  {GOLDENS "mamba-untied-biased", 1e-4},
    {GOLDENS "mamba-kernel1-state5", 1e-4},   {GOLDENS "mamba-f16-unaligned", 1e-4},
    {GOLDENS "mamba-bf16-sharded", 1e-4},     {GOLDENS "falcon-mamba-untied", 1e-4},
    {GOLDENS "mamba2-groups2-kernel3", 1e-4}, {GOLDENS "mamba2-groups8-codestral", 1e-4},
    {GOLDENS "mamba2-limited-biased", 1e-4},
};
const int golden_n_odd = sizeof golden_odd / sizeof golden_odd[0];

const char *golden_backends[] = {"reference", "cpu"};
int golden_n_backends = sizeof golden_backends / sizeof golden_backends[0];

// SSM_GOLDEN_BACKEND=cuda runs the goldens on a backend that not every machine can open.
__attribute__((constructor)) static void choose_backend(void) {
    const char *one = getenv("SSM_GOLDEN_BACKEND");
    if (one) {
        golden_backends[0] = one;
        golden_n_backends = 1;
    }
}

// ---- golden.json

static int32_t *read_ids(const json_t *list, int32_t *n) {
    *n = (int32_t)json_array_size(list);
    int32_t *ids = malloc(((size_t)*n + 1) * sizeof *ids);
    for (int32_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return ids;
}

static void append_floats(const json_t *list, float *out) {
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (float)json_number_value(json_array_get(list, i));
}

// NULL if the prompt has no such list.
static float *read_floats(const json_t *prompt, const char *key, size_t n) {
    const json_t *list = json_object_get(prompt, key);
    if (!list)
        return NULL;
    ck_assert_uint_eq(json_array_size(list), n);
    float *out = malloc(n * sizeof *out);
    append_floats(list, out);
    return out;
}

static float *read_state(const json_t *prompt, const ssm_geometry *g) {
    const json_t *conv = json_object_get(prompt, "conv_state");
    const json_t *ssm = json_object_get(prompt, "ssm_state");
    if (!ssm)
        return NULL;
    const size_t n_conv = ssm_state_conv_floats(g), n_ssm = ssm_state_ssm_floats(g);
    ck_assert_uint_eq(json_array_size(conv), n_conv);
    ck_assert_uint_eq(json_array_size(ssm), n_ssm);
    float *out = malloc((n_conv + n_ssm) * sizeof *out);
    append_floats(conv, out);
    append_floats(ssm, out + n_conv);
    return out;
}

static void read_prompt(golden_prompt *p, const json_t *v, const ssm_geometry *g) {
    const size_t vocab = (size_t)g->vocab_size;
    p->ids = read_ids(json_object_get(v, "prompt_ids"), &p->n_ids);
    p->greedy = read_ids(json_object_get(v, "greedy_ids"), &p->n_greedy);
    p->last_logits = read_floats(v, "last_logits", vocab);
    p->logits = read_floats(v, "logits", vocab * (size_t)p->n_ids);
    p->state = read_state(v, g);
    ck_assert_int_gt(p->n_ids, 0);
    ck_assert_int_gt(p->n_greedy, 0);
    ck_assert_ptr_nonnull(p->last_logits);
}

void golden_open(golden *g, const char *folder) {
    *g = (golden){0};
    ssm_error err = {0};
    const int rc = ssm_model_open(folder, &g->model, &err);
    ck_assert_msg(rc == 0, "%s: %s", folder, err.message);
    char path[4096];
    snprintf(path, sizeof path, "%s/golden.json", folder);
    json_error_t at;
    json_t *root = json_load_file(path, 0, &at);
    ck_assert_msg(root != NULL, "%s: %s", path, at.text);
    const json_t *list = json_is_array(root) ? root : json_object_get(root, "prompts");
    g->n_prompts = (int)json_array_size(list);
    ck_assert_int_gt(g->n_prompts, 0);
    g->prompts = calloc((size_t)g->n_prompts, sizeof *g->prompts);
    for (int i = 0; i < g->n_prompts; i++)
        read_prompt(&g->prompts[i], json_array_get(list, (size_t)i),
                    &ssm_model_weights(g->model)->geometry);
    json_decref(root);
}

void golden_close(golden *g) {
    for (int i = 0; i < g->n_prompts; i++) {
        golden_prompt *p = &g->prompts[i];
        free(p->ids);
        free(p->greedy);
        free(p->last_logits);
        free(p->logits);
        free(p->state);
    }
    free(g->prompts);
    ssm_model_free(g->model);
}

// ---- running

void runner_open(runner *r, const char *backend, const ssm_weights *weights) {
    const ssm_device_options options = {
        .n_slots = RUNNER_SLOTS,
        .max_rows = 128,
        .threads = 2,
        .activation_dtype = SSM_DTYPE_F32,
        .state_dtype = SSM_DTYPE_F32,
    };
    *r = (runner){.backend = ssm_backend_find(backend)};
    ck_assert_msg(r->backend != NULL, "backend %s is not built in", backend);
    ssm_error err = {0};
    const int rc = r->backend->open(weights, &options, &r->device, &err);
    ck_assert_msg(rc == 0, "%s: %s", backend, err.message);
    ssm_device_info info;
    r->backend->info(r->device, &info);
    r->max_tokens = info.max_tokens;
    r->vocab = weights->geometry.vocab_size;
    const ssm_block_kind kind = weights->geometry.kind;
    r->same_bits =
        (kind != SSM_BLOCK_S4 && kind != SSM_BLOCK_H3) || strcmp(backend, "reference") == 0;
    r->state_floats =
        ssm_state_conv_floats(&weights->geometry) + ssm_state_ssm_floats(&weights->geometry);
}

void runner_close(runner *r) {
    r->backend->close(r->device);
}

static void must(int rc, const ssm_error *err) {
    ck_assert_msg(rc == 0, "%s", err->message);
}

void runner_feed(runner *r, int32_t slot, const int32_t *ids, int32_t n, int32_t chunk, bool fresh,
                 float *all, float *last) {
    ssm_error err = {0};
    const size_t vocab = (size_t)r->vocab;
    int32_t most = chunk > 0 && chunk < r->max_tokens ? chunk : r->max_tokens;
    if (all && most > 128)
        most = 128; // rows
    for (int32_t done = 0; done < n;) {
        const int32_t count = n - done < most ? n - done : most;
        const bool is_last = done + count == n;
        const ssm_want want = all ? SSM_WANT_ALL : is_last && last ? SSM_WANT_LAST : SSM_WANT_NONE;
        const ssm_segment segment = {
            .slot = slot, .count = count, .fresh = fresh && done == 0, .want = want};
        const ssm_plan plan = {ids + done, count, &segment, 1};
        must(r->backend->step(r->device, &plan, &err), &err);
        for (int32_t i = 0; all && i < count; i++)
            must(r->backend->logits_read(r->device, i, all + (size_t)(done + i) * vocab, &err),
                 &err);
        if (is_last && last)
            must(r->backend->logits_read(r->device, all ? count - 1 : 0, last, &err), &err);
        done += count;
    }
}

void runner_read(runner *r, int32_t slot, float *state) {
    ssm_error err = {0};
    must(r->backend->slot_read(r->device, slot, state, &err), &err);
}

void runner_poison(runner *r, int32_t slot) {
    ssm_error err = {0};
    float *state = malloc(r->state_floats * sizeof *state);
    for (size_t i = 0; i < r->state_floats; i++)
        state[i] = NAN;
    must(r->backend->slot_write(r->device, slot, state, &err), &err);
    free(state);
}

// ---- comparing

double max_difference(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst))
            worst = d;
        if (isnan(worst))
            break;
    }
    return worst;
}

static double relative(const float *a, const float *b, size_t n) {
    double scale = 0;
    for (size_t i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)b[i]));
    const double d = max_difference(a, b, n);
    return d > 0 ? d / scale : d; // 0 / 0 is no difference; NaN stays
}

double state_difference(const ssm_geometry *g, const float *a, const float *b) {
    const size_t conv = ssm_state_conv_floats(g), ssm = ssm_state_ssm_floats(g);
    const double x = relative(a, b, conv), y = relative(a + conv, b + conv, ssm);
    return !(x <= y) ? x : y;
}

int32_t arg_max(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}
