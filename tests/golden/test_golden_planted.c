// SPDX-License-Identifier: Apache-2.0
// The goldens can fail: each mistake that implementations of these models have really made, planted
// into a copy of a model's weights or geometry, moves the logits past the tolerance.
#include "golden.h"
#include "tests/suite.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- a copy to plant in

typedef struct garden {
    ssm_weights weights; // layers are ours, tensors the model's until changed
    ssm_layer *layers;
    float *owned[64];
    int n_owned;
} garden;

static void garden_init(garden *p, const ssm_weights *w) {
    const size_t n = (size_t)w->geometry.n_layers;
    *p = (garden){.weights = *w, .layers = malloc(n * sizeof *p->layers)};
    memcpy(p->layers, w->layers, n * sizeof *p->layers);
    p->weights.layers = p->layers;
}

static void garden_dispose(garden *p) {
    for (int i = 0; i < p->n_owned; i++)
        free(p->owned[i]);
    free(p->layers);
}

// Makes a tensor an fp32 copy that may be written.
static float *own(garden *p, ssm_tensor *t) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    float *copy = malloc(n * sizeof *copy);
    ssm_tensor_read(t, 0, n, copy);
    ck_assert_int_lt(p->n_owned, 64);
    p->owned[p->n_owned++] = copy;
    t->data = copy;
    t->dtype = SSM_DTYPE_F32;
    return copy;
}

static void set_all(garden *p, ssm_tensor *t, float value) {
    float *x = own(p, t);
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        x[i] = value;
}

static void swap_rows(garden *p, ssm_tensor *t, int64_t a, int64_t b, int64_t n) {
    if (!t->data)
        return;
    float *x = own(p, t);
    for (int64_t i = 0; i < n * t->cols; i++) {
        const float kept = x[a * t->cols + i];
        x[a * t->cols + i] = x[b * t->cols + i];
        x[b * t->cols + i] = kept;
    }
}

// ---- mistakes

static void no_final_norm_weight(garden *p) {
    set_all(p, &p->weights.norm_f, 1);
}

static void convolution_shifted(garden *p) { // the newest tap reads the token before
    const int64_t k = p->weights.geometry.d_conv;
    float *w = own(p, &p->layers[0].conv_weight);
    for (int64_t c = 0; c < p->layers[0].conv_weight.rows; c++) {
        memmove(w + c * k, w + c * k + 1, (size_t)(k - 1) * sizeof *w);
        w[c * k + k - 1] = 0;
    }
}

static void convolution_backwards(garden *p) {
    const int64_t k = p->weights.geometry.d_conv;
    float *w = own(p, &p->layers[0].conv_weight);
    for (int64_t c = 0; c < p->layers[0].conv_weight.rows; c++) {
        for (int64_t j = 0; j < k / 2; j++) {
            const float kept = w[c * k + j];
            w[c * k + j] = w[c * k + k - 1 - j];
            w[c * k + k - 1 - j] = kept;
        }
    }
}

static void b_and_c_swapped(garden *p) {
    const ssm_geometry *g = &p->weights.geometry;
    ssm_layer *l = &p->layers[0];
    if (g->kind == SSM_BLOCK_MAMBA) {
        swap_rows(p, &l->x_proj, g->dt_rank, g->dt_rank + g->d_state, g->d_state);
        return;
    }
    const int64_t n = (int64_t)g->n_groups * g->d_state, inner = g->d_inner;
    swap_rows(p, &l->in_proj, 2 * inner, 2 * inner + n, n);
    swap_rows(p, &l->in_bias, 2 * inner, 2 * inner + n, n);
    swap_rows(p, &l->conv_weight, inner, inner + n, n);
    swap_rows(p, &l->conv_bias, inner, inner + n, n);
}

static void x_and_z_swapped(garden *p) {
    const int64_t inner = p->weights.geometry.d_inner;
    swap_rows(p, &p->layers[0].in_proj, 0, inner, inner);
}

static void no_skip(garden *p) {
    set_all(p, &p->layers[0].D, 0);
}

static void no_dt_bias(garden *p) {
    set_all(p, &p->layers[0].dt_bias, 0);
}

static void a_without_exp(garden *p) { // A = -A_log, as if it were stored so
    ssm_tensor *t = &p->layers[0].A_log;
    float *a = own(p, t);
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        a[i] = logf(fmaxf(fabsf(a[i]), 1e-3f));
}

static void last_layer_missing(garden *p) {
    p->weights.geometry.n_layers--;
}

static void other_norm_eps(garden *p) { // 1e-6 is the other common value
    p->weights.geometry.norm_eps = 1e-6f;
}

static void no_conv_bias(garden *p) {
    p->layers[0].conv_bias = (ssm_tensor){0};
}

static void no_projection_biases(garden *p) {
    p->layers[0].in_bias = p->layers[0].out_bias = (ssm_tensor){0};
}

static void no_bc_dt_norm(garden *p) {
    p->weights.geometry.bc_dt_norm = false;
}

static void other_bc_dt_eps(garden *p) {
    p->weights.geometry.bc_dt_eps = 1e-6f;
}

static void step_not_limited(garden *p) {
    p->weights.geometry.dt_min = 0;
    p->weights.geometry.dt_max = INFINITY;
}

static void groups_mixed_up(garden *p) { // head i takes group i % G instead of i / (H / G)
    const ssm_geometry *g = &p->weights.geometry;
    ssm_layer *l = &p->layers[0];
    swap_rows(p, &l->in_proj, 2 * g->d_inner, 2 * g->d_inner + g->d_state, g->d_state);
    swap_rows(p, &l->conv_weight, g->d_inner, g->d_inner + g->d_state, g->d_state);
    swap_rows(p, &l->conv_bias, g->d_inner, g->d_inner + g->d_state, g->d_state);
}

static void tied_by_mistake(garden *p) {
    p->weights.lm_head = p->weights.embedding;
}

// ---- where each shows

#define ODD(name) SSM_TEST_DATA "/goldens/" name

static const struct {
    const char *name, *folder;
    void (*plant)(garden *p);
} mistakes[] = {
    {"no final norm weight", SSM_DEMO_MODEL, no_final_norm_weight},
    {"convolution shifted", SSM_DEMO_MODEL, convolution_shifted},
    {"convolution backwards", SSM_DEMO_MODEL, convolution_backwards},
    {"B and C swapped", SSM_DEMO_MODEL, b_and_c_swapped},
    {"x and z swapped", SSM_DEMO_MODEL, x_and_z_swapped},
    {"no D", SSM_DEMO_MODEL, no_skip},
    {"no dt bias", SSM_DEMO_MODEL, no_dt_bias},
    {"A without exp", SSM_DEMO_MODEL, a_without_exp},
    {"a layer missing", SSM_DEMO_MODEL, last_layer_missing},
    {"no convolution bias", SSM_DEMO_MODEL, no_conv_bias},
    {"mamba2: no final norm weight", SSM_TEST_DATA "/models/shakespeare-mamba2",
     no_final_norm_weight},
    {"mamba2: B and C swapped", SSM_TEST_DATA "/models/shakespeare-mamba2", b_and_c_swapped},
    {"mamba2: no D", SSM_TEST_DATA "/models/shakespeare-mamba2", no_skip},
    {"mamba2: no dt bias", SSM_TEST_DATA "/models/shakespeare-mamba2", no_dt_bias},
    {"kernel 3 shifted", ODD("mamba-kernel3-expand3"), convolution_shifted},
    {"norm eps not from the config", ODD("mamba-untied-biased"), other_norm_eps},
    {"no projection biases", ODD("mamba-untied-biased"), no_projection_biases},
    {"tied by mistake", ODD("mamba-untied-biased"), tied_by_mistake},
    {"falcon without norms", ODD("falcon-mamba-untied"), no_bc_dt_norm},
    {"falcon's eps not from the config", ODD("falcon-mamba-untied"), other_bc_dt_eps},
    {"groups mixed up", ODD("mamba2-groups2-kernel3"), groups_mixed_up},
    {"groups mixed up, 8", ODD("mamba2-groups8-codestral"), groups_mixed_up},
    {"mamba2: B and C swapped, biased", ODD("mamba2-limited-biased"), b_and_c_swapped},
    {"step not limited", ODD("mamba2-limited-biased"), step_not_limited},
};
enum { N_MISTAKES = sizeof mistakes / sizeof mistakes[0] };

static double worst_logit(const ssm_weights *w, const golden *g) {
    runner r;
    double worst = 0;
    runner_open(&r, "reference", w);
    float *last = malloc((size_t)r.vocab * sizeof *last);
    for (int i = 0; i < g->n_prompts; i++) {
        const golden_prompt *p = &g->prompts[i];
        runner_feed(&r, 0, p->ids, p->n_ids, 0, true, NULL, last);
        worst = fmax(worst, max_difference(last, p->last_logits, (size_t)r.vocab));
    }
    free(last);
    runner_close(&r);
    return worst;
}

START_TEST(a_mistake_shows) {
    golden g;
    garden p;
    golden_open(&g, mistakes[_i].folder);
    garden_init(&p, ssm_model_weights(g.model));
    const double before = worst_logit(&p.weights, &g);
    mistakes[_i].plant(&p);
    const double after = worst_logit(&p.weights, &g);
    ck_assert_msg(before <= 1e-4, "%s: off by %g unplanted", mistakes[_i].name, before);
    // Ten times the tolerance: a golden that barely notices would miss half of the mistake.
    ck_assert_msg(after > 1e-3, "%s: off by %g only", mistakes[_i].name, after);
    garden_dispose(&p);
    golden_close(&g);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("golden planted");
    TCase *tc = tcase_create("mistakes");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, a_mistake_shows, 0, N_MISTAKES);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
