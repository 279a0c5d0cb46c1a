// SPDX-License-Identifier: Apache-2.0
// Steps and decays of a text: against what they must be where the text has no say (the projections
// of the step are zero: what is left is its bias), and that it has a say otherwise.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/memory_steps.h"
#include "engine/model/model.h"
#include "tests/suite.h"

static ssm_model *model;
static ssm_error err;
static const int32_t text[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
enum { N_TEXT = sizeof text / sizeof text[0], MOST_LAYERS = 16 };

static void open_model(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/models/%s", SSM_TEST_DATA, name);
    ck_assert_msg(ssm_model_open(path, &model, &err) == 0, "%s", err.message);
    ck_assert_int_le(ssm_model_get_info(model)->n_layers, MOST_LAYERS);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The value below which a share of n sorted ones lies, or its neighbour, to the width of a bin.
static void near_quantile(double found, const double *sorted, size_t n, double share) {
    const size_t at = (size_t)(share * (double)(n - 1) + 0.5);
    const double low = sorted[at > 0 ? at - 1 : 0], high = sorted[at + 1 < n ? at + 1 : n - 1];
    ck_assert_msg(found >= low * 0.975 && found <= high * 1.025, "%g: found %g, is %g", share,
                  found, sorted[at]);
}

static float *floats_of(const ssm_tensor *t) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    float *out = malloc(n * sizeof *out);
    ssm_tensor_read(t, 0, n, out);
    return out;
}

static void check_layer(const ssm_geometry *g, const ssm_layer *l, const ssm_layer_steps *s) {
    const bool is_mamba = g->kind == SSM_BLOCK_MAMBA;
    const size_t n = (size_t)(is_mamba ? g->d_inner : g->n_heads);
    const size_t states = is_mamba ? (size_t)g->d_state : 1;
    float *bias = floats_of(&l->dt_bias), *a_log = floats_of(&l->A_log);
    double *steps = malloc(n * sizeof *steps), *halves = malloc(n * states * sizeof *halves);
    double *decays = malloc(n * states * sizeof *decays);
    double shares[SSM_MEMORY_BINS] = {0};
    for (size_t i = 0; i < n; i++) {
        const double step = log1p(exp((double)bias[i]));
        steps[i] = is_mamba ? step : fmin(fmax(step, (double)g->dt_min), (double)g->dt_max);
        for (size_t k = i * states; k < (i + 1) * states; k++) {
            const double rate = steps[i] * exp((double)a_log[k]);
            halves[k] = log(2) / rate;
            decays[k] = exp(-rate);
            shares[memory_bin(halves[k])] += 1 / (double)(n * states);
        }
    }
    qsort(steps, n, sizeof *steps, by_size);
    qsort(halves, n * states, sizeof *halves, by_size);
    qsort(decays, n * states, sizeof *decays, by_size);
    for (int i = 0; i < SSM_STEP_QUANTILES; i++) {
        near_quantile(s->delta[i], steps, n, ssm_step_shares[i]);
        near_quantile(s->half_life[i], halves, n * states, ssm_step_shares[i]);
        ck_assert_double_eq_tol(s->decay[i], exp(-log(2) / s->half_life[i]), 1e-12);
    }
    ck_assert(decays[0] <= s->decay[0] * 1.05 && decays[n * states - 1] >= s->decay[4] * 0.95);
    for (int i = 0; i < SSM_MEMORY_BINS; i++)
        ck_assert_double_eq_tol(s->shares[i], shares[i], 0.05);
    free(bias);
    free(a_log);
    free(steps);
    free(halves);
    free(decays);
}

// dt_proj, or all of in_proj where the step comes from there, is zero.
static void without_a_say(const char *name) {
    open_model(name);
    ssm_weights w = *ssm_model_weights(model);
    const ssm_geometry *g = &w.geometry;
    ssm_layer layers[MOST_LAYERS];
    ssm_layer_steps steps[MOST_LAYERS];
    const bool is_mamba = g->kind == SSM_BLOCK_MAMBA;
    const ssm_tensor *one = is_mamba ? &w.layers[0].dt_proj : &w.layers[0].in_proj;
    float *zeros = calloc((size_t)one->rows * (size_t)one->cols, sizeof *zeros);
    memcpy(layers, w.layers, (size_t)g->n_layers * sizeof *layers);
    for (int32_t i = 0; i < g->n_layers; i++) {
        ssm_tensor *t = is_mamba ? &layers[i].dt_proj : &layers[i].in_proj;
        t->data = zeros;
        t->dtype = SSM_DTYPE_F32;
    }
    w.layers = layers;
    ck_assert_int_eq(memory_steps(&w, text, N_TEXT, steps, &err), 0);
    for (int32_t i = 0; i < g->n_layers; i++)
        check_layer(g, &layers[i], &steps[i]);
    free(zeros);
    ssm_model_free(model);
}

START_TEST(without_a_say_steps_are_their_bias) {
    without_a_say(_i == 0 ? "copying-mamba" : "shakespeare-mamba2");
}
END_TEST

START_TEST(a_text_has_a_say) {
    static const int32_t other[] = {15, 15, 15, 15, 15, 15, 15, 15};
    ssm_layer_steps a[MOST_LAYERS], b[MOST_LAYERS];
    open_model("copying-mamba");
    ck_assert_int_eq(ssm_model_get_steps(model, text, N_TEXT, a, &err), 0);
    ck_assert_int_eq(ssm_model_get_steps(model, other, 8, b, &err), 0);
    for (int32_t i = 0; i < ssm_model_get_info(model)->n_layers; i++) {
        double all = 0, apart = 0;
        for (int k = 0; k < SSM_STEP_QUANTILES; k++)
            apart += fabs(log(a[i].delta[k] / b[i].delta[k]));
        ck_assert_double_gt(apart, 0.2);
        for (int k = 0; k < SSM_MEMORY_BINS; k++)
            all += a[i].shares[k];
        ck_assert_double_eq_tol(all, 1, 1e-9);
        for (int k = 1; k < SSM_STEP_QUANTILES; k++)
            ck_assert(a[i].delta[k] >= a[i].delta[k - 1] && a[i].decay[k] >= a[i].decay[k - 1] &&
                      a[i].half_life[k] >= a[i].half_life[k - 1]);
    }
    ssm_model_free(model);
}
END_TEST

START_TEST(what_is_refused) {
    ssm_layer_steps steps[MOST_LAYERS];
    ssm_layer_memory memory;
    static const int32_t unknown[] = {1, 16}, negative[] = {-1};
    open_model("copying-mamba");
    ck_assert_int_eq(ssm_model_get_steps(model, text, 0, steps, &err), SSM_EINVAL);
    ck_assert_int_eq(ssm_model_get_steps(model, unknown, 2, steps, &err), SSM_EINVAL);
    ck_assert_int_eq(ssm_model_get_steps(model, negative, 1, steps, &err), SSM_EINVAL);
    ck_assert_int_eq(ssm_model_get_memory(model, 0, &memory, &err), SSM_EUNSUPPORTED);
    ssm_model_free(model);
    open_model("copying-s4d");
    ck_assert_int_eq(ssm_model_get_steps(model, text, 1, steps, &err), SSM_EUNSUPPORTED);
    ck_assert_str_eq(err.param, "architecture");
    ssm_model_free(model);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("memory_steps");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, without_a_say_steps_are_their_bias, 0, 2);
    tcase_add_test(tc, a_text_has_a_say);
    tcase_add_test(tc, what_is_refused);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
